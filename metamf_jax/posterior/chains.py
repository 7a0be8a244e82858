"""Chains of a sampler: their sweeps, the draws that are kept, and how well they mix.

Chains differ in their keys alone, which fold in the chain's number and then the sweep's, so that a
chain that is interrupted and goes on draws what it would have drawn. On one device chains of all
but small matrices run in threads: one on each core is the cheapest use of several.

R-hat and effective sizes are those of A. Gelman et al., Bayesian Data Analysis, third edition,
section 11.4: chains are split in halves, and autocorrelations are summed by Geyer's initial
positive sequence. They are of quantities that do not change when the factors are rotated.
"""

import concurrent.futures
import dataclasses
from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
import threadpoolctl

from metamf_jax.posterior import gibbs, langevin
from metamf_jax.posterior.entry_effects import EntryEffects
from metamf_jax.posterior.gibbs import GibbsConfig, State
from metamf_jax.posterior.hyperprior import Hyperprior
from metamf_jax.posterior.langevin import LangevinConfig, Turn

# A matrix as `gibbs` or `langevin` prepares it; which of them it is the configuration tells.
Data: TypeAlias = Any

# A sweep of fewer is mostly Python, which threads hold each other up with: of 2,700 entries both
# chains took 0.38 s in turn and 0.48 s in two threads.
_FEW_ENTRIES = 10_000

_NOTHING = np.zeros((0, 0), np.float32)


@dataclasses.dataclass(frozen=True)
class ChainsConfig:
    """How long to run.

    Attributes:
      num_chains: C.
      burn_in: sweeps of each chain before the first draw is kept.
      num_draws: S, kept in all; a multiple of C.
      thin: sweeps from one kept draw to the next.
      seed: of all draws.
    """

    num_chains: int = 2
    burn_in: int = 30
    num_draws: int = 100
    thin: int = 1
    seed: int = 0

    def __post_init__(self):
        if min(self.num_chains, self.num_draws, self.thin) < 1 or self.burn_in < 0:
            raise ValueError(
                "expected at least one chain, draw and sweep from one to the next, and no burn-in "
                f"below 0, got {self.num_chains}, {self.num_draws}, {self.thin} and {self.burn_in}"
            )
        if self.num_draws % self.num_chains:
            raise ValueError(
                f"expected a number of draws that is a multiple of the {self.num_chains} chains, "
                f"got {self.num_draws}"
            )

    @property
    def num_sweeps(self) -> int:
        """Of each chain, from its start."""
        return self.burn_in + self.thin * (self.num_draws // self.num_chains)

    def keeps(self, sweep: int) -> bool:
        """Whether the draws of a sweep, counted from 1, are kept."""
        return sweep > self.burn_in and (sweep - self.burn_in) % self.thin == 0


class Draws(NamedTuple):
    """Draws of a matrix's posterior, those of a sweep one after the other; NumPy arrays.

    Attributes:
      rows, columns: [S, N, L] and [S, M, L] float32, factors with the effect last, L = K + 1.
      row_shares, column_shares: [S, N] and [S, M] float32, of the noise's precision.
      alpha: [S], the precision of the noise.
      row_prior, column_prior: `Hyperprior` with a leading axis S, for rows that are folded in.
      thresholds: [S, L - 1] between the levels of an ordinal likelihood; [S, 0] of a Gaussian.
      effects: of the entries, with a leading axis S.
    """

    rows: np.ndarray
    columns: np.ndarray
    row_shares: np.ndarray
    column_shares: np.ndarray
    alpha: np.ndarray
    row_prior: Hyperprior
    column_prior: Hyperprior
    thresholds: np.ndarray = _NOTHING
    effects: EntryEffects = EntryEffects(_NOTHING, _NOTHING)


def init(data: Data, config: GibbsConfig, chains: ChainsConfig) -> list[State]:
    """The states of all chains before the first sweep."""
    kernel: Any = langevin if isinstance(config, LangevinConfig) else gibbs
    key = jax.random.key(chains.seed)
    return [kernel.init(_folded(key, c, 0), data, config) for c in range(chains.num_chains)]


def sweeps(
    states: list[State], data: Data, config: GibbsConfig, chains: ChainsConfig, first: int = 1
) -> Generator[tuple[int, list[State]], None, None]:
    """Yields the number of each sweep, from `first` to the last, and the states after it."""
    seeded = jax.random.key(chains.seed)

    def advance(chain: int) -> State:
        key = _folded(seeded, chain, sweep)
        if isinstance(config, LangevinConfig):
            return langevin.sweep(key, states[chain], data, config, Turn(chain, sweep))
        return gibbs.sweep(key, states[chain], data, config)

    # Programs with collectives must start in one order on all devices.
    alone = data.mesh.size > 1 or data.num_entries < _FEW_ENTRIES
    # Threads of BLAS gain nothing on such small matrices, and lose much beside each other.
    with (
        concurrent.futures.ThreadPoolExecutor(chains.num_chains) as pool,
        threadpoolctl.threadpool_limits(1, user_api="blas"),
    ):
        in_turn = map if alone else pool.map
        for sweep in range(first, chains.num_sweeps + 1):
            states = list(in_turn(advance, range(chains.num_chains)))
            yield sweep, states


@jax.jit
def _folded(key, chain, sweep):
    return jax.random.fold_in(jax.random.fold_in(key, chain), sweep)


def run(
    data: Data,
    config: GibbsConfig,
    chains: ChainsConfig,
    on_sweep: Callable[[int, list[State]], None] = lambda sweep, states: None,
) -> Draws:
    """Runs all chains from their start, and keeps their draws.

    Args:
      data: from the kernel's `prepare`.
      config: the model.
      chains: how long.
      on_sweep: called after each sweep.
    """
    kept = []
    for sweep, states in sweeps(init(data, config, chains), data, config, chains):
        if chains.keeps(sweep):
            kept += states
        on_sweep(sweep, states)
    return stack(kept)


def stack(states: list[State]) -> Draws:
    """Draws of states."""

    def together(*leaves):
        return np.stack([np.asarray(leaf, np.float32) for leaf in leaves])

    held = jax.tree.map(together, *states)
    return Draws(
        held.rows.factors,
        held.columns.factors,
        held.rows.shares,
        held.columns.shares,
        held.alpha,
        held.rows.prior,
        held.columns.prior,
        held.thresholds,
        held.effects,
    )


def norm_of_product(state: State) -> float:
    """The Frobenius norm of ``U V^T``, by ``tr(U^T U V^T V)``."""
    u, v = (np.asarray(s.factors[:, :-1], np.float64) for s in (state.rows, state.columns))
    return float(np.sqrt(max(((u.T @ u) * (v.T @ v)).sum(), 0.0)))


def r_hat(values: np.ndarray) -> np.ndarray:
    """Potential scale reduction of quantities.

    Args:
      values: [C, S, ...], S >= 4 draws of each of C chains.

    Returns:
      [...]; near 1 where chains agree. 1 for a quantity that never changes, and infinite for one
      that only differs from chain to chain.
    """
    half = values.shape[1] // 2
    split = np.concatenate([values[:, :half], values[:, -half:]]).astype(np.float64)
    within = split.var(axis=1, ddof=1).mean(axis=0)
    between = split.mean(axis=1).var(axis=0, ddof=1)
    pooled = (half - 1) / half * within + between
    of_constants = np.where(between > 0, np.inf, 1)
    return np.sqrt(np.where(within > 0, pooled / np.where(within > 0, within, 1), of_constants))


def effective_size(values: np.ndarray) -> np.ndarray:
    """How many independent draws would tell as much of a mean.

    Args:
      values: as for `r_hat`.

    Returns:
      [...], at most C S.
    """
    half = values.shape[1] // 2
    split = np.concatenate([values[:, :half], values[:, -half:]]).astype(np.float64)
    within = split.var(axis=1, ddof=1).mean(axis=0)
    pooled = (half - 1) / half * within + split.mean(axis=1).var(axis=0, ddof=1)
    pooled = np.where(pooled > 0, pooled, 1)

    def correlation(lag):
        squares = (split[:, lag:] - split[:, : half - lag]) ** 2
        return 1 - squares.mean(axis=(0, 1)) / (2 * pooled)

    total, going = np.zeros(values.shape[2:]), np.ones(values.shape[2:], bool)
    for lag in range(0, half - 1, 2):
        pair = correlation(lag) + correlation(lag + 1)
        going &= pair > 0
        total += np.where(going, pair, 0)
    return split.shape[0] * half / np.maximum(2 * total - 1, 1)
