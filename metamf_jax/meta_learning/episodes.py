"""Episodes: small matrices cut at random from a large one, each split in support and query.

The protocol (our definition): rows and columns are split 70/10/20 into meta-train, validation and
test parts that share neither; values are standardised with the meta-train part's mean and
deviation; an episode draws rows and columns of its part uniformly, again where it hits fewer than
15 observed entries, up to 100 times, and then takes the fullest drawn.

Drawing runs in NumPy on the host. Every step has a generator of its own, seeded by (seed, step), so
that a resumed run draws what the undisturbed one would have drawn.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from metamf_jax.meta_learning.meta_loss import Episode
from metamf_jax.meta_learning.padding import bucket_size
from metamf_jax.sums import Observations
from metamf_jax.types import Entries


class Standardization(NamedTuple):
    """``standardised = (value - mean) / deviation``."""

    mean: float
    deviation: float


class Parts(NamedTuple):
    """Three parts of one matrix that share neither rows nor columns, standardised."""

    train: Entries
    validation: Entries
    test: Entries
    standardization: Standardization


@dataclasses.dataclass(frozen=True)
class EpisodeConfig:
    """What an episode looks like.

    Attributes:
      rows: N, least and most rows; each episode draws its own, uniformly. All rows where a part has
        fewer.
      columns: M likewise.
      support_fraction: share of the observed entries that is support, least and most.
      count_power: a row or column is drawn the likelier the more entries it has, in proportion to
        this power of their number; least and most, each episode draws its own. Cuts of one sparse
        matrix are then of many fillings. 0 for all alike.
      minimum_cells: a draw with fewer observed entries is made again,
      attempts: at most so many times; then the fullest is taken.
    """

    rows: tuple[int, int] = (30, 30)
    columns: tuple[int, int] = (30, 30)
    support_fraction: tuple[float, float] = (0.5, 0.5)
    count_power: tuple[float, float] = (0.0, 0.0)
    minimum_cells: int = 15
    attempts: int = 100

    def __post_init__(self):
        for name in ("rows", "columns"):
            low, high = getattr(self, name)
            if not 1 <= low <= high:
                raise ValueError(
                    f"{name} must be (least, most) with 1 <= least <= most, got {low, high}"
                )
        low, high = self.support_fraction
        if not 0 < low <= high < 1:
            raise ValueError(f"support_fraction must lie between 0 and 1, got {low, high}")
        low, high = self.count_power
        if not 0 <= low <= high:
            raise ValueError(
                f"count_power must be (least, most) with 0 <= least <= most, got {low, high}"
            )
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, got {self.attempts}")


def split_parts(entries: Entries, split_seed: int) -> Parts:
    """Splits rows 70/10/20 and columns 70/10/20 and standardises with the train part.

    Args:
      entries: one large matrix.
      split_seed: another seed gives another split.

    Raises:
      ValueError: a part has no observed entry, or the train part's values are all equal.
    """
    rng = np.random.default_rng([split_seed, 0x5B11])
    labels, places, sizes = [], [], []
    for size in entries.shape:
        order = rng.permutation(size)
        first, second = round(0.7 * size), round(0.8 * size)
        label, place = np.empty(size, np.int32), np.empty(size, np.int32)
        pieces = np.split(order, [first, second])
        for part, piece in enumerate(pieces):
            label[piece], place[piece] = part, np.arange(len(piece))
        labels.append(label)
        places.append(place)
        sizes.append([len(piece) for piece in pieces])
    row_part, column_part = labels[0][entries.rows], labels[1][entries.columns]
    parts = []
    for part, name in enumerate(("meta-train", "validation", "test")):
        inside = (row_part == part) & (column_part == part)
        if not inside.any():
            raise ValueError(
                f"the {name} part ({sizes[0][part]} rows, {sizes[1][part]} columns) of this matrix "
                f"{entries.shape} with {len(entries.rows)} entries has no entry: it is too "
                "small or too sparse to be split into three parts; try another split seed"
            )
        parts.append(
            Entries(
                places[0][entries.rows[inside]],
                places[1][entries.columns[inside]],
                np.asarray(entries.values)[inside],
                (sizes[0][part], sizes[1][part]),
            )
        )
    standardization = fit_standardization(parts[0].values)
    train, validation, test = (standardize(part, standardization) for part in parts)
    return Parts(train, validation, test, standardization)


def fit_standardization(values: np.ndarray) -> Standardization:
    """Mean and deviation of ``values``.

    Raises:
      ValueError: all values are equal.
    """
    mean, deviation = (
        float(np.mean(values, dtype=np.float64)),
        float(np.std(values, dtype=np.float64)),
    )
    if not deviation > 0:
        raise ValueError(f"all {len(values)} values equal {mean}: nothing can be learned from them")
    return Standardization(mean, deviation)


def standardize(entries: Entries, standardization: Standardization) -> Entries:
    """The same entries with standardised values."""
    values = (entries.values - np.float32(standardization.mean)) / np.float32(
        standardization.deviation
    )
    return dataclasses.replace(entries, values=values.astype(np.float32))


class EpisodeSource:
    """Draws episodes from one part, a whole step's batch at a time.

    Args:
      entries: the part; must have an observed entry, and each once.
      config: what an episode looks like.
      seed: draws with the same seed and step are the same.
    """

    def __init__(self, entries: Entries, config: EpisodeConfig, seed: int):
        if not len(entries.rows):
            raise ValueError("cannot draw episodes from a matrix with no observed entry")
        self._shape, self._config, self._seed = entries.shape, config, seed
        self._values = np.asarray(entries.values, np.float32)
        num_rows, num_columns = entries.shape
        listed = (entries.rows, num_rows), (entries.columns, num_columns)
        self._log_counts = [np.log1p(np.bincount(x, minlength=size)) for x, size in listed]
        self._table = self._keys = None
        if num_rows * num_columns <= _MAX_TABLE_CELLS:
            self._table = np.full((num_rows + 1, num_columns + 1), -1, np.int32)
            self._table[entries.rows, entries.columns] = np.arange(len(entries.rows))
        else:
            keys = entries.rows.astype(np.int64) * (num_columns + 1) + entries.columns
            self._order = np.argsort(keys)
            self._keys = keys[self._order]

    def _find(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Index of the entry at each picked row [B, R] and column [B, C], or -1; [B, R, C]."""
        rows, columns = rows[:, :, None], columns[:, None, :]
        if self._table is not None:
            return self._table[rows, columns]
        assert self._keys is not None
        keys = rows.astype(np.int64) * (self._shape[1] + 1) + columns
        place = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[place] == keys, self._order[place], -1)

    def _cut(self, rng: np.random.Generator, batch: int) -> np.ndarray:
        """Index of the entry at each cell of matrices drawn, or -1; [B, R, C]."""
        powers = None
        if self._config.count_power[1]:
            powers = rng.uniform(*self._config.count_power, (batch, 1))
        return self._find(*(self._pick(rng, axis, batch, powers) for axis in (0, 1)))

    def _pick(
        self, rng: np.random.Generator, axis: int, batch: int, powers: np.ndarray | None
    ) -> np.ndarray:
        """Distinct rows (axis 0) or columns for each matrix; one past the end beyond its size."""
        bounds = self._config.rows if axis == 0 else self._config.columns
        low, high = (min(bound, self._shape[axis]) for bound in bounds)
        if powers is None:
            picked = _distinct(rng, self._shape[axis], high, batch)
        else:
            picked = _distinct_by_weight(rng, powers * self._log_counts[axis], high)
        sizes = rng.integers(low, high, (batch, 1), endpoint=True)
        return np.where(np.arange(high) < sizes, picked, self._shape[axis])

    def draw_batch(self, step: int, batch: int) -> Episode:
        """Draws a step's episodes, stacked and padded to one bucket.

        Support and query are entry lists [batch, E] in random order.
        """
        config = self._config
        rng = np.random.default_rng([self._seed, step])
        found = self._cut(rng, batch)
        counts = (found >= 0).sum(axis=(1, 2))
        for _ in range(config.attempts - 1):
            poor = np.flatnonzero(counts < config.minimum_cells)
            if not len(poor):
                break
            again = self._cut(rng, len(poor))
            again_counts = (again >= 0).sum(axis=(1, 2))
            fuller = again_counts > counts[poor]
            found[poor[fuller]], counts[poor[fuller]] = again[fuller], again_counts[fuller]

        fractions = rng.uniform(*config.support_fraction, batch)
        # The tiny term keeps half of an even count at exactly half.
        support_counts = np.maximum((fractions * counts + 1e-9).astype(np.int64), 1)
        matrix, row, column = np.nonzero(found >= 0)
        order = np.lexsort((rng.random(len(matrix)), matrix))
        matrix, row, column = matrix[order], row[order], column[order]
        values = self._values[found[matrix, row, column]]
        rank = np.arange(len(matrix)) - (np.cumsum(counts) - counts)[matrix]
        shape = -(-found.shape[1] // 10) * 10, -(-found.shape[2] // 10) * 10

        def part(inside, place, largest):
            size = batch, bucket_size(largest)
            rows = np.full(size, shape[0], np.int32)
            columns = np.full(size, shape[1], np.int32)
            listed = np.zeros(size, np.float32)
            where = matrix[inside], place[inside]
            rows[where], columns[where], listed[where] = row[inside], column[inside], values[inside]
            return Entries(rows, columns, listed, shape)

        is_support = rank < support_counts[matrix]
        return Episode(
            part(is_support, rank, support_counts.max()),
            part(~is_support, rank - support_counts[matrix], (counts - support_counts).max()),
        )


# On MovieLens-1M a dense table of numbers draws a batch of 16 in 1.0 ms, binary search in 2.3.
_MAX_TABLE_CELLS = 2**26


def entry_counts(part: Observations) -> np.ndarray:
    """Numbers of entries of each matrix of a drawn batch's support or query; [B]."""
    assert isinstance(part, Entries)
    return np.asarray(part.rows < part.shape[0]).sum(axis=1)


def _distinct(rng: np.random.Generator, population: int, size: int, batch: int) -> np.ndarray:
    """``size`` different numbers below ``population`` in random order, for each of a batch."""
    if population < size**2:
        picked = np.argpartition(rng.random((batch, population)), size - 1, axis=1)[:, :size]
        return rng.permuted(picked, axis=1)
    picked = rng.integers(0, population, (batch, size))
    while True:
        ordered = np.sort(picked, axis=1)
        again = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1))
        if not len(again):
            return picked
        picked[again] = rng.integers(0, population, (len(again), size))


def _distinct_by_weight(rng: np.random.Generator, log_weights: np.ndarray, size: int) -> np.ndarray:
    """``size`` different numbers for each row of weights [B, P], one after the other in proportion.

    The first arrivals of independent exponential clocks (Efraimidis and Spirakis 2006).
    """
    arrivals = rng.standard_exponential(log_weights.shape) * np.exp(-log_weights)
    first = np.argpartition(arrivals, size - 1, axis=1)[:, :size]
    return rng.permuted(first, axis=1)
