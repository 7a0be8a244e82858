"""A learned prior for one large matrix: what is expected of a row from which cells are observed.

    x_nm - mean = (b_n + s a . phi_n) + (c_m + s a' . psi_m) + u_n . v_m + noise
    penalty = lam s [ k sum_n N_n^p |(u_n, b_n)|^2 + k' sum_m N_m^p' |(v_m, c_m)|^2 ]

with ``s`` the root mean square of the centred values and ``N`` numbers of entries, 1 at least. The
three features of a row are of counts: ``log(1 + N_n)``, ``N_n^-1/2``, and the first of the columns
in which it has entries, averaged (with one of zero, so that of few entries it is small); the first
two less their means over entries, so that they leave the mean of the values as it is. None knows a
value: no entry counts twice. The ten numbers ``a, a', k, k', p, p'`` are learned from other
matrices, through the converged solution that uses them (`learn_pattern_prior`); ``lam`` is 1, or
chosen on the matrix like the strength of any other penalty. With ``k = k' = 1`` and
``p = p' = 1/2`` the penalty is `root_l2`.
"""

import dataclasses
import os
from typing import NamedTuple

import numpy as np

from metamf_jax.runs import files
from metamf_jax.types import Entries, FactorPrior, Factors

NUM_FEATURES = 3


@dataclasses.dataclass(frozen=True)
class PatternPrior:
    """What was learned; pairs are of rows and columns.

    Attributes:
      means: ``a`` and ``a'``, of effects.
      strengths: ``k`` and ``k'``, positive.
      powers: ``p`` and ``p'``.
      saw: the matrices that it was learned from, in words.
    """

    means: tuple[tuple[float, ...], tuple[float, ...]]
    strengths: tuple[float, float]
    powers: tuple[float, float]
    saw: str = ""

    def __post_init__(self):
        numbers = *self.means[0], *self.means[1], *self.strengths, *self.powers
        sizes = len(self.means[0]), len(self.means[1]), len(self.strengths), len(self.powers)
        if sizes != (NUM_FEATURES, NUM_FEATURES, 2, 2) or not np.isfinite(numbers).all():
            raise ValueError(
                f"expected {NUM_FEATURES} finite means, a strength and a power of each side, got"
                f" {dataclasses.asdict(self)}"
            )
        if min(self.strengths) <= 0:
            raise ValueError(f"expected positive strengths, got {self.strengths}")

    def offsets(self, pattern: "Pattern", unit: float) -> tuple[np.ndarray, np.ndarray]:
        """What is expected of the effects of rows [N] and columns [M], float32.

        Args:
          pattern: from `pattern_of`.
          unit: ``s``.
        """
        sides = zip((pattern.rows, pattern.columns), self.means, strict=True)
        rows, columns = ((unit * (phi @ np.array(a))).astype(np.float32) for phi, a in sides)
        return rows, columns

    def factors(self, entries: Entries, rank: int, strength: float, unit: float) -> FactorPrior:
        """Zero means [N, K], [M, K], and precisions by counts.

        Args:
          entries: of the matrix.
          rank: K, without bias columns.
          strength: ``lam``.
          unit: ``s``.
        """
        counts = counts_of(entries)
        precisions = [
            (strength * unit * k * np.maximum(n, 1.0) ** p).astype(np.float32)
            for n, k, p in zip(counts, self.strengths, self.powers, strict=True)
        ]
        u, v = (np.zeros((size, rank), np.float32) for size in entries.shape)
        return FactorPrior(u, v, *precisions)


class Pattern(NamedTuple):
    """Features of the rows [N, 3] and of the columns [M, 3], float64."""

    rows: np.ndarray
    columns: np.ndarray


def counts_of(entries: Entries) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of entries of the rows [N] and of the columns [M]."""
    sides = zip((entries.rows, entries.columns), entries.shape, strict=True)
    rows, columns = (np.bincount(np.asarray(ids), minlength=size) for ids, size in sides)
    return rows, columns


def pattern_of(entries: Entries) -> Pattern:
    """The features of both sides; NumPy entries, of which no value is read."""
    sides = np.asarray(entries.rows), np.asarray(entries.columns)
    firsts, both = [], []
    for listed, count in zip(sides, counts_of(entries), strict=True):
        raw = np.column_stack([np.log1p(count), np.maximum(count, 1) ** -0.5])
        raw -= raw[listed].mean(axis=0) if len(listed) else raw.mean(axis=0)
        firsts.append(raw[:, 0])
        both.append((raw, count))
    found = []
    for side, (raw, count) in enumerate(both):
        of_others = firsts[1 - side][sides[1 - side]]
        sums = np.bincount(sides[side], of_others, entries.shape[side])
        found.append(np.column_stack([raw, sums / (count + 1)]))
    return Pattern(*found)


def subtract(entries: Entries, offsets: tuple[np.ndarray, np.ndarray]) -> Entries:
    """What the offsets of rows and columns leave of the values."""
    rows, columns = np.asarray(entries.rows), np.asarray(entries.columns)
    left = np.asarray(entries.values) - offsets[0][rows] - offsets[1][columns]
    return dataclasses.replace(entries, values=left.astype(np.float32))


def add(factors: Factors, offsets: tuple[np.ndarray, np.ndarray]) -> Factors:
    """Undoes `subtract` in the bias columns of factors ``(.., b, 1)`` and ``(.., 1, c)``."""
    u, v = (np.array(x) for x in factors)
    u[:, -2] += offsets[0]
    v[:, -1] += offsets[1]
    return Factors(u, v)


def save(path: str | os.PathLike, learned: PatternPrior) -> None:
    """Writes a JSON file."""
    files.write_record(path, learned)


def load(path: str | os.PathLike) -> PatternPrior:
    """Reads what `save` wrote.

    Raises:
      ValueError: there is no such file, or it does not hold such a prior.
    """
    return files.read_record(path, PatternPrior, "a prior of experiments.learn_prior")
