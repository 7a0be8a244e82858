"""From a matrix in its own units to draws of its posterior."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from metamf_jax.factorization.block_store import BlockStore
from metamf_jax.posterior import chains, gibbs, ordinal, pattern
from metamf_jax.posterior.chains import ChainsConfig, Draws
from metamf_jax.posterior.gibbs import Data, GibbsConfig, State
from metamf_jax.posterior.given import GivenFeatures, none_given
from metamf_jax.posterior.pattern import SideFeatures
from metamf_jax.posterior.predictive import Scale
from metamf_jax.types import Array, Entries, Factors

# On held-out entries of MovieLens-1M 64 and 128 singular vectors had errors of 0.8239 and 0.8220 at
# rank 48, 256 and 512 had 0.8226 and 0.8219 at rank 64, with fewer draws; on sets of 100,000
# ratings more than 64 did not pay.
_MANY_ENTRIES, _FEW_VECTORS, _MANY_VECTORS = 300_000, 64, 256


class Posterior(NamedTuple):
    """A fitted matrix.

    Attributes:
      draws: of its posterior, standardised.
      scale: by which it was standardised.
      features: of the pattern, of both sides.
    """

    draws: Draws
    scale: Scale
    features: tuple[SideFeatures, SideFeatures]


def num_pattern_vectors(entries: Entries) -> int:
    """How many singular vectors of the pattern a matrix of this size is given by default."""
    return _FEW_VECTORS if len(entries.values) < _MANY_ENTRIES else _MANY_VECTORS


def scale_of(values: Array, likelihood: str = "gaussian") -> Scale:
    """Mean and deviation, the least and the greatest value; or, if ordinal, the levels.

    Raises:
      ValueError: the values are no levels: one alone, or more than `ordinal.MAX_LEVELS`.
    """
    found = np.asarray(values, np.float64)
    bounds = float(found.min()), float(found.max())
    if likelihood == "gaussian":
        return Scale(float(found.mean()), float(found.std()) or 1.0, *bounds)
    levels = np.unique(found)
    if not 1 < len(levels) <= ordinal.MAX_LEVELS:
        raise ValueError(
            f"an ordinal likelihood takes 2 to {ordinal.MAX_LEVELS} distinct values, got"
            f" {len(levels)} from {levels[0]:g} to {levels[-1]:g}; take the likelihood gaussian, or"
            " round them"
        )
    return Scale(0.0, 1.0, *bounds, tuple(levels.tolist()))


def standardised_store(store: BlockStore) -> tuple[BlockStore, Scale]:
    """The store whose values are read in units of their scale, and this, as `scale_of` has it."""
    count, total, squares = store.moments
    mean = total / count
    unit = math.sqrt(max(squares / count - mean**2, 0.0)) or 1.0
    scale = Scale(mean, unit, *store.bounds)
    return dataclasses.replace(store, shift=scale.center, unit=scale.unit), scale


def start_from(state: State, factors: Factors, scale: Scale) -> State:
    """A chain's first state with the factors of a fit, ``x_nm ~ u_n . v_m``, in place of its own.

    A column of ones on one side is the other side's effect. Of a smaller rank than the state's,
    what is missing stays as it was.

    Args:
      state: from the kernel's `init`.
      factors: ``u`` [N, J], ``v`` [M, J], in units of the matrix.
      scale: by which the matrix was standardised.

    Raises:
      ValueError: factors of another shape, or of a larger rank.
    """
    u, v = (np.asarray(x, np.float64) for x in factors)
    of_rows, of_columns = (v == 1).all(axis=0), (u == 1).all(axis=0)
    own = ~(of_rows | of_columns)
    expected = len(state.rows.factors), len(state.columns.factors), state.rows.factors.shape[1] - 1
    if (len(u), len(v)) != expected[:2] or own.sum() > expected[2]:
        raise ValueError(
            f"expected factors of {expected[0]} rows and {expected[1]} columns to start from, of at"
            f" most rank {expected[2]}, got {len(u)}, {len(v)} and {own.sum()}"
        )

    def side(held: gibbs.Side, found: np.ndarray, effect: np.ndarray) -> gibbs.Side:
        moved = held.factors.copy()
        moved[:, : own.sum()] = found[:, own] / math.sqrt(scale.unit)
        moved[:, -1] = effect / scale.unit
        return held._replace(factors=moved)

    effects = u[:, of_rows].sum(axis=1) - scale.center, v[:, of_columns & ~of_rows].sum(axis=1)
    return state._replace(
        rows=side(state.rows, u, effects[0]), columns=side(state.columns, v, effects[1])
    )


def standardised(entries: Entries, scale: Scale) -> Entries:
    """The matrix in units of the scale, or in numbers of its levels; float32."""
    values = np.asarray(entries.values, np.float64)
    if scale.levels:
        values = np.searchsorted(scale.levels, values)
    else:
        values = (values - scale.center) / scale.unit
    rows, columns = (np.asarray(x, np.int32) for x in (entries.rows, entries.columns))
    return Entries(rows, columns, values.astype(np.float32), entries.shape)


def fit(
    entries: Entries,
    config: GibbsConfig | None = None,
    lengths: ChainsConfig | None = None,
    num_vectors: int | None = None,
    num_devices: int = 1,
    backend: str = "auto",
    given: tuple[GivenFeatures, GivenFeatures] | None = None,
    on_sweep: Callable[[int, list[State]], None] = lambda sweep, states: None,
) -> Posterior:
    """Samples the posterior of a matrix, with features of which entries are observed.

    Args:
      entries: [E], NumPy, in units of their own; each cell once.
      config: the model; None for the default.
      lengths: of the chains; likewise.
      num_vectors: of the pattern; None for `num_pattern_vectors`.
      num_devices: on which the draws do not depend.
      backend: one of `block_update.BACKENDS`.
      given: features of the rows and of the columns, beside those of the pattern.
      on_sweep: called after each sweep.
    """
    config, lengths = config or GibbsConfig(), lengths or ChainsConfig()
    count = num_pattern_vectors(entries) if num_vectors is None else num_vectors
    scale = scale_of(entries.values, config.likelihood)
    features = features_of(entries, count)
    data = prepare(standardised(entries, scale), config, features, num_devices, backend, given)
    return Posterior(chains.run(data, config, lengths, on_sweep), scale, features)


def features_of(
    entries: Entries, num_vectors: int, seed: int = 0
) -> tuple[SideFeatures, SideFeatures]:
    """The features of the pattern, of both sides."""
    rows, columns = np.asarray(entries.rows), np.asarray(entries.columns)
    return pattern.pattern_features(rows, columns, entries.shape, num_vectors, seed)


def prepare(
    entries: Entries,
    config: GibbsConfig,
    features: tuple[SideFeatures, SideFeatures],
    num_devices: int = 1,
    backend: str = "auto",
    given: tuple[GivenFeatures, GivenFeatures] | None = None,
) -> Data:
    """A standardised matrix, ready to be swept; see `fit`."""
    of_tables = given or (none_given(entries.shape[0]), none_given(entries.shape[1]))
    of_sides, groups = joined(features, of_tables)
    return gibbs.prepare(entries, of_sides, groups, config, num_devices, backend)


def joined(
    of_pattern: tuple[SideFeatures, SideFeatures], of_tables: tuple[GivenFeatures, GivenFeatures]
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """The features of both sides, and their groups."""

    def side(pattern: SideFeatures, table: GivenFeatures) -> tuple[np.ndarray, np.ndarray]:
        groups = pattern.groups.max(initial=-1) + 1 + table.groups
        return np.column_stack([pattern.features, table.features]), np.append(
            pattern.groups, groups
        )

    (rows, row_groups), (columns, column_groups) = map(side, of_pattern, of_tables)
    return (rows, columns), (row_groups, column_groups)
