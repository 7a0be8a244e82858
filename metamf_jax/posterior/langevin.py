"""Langevin dynamics on the strata of DSGD: draws of `gibbs`' posterior without row solves.

A sub-epoch works on a stratum, P blocks that share neither rows nor columns. In it each row and
each column moves once, from the old factors of both. With ``t_m = [v_m, 1]``,

    w_n += h_n G_n [P alpha p_n sum_block q_m e_nm t_m - Lambda (w_n - B^T phi_n)]
           + N(0, h_n (2 - h_n) G_n),   G_n = (Lambda + alpha p_n N_n mean(q_m t_m t_m^T))^-1

and columns alike. An epoch meets every block once, so that over it the drift is ``P h_n G_n`` times
the gradient of the log posterior: all of it, as the noise is twice as large as the step. Ahn et al.
have the noise ``N(0, 2 h G)``; with ``2 h - h^2`` a Gaussian whose precision is ``G^-1`` is drawn
from exactly however long the step, as rows without entries are, whose step is one.

``G_n`` holds no factor: the mean over the other side's entries is that of the prior given `B` and
`Lambda`. In coordinates where `Lambda` is the identity and the mean is diagonal, so is every
``G_n``: there are two eigenproblems an epoch, and none a row. Of a row with few entries ``N_n``
the sum may exceed its mean ``(1 + (k / N_n)^1/2)^2`` times, k the number of parameters that the
entries determine (Marchenko, Pastur); its step ``h_n = h / (1 + (k / N_n)^1/2)^2`` allows for that.

Between epochs the hyperpriors are drawn as `gibbs` draws them, and the noise by the squares of all
residuals: the precision every time, the rows' and the columns' shares in turn. Steps leave a bias
that falls with ``h``: `LangevinConfig` has what it amounts to.

Ahn, Korattikara, Liu, Rajan, Welling, Large-scale distributed Bayesian matrix factorization using
stochastic gradient MCMC, KDD 2015.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from metamf_jax import parallel
from metamf_jax.factorization import blocks, strata, travel, visits
from metamf_jax.factorization.block_store import BlockStore
from metamf_jax.factorization.block_update import choose_backend, hidden_count
from metamf_jax.factorization.blocks import BlockEntries, Blocks
from metamf_jax.factorization.dsgd import DsgdConfig
from metamf_jax.factorization.entries_source import EntriesInMemory, EntriesInStore, open_source
from metamf_jax.factorization.travel import TRAVEL_SPECS, Travel, plan_travel
from metamf_jax.parallel import REPLICATED, SPLIT
from metamf_jax.posterior import block_residuals, gibbs, hyperprior, noise
from metamf_jax.posterior.gibbs import GibbsConfig, State
from metamf_jax.posterior.hyperprior import Hyperprior, SidePrior
from metamf_jax.types import Array, Entries

_EXACT = jax.lax.Precision.HIGHEST
_START_SCALE, _START_PRECISION = 0.1, 1.5


@dataclasses.dataclass(frozen=True)
class LangevinConfig(GibbsConfig):
    """The model, and the steps.

    Attributes:
      step: ``P h`` of the first epoch: about which part of the way to their conditional means the
        factors go in an epoch. On MovieLens-100K (rank 16, 8 blocks, 400 epochs of one chain) 1 and
        0.5 had test errors of 0.8756 and 0.8775, Gibbs sampling 0.8731. Where the posterior is
        known, effects alone, variances were at most 4% and means 0.06 deviations off at 0.4.
      decay: ``P h`` of epoch t, from 1, is ``step / t^decay``; 0 for a constant.
    """

    step: float = 1.0
    decay: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.step <= 1 or self.decay < 0:
            raise ValueError(
                "expected a step above 0 and of at most 1, and a decay of at least 0, got"
                f" {self.step} and {self.decay}"
            )

    def step_of(self, epoch: int) -> float:
        """``P h`` of an epoch, from 1."""
        return self.step / epoch**self.decay


class SideData(NamedTuple):
    """One side of a matrix.

    Attributes:
      dealt: the blocks to which its rows are dealt.
      counts: [N], entries of each row.
      features: [N, F + 1] float32, the constant first.
      gram: [F + 1, F + 1] float64, their products.
      groups: [F], see `hyperprior`.
    """

    dealt: blocks.Side
    counts: np.ndarray
    features: np.ndarray
    gram: np.ndarray
    groups: np.ndarray


class Data(NamedTuple):
    """A matrix in P x P blocks.

    Attributes:
      rows, columns: its two sides.
      num_entries: E.
      config: how the matrix is cut; its backend chosen.
      cut: the blocks.
      source: their entries, stratum by stratum.
      mesh: the devices.
    """

    rows: SideData
    columns: SideData
    num_entries: int
    config: DsgdConfig
    cut: Blocks | BlockStore
    source: EntriesInMemory | EntriesInStore
    mesh: Any


class Turn(NamedTuple):
    """Which epoch of which chain; chains of one epoch are on different strata.

    Attributes:
      chain: its number, from 0.
      epoch: from 1.
    """

    chain: int
    epoch: int


def cut_width(config: GibbsConfig) -> int:
    """Columns that size the sub-blocks: DSGD's with biases, whose block store then serves too."""
    return config.rank + 2


def prepare(
    entries: Entries | BlockStore,
    features: tuple[np.ndarray, np.ndarray],
    groups: tuple[np.ndarray, np.ndarray],
    config: LangevinConfig,
    cut_config: DsgdConfig,
) -> Data:
    """A matrix, cut into blocks.

    Args:
      entries: [E], NumPy, standardised; or a store of them, cut with ``cut_config.seed`` into as
        many blocks, of which two strata at a time are in memory. The draws are the same, to the
        last bit, where the store was built with `cut_width`.
      features: [N, F] of the rows and [M, F'] of the columns, each about centred.
      groups: [F] and [F'] int, see `hyperprior`.
      config: the model.
      cut_config: the blocks, on which the draws depend, and devices, on which they do not.

    Raises:
      ValueError: more blocks than rows or columns, a store of another number of them, or fewer
        devices than asked for.
    """
    mesh = parallel.make_mesh(cut_config.num_devices)
    num_blocks = cut_config.num_blocks
    if isinstance(entries, BlockStore):
        cut, counts = entries, (entries.row_count, entries.column_count)
        if cut.num_blocks != num_blocks:
            raise ValueError(
                f"{cut.folder}: expected a block store of {num_blocks} blocks a side, got one of"
                f" {cut.num_blocks}; give that number, or another folder"
            )
    else:
        own = parallel.own_share(mesh, num_blocks)
        cut = visits.cut_matrix(entries, cut_config, num_blocks, cut_width(config), own)
        counts = tuple(
            np.bincount(listed, minlength=size)
            for listed, size in zip((entries.rows, entries.columns), entries.shape, strict=True)
        )
    cut_config = dataclasses.replace(cut_config, backend=choose_backend(cut_config.backend))

    def side(dealt: blocks.Side, count: np.ndarray, of_side: np.ndarray, of_groups: np.ndarray):
        phi = np.column_stack([np.ones(dealt.size, np.float32), of_side]).astype(np.float32)
        return SideData(dealt, count, phi, gibbs.sum_of_products(phi, phi), np.asarray(of_groups))

    return Data(
        side(cut.u, counts[0], features[0], groups[0]),
        side(cut.v, counts[1], features[1], groups[1]),
        int(counts[0].sum(dtype=np.int64)),
        cut_config,
        cut,
        open_source(cut, cut_config, mesh),
        mesh,
    )


def init(key: jax.Array, data: Data, config: LangevinConfig) -> State:
    """Small random factors."""
    rng = _generator(key)

    def start(side: SideData, expected: SidePrior) -> gibbs.Side:
        shape = len(side.counts), config.rank + 1
        factors = (_START_SCALE * rng.standard_normal(shape)).astype(np.float32)
        return gibbs.Side(factors, np.ones(shape[0]), hyperprior.init(expected, side.groups))

    of_rows, of_columns = config.sides
    return State(start(data.rows, of_rows), start(data.columns, of_columns), _START_PRECISION)


def sweep(key: jax.Array, state: State, data: Data, config: LangevinConfig, turn: Turn) -> State:
    """One epoch of the factors, everything else drawn once.

    Args:
      key: of this epoch.
      state: the last draw.
      data: from `prepare`.
      config: the model, and the steps.
      turn: which epoch this is.
    """
    of_rows, of_columns, of_factors, of_noise = (jax.random.fold_in(key, i) for i in range(4))
    row_prior = gibbs.draw_prior(of_rows, state.rows, data.rows, config.sides[0])
    column_prior = gibbs.draw_prior(of_columns, state.columns, data.columns, config.sides[1])
    rows, columns, *squares = move_factors(
        of_factors,
        state.rows._replace(prior=row_prior),
        state.columns._replace(prior=column_prior),
        state.alpha,
        data,
        config.step_of(turn.epoch),
        turn,
    )
    rng = _generator(of_noise)
    if turn.epoch % 2:
        scaled = state.alpha * squares[0]
        shares = noise.draw_shares(rng, config.row_noise, data.rows.counts, scaled)
        rows = rows._replace(shares=shares)
        left_over = shares * squares[0]
    else:
        scaled = state.alpha * squares[1]
        shares = noise.draw_shares(rng, config.column_noise, data.columns.counts, scaled)
        columns = columns._replace(shares=shares)
        left_over = shares * squares[1]
    alpha = noise.draw_precision(rng, data.num_entries, float(left_over.sum()), config.noise)
    return State(rows, columns, alpha)


class Drift(NamedTuple):
    """What the moves of one side's rows have in common.

    Attributes:
      basis: ``X`` [L, L], ``X^T Lambda X = I``.
      inverse: ``X^-1``.
      information: [L], the diagonal of ``X^T alpha mean(q t t^T) X``: a row's precision, in these
        coordinates, is ``1 + p_n N_n information``.
    """

    basis: Array
    inverse: Array
    information: Array


class SideBlocks(NamedTuple):
    """One side in blocks; float32.

    Attributes:
      factors: [B, R, L], the effect last.
      means: [B, R, L] of the prior.
      shares: [B, R], of the noise's precision.
      counts: [B, R], entries of each row; none where there is no row.
    """

    factors: Array
    means: Array
    shares: Array
    counts: Array

    @property
    def of_residuals(self) -> block_residuals.Side:
        """What residuals read of it."""
        return block_residuals.Side(self.factors, self.shares)


class Move(NamedTuple):
    """What an epoch's moves have in common, replicated.

    Attributes:
      key: data of a key.
      step: ``h``.
      weight: ``P alpha``.
      u, v: of the two sides.
    """

    key: Any
    step: Any
    weight: Any
    u: Drift
    v: Drift


def move_factors(
    key: jax.Array,
    rows: gibbs.Side,
    columns: gibbs.Side,
    alpha: float,
    data: Data,
    step: float,
    turn: Turn,
) -> tuple[gibbs.Side, gibbs.Side, np.ndarray, np.ndarray]:
    """One epoch, all but the factors held.

    Args:
      key: of this epoch.
      rows: before it.
      columns: likewise.
      alpha: precision of the noise.
      data: from `prepare`.
      step: ``P h``.
      turn: which epoch this is.

    Returns:
      Rows and columns after it; and ``sum_m q_m e_nm^2`` [N] and ``sum_n p_n e_nm^2`` [M], float64,
      that they leave.
    """
    num_blocks, seed = data.config.num_blocks, data.config.seed
    sides = (rows, data.rows), (columns, data.columns)
    means = [_means(of_data.features, side.prior.coefficients) for side, of_data in sides]
    u, v = (
        parallel.split(data.mesh, _in_blocks(side, mean, of_data))
        for (side, of_data), mean in zip(sides, means, strict=True)
    )
    information = [
        _information(alpha, side, mean, of_data.counts)
        for (side, of_data), mean in zip(sides, means, strict=True)
    ]
    move = Move(
        np.asarray(jax.random.key_data(key)),
        np.float32(step / num_blocks),
        np.float32(num_blocks * alpha),
        make_drift(rows.prior, information[1]),
        make_drift(columns.prior, information[0]),
    )
    programs = _make_programs(data.mesh, data.config.backend)
    drawn = strata.make_schedule("wor", num_blocks, np.random.default_rng((seed, turn.epoch)))
    visit = visits.whole_blocks(data.cut, np.roll(drawn, -turn.chain, axis=0), 0)
    moves = plan_travel(visit.schedule, np.arange(num_blocks), data.config.num_devices)
    for portion in data.source.portions(visit):
        ends = portion.first, portion.last
        numbers = np.arange(num_blocks, dtype=np.int32)[portion.which]
        count = np.int32(len(numbers))
        which = moves.strata(portion.which)
        u, v = programs.move(u, v, portion.entries, which, ends, numbers, count, move)

    visit = visits.every_block_once(data.cut, 0)
    moves = plan_travel(visit.schedule, moves.held[:, -1], data.config.num_devices)
    squares = jax.tree.map(jnp.zeros_like, (u.shares, v.shares))
    for portion in data.source.portions(visit):
        ends = portion.first, portion.last
        count = np.int32(portion.first.shape[1])
        which = moves.strata(portion.which)
        v, squares = programs.squares(u, v, squares, portion.entries, which, ends, count)
    of_u, of_v = parallel.to_host(((u.factors, squares[0]), (v.factors, squares[1])))
    by_number = np.argsort(moves.held[:, -1])
    u_factors, u_squares = (data.rows.dealt.join(x) for x in of_u)
    v_factors, v_squares = (data.columns.dealt.join(x[by_number]) for x in of_v)
    return (
        rows._replace(factors=u_factors),
        columns._replace(factors=v_factors),
        u_squares.astype(np.float64),
        v_squares.astype(np.float64),
    )


def make_drift(prior: Hyperprior, information: np.ndarray) -> Drift:
    """The coordinates of a side's rows.

    Args:
      prior: of these.
      information: [L, L], ``alpha mean(q t t^T)`` of the other side.
    """
    root = scipy.linalg.cholesky(prior.precision, lower=True)
    half = scipy.linalg.solve_triangular(root, information, lower=True)
    both = scipy.linalg.solve_triangular(root, half.T, lower=True)
    spectrum, vectors = scipy.linalg.eigh(both)
    basis = scipy.linalg.solve_triangular(root.T, vectors, lower=False)
    of_all = basis, vectors.T @ root.T, np.maximum(spectrum, 0)
    return Drift(*(np.asarray(x, np.float32) for x in of_all))


def _information(
    alpha: float, side: gibbs.Side, means: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """``alpha mean(q t t^T)`` [L, L] over entries, given the hyperprior of the ``t = [v, 1]``."""
    weight = alpha * side.shares * counts / max(1, counts.sum())
    t = np.concatenate([means[:, :-1], np.ones_like(means[:, :1])], axis=1)
    found = gibbs.sum_of_products((weight[:, None] * t).astype(np.float32), t)
    spread = np.linalg.inv(side.prior.precision)
    found[:-1, :-1] += weight.sum() * spread[:-1, :-1]
    return (found + found.T) / 2


def _in_blocks(side: gibbs.Side, means: np.ndarray, data: SideData) -> SideBlocks:
    of_rows = side.factors, means, side.shares, data.counts
    return SideBlocks(*(data.dealt.split(np.asarray(x, np.float32)) for x in of_rows))


# What each device runs.


def move_block(
    key: jax.Array, block: SideBlocks, gradient: Array, move: Move, drift: Drift
) -> Array:
    """The factors [R, L] of one block after a sub-epoch.

    Args:
      key: of this block and sub-epoch.
      block: without the leading axis.
      gradient: [R, L], ``sum_block q e t``.
      move: of the epoch.
      drift: of this side.
    """
    matmul = functools.partial(jnp.matmul, precision=_EXACT)
    share, count = block.shares[:, None], block.counts[:, None]
    # [R, L], all in the coordinates of `drift`
    data = share * drift.information[None]
    gain = 1 / (1 + count * data)
    pull = move.weight * share * matmul(gradient, drift.basis)
    pull -= matmul(block.factors - block.means, drift.inverse.T)
    excess = jnp.sqrt((data * gain).sum(axis=1, keepdims=True))
    step = jnp.where(count > 0, move.step / (1 + excess) ** 2, 1)
    noise = jax.random.normal(key, block.factors.shape)
    moved = step * gain * pull + jnp.sqrt(step * (2 - step) * gain) * noise
    return block.factors + matmul(moved, drift.basis.T)


def move_blocks(
    key: jax.Array,
    side: SideBlocks,
    numbers: Array,
    gradient: Array,
    count: Array,
    move: Move,
    drift: Drift,
) -> SideBlocks:
    """`move_block` of B blocks, one after the other, whose noise is keyed by their `numbers`."""

    def one_block(b, factors):
        block = jax.tree.map(lambda x: x[b], side)
        of_block = jax.random.fold_in(key, numbers[b])
        return factors.at[b].set(move_block(of_block, block, gradient[b], move, drift))

    return side._replace(factors=jax.lax.fori_loop(0, count, one_block, side.factors))


def move_over_strata(
    backend: str,
    num_devices: int,
    u: SideBlocks,
    v: SideBlocks,
    entries: BlockEntries,
    moves: Travel,
    ends: tuple[Array, Array],
    numbers: Array,
    count: Array,
    move: Move,
) -> tuple[SideBlocks, SideBlocks]:
    """Strata in series.

    Args:
      backend: from `choose_backend`.
      num_devices: D.
      u: this device's row blocks.
      v: the column blocks that lie here.
      entries: of the row blocks.
      moves: this device's share of a plan of S sub-epochs.
      ends: first and last entry of each block, [B, S, 1] each.
      numbers: [S] of the sub-epochs.
      count: S.
      move: of the epoch.
    """
    steps = travel.own_steps(moves, *ends)
    own = u.factors.shape[0]
    u_numbers = parallel.device_index() * own + jnp.arange(own)

    def one_stratum(s, sides):
        u, v = sides
        step = jax.tree.map(lambda x: x[s], steps)
        v = travel.move(v, step, num_devices)
        gradients = block_residuals.gradients(
            backend, u.of_residuals, v.of_residuals, entries, step.work
        )
        key = jax.random.fold_in(jax.random.wrap_key_data(move.key), numbers[s])
        of_u, of_v = jax.random.split(key)
        hidden = hidden_count(step.work)
        return parallel.as_varying(
            (
                move_blocks(of_u, u, u_numbers, gradients[0], hidden, move, move.u),
                move_blocks(of_v, v, step.held, gradients[1], hidden, move, move.v),
            )
        )

    return jax.lax.fori_loop(0, count, one_stratum, (u, v))


def squares_over_strata(
    backend: str,
    num_devices: int,
    u: SideBlocks,
    v: SideBlocks,
    squares: tuple[Array, Array],
    entries: BlockEntries,
    moves: Travel,
    ends: tuple[Array, Array],
    count: Array,
) -> tuple[SideBlocks, tuple[Array, Array]]:
    """Adds the squares that strata leave to those of rows and columns; see `move_over_strata`.

    Returns:
      The column blocks that lie here in the end, and the squares [B, R] and [B, C].
    """
    steps = travel.own_steps(moves, *ends)

    def one_stratum(s, carry):
        v, of_rows, of_columns = carry
        step = jax.tree.map(lambda x: x[s], steps)
        v, of_columns = travel.move((v, of_columns), step, num_devices)
        found = block_residuals.squares(backend, u.of_residuals, v.of_residuals, entries, step.work)
        return parallel.as_varying((v, of_rows + found[0], of_columns + found[1]))

    v, *added = jax.lax.fori_loop(0, count, one_stratum, (v, *squares))
    return v, tuple(added)


class _Programs(NamedTuple):
    """The functions above, compiled once for all devices."""

    move: Callable
    squares: Callable


@functools.lru_cache(maxsize=8)
def _make_programs(mesh, backend: str) -> _Programs:
    bound = backend, mesh.size
    sides, moves_and_ends = (SPLIT, SPLIT), (TRAVEL_SPECS, SPLIT)
    return _Programs(
        parallel.sharded(
            mesh,
            functools.partial(move_over_strata, *bound),
            (*sides, SPLIT, *moves_and_ends, *[REPLICATED] * 3),
            sides,
        ),
        parallel.sharded(
            mesh,
            functools.partial(squares_over_strata, *bound),
            (*sides, SPLIT, SPLIT, *moves_and_ends, REPLICATED),
            sides,
        ),
    )


def _means(features: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    return np.asarray(gibbs.product(features, coefficients))


def _generator(key: jax.Array) -> np.random.Generator:
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))
