"""Strata: which blocks of a P x P grid are worked on together, as an array of integers.

A stratum is a set of P blocks no two of which share a row block or a column block. Entries of
different blocks of a stratum are then interchangeable, so its blocks may run in parallel and the
result is still that of some serial order. Gemulla et al., KDD 2011.
"""

from typing import Final

import numpy as np

SCHEDULES: Final = ("seq", "wor", "random")


def make_schedule(name: str, num_blocks: int, rng: np.random.Generator) -> np.ndarray:
    """The strata of one epoch.

    Args:
      name: `seq`, ``schedule[s, i] = (i + s) mod P``; `wor` (without replacement), that matrix with
        rows and columns permuted at random, so that every block comes once, in another order each
        time; `random`, an independent random stratum each sub-epoch, so that blocks may come twice
        or never.
      num_blocks: P, blocks per side.
      rng: draws the permutations.

    Returns:
      [P, P] int32: in sub-epoch s, row block i meets column block ``schedule[s, i]``.

    Raises:
      ValueError: another name.
    """
    steps = np.arange(num_blocks, dtype=np.int32)
    match name:
        case "seq":
            rows, columns = steps, steps
        case "wor":
            rows, columns = rng.permutation(steps), rng.permutation(steps)
        case "random":
            return np.stack([rng.permutation(steps) for _ in steps])
        case _:
            raise ValueError(f"expected a schedule among {', '.join(SCHEDULES)}, got {name!r}")
    return (rows[:, None] + columns[None, :]) % num_blocks
