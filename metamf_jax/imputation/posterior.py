"""A posterior over the factors of one matrix: what is imputed, and with what error.

The model is ``x_nm = mean + b_n + c_m + u_n . v_m + noise``, with Gaussian priors on effects and
factors whose precisions, one for the row effects and one for each factor, are learned from the
matrix itself, as is the noise of each column: variational Bayes for matrix factorization (Lim and
Teh, KDD Cup 2007; Ilin and Raiko, JMLR 2010) with relevance determination. Every update is in
closed form, an exact ridge solve that knows the variances of the other side; the posterior
covariances are kept by their diagonals.

A factor is kept with the effects as two more columns, ``(u, b, 1)`` and ``(v, 1, c)``: K is the
rank plus two below. The sweeps are driven from the host, in NumPy: `row_solver.Rows` does the work.
"""

from typing import NamedTuple

import numpy as np

from metamf_jax.bias_model import Effects
from metamf_jax.imputation.row_solver import Problem, Rows, Solution
from metamf_jax.types import Array, Factors

# Observations' worth of the matrix's noise in that of a column; rows' worth of a mean square in
# each precision: small matrices must not declare a factor certain or absent.
_NOISE_WEIGHT = 10.0
_LEAST_NOISE = 1e-6
_PRECISION_WEIGHT, _START_SQUARE = 2.0, 0.1
# The noise starts at this multiple of what the start leaves over. Too much of it lets real factors
# die: on synthetic matrices of rank 3 with 30% of 60 x 45 cells the error was 0.716 with 1.5, 0.666
# with 1, 0.539 with 0.7, 0.528 with 0.3; on fuller ones it made no difference.
_START_NOISE = 0.5
# The sweeps end when one changes the noise by less than this share.
_TOLERANCE = 1e-3


class Side(NamedTuple):
    """Posterior of the factors of all rows, or of all columns.

    Attributes:
      mean: [N, K].
      variance: [N, K], zero where a factor is one by definition.
      precision: [K], of the prior.
    """

    mean: Array
    variance: Array
    precision: Array


class Posterior(NamedTuple):
    """Posterior of a matrix.

    Attributes:
      mean: the overall mean, a scalar.
      rows: ``(u, b, 1)``.
      columns: ``(v, 1, c)``.
      noise: [M], variance of the noise in each column.
    """

    mean: Array
    rows: Side
    columns: Side
    noise: Array


def start(effects: Effects, factors: Factors, noise: float) -> Posterior:
    """Where the sweeps start from.

    Args:
      effects: the bias model.
      factors: of its residuals.
      noise: mean square of what these leave over.
    """
    u, v = (np.asarray(x, np.float32) for x in factors)
    ones = np.ones((len(u), 1), np.float32), np.ones((len(v), 1), np.float32)
    rows = np.hstack([u, np.asarray(effects.rows)[:, None], ones[0]])
    columns = np.hstack([v, ones[1], np.asarray(effects.columns)[:, None]])
    of_rows, of_columns = (Side(x, np.zeros_like(x), np.zeros_like(x[0])) for x in (rows, columns))
    started = np.full(len(v), _START_NOISE * noise, np.float32)
    return Posterior(np.asarray(effects.mean, np.float32), of_rows, of_columns, started)


def fit(rows: Rows, columns: Rows, posterior: Posterior, sweeps: int = 50) -> Posterior:
    """Fits the posterior by sweeps over columns, noise, precisions, and at last the rows.

    Args:
      rows: the matrix, standardised.
      columns: its transpose.
      posterior: where to start: from `start`, or the posterior of much the same matrix.
      sweeps: the most.

    Returns:
      The posterior, NumPy arrays.
    """
    total = max(int(rows.counts.sum()), 1)
    row_free, column_free = _free(posterior.rows.mean.shape[1])
    posterior = posterior._replace(
        rows=_with_precision(posterior.rows, rows.counts, row_free),
        columns=_with_precision(posterior.columns, columns.counts, column_free),
    )
    before = np.inf
    for _ in range(sweeps):
        solved = columns.solve(_column_problem(posterior, posterior.noise))
        side = _columns_from(posterior, solved)
        posterior = posterior._replace(columns=_with_precision(side, columns.counts, column_free))
        # Sums of squares are right to float32's rounding, and may be negative by that.
        overall = max(float(solved.square.sum(dtype=np.float64)) / total, _LEAST_NOISE)
        posterior = posterior._replace(noise=_noise(solved, columns.counts, overall))
        solved = rows.solve(row_problem(posterior, len(rows.counts)))
        side = rows_from(posterior, solved)
        step = solved.left.sum(dtype=np.float64) / max((columns.counts / posterior.noise).sum(), 1)
        posterior = posterior._replace(rows=side, mean=np.float32(posterior.mean + step))
        posterior = _rotated(posterior, rows, columns)
        if abs(before - overall) <= _TOLERANCE * overall:
            break
        before = overall
    # As further rows will be solved: with the precisions as they stand now.
    solved = rows.solve(row_problem(posterior, len(rows.counts)))
    return posterior._replace(rows=rows_from(posterior, solved))


def fold_in_columns(columns: Rows, posterior: Posterior) -> tuple[Side, np.ndarray]:
    """The posterior of further columns over the fitted rows, and the noise [M'] in each.

    Nothing of the fitted matrix changes.

    Args:
      columns: the cells of the further columns, those as rows; standardised.
      posterior: of the fitted matrix.
    """
    usual = float(np.exp(np.log(posterior.noise).mean()))
    noise = np.full(len(columns.counts), usual, np.float32)
    solved = columns.solve(_column_problem(posterior, noise))
    # Once more with the noise that they then show.
    noise = _noise(solved, columns.counts, usual)
    solved = columns.solve(_column_problem(posterior, noise))
    return _columns_from(posterior, solved), noise


def row_problem(posterior: Posterior, num_rows: int) -> Problem:
    """What rows, those fitted or others, are solved with; of NumPy or JAX arrays."""
    columns = posterior.columns
    width = columns.mean.shape[1]
    row_free, _ = _free(width)
    dtype = columns.mean.dtype
    return Problem(
        design=columns.mean * row_free,
        spread=columns.variance * row_free,
        offset=columns.mean[:, -1],
        offset_spread=columns.variance[:, -1],
        weight=1 / posterior.noise,
        base=np.ones(num_rows, dtype) * posterior.mean,
        noise=np.ones(num_rows, dtype),
        mean=np.ones((num_rows, 1), dtype) * ~row_free,
        precision=posterior.rows.precision,
        strength=np.ones(num_rows, dtype),
    )


def _columns_from(posterior: Posterior, solved: Solution) -> Side:
    _, column_free = _free(solved.mean.shape[1])
    return Side(solved.mean, solved.variance * column_free, posterior.columns.precision)


def _noise(solved: Solution, counts: np.ndarray, overall: float) -> np.ndarray:
    """The noise [M] of columns that were solved, shrunken to that of all."""
    noise = (np.maximum(solved.square, 0) + _NOISE_WEIGHT * overall) / (counts + _NOISE_WEIGHT)
    return np.maximum(noise, _LEAST_NOISE).astype(np.float32)


def rows_from(posterior: Posterior, solved: Solution) -> Side:
    """The posterior of rows that were solved so."""
    row_free, _ = _free(solved.mean.shape[1])
    return Side(solved.mean, solved.variance * row_free, posterior.rows.precision)


def _column_problem(posterior: Posterior, noise: Array) -> Problem:
    """What columns, those fitted or others, are solved with; noise [M] is that of their cells."""
    rows, num_columns = posterior.rows, len(noise)
    _, column_free = _free(rows.mean.shape[1])
    return Problem(
        design=rows.mean * column_free,
        spread=rows.variance * column_free,
        offset=rows.mean[:, -2] + posterior.mean,
        offset_spread=rows.variance[:, -2],
        weight=np.ones(len(rows.mean), np.float32),
        base=np.zeros(num_columns, np.float32),
        noise=noise,
        mean=np.ones((num_columns, 1), np.float32) * ~column_free,
        precision=posterior.columns.precision,
        strength=np.ones(num_columns, np.float32),
    )


def _rotated(posterior: Posterior, rows: Rows, columns: Rows) -> Posterior:
    """The same posterior means, in other coordinates of the factors: those of most evidence.

    ``U A, V A^-T`` with the same products, where the second moments of both are diagonal and equal
    up to the ratio of the sides (Ilin and Raiko, section 3.4). Sweeps alone turn there so slowly
    that they seem to have converged: ML-100K u1 took 154 solves to the error of 34 with this, and
    300 x 300 of Jester never got there. Variances follow by their diagonals; the next sweep finds
    them anew.
    """
    rank = posterior.rows.mean.shape[1] - 2

    def moment(side, seen):
        mean = side.mean[seen, :rank].astype(np.float64)
        return mean.T @ mean + np.diag(side.variance[seen, :rank].sum(axis=0, dtype=np.float64))

    sides = (posterior.rows, rows.counts > 0), (posterior.columns, columns.counts > 0)
    of_rows, of_columns = (moment(side, seen) for side, seen in sides)
    # Factors that have died away leave moments without an inverse.
    root = np.linalg.cholesky(of_rows + 1e-9 * np.trace(of_rows) / rank * np.eye(rank))
    squares, turn = np.linalg.eigh(root.T @ of_columns @ root)
    scale = np.maximum(squares, 1e-9 * squares.max()) ** 0.25
    scale = scale * (sides[0][1].sum() / sides[1][1].sum()) ** 0.25
    turned = []
    for (side, seen), free, by in zip(
        sides,
        _free(rank + 2),
        (np.linalg.solve(root.T, turn) * scale, root @ turn / scale),
        strict=True,
    ):
        mean, variance = side.mean.copy(), side.variance.copy()
        mean[:, :rank] = mean[:, :rank] @ by
        variance[:, :rank] = variance[:, :rank] @ by**2
        turned.append(_with_precision(Side(mean, variance, side.precision), seen, free))
    return posterior._replace(rows=turned[0], columns=turned[1])


def _free(width: int) -> tuple[np.ndarray, np.ndarray]:
    """Which columns of ``(u, b, 1)`` and ``(v, 1, c)`` are not one by definition; bool [1, K]."""
    place = np.arange(width)[None, :]
    return place != width - 1, place != width - 2


def _with_precision(side: Side, counts: np.ndarray, free: np.ndarray) -> Side:
    """Relevance determination: the prior precision of each factor, from rows that have cells."""
    seen = counts > 0
    squares = (side.mean**2 + side.variance)[seen].sum(axis=0, dtype=np.float64)
    precision = (seen.sum() + _PRECISION_WEIGHT) / (squares + _PRECISION_WEIGHT * _START_SQUARE)
    return side._replace(precision=np.where(free[0], precision, 1).astype(np.float32))
