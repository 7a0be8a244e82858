"""A Gaussian over the rows of a narrow table.

Where a table has many more rows than columns, the covariances of its columns can be learned
outright: ``x_n ~ N(mean, covariance)``, by expectation maximisation over the missing cells (Little
and Rubin, *Statistical Analysis with Missing Data*, section 11.3), the covariance shrunken towards
independent columns. Given the row's observed cells o, with ``K = covariance^-1``, the missing
cells m are

    x_m ~ N(mean_m - K_mm^-1 K_mo (x_o - mean_o), K_mm^-1)

so that a row costs the cube of its missing cells; or of its observed ones, where those are fewer,
by way of the inverse of their covariance.

NumPy, float64: the batches are of small matrices, of as many sizes as rows have gaps.
"""

from typing import NamedTuple

import numpy as np

# The most columns, and the fewest rows for each: below that, factors say more.
_MOST_COLUMNS, _ROWS_A_COLUMN = 128, 2
# Cubes of missing or observed cells, of an iteration: some 0.3 s.
_MOST_WORK = 3e8
# Cells of a table, observed or not: a few arrays of 256 MB.
_MOST_TABLE = 2**25
# At least so many iterations, and more where one is cheap, until none of the logarithm's numbers
# moves by more than the last number. With it, of 0.001 to 0.03, the geometric mean error of 12
# tables was the least where cells were missing for what others say, and within 0.5% of that where
# they were missing at random.
_FEWEST_ITERATIONS, _MOST_ITERATIONS, _ALL_WORK, _TOLERANCE = 15, 200, 1e8, 3e-3
# Complete rows for each column, to start from them: from independent columns, those that add up are
# not found where large values of one are missing.
_COMPLETE_ROWS = 5
# Iterations that an extrapolation may save, and the least variance on the way.
_MOST_STEPS, _LEAST_VARIANCE = 16, 1e-14
# What the covariance is shrunken to counts as so many rows for each column. A whole one had errors
# 0.2% to 0.9% higher on 24 tables.
_PRIOR_ROWS = 0.3
# The variances of which it is found what to shrink to. On these tables the one found had errors 1%
# to 3% below those of 0.1, of 1 and of 0.01 for all, where the best of them differs.
_PRIOR_VARIANCES = np.geomspace(1e-6, 2, 60)
# Of the regression on what is missing.
_MOST_CELLS, _NEWTON_STEPS = 20_000, 10
# Numbers in a batch.
_BATCH = 2**21


class RowGaussian(NamedTuple):
    """The distribution of a row: mean [M] and covariance [M, M], float64."""

    mean: np.ndarray
    covariance: np.ndarray


class Conditioned(NamedTuple):
    """What a Gaussian says of rows, given their observed cells; each [N, M].

    Attributes:
      values: means; of observed cells, what they hold.
      variances: zero at observed cells.
      errors: at observed cells, value minus prediction from the row's others; zero at missing ones.
    """

    values: np.ndarray
    variances: np.ndarray
    errors: np.ndarray


def suits(counts: np.ndarray, num_columns: int) -> bool:
    """Whether a table is narrow and full enough.

    Args:
      counts: [N], observed cells of each row.
      num_columns: M.
    """
    if not 2 <= num_columns <= min(_MOST_COLUMNS, len(counts) / _ROWS_A_COLUMN):
        return False
    if len(counts) * num_columns > _MOST_TABLE:
        return False
    return _work(counts, num_columns) <= _MOST_WORK


def _work(counts: np.ndarray, num_columns: int) -> float:
    """Of an iteration: the cubes of each row's observed cells or missing ones."""
    return float((np.minimum(counts, num_columns - counts).astype(float) ** 3).sum())


def fit(values: np.ndarray, observed: np.ndarray, start: RowGaussian | None = None) -> RowGaussian:
    """Fits the Gaussian to a table.

    The mode under a flat prior of the mean and an inverse Wishart one of the covariance:
    covariances of zero between columns of one variance, counting as `_PRIOR_ROWS` times M. The
    variance is that under which the completed rows are the likeliest (empirical Bayes). Expectation
    maximisation creeps where little is known, and towards a variance of zero, which sums of columns
    may have: two iterations at a time are extrapolated, in the logarithm of the covariance
    (SQUAREM; Varadhan and Roland, Scandinavian Journal of Statistics 2008).

    Args:
      values: [N, M], standardised; whatever the missing cells hold.
      observed: [N, M] bool.
      start: of much the same table, to start from.
    """
    num_rows, num_columns = values.shape
    values = np.where(observed, values, 0).astype(np.float64)
    found = _start(values, observed) if start is None else start
    blocks = _blocks(observed)
    work = _work(observed.sum(axis=1), num_columns) + num_rows * num_columns**2
    iterations = np.clip(_ALL_WORK / work, _FEWEST_ITERATIONS, _MOST_ITERATIONS)
    for _ in range(int(iterations / 2)):
        first = _maximised(values, observed, blocks, found)
        second = _maximised(values, observed, blocks, first)
        path = [_to_vector(each) for each in (found, first, second)]
        found = _from_vector(_extrapolated(*path), num_columns)
        if np.abs(path[2] - path[1]).max() <= _TOLERANCE:
            break
    return _maximised(values, observed, blocks, found)


def _start(values: np.ndarray, observed: np.ndarray) -> RowGaussian:
    """What complete rows say, where these are many; else independent columns."""
    size, complete = values.shape[1], observed.all(axis=1)
    if complete.sum() >= _COMPLETE_ROWS * size:
        return _mode(values[complete], 0)
    return RowGaussian(np.zeros(size), np.eye(size))


def _maximised(values, observed, blocks: list["_Blocks"], before: RowGaussian) -> RowGaussian:
    """An iteration of expectation maximisation."""
    return _mode(*_expect(values, observed, blocks, *before))


def _mode(completed: np.ndarray, uncertain: np.ndarray | int) -> RowGaussian:
    """The Gaussian of completed rows [N, M] and the sum [M, M] of their covariances."""
    num_rows, size = completed.shape
    count, mean = _PRIOR_ROWS * size, completed.mean(axis=0)
    left = completed - mean
    scatter = left.T @ left + uncertain
    prior = count * _prior_variance(scatter, num_rows, count) * np.eye(size)
    return RowGaussian(mean, (scatter + prior) / (num_rows + count))


def _extrapolated(first: np.ndarray, second: np.ndarray, third: np.ndarray) -> np.ndarray:
    """Where three points of a path in the same direction lead, but not too far."""
    step, turn = second - first, third - 2 * second + first
    length = np.sqrt((step**2).sum() / max((turn**2).sum(), 1e-300))
    length = np.clip(length, 1, _MOST_STEPS)
    return first + 2 * length * step + length**2 * turn


def _to_vector(gaussian: RowGaussian) -> np.ndarray:
    """The mean, and the logarithm of the covariance, which is any symmetric matrix; [M + M * M]."""
    own, directions = np.linalg.eigh(gaussian.covariance)
    logarithm = directions * np.log(np.maximum(own, _LEAST_VARIANCE)) @ directions.T
    return np.append(gaussian.mean, logarithm)


def _from_vector(vector: np.ndarray, size: int) -> RowGaussian:
    own, directions = np.linalg.eigh(vector[size:].reshape(size, size))
    own = np.exp(np.clip(own, np.log(_LEAST_VARIANCE), -np.log(_LEAST_VARIANCE)))
    return RowGaussian(vector[:size], directions * own @ directions.T)


def missing_by_value(gaussian: RowGaussian, values: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """By how much the log odds of being missing rise with a cell's own value, a unit; [M].

    Cells may be missing because of what they would say. If the log odds are linear in the value,
    and an observed value is normal around its prediction, a missing one is normal with the same
    variance around the prediction plus slope times variance; and the slope is that of the log odds
    along the predictions, which are known of all cells. It is told from what else cells may be
    missing for, and cannot be where a single column has gaps, by logistic regression on the
    column, the share of the row's other cells that are missing, and their values. A slope that may
    be chance (below twice its standard error) is none, one above is shrunken accordingly.

    Dependence on other columns looks much the same: of 24 tables whose cells were missing by other,
    observed columns, what follows from these slopes made 11 worse and 2 better
    (``experiments/RESULTS.md``). They are for those who know that cells are missing by value.

    Args:
      gaussian: fitted, under the assumption that cells are missing at random.
      values: [N, M], of the rows it was fitted to.
      observed: [N, M] bool.
    """
    size, rows = len(gaussian.mean), condition(gaussian, values, observed)
    deviations = np.sqrt(np.diag(gaussian.covariance))
    chosen = np.random.default_rng(0).permutation(observed.size)[:_MOST_CELLS]
    row, column = np.divmod(chosen, size)
    missing = (~observed).astype(float)
    label = missing[row, column]
    values = (rows.values - gaussian.mean) / deviations
    own = values[row, column] - (rows.errors / deviations)[row, column]
    others = values[row]
    others[np.arange(len(row)), column] = 0
    share = (missing.sum(axis=1)[row] - label) / (size - 1)
    design = np.column_stack([own, share, others, np.eye(size)[column]])
    # Of each coefficient, a prior deviation of one for slopes and of ten for constants.
    precision, found = (
        np.where(np.arange(2 * size + 2) < size + 2, 1.0, 0.01),
        np.zeros(2 * size + 2),
    )
    for _ in range(_NEWTON_STEPS):
        odds = 1 / (1 + np.exp(-np.clip(design @ found, -30, 30)))
        curvature = (design * (odds * (1 - odds))[:, None]).T @ design + np.diag(precision)
        found += np.linalg.solve(curvature, design.T @ (label - odds) - precision * found)
    doubt = 4 * np.linalg.inv(curvature)[0, 0] / max(found[0] ** 2, 1e-12)
    return found[0] * max(0.0, 1 - doubt) / deviations


class _Blocks(NamedTuple):
    """Rows of much the same number of missing cells, or of observed ones, whichever are the fewer.

    Attributes:
      rows: [B].
      columns: [B, G], those cells', then others.
      inside: [B, G] bool, which are.
      missing: whether they are the missing ones.
    """

    rows: np.ndarray
    columns: np.ndarray
    inside: np.ndarray
    missing: bool


def _blocks(observed: np.ndarray) -> list[_Blocks]:
    num_columns, missing = observed.shape[1], (~observed).sum(axis=1)
    few = 2 * missing <= num_columns
    batches = []
    for of_missing, belong, counts in (
        (True, few & (missing > 0), missing),
        (False, ~few, num_columns - missing),
    ):
        order = np.argsort(counts, kind="stable")
        order = order[belong[order]]
        first = 0
        while first < len(order):
            least = counts[order[first]]
            last = int(np.searchsorted(counts[order], least + max(2, least // 8), side="right"))
            most = max(1, int(counts[order[last - 1]]))
            last = min(last, first + max(1, _BATCH // most**2))
            rows = order[first:last]
            others = observed[rows] == of_missing
            columns = np.argsort(others, axis=1, kind="stable")[:, :most]
            inside = np.arange(most) < counts[rows][:, None]
            batches.append(_Blocks(rows, columns, inside, of_missing))
            first = last
    return batches


def _inverses(batch: _Blocks, matrix: np.ndarray) -> np.ndarray:
    """Inverses [B, G, G] of a matrix' blocks; zero beyond them.

    Of the precision and missing cells: their covariances given the observed ones. Of the
    covariance and observed cells: the precisions of these.
    """
    both = batch.inside[:, :, None] & batch.inside[:, None, :]
    own = matrix[batch.columns[:, :, None], batch.columns[:, None, :]]
    return np.linalg.inv(np.where(both, own, np.eye(both.shape[1]))) * both


def _fill(completed, batch: _Blocks, inverses, mean, covariance, precision) -> None:
    """Sets the missing cells of a batch to their means; before, they hold ``mean``."""
    rows, columns, inside, missing = batch
    each = np.arange(len(rows))[:, None]
    left = completed[rows] - mean
    if missing:
        pull = (left @ precision)[each, columns] * inside
        moved = np.einsum("bij,bj->bi", inverses, pull)
        places = np.broadcast_to(rows[:, None], columns.shape)[inside], columns[inside]
        completed[places] -= moved[inside]
        return
    pull, observed = np.zeros_like(left), np.zeros(left.shape, bool)
    pull[each, columns] = np.einsum("bij,bj->bi", inverses, left[each, columns])
    observed[each, columns] = inside
    completed[rows] = np.where(observed, completed[rows], mean + pull @ covariance)


def _expect(values, observed, blocks: list[_Blocks], mean, covariance):
    """Completed rows [N, M], and the sum [M, M] of their covariances."""
    precision, size = np.linalg.inv(covariance), len(mean)
    completed = np.where(observed, values, mean)
    # Of rows by their missing cells the covariances; of the others ``covariance`` less its
    # product with the observed cells' precisions and itself.
    sums, others = {True: np.zeros(size**2), False: np.zeros(size**2)}, 0
    for batch in blocks:
        inverses = _inverses(batch, precision if batch.missing else covariance)
        _fill(completed, batch, inverses, mean, covariance, precision)
        places = batch.columns[:, :, None] * size + batch.columns[:, None, :]
        sums[batch.missing] += np.bincount(places.ravel(), inverses.ravel(), size**2)
        others += 0 if batch.missing else len(batch.rows)
    known = covariance @ sums[False].reshape(size, size) @ covariance
    return completed, sums[True].reshape(size, size) + others * covariance - known


def _prior_variance(scatter: np.ndarray, num_rows: int, count: float) -> float:
    """The ``c`` of the largest likelihood of rows with this scatter, their covariance unknown.

    Under ``covariance ~ IW(count c I, count + M - 1)``.
    """
    size = len(scatter)
    own = np.maximum(np.linalg.eigvalsh(scatter), 0)
    prior = count * _PRIOR_VARIANCES
    degrees = count + size - 1
    log_density = degrees * size * np.log(prior)
    log_density -= (degrees + num_rows) * np.log(prior[:, None] + own).sum(axis=1)
    return float(_PRIOR_VARIANCES[log_density.argmax()])


def condition(gaussian: RowGaussian, values: np.ndarray, observed: np.ndarray) -> Conditioned:
    """Completes rows, fitted or others, each from its own observed cells.

    Args:
      gaussian: of the table.
      values: [N, M], whatever the missing cells hold.
      observed: [N, M] bool.
    """
    mean, covariance = gaussian
    precision = np.linalg.inv(covariance)
    completed, variances = np.where(observed, values, mean), np.zeros(values.shape)
    # Precisions of the observed cells, each given the other observed ones of its row.
    own = np.broadcast_to(np.diag(precision), values.shape).copy()
    for batch in _blocks(observed):
        inverses = _inverses(batch, precision if batch.missing else covariance)
        _fill(completed, batch, inverses, mean, covariance, precision)
        rows, columns, inside, missing = batch
        places = np.broadcast_to(rows[:, None], columns.shape)[inside], columns[inside]
        towards = (precision if missing else covariance)[columns] * inside[:, :, None]
        known = np.einsum("bim,bim->bm", np.matmul(inverses, towards), towards)
        if missing:
            variances[places] = np.einsum("bii->bi", inverses)[inside]
            own[rows] -= known
        else:
            variances[rows] = np.where(observed[rows], 0, np.diag(covariance) - known)
            own[places] = np.einsum("bii->bi", inverses)[inside]
    # At least the precision of a cell by itself, which rounding must not undercut.
    own = np.maximum(own, 1 / np.diag(covariance))
    errors = np.where(observed, (completed - mean) @ precision / own, 0)
    return Conditioned(completed, np.maximum(variances, 0), errors)


def gains(gaussian: RowGaussian, observed: np.ndarray) -> np.ndarray:
    """What a row's observed cells count for in its missing ones: [N, M, M] float32.

    At (n, m, j) the coefficient of cell j of row n in the prediction of cell m; zero where m is
    observed or j is missing. Without cell j, m is predicted lower by it times j's error.
    """
    mean, covariance = gaussian
    precision, size = np.linalg.inv(covariance), len(mean)
    found = np.zeros((len(observed), size, size), np.float32)
    for batch in _blocks(observed):
        inverses = _inverses(batch, precision if batch.missing else covariance)
        rows, columns, inside, missing = batch
        towards = (precision if missing else covariance)[columns] * inside[:, :, None]
        coefficients = np.matmul(inverses, towards)
        b, g = np.nonzero(inside)
        if missing:
            found[rows[b], columns[b, g]] = -coefficients[b, g]
        else:
            found[rows[b], :, columns[b, g]] = coefficients[b, g]
    found *= ~observed[:, :, None]
    found *= observed[:, None, :]
    return found
