"""A posterior over the factors of one matrix: what is imputed, and with what error.

The model is ``x_nm = mean + b_n + c_m + u_n . v_m + noise``, with Gaussian priors on effects and
factors whose precisions, one for the row effects and one for each factor, are learned from the
matrix itself, as is the noise of each column: variational Bayes for matrix factorization (Lim and
Teh, KDD Cup 2007; Ilin and Raiko, JMLR 2010) with relevance determination. Every update is in
closed form, an exact ridge solve that knows the variances of the other side; the posterior
covariances are kept by their diagonals.

Pure functions of one matrix, on either layout; ``jax.vmap`` makes batches. A factor is kept with
the effects as two more columns, ``(u, b, 1)`` and ``(v, 1, c)``: K is the rank plus two below.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metamf_jax import bias_model, cells, ridge
from metamf_jax.bias_model import Effects
from metamf_jax.types import Array, Entries, Factors

# Observations' worth of the matrix's noise in that of a column; rows' worth of a mean square in
# each precision: small matrices must not declare a factor certain or absent.
_NOISE_WEIGHT = 10.0
_PRECISION_WEIGHT, _START_SQUARE = 2.0, 0.1
# The noise starts at this multiple of what the start leaves over, and the factors settle first.
_START_NOISE = 1.5


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


def fit(
    observations: cells.Observations, effects: Effects, factors: Factors, sweeps: int
) -> Posterior:
    """Fits the posterior by sweeps over columns, noise, precisions, and at last the rows.

    Args:
      observations: the observed cells, standardised.
      effects: where to start.
      factors: of the residuals, where to start.
      sweeps: how many.
    """
    counts = cells.counts(observations)
    values = cells.observed_values(observations)
    start = bias_model.append(factors, effects._replace(mean=jnp.zeros_like(effects.mean)))
    rank = factors.u.shape[1]
    row_free, column_free = _free(rank)
    total = jnp.maximum(counts[0].sum(), 1)

    def squares(posterior):
        """Expected squared residuals of the cells, [N, M] or [E]."""
        rows, columns = posterior.rows, posterior.columns
        left = _with(observations, values - posterior.mean)
        squared = cells.residuals(left, Factors(rows.mean, columns.mean)) ** 2
        return squared + _product_variances(observations, rows, columns)

    def with_noise(posterior):
        sums = cells.pool(observations, squares(posterior)[..., None])[1][:, 0]
        overall = sums.sum() / total
        noise = (sums + _NOISE_WEIGHT * overall) / (counts[1] + _NOISE_WEIGHT)
        return posterior._replace(noise=jnp.maximum(noise, 1e-6))

    def sweep(posterior, _):
        columns = _solve(
            cells.transpose(observations),
            posterior.mean,
            posterior.rows,
            1 / posterior.noise,
            jnp.ones_like(posterior.rows.mean[:, 0]),
            posterior.columns,
            column_free,
            -2,
        )
        posterior = posterior._replace(columns=_with_precision(columns, counts[1], column_free))
        posterior = with_noise(posterior)
        rows = solve_rows(observations, posterior)
        posterior = posterior._replace(rows=_with_precision(rows, counts[0], row_free))
        left = cells.residuals(
            _with(observations, values), Factors(posterior.rows.mean, posterior.columns.mean)
        )
        return posterior._replace(mean=left.sum() / total), None

    def side(mean):
        return Side(mean, jnp.zeros_like(mean), jnp.ones_like(mean[0]))

    posterior = Posterior(effects.mean, side(start.u), side(start.v), jnp.zeros_like(counts[1]))
    posterior = posterior._replace(
        rows=_with_precision(posterior.rows, counts[0], row_free),
        columns=_with_precision(posterior.columns, counts[1], column_free),
    )
    posterior = with_noise(posterior)
    posterior = posterior._replace(noise=_START_NOISE * posterior.noise)
    posterior, _ = jax.lax.scan(sweep, posterior, None, length=sweeps)
    # As further rows will be solved: with the precisions as they stand now.
    return posterior._replace(rows=solve_rows(observations, posterior))


def solve_rows(observations: cells.Observations, posterior: Posterior) -> Side:
    """The posterior of rows, those fitted or others, given the columns.

    Args:
      observations: the observed cells of the rows, standardised.
      posterior: whose columns, noise and precisions to use.
    """
    columns = posterior.columns
    row_free, _ = _free(columns.mean.shape[1] - 2)
    num_rows = cells.counts(observations)[0].shape[0]
    ones = jnp.ones((num_rows, 1), columns.mean.dtype)
    old = Side(
        jnp.where(row_free, 0, 1) * ones, jnp.zeros_like(row_free) * ones, posterior.rows.precision
    )
    return _solve(
        observations,
        posterior.mean,
        columns,
        jnp.ones((num_rows,), columns.mean.dtype),
        1 / posterior.noise,
        old,
        row_free,
        -1,
    )


def _free(rank: int) -> tuple[jax.Array, jax.Array]:
    """Which columns of ``(u, b, 1)`` and ``(v, 1, c)`` are not one by definition; bool [1, K]."""
    place = jnp.arange(rank + 2)[None, :]
    return place != rank + 1, place != rank


def _with(observations, values):
    if isinstance(observations, Entries):
        return Entries(observations.rows, observations.columns, values, observations.shape)
    return observations._replace(values=values)


def _product_variances(observations, rows: Side, columns: Side):
    """Variance of ``u . v`` at cells: ``sum_k u^2 s_v + v^2 s_u + s_u s_v``."""
    left = jnp.concatenate([rows.mean**2 + rows.variance, rows.variance], axis=1)
    right = jnp.concatenate([columns.variance, columns.mean**2], axis=1)
    if isinstance(observations, Entries):
        return cells.predict(Factors(left, right), observations.rows, observations.columns)
    return left @ right.T


def _solve(observations, mean, others, own_weights, weights, old, free, fixed):
    """The rows' posterior given the columns ``others``.

    Args:
      own_weights: [N] noise precisions that go with rows, weights: [M] that go with columns.
      old: whose precision counts, and whose value at the ``fixed`` factor stays.
      free: [1, K]; fixed: the position of the factor that is one by definition: its partner in
        ``others`` is taken off the values.
    """
    roots = jnp.sqrt(weights)[:, None]
    # What is one by definition on this side leaves its partner's effect to be subtracted.
    offsets = others.mean[:, fixed]
    values = cells.observed_values(observations) - mean
    shift = cells.spread(observations, jnp.zeros_like(own_weights)[:, None], offsets[:, None])
    scale = cells.spread(observations, jnp.zeros_like(own_weights)[:, None], roots)
    targets = _with(observations, (values - shift[..., 0]) * scale[..., 0])
    features = jnp.where(free, others.mean, 0)
    gram, moment = cells.row_normal_equations(targets, roots * features)
    spread_variances = jnp.where(free, others.variance, 0) * weights[:, None]
    uncertain = cells.pool(
        observations,
        cells.spread(
            observations, jnp.zeros((len(own_weights), free.shape[1]), gram.dtype), spread_variances
        ),
    )[0]
    gram, uncertain = own_weights[:, None, None] * gram, own_weights[:, None] * uncertain
    diagonal = uncertain + jnp.where(free, old.precision[None, :], 1.0)
    identity = jnp.broadcast_to(jnp.eye(free.shape[1], dtype=gram.dtype), gram.shape)
    matrix = gram + diagonal[:, :, None] * identity
    inverse = ridge.inverse(matrix)
    solved = jnp.einsum(
        "nkl,nl->nk", inverse, own_weights[:, None] * moment, precision=jax.lax.Precision.HIGHEST
    )
    variance = jnp.where(free, jnp.diagonal(inverse, axis1=1, axis2=2), 0)
    return Side(jnp.where(free, solved, old.mean), variance, old.precision)


def _with_precision(side, counts, free):
    """Relevance determination: the prior precision of each factor, from rows that have cells."""
    seen = (counts > 0)[:, None]
    squares = jnp.where(seen, side.mean**2 + side.variance, 0).sum(axis=0)
    number = seen.sum()
    precision = (number + _PRECISION_WEIGHT) / (squares + _PRECISION_WEIGHT * _START_SQUARE)
    return side._replace(precision=jnp.where(free[0], precision, 1.0))
