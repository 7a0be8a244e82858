"""Declared bounds of a matrix: what its columns may hold, whatever the model says.

(0, 1)                              of all columns
{"age": (0, 120), 3: (0, None)}     of some, by name or number; None where there is none
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metamf_jax.imputation.scaling import Bounds
from metamf_jax.types import Entries

Declared = Sequence[float | None] | Mapping[Any, Sequence[float | None]]


def of_columns(declared: Declared | None, count: int, names: Sequence[str] | None) -> Bounds:
    """Low and high of the columns, [M + 1] each; the last is that of any further column.

    Args:
      declared: bounds, or None.
      count: M.
      names: of the columns, or None.

    Raises:
      ValueError: no pair of numbers, a low above its high, or a column that is not there.
    """
    found = Bounds(np.full(count + 1, -np.inf), np.full(count + 1, np.inf))
    if declared is None:
        return found
    if not isinstance(declared, Mapping):
        found.low[:], found.high[:] = _pair(declared, "all columns")
        return found
    numbers: dict[Any, int] = {name: m for m, name in enumerate(() if names is None else names)}
    for key, pair in declared.items():
        whole = isinstance(key, int | np.integer) and not isinstance(key, bool)
        m = numbers.get(key, key if whole and 0 <= key < count else None)
        if m is None:
            shown = f"0 to {count - 1}" if names is None else ", ".join(map(str, names[:20]))
            raise ValueError(f"bounds are given for column {key!r}, but the columns are {shown}")
        found.low[m], found.high[m] = _pair(pair, f"column {key!r}")
    return found


def require_within(bounds: Bounds, entries: Entries) -> None:
    """Refuses observed cells beyond the bounds of their columns.

    Raises:
      ValueError: there is one.
    """
    columns = np.minimum(entries.columns, len(bounds.low) - 1)
    low, high = bounds.low[columns], bounds.high[columns]
    beyond = np.flatnonzero((entries.values < low) | (entries.values > high))
    if len(beyond):
        first = beyond[0]
        raise ValueError(
            f"column {entries.columns[first]}, row {entries.rows[first]} (the first are 0): "
            f"{entries.values[first]} is not within the declared bounds {low[first]:g} and "
            f"{high[first]:g}; {len(beyond)} cells are not. Correct them, leave them empty, or "
            "declare other bounds"
        )


def clip(values: np.ndarray, bounds: Bounds, columns: np.ndarray | None = None) -> np.ndarray:
    """Values within bounds, also where their dtype rounds these.

    Args:
      values: [..., M], or [..., P] at columns.
      bounds: of `of_columns`.
      columns: [P] int, beyond M - 1 for further ones; None for all columns in their order.
    """
    last = len(bounds.low) - 1
    at = np.arange(last) if columns is None else np.minimum(columns, last)
    low, high = (bound.astype(values.dtype) for bound in bounds)
    low = np.where(low < bounds.low, np.nextafter(low, values.dtype.type(np.inf)), low)
    high = np.where(high > bounds.high, np.nextafter(high, values.dtype.type(-np.inf)), high)
    return np.clip(values, low[at], high[at])


def _pair(given: Any, of: str) -> tuple[float, float]:
    try:
        low, high = given
        low = -np.inf if low is None else float(low)
        high = np.inf if high is None else float(high)
    except (TypeError, ValueError) as error:
        raise ValueError(f"bounds of {of}: expected (low, high), got {given!r}") from error
    if not low <= high:
        raise ValueError(f"bounds of {of}: expected a low that is not above high, got {given!r}")
    return low, high
