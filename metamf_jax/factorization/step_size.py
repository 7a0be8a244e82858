"""Step sizes of SGD, chosen once an epoch.

=================  =====================================================================
`constant:E`       E
`decay:E:A`        E / n^A in epoch n, from 1
`bold_driver:E`    starts at E; times 1.05 after an epoch whose objective, penalty included,
                   fell, and times 0.5 otherwise. The factors are not rolled back, except that
                   after an objective that is not finite, or more than half above the one before,
                   those before come back.
`adagrad:E`        E / sqrt(1 + sum of the mean squares of its gradients so far), of each row
                   and column its own
=================  =====================================================================

Bold driver: Gemulla et al., KDD 2011. AdaGrad with one rate a row: Chin, Zhuang, Juan, Lin, A
learning-rate schedule for stochastic gradient methods to matrix factorization, PAKDD 2015.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from metamf_jax.types import Entries

STEP_SIZES: Final = ("constant", "decay", "bold_driver", "adagrad")

_RISE, _FALL = 1.05, 0.5
_DEFAULT_VALUE: Final = {"constant": 0.01, "decay": 0.05, "bold_driver": 0.02, "adagrad": 0.1}


@dataclasses.dataclass(frozen=True)
class StepSize:
    """A rule for the step size.

    Attributes:
      name: one of `STEP_SIZES`.
      value: the (first) step size.
      power: ``A`` of `decay`.
    """

    name: str = "bold_driver"
    value: float = 0.02
    power: float = 0.6

    def __post_init__(self):
        if self.name not in STEP_SIZES:
            raise ValueError(
                f"expected a step size among {', '.join(STEP_SIZES)}, got {self.name!r}"
            )
        if not 0 < self.value < math.inf:
            raise ValueError(f"expected a positive, finite step size, got {self.value}")
        if not 0 <= self.power < math.inf:
            raise ValueError(f"expected a power of at least 0, got {self.power}")

    @property
    def per_row(self) -> bool:
        """Whether each row and column scales the step size by its own gradients."""
        return self.name == "adagrad"

    @property
    def reads_objective(self) -> bool:
        """Whether the next step size depends on the objective."""
        return self.name == "bold_driver"

    def first(self) -> float:
        """The step size of epoch 1."""
        return self.value

    def after(self, epoch: int, value: float, previous: float, objective: float) -> float:
        """The step size of the next epoch.

        Args:
          epoch: the epoch that ended, from 1.
          value: its step size.
          previous: the last finite objective before it.
          objective: the objective after it; may be NaN or infinite.
        """
        if self.name == "decay":
            return self.value / (epoch + 1) ** self.power
        if self.name == "bold_driver":
            # Written so that NaN counts as no decrease.
            return value * (_RISE if objective < previous else _FALL)
        return self.value


def parse(text: str) -> StepSize:
    """Reads ``NAME[:VALUE[:POWER]]``.

    Raises:
      ValueError: a name or number that cannot be read.
    """
    name, *numbers = text.split(":")
    try:
        values = [float(number) for number in numbers]
    except ValueError:
        values = None
    if values is None or len(values) > (2 if name == "decay" else 1):
        raise ValueError(
            f"expected a step size as NAME[:VALUE], or decay:VALUE:POWER, got {text!r}"
        )
    return StepSize(name, *(values or [_DEFAULT_VALUE.get(name, 1.0)]))


def sample_entries(entries: Entries, rng: np.random.Generator, at_least: int = 50_000) -> Entries:
    """A random sub-matrix with at least `at_least` entries, or everything where there are fewer.

    Args:
      entries: of the matrix; NumPy.
      rng: draws the rows and columns to keep.
      at_least: number of entries wanted.

    Returns:
      The entries of the rows and columns drawn, renumbered.
    """
    if len(entries.values) <= at_least:
        return entries
    # Both sides in the order of a random draw; the first `share` of each is kept.
    ranks = [rng.permutation(size) / size for size in entries.shape]
    reach = np.maximum(ranks[0][entries.rows], ranks[1][entries.columns])
    share = np.partition(reach, at_least - 1)[at_least - 1]
    kept = [rank <= share for rank in ranks]
    inside = reach <= share
    numbers = [np.cumsum(keep, dtype=np.int32) - 1 for keep in kept]
    return Entries(
        numbers[0][entries.rows[inside]],
        numbers[1][entries.columns[inside]],
        entries.values[inside],
        (int(kept[0].sum()), int(kept[1].sum())),
    )


def choose(objective_after: Callable[[float], float], candidates: Sequence[float]) -> float:
    """The candidate after which the objective is lowest.

    Args:
      objective_after: runs some epochs on a sample with this first step size and returns the
        objective; NaN or infinite where it diverges.
      candidates: step sizes.

    Raises:
      ValueError: every candidate diverged.
    """
    objectives = [objective_after(value) for value in candidates]
    finite = [(o, v) for o, v in zip(objectives, candidates, strict=True) if math.isfinite(o)]
    if not finite:
        raise ValueError(
            f"every step size tried ({', '.join(f'{v:g}' for v in candidates)}) diverged on the"
            " sample; try smaller ones"
        )
    return min(finite)[1]
