"""Gibbs sampling of the factors of one matrix and of all their hyperparameters.

    x_nm = b_n + c_m + u_n . v_m + e_nm,   e_nm ~ N(0, 1 / (alpha p_n q_m))

on standardised values. A sweep draws, in turn, the rows' hyperprior (`hyperprior`), the rows'
factors and effects ``w_n = [u_n, b_n]`` (`row_conditional`) and their shares of the noise
(`noise`), the same of the columns, with the precision ``alpha`` of the noise before the columns'
shares, and last the common scale of ``alpha`` and either side's shares, without which R-hat of
``alpha`` was 2.0 instead of 1.4 after 30 sweeps of MovieLens-100K. Each is drawn from its exact
conditional, but for that scale, which takes a step of Metropolis and Hastings. Under the likelihood
``ordinal`` the observed values are levels; the sweep begins with their thresholds and latent values
(`ordinal`), which then are what the ``x_nm`` are above, and ``alpha`` is one. Where something is
known of each entry, such as its time, there are effects of that beside ``b_n`` and ``c_m``
(`entry_effects`), drawn next.

Salakhutdinov and Mnih, Bayesian probabilistic matrix factorization using Markov chain Monte Carlo,
ICML 2008; see also the references of the conditionals.
"""

import dataclasses
import functools
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from metamf_jax.posterior import entry_effects, hyperprior, noise, ordinal, row_conditional
from metamf_jax.posterior.entry_effects import EntryEffects, Places
from metamf_jax.posterior.hyperprior import Hyperprior, Moments, SidePrior, Wishart
from metamf_jax.posterior.learned_hyperprior import LearnedHyperprior
from metamf_jax.posterior.row_conditional import RowsData
from metamf_jax.types import Array, Entries

_START_SCALE, _START_PRECISION = 0.1, 1.5
LIKELIHOODS = "gaussian", "ordinal"

# Rows whose products are summed in float32 before the sums are added in float64.
_BLOCK = 512
# Entries whose factors are gathered at once, for the cache.
_CELLS = 4096


@dataclasses.dataclass(frozen=True)
class GibbsConfig:
    """The model.

    Attributes:
      rank: K.
      row_noise: shape ``a`` of the prior of the rows' shares of the noise; 0 for rows all alike.
      column_noise: of the columns'.
      degrees: of freedom of the Wishart prior of each side's precision, beyond K + 1.
      factor_scale: what the prior's inverse scale has for factors. On held-out training entries of
        four rating sets 2 to 3 served best of 1, 2, 3, 4, 16 and 64.
      effect_scale: and for effects.
      likelihood: one of `LIKELIHOODS`.
      learned: what is expected of all these but the rank, in their place (see `with_learned`); None
        where nothing was learned.
    """

    rank: int = 32
    row_noise: float = 2.0
    column_noise: float = 3.0
    degrees: float = 0.0
    factor_scale: float = 2.0
    effect_scale: float = 1.0
    likelihood: str = "gaussian"
    learned: LearnedHyperprior | None = None

    def __post_init__(self):
        if self.rank < 0 or min(self.row_noise, self.column_noise, self.degrees) < 0:
            raise ValueError(
                "expected a rank, shapes of noise and degrees of freedom of at least 0, got "
                f"{self.rank}, {self.row_noise}, {self.column_noise} and {self.degrees}"
            )
        if min(self.factor_scale, self.effect_scale) <= 0:
            raise ValueError(
                f"expected positive scales, got {self.factor_scale} and {self.effect_scale}"
            )
        if self.likelihood not in LIKELIHOODS:
            raise ValueError(
                f"unknown likelihood {self.likelihood!r}; expected one of {', '.join(LIKELIHOODS)}"
            )

    @property
    def sides(self) -> tuple[SidePrior, SidePrior]:
        """What is expected of the hyperpriors of rows and columns."""
        if self.learned is not None:
            return self.learned.of_side(0, self.rank), self.learned.of_side(1, self.rank)
        scales = np.append(np.full(self.rank, self.factor_scale), self.effect_scale)
        expected = SidePrior(Wishart(self.rank + 1 + self.degrees, scales))
        return expected, expected

    @property
    def noise(self) -> tuple[float, float]:
        """Shape and rate of the prior of the noise's precision."""
        return noise.FLAT if self.learned is None else self.learned.noise


def with_learned(rank: int, learned: LearnedHyperprior) -> GibbsConfig:
    """The model of which this was learned."""
    row_noise, column_noise = learned.shares
    return GibbsConfig(rank, row_noise, column_noise, learned=learned)


class Regression(Protocol):
    """What the hyperprior reads of one side; see `SideData`."""

    @property
    def features(self) -> np.ndarray: ...
    @property
    def gram(self) -> np.ndarray: ...
    @property
    def groups(self) -> np.ndarray: ...


class SideData(NamedTuple):
    """One side of a matrix.

    Attributes:
      rows: its rows, ready to be drawn.
      features: [N, F + 1] float32, the constant first.
      gram: [F + 1, F + 1] float64, their products.
      groups: [F], see `hyperprior`.
    """

    rows: RowsData
    features: np.ndarray
    gram: np.ndarray
    groups: np.ndarray


class Data(NamedTuple):
    """A matrix.

    Attributes:
      rows, columns: its two sides.
      num_entries: E.
      entries: in the order they came, where what rows and columns see of their values changes from
        sweep to sweep: of levels, or with effects of the entries; None where it does not.
      effects: of the entries, if any.
    """

    rows: SideData
    columns: SideData
    num_entries: int
    entries: Entries | None = None
    effects: Places | None = None

    @property
    def mesh(self) -> Any:
        """The devices."""
        return self.rows.rows.mesh


class Side(NamedTuple):
    """What is drawn of one side; NumPy arrays.

    Attributes:
      factors: [N, K + 1] float32, the effect last.
      shares: [N] float64, of the noise's precision.
      prior: of the factors.
    """

    factors: np.ndarray
    shares: np.ndarray
    prior: Hyperprior


class State(NamedTuple):
    """A draw.

    Attributes:
      rows, columns: of the two sides.
      alpha: precision of the noise.
      thresholds: [L - 1] float64 between the levels of an ordinal likelihood; [0] of a Gaussian.
      effects: of the entries.
    """

    rows: Side
    columns: Side
    alpha: float
    thresholds: np.ndarray = np.zeros(0)
    effects: EntryEffects = entry_effects.NONE


def prepare(
    entries: Entries,
    features: tuple[np.ndarray, np.ndarray],
    groups: tuple[np.ndarray, np.ndarray],
    config: GibbsConfig,
    num_devices: int = 1,
    backend: str = "auto",
    effects: Places | None = None,
) -> Data:
    """A matrix, ready to be swept.

    Args:
      entries: [E], NumPy, standardised; of an ordinal likelihood numbers of levels, 0 to L - 1.
      features: [N, F] of the rows and [M, F'] of the columns, each about centred.
      groups: [F] and [F'] int, see `hyperprior`.
      config: the model.
      num_devices: to which rows and columns are dealt out; the draws do not depend on it.
      backend: one of `block_update.BACKENDS`.
      effects: which effects the entries have.
    """
    num_rows, num_columns = entries.shape
    turned = Entries(entries.columns, entries.rows, entries.values, (num_columns, num_rows))

    def side(listed: Entries, of_side: np.ndarray, of_groups: np.ndarray) -> SideData:
        phi = np.column_stack([np.ones(len(of_side), np.float32), of_side]).astype(np.float32)
        rows = row_conditional.prepare(listed, config.rank, num_devices, backend)
        return SideData(rows, phi, sum_of_products(phi, phi), np.asarray(of_groups))

    changing = config.likelihood == "ordinal" or effects is not None
    return Data(
        side(entries, features[0], groups[0]),
        side(turned, features[1], groups[1]),
        len(entries.values),
        _on_device(entries) if changing else None,
        effects,
    )


def init(key: jax.Array, data: Data, config: GibbsConfig) -> State:
    """Small random factors."""
    rng = _generator(key)

    def start(side: SideData, expected: SidePrior) -> Side:
        shape = len(side.features), config.rank + 1
        factors = (_START_SCALE * rng.standard_normal(shape)).astype(np.float32)
        return Side(factors, np.ones(shape[0]), hyperprior.init(expected, side.groups))

    effects = entry_effects.NONE if data.effects is None else entry_effects.init(data.effects)
    alpha, thresholds = _START_PRECISION, np.zeros(0)
    if config.likelihood == "ordinal":
        assert data.entries is not None
        alpha, thresholds = 1.0, ordinal.init(np.asarray(data.entries.values, int))
    rows, columns = map(start, (data.rows, data.columns), config.sides)
    return State(rows, columns, alpha, thresholds, effects)


def sweep(key: jax.Array, state: State, data: Data, config: GibbsConfig) -> State:
    """Draws everything once.

    Args:
      key: of this sweep.
      state: the last draw.
      data: from `prepare`.
      config: the model.
    """
    of_rows, of_columns, of_noise, of_values = np.asarray(_folded(key, 4))
    rng, expected = _generator(of_noise), config.sides
    state, values = draw_values(of_values, state, data, config)

    rows, square = draw_factors(
        of_rows, state.rows, state.columns, state.alpha, data.rows, expected[0], values
    )
    shares = noise.draw_shares(rng, config.row_noise, data.rows.rows.counts, state.alpha * square)
    rows = rows._replace(shares=shares)

    columns, square = draw_factors(
        of_columns, state.columns, rows, state.alpha, data.columns, expected[1], values
    )
    left_over = float((columns.shares * square).sum())
    alpha = state.alpha
    if config.likelihood == "gaussian":
        alpha = noise.draw_precision(rng, data.num_entries, left_over, config.noise)
    shares = noise.draw_shares(rng, config.column_noise, data.columns.rows.counts, alpha * square)
    columns = columns._replace(shares=shares)
    if config.likelihood == "gaussian":
        alpha, shares = noise.rescale(rng, config.row_noise, alpha, rows.shares, config.noise)
        rows = rows._replace(shares=shares)
        alpha, shares = noise.rescale(rng, config.column_noise, alpha, columns.shares, config.noise)
        columns = columns._replace(shares=shares)
    return state._replace(rows=rows, columns=columns, alpha=alpha)


def draw_values(
    key: jax.Array, state: State, data: Data, config: GibbsConfig
) -> tuple[State, Array | None]:
    """Draws thresholds, latent values and effects of the entries, where there are such.

    They come first in a sweep, so that a state needs no latent values.

    Returns:
      The state; and what the entries' effects leave of the values [E], None where this is always
      the same.
    """
    if data.entries is None:
        return state, None
    of_thresholds, of_latent, of_effects = np.asarray(_folded(key, 3))
    (num_rows, _), i, j = data.entries.shape, data.entries.rows, data.entries.columns
    shares = (jnp.asarray(side.shares, jnp.float32) for side in (state.rows, state.columns))
    fitted, root = _at_cells(state.rows.factors, state.columns.factors, *shares, i, j)
    values, shift = data.entries.values, np.float32(0)
    if data.effects is not None:
        shift = entry_effects.total(state.effects.values, data.effects.at).astype(np.float32)

    if config.likelihood == "ordinal":
        cells = ordinal.Cells(i, j, values.astype(np.int32), fitted + shift, root)
        rng = _generator(of_thresholds)
        thresholds = ordinal.draw_thresholds(rng, state.thresholds, cells)
        state = state._replace(thresholds=thresholds)
        values = ordinal.draw_latent(of_latent, thresholds, cells, num_rows)
    if data.effects is not None:
        values = np.asarray(values, np.float64)
        residual, weight = values - fitted, state.alpha * np.asarray(root, np.float64) ** 2
        rng = _generator(of_effects)
        effects = entry_effects.draw(rng, state.effects, data.effects, residual, weight)
        state = state._replace(effects=effects)
        values = values - entry_effects.total(effects.values, data.effects.at)
    return state, values


def draw_factors(
    key: jax.Array,
    side: Side,
    other: Side,
    alpha: float,
    data: SideData,
    expected: SidePrior,
    values: Array | None = None,
) -> tuple[Side, np.ndarray]:
    """Draws one side's hyperprior and factors, given the other side.

    Args:
      key: of this draw.
      side: the last draw.
      other: the other side.
      alpha: precision of the noise.
      data: of this side.
      expected: of its hyperprior.
      values: [E] in place of those that `prepare` was given.

    Returns:
      The side; and [N] float64, the sums over each row's entries of ``q_m e_nm^2``.
    """
    prior = draw_prior(key, side, data, expected)
    factors, square = row_conditional.draw(
        key,
        data.rows,
        alpha * side.shares,
        product(data.features, prior.coefficients @ prior.precision),
        prior.precision,
        other.factors,
        other.shares,
        values,
    )
    return Side(factors, side.shares, prior), square


def draw_prior(key: jax.Array, side: Side, data: Regression, expected: SidePrior) -> Hyperprior:
    """Draws one side's hyperprior, given its factors."""
    both = (sum_of_products(of_side, side.factors) for of_side in (data.features, side.factors))
    moments = Moments(len(side.factors), data.gram, *both)
    return hyperprior.draw(_generator(key), side.prior, moments, data.groups, expected)


@functools.partial(jax.jit, static_argnums=1)
def _folded(key, count: int):
    """The key folded with 0 up to a count, as words [count, 2] that are keys to all of
    `jax.random`; in one program: dispatch is what small sweeps cost.
    """
    keys = [jax.random.fold_in(key, i) for i in range(count)]
    return jnp.stack([jax.random.key_data(each) for each in keys])


def _on_device(entries: Entries) -> Entries:
    rows, columns = (jnp.asarray(x, jnp.int32) for x in (entries.rows, entries.columns))
    return Entries(rows, columns, jnp.asarray(entries.values, jnp.float32), entries.shape)


@jax.jit
def _at_cells(rows, columns, row_shares, column_shares, i, j):
    """Fitted values and the root of ``p_n q_m`` of cells, float32 [E]; in blocks, for the cache."""
    count = len(i)
    # [E] -> [blocks, _CELLS]
    cells = (jnp.pad(x, (0, -count % _CELLS)).reshape(-1, _CELLS) for x in (i, j))

    def of_block(cells):
        i, j = cells
        root = jnp.sqrt(row_shares[i] * column_shares[j])
        return row_conditional.fitted(rows, columns, i, j), root

    return jax.tree.map(lambda x: x.reshape(-1)[:count], jax.lax.map(of_block, tuple(cells)))


def _generator(key: Array) -> np.random.Generator:
    return np.random.default_rng(key if isinstance(key, np.ndarray) else np.asarray(_words(key)))


_words = jax.jit(jax.random.key_data)


def product(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """``x y`` in float32."""
    return x @ np.asarray(y, np.float32)


def sum_of_products(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """``x^T y`` in float64; the sums over blocks of rows are float32's."""
    total = np.zeros((x.shape[1], y.shape[1]))
    for start in range(0, len(x), _BLOCK):
        block = slice(start, start + _BLOCK)
        total += x[block].T @ y[block]
    return total
