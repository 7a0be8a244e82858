"""What a run of the samplers knows, and where it stands."""

import pathlib
from typing import NamedTuple

import numpy as np

from experiments.sampling.config import Config
from experiments.sampling.matrix import Matrix
from metamf_jax.factorization.block_store import BlockStore
from metamf_jax.posterior import chains
from metamf_jax.posterior.fold_in import Recipe
from metamf_jax.posterior.gibbs import State
from metamf_jax.runs.run_log import RunLog
from metamf_jax.types import Entries

# Cells whose fitted values are watched.
_WATCHED = 100


class Cells(NamedTuple):
    """Some entries.

    Attributes:
      rows, columns, values: [P].
      effects: [G, P], `Places.at`; None without effects of the entries.
    """

    rows: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    effects: np.ndarray | None


class Traces(NamedTuple):
    """Of each chain, in the order of its kept draws; S / C of them.

    Attributes:
      alpha: [C, S / C], the precision of the noise.
      norm: [C, S / C], of ``U V^T``.
      predictions: [C, S / C, W], fitted values of the watched cells.
    """

    alpha: np.ndarray
    norm: np.ndarray
    predictions: np.ndarray


class Progress(NamedTuple):
    """Where a run stands.

    Attributes:
      sweep: sweeps done.
      states: of the chains.
      total: [T] float64, the kept draws' answers for the test cells, summed.
      traces: of the kept draws; zeros where there are none yet.
    """

    sweep: int
    states: list[State]
    total: np.ndarray
    traces: Traces


class Job(NamedTuple):
    """What stays the same from sweep to sweep."""

    config: Config
    matrix: Matrix
    data: chains.Data
    recipes: tuple[Recipe, Recipe]
    log: RunLog

    @property
    def watched(self) -> Cells:
        """Up to `_WATCHED` cells: of the test entries, or of all where there are none.

        Of a store without test entries any cells.
        """
        matrix = self.matrix
        if len(matrix.test.values):
            return some_cells(matrix.test, matrix.test_effects, _WATCHED)
        if isinstance(matrix.train, BlockStore):
            rng = np.random.default_rng(self.config.seed)
            rows, columns = (rng.integers(size, size=_WATCHED) for size in matrix.train.shape)
            return Cells(rows, columns, np.zeros(_WATCHED), None)
        return some_cells(matrix.train, matrix.effects and matrix.effects.at, _WATCHED)

    @property
    def result(self) -> pathlib.Path:
        """The file of all draws."""
        return self.log.workdir / "draws.safetensors"

    def path(self, number: int) -> pathlib.Path:
        """The file of one draw, until all are there."""
        return self.log.workdir / "draws" / f"{number}.safetensors"

    def rmse(self, total: np.ndarray, count: int) -> float | None:
        """Of the mean of so many answers for the test cells, given their sum."""
        values = self.matrix.test.values
        if len(values) == 0 or count == 0:
            return None
        return float(np.sqrt(np.mean((total / count - values) ** 2)))


def some_cells(entries: Entries, effects: np.ndarray | None, count: int) -> Cells:
    """Up to so many entries, spread over their order."""
    size = len(entries.values)
    some = np.arange(min(count, size)) * size // max(1, min(count, size))
    listed = entries.rows, entries.columns, entries.values
    rows, columns, values = (np.asarray(x)[some] for x in listed)
    return Cells(rows, columns, values, None if effects is None else effects[:, some])
