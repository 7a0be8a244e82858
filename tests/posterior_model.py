"""The model of `metamf_jax.posterior.gibbs`, drawn from forwards, without any of its code."""

import numpy as np
import scipy.stats

from metamf_jax.posterior import entry_effects
from metamf_jax.posterior.entry_effects import EntryEffects, Places
from metamf_jax.posterior.gibbs import GibbsConfig, Side, State
from metamf_jax.posterior.hyperprior import Hyperprior

# Shape and rate of the strengths' prior. That of `hyperprior` now and then draws strengths so small
# that the coefficients are beyond float32, so tests of the whole put these in its place.
STRENGTH = 3.0

# Of an ordinal likelihood.
NUM_LEVELS = 4


def draw_state(
    rng: np.random.Generator,
    features: tuple[np.ndarray, np.ndarray],
    config: GibbsConfig,
    places: Places | None = None,
) -> State:
    """Everything but the data, from the prior; the features of a side are one group."""
    rows, columns = (
        _draw_side(rng, of_side, shape, config)
        for of_side, shape in zip(features, (config.row_noise, config.column_noise), strict=True)
    )
    alpha, thresholds, effects = float(rng.gamma(1.0)), np.zeros(0), entry_effects.NONE
    if config.likelihood == "ordinal":
        gaps = rng.gamma(2.0, size=NUM_LEVELS - 2) / 2.0
        alpha, thresholds = 1.0, np.append(0.0, gaps).cumsum()
    if places is not None:
        precisions = rng.gamma(2.0, size=len(places.at)) / 0.1
        spread = np.repeat(precisions, np.diff(places.starts)) ** -0.5
        effects = EntryEffects(spread * rng.normal(size=len(spread)), precisions)
    return State(rows, columns, alpha, thresholds, effects)


def _draw_side(rng, features, shape, config):
    size, num_features = features.shape
    width = config.rank + 1
    scales = np.append(np.full(config.rank, config.factor_scale), config.effect_scale)
    precision = scipy.stats.wishart.rvs(
        width + config.degrees, np.diag(1 / scales), random_state=rng
    ).reshape(width, width)
    strength = rng.gamma(STRENGTH) / STRENGTH
    spread = np.linalg.inv(precision)
    ridge = np.append(2.0, np.full(num_features, strength))
    coefficients = rng.multivariate_normal(np.zeros(width), spread, num_features + 1)
    coefficients /= np.sqrt(ridge)[:, None]
    factors = np.column_stack([np.ones(size), features]) @ coefficients
    factors += rng.multivariate_normal(np.zeros(width), spread, size)
    shares = rng.gamma(shape, size=size) / shape if shape else np.ones(size)
    prior = Hyperprior(coefficients, precision, np.array([strength]))
    return Side(factors.astype(np.float32), shares, prior)


def draw_values(
    rng: np.random.Generator,
    state: State,
    rows: np.ndarray,
    columns: np.ndarray,
    places: Places | None = None,
) -> np.ndarray:
    """The values, or levels, of cells given everything else, float32."""
    u, v = (np.asarray(s.factors, float) for s in (state.rows, state.columns))
    fitted = (u[rows, :-1] * v[columns, :-1]).sum(axis=1) + u[rows, -1] + v[columns, -1]
    if places is not None:
        for at in places.at:
            fitted += np.append(state.effects.values, 0)[at]
    precision = state.alpha * state.rows.shares[rows] * state.columns.shares[columns]
    values = fitted + rng.normal(size=len(rows)) / np.sqrt(precision)
    if len(state.thresholds):
        values = np.searchsorted(state.thresholds, values)
    return values.astype(np.float32)
