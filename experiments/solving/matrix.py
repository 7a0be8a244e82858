"""The matrix that is factorized: read from a table, or in a block store."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from experiments import splits, stores
from experiments.solving.config import Config
from metamf_jax import parallel
from metamf_jax.data import sources
from metamf_jax.factorization import held_out_choice, pattern_prior, solver
from metamf_jax.factorization import objective as objectives
from metamf_jax.factorization.block_store import BlockStore
from metamf_jax.factorization.blocks import number_of_blocks
from metamf_jax.factorization.objective import Objective
from metamf_jax.factorization.pattern_prior import PatternPrior
from metamf_jax.factorization.solvers import SolverConfig
from metamf_jax.types import Entries, FactorPrior, Factors


class Prior(NamedTuple):
    """A learned prior, and what it says of a matrix.

    Attributes:
      learned: the prior.
      unit: of the matrix's values.
      offsets: what it expects of rows' and columns' effects.
    """

    learned: PatternPrior
    unit: float
    offsets: tuple[np.ndarray, np.ndarray]

    def factors(self, entries: Entries, rank: int, strength: float) -> FactorPrior:
        """Of the matrix, or of a part of it."""
        return self.learned.factors(entries, rank, strength, self.unit)


class Matrix(NamedTuple):
    """The points to factorize, and all that does not depend on how.

    Attributes:
      train: the points, centred; or the store that has them.
      mean: to give to `solver.add_mean`.
      scale: of the initial factors; None for the default.
      test: held-out cells, as they are.
      ids: names of rows and columns.
      prior: a learned one; the points are what its expectations leave.
    """

    train: Entries | BlockStore
    mean: float
    scale: float | None
    test: Entries
    ids: tuple[np.ndarray, np.ndarray]
    prior: Prior | None = None

    @property
    def num_points(self) -> int:
        train = self.train
        return train.num_entries if isinstance(train, BlockStore) else len(train.values)

    @property
    def in_memory(self) -> Entries:
        """The points; none of a store's."""
        if not isinstance(self.train, BlockStore):
            return self.train
        nothing = np.zeros(0, np.int32)
        return Entries(nothing, nothing, np.zeros(0, np.float32), self.train.shape)

    def sample(self, at_least: int) -> Entries:
        """A sub-matrix of the store's points; all of those in memory."""
        return self.train.sample(at_least) if isinstance(self.train, BlockStore) else self.train

    @property
    def spread(self) -> float:
        """Root mean square of the points' values; one where they are zero."""
        if not isinstance(self.train, BlockStore):
            return held_out_choice.root_mean_square(self.train)
        count, _, squares = self.train.moments
        return math.sqrt(squares / max(1, count)) or 1.0

    def factor_prior(self, rank: int, strength: float) -> FactorPrior | None:
        """The learned prior's, with this strength."""
        return self.prior and self.prior.factors(self.in_memory, rank, strength)

    def whole(self, objective: Objective, factors: Factors) -> Factors:
        """Factors of the matrix as it was, its mean and what the prior expects included."""
        factors = solver.add_mean(objective, factors, self.mean)
        return factors if self.prior is None else pattern_prior.add(factors, self.prior.offsets)

    def terms(self, objective: Objective, prior: FactorPrior | None = None) -> objectives.Terms:
        """Of the objective."""
        if isinstance(self.train, BlockStore):
            counts = self.train.row_count, self.train.column_count
            return objectives.terms_of_counts(objective, *counts)
        return objectives.make_terms(objective, self.train, prior)


def read(
    config: Config, num_devices: int | None, data_dir: str | None
) -> tuple[Config, SolverConfig, Matrix]:
    """The configuration with a number of blocks, how the solver works, and the matrix.

    Raises:
      ValueError: the data cannot be read or split, or loss, prior or solver do not serve them.
    """
    if config.block_store is None:
        matrix = _read_table(config, data_dir)
        config = _with_blocks(config, matrix, num_devices)
        return config, _work(config, num_devices), matrix
    if config.prior is not None:
        raise ValueError("--prior reads all counts of the matrix: leave out it or --block_store")
    if config.kind.from_store and config.split == "random" and config.test_input is None:
        config = _with_blocks(config, None, num_devices)
        work = _work(config, num_devices)
        return config, work, _read_store(config, work, data_dir)
    raise ValueError(
        "a block store serves --solver=dsgd or dsgld with the random split, got"
        f" {config.solver!r}, split {config.split!r} and test input {config.test_input}"
    )


def _read_table(config: Config, data_dir: str | None) -> Matrix:
    table = sources.load(config.dataset, data_dir, config.seed)
    train, test = splits.split_entries(table, splits.of_config(config), data_dir)
    for points in (train.entries, test):
        objectives.check_values(config.objective, points, train.row_ids, train.column_ids)
    entries, mean = solver.centre(config.objective, train.entries)
    _, scale = config.start
    matrix = Matrix(entries, mean, scale, test, (train.row_ids, train.column_ids))
    if config.prior is None:
        return matrix
    learned, unit = pattern_prior.load(config.prior), held_out_choice.root_mean_square(entries)
    offsets = learned.offsets(pattern_prior.pattern_of(entries), unit)
    left = pattern_prior.subtract(entries, offsets)
    return matrix._replace(train=left, prior=Prior(learned, unit, offsets))


def _read_store(config: Config, work: SolverConfig, data_dir: str | None) -> Matrix:
    """Opens or builds the block store."""
    assert config.block_store is not None
    width = config.rank + 2 * config.biases if config.point_order == "blocks" else None
    store = stores.opened(
        config.block_store, config.dataset, data_dir, config.test_fraction, work, width
    )
    objective = config.objective
    store.check_values(objective)
    mean = store.mean if objective.record.centred else 0.0
    store = dataclasses.replace(store, shift=mean)
    init, scale = config.start
    if scale is None:
        scale = solver.default_scale(objective, store.shape, store.moments, config.rank, init)
    return Matrix(store, mean, scale, store.test, store.ids())


def _with_blocks(config: Config, matrix: Matrix | None, num_devices: int | None) -> Config:
    """Settles the number of blocks; a matrix that is not read yet gets one for each device."""
    if config.blocks is not None:
        return config
    devices = num_devices or 1
    blocks = devices
    if matrix is not None and config.kind.takes_all_devices:
        blocks = number_of_blocks(matrix.num_points, matrix.in_memory.shape)
        blocks += -blocks % devices
    return dataclasses.replace(config, blocks=blocks)


def _work(config: Config, num_devices: int | None) -> SolverConfig:
    """How the solver works; where the devices are free, as many as divide the blocks."""
    assert config.blocks is not None
    if num_devices is None:
        there = len(parallel.devices()) if config.kind.takes_all_devices else 1
        num_devices = max(d for d in range(1, there + 1) if config.blocks % d == 0)
    return SolverConfig(
        config.blocks,
        num_devices,
        config.schedule,
        config.conjugate_steps,
        point_order=config.point_order,
        backend=config.backend,
        per_row=config.rule.per_row,
        seed=config.seed,
    )
