"""Gaussian posteriors of all rows of one matrix, given the columns: one ridge regression a row.

A row's factor ``u`` has the prior ``N(mean_n, diag(strength_n precision)^-1)`` and explains the
row's cells, ``x_nm = base_n + offset_m + u . d_m + noise``, where ``d_m ~ N(design_m, diag
spread_m)`` and the offset are uncertain themselves, and the noise has the variance ``noise_n /
weight_m``. In a mean-field approximation (Lim and Teh, KDD Cup 2007) the posterior of the factor is
a Gaussian of the precision

    sum_m weight_m / noise_n (design_m design_m^T + diag spread_m) + strength_n diag precision

of whose covariance the diagonal is kept. Without spread its mean is the exact half-step of
alternating least squares.

`Rows` is a matrix prepared for this. On the CPU, where Numba is installed, a compiled kernel solves
row after row in threads (`posterior_rows`): XLA's batched matrices of a million cells pass through
memory, and it runs compiled operations one after the other (jax 0.10). Elsewhere it is `solve`,
through XLA.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metamf_jax import ridge, sums
from metamf_jax.types import Array, Entries, Factors

_EXACT = jax.lax.Precision.HIGHEST


class Problem(NamedTuple):
    """What the rows are solved with; all float32 (or float64, through XLA).

    Attributes:
      design: [M, K], zero in columns of the factors that are fixed: these stay at the prior mean.
      spread: [M, K], its variances.
      offset: [M], taken off the values.
      offset_spread: [M], its variances.
      weight: [M], what the columns multiply the precision of the noise by.
      base: [N], taken off the values.
      noise: [N], what the rows multiply its variance by.
      mean: [N, K], of the prior.
      precision: [K], of the prior.
      strength: [N], what the rows multiply that by.
    """

    design: Array
    spread: Array
    offset: Array
    offset_spread: Array
    weight: Array
    base: Array
    noise: Array
    mean: Array
    precision: Array
    strength: Array


class Solution(NamedTuple):
    """The rows' posteriors, and how well they explain the rows' cells.

    Attributes:
      mean: [N, K].
      variance: [N, K].
      left: [N], sums of ``weight (x - base - offset - mean . design)``.
      square: [N], sums of the expected ``weight (x - base - offset - u . d)^2``.
    """

    mean: Array
    variance: Array
    left: Array
    square: Array


def solve(observations: sums.Observations, problem: Problem) -> Solution:
    """Solves all rows of a matrix through XLA; pure.

    Args:
      observations: the observed cells, in either layout.
      problem: see there.
    """
    p = Problem(*map(jnp.asarray, problem))
    zeros = jnp.zeros_like(p.base)[:, None]
    roots = jnp.sqrt(p.weight)

    def to_cells(rows, columns):
        return sums.spread(observations, rows, columns)

    def row_sums(per_cell):
        return sums.pool(observations, per_cell)[0]

    # Padding cells have no column and get zeros.
    root = to_cells(zeros, roots[:, None])[..., 0]
    taken_off = to_cells(p.base[:, None], p.offset[:, None])[..., 0]
    values = root * (sums.observed_values(observations) - taken_off)
    targets = _with_values(observations, values)
    scaled = roots[:, None] * p.design
    gram, moment = sums.row_normal_equations(targets, scaled)
    spread = p.weight[:, None] * jnp.concatenate([p.spread, p.offset_spread[:, None]], axis=1)
    uncertain = row_sums(to_cells(jnp.broadcast_to(zeros, (len(zeros), spread.shape[1])), spread))
    uncertain, of_offset = uncertain[:, :-1], uncertain[:, -1]
    gram_diagonal = jnp.diagonal(gram, axis1=1, axis2=2)
    diagonal = uncertain + (p.noise * p.strength)[:, None] * p.precision[None, :]
    identity = jnp.broadcast_to(jnp.eye(p.design.shape[1], dtype=gram.dtype), gram.shape)
    inverse = ridge.inverse(gram + diagonal[:, :, None] * identity)
    left = moment - jnp.einsum("nkl,nl->nk", gram, p.mean, precision=_EXACT) - uncertain * p.mean
    mean = p.mean + jnp.einsum("nkl,nl->nk", inverse, left, precision=_EXACT)
    variance = p.noise[:, None] * jnp.diagonal(inverse, axis1=1, axis2=2)
    residuals = sums.residuals(targets, Factors(mean, scaled))
    left_over = row_sums(jnp.stack([root * residuals, residuals**2], axis=-1))
    square = left_over[:, 1] + of_offset
    square += (variance * gram_diagonal + uncertain * (mean**2 + variance)).sum(axis=1)
    return Solution(mean, variance, left_over[:, 0], square)


def _with_values(observations, values):
    if isinstance(observations, Entries):
        return Entries(observations.rows, observations.columns, values, observations.shape)
    return observations._replace(values=values)


class Rows:
    """One matrix by its rows, ready to be solved.

    Attributes:
      counts: [N], observed cells of each row.
    """

    def __init__(self, observations: sums.Observations):
        """Prepares a matrix.

        Args:
          observations: the observed cells, NumPy arrays. A list may be solved by the compiled
            kernel (`sums.kernels_run_here`), a dense matrix through XLA.
        """
        self._observations, self._sorted = observations, None
        if not isinstance(observations, Entries):
            self.counts = np.asarray(observations.observed).sum(axis=1)
            return
        rows, columns, values = (
            np.asarray(x) for x in (observations.rows, observations.columns, observations.values)
        )
        num_rows = observations.shape[0]
        self.counts = np.bincount(rows, minlength=num_rows + 1)[:num_rows]
        if sums.kernels_run_here():
            from metamf_jax.kernels import posterior_rows

            self._sorted = posterior_rows.sort(rows, columns, values, self.counts)

    def solve(self, problem: Problem) -> Solution:
        """Solves all rows; NumPy arrays, the same to rounding by every backend."""
        if self._sorted is None:
            return jax.tree.map(np.asarray, _solve_compiled(self._observations, problem))
        from metamf_jax.kernels import posterior_rows

        return Solution(*posterior_rows.solve(self._sorted, problem))


_solve_compiled = jax.jit(solve)
