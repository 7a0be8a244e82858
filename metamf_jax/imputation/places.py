"""Which rows and columns of a matrix have cells, and where those stand."""

from typing import NamedTuple

import numpy as np

from metamf_jax.types import Entries


class Places(NamedTuple):
    """Where rows and columns stand in a matrix without its empty ones.

    Attributes:
      rows: [N] int32, those without cells all at the place after the last.
      columns: [M] int32, likewise.
      occupied: numbers of rows and of columns that have cells.
    """

    rows: np.ndarray
    columns: np.ndarray
    occupied: tuple[int, int]

    @property
    def turned(self) -> "Places":
        """Of the transpose."""
        rows, columns = self.occupied
        return Places(self.columns, self.rows, (columns, rows))


def set_aside(entries: Entries) -> tuple[Entries, Places]:
    """The matrix without its empty rows and columns.

    A wide one column by column, so that cells are held out as of its transpose row by row.
    """
    places, numbers = [], []
    for listed, size in zip((entries.rows, entries.columns), entries.shape, strict=True):
        occupied = np.zeros(size, bool)
        occupied[listed] = True
        count = int(occupied.sum())
        places.append(np.where(occupied, np.cumsum(occupied) - 1, count).astype(np.int32))
        numbers.append(count)
    order = slice(None)
    if numbers[0] < numbers[1]:
        order = np.lexsort([entries.rows, entries.columns])
    dense = Entries(
        places[0][entries.rows[order]],
        places[1][entries.columns[order]],
        np.asarray(entries.values)[order],
        (numbers[0], numbers[1]),
    )
    return dense, Places(places[0], places[1], (numbers[0], numbers[1]))


def find_places(numbers, kind: str, places: np.ndarray, last: int) -> np.ndarray:
    """Where rows (or columns) of these numbers stand, unknown ones at the last place.

    Args:
      numbers: [P], from 0.
      kind: ``row`` or ``column``, for the message.
      places: [N] of those known.
      last: a place without cells.

    Raises:
      ValueError: a number is negative.
    """
    numbers = np.asarray(numbers)
    if len(numbers) and numbers.min() < 0:
        raise ValueError(f"expected {kind} numbers from 0, got {numbers.min()}")
    return np.append(places, last)[np.minimum(numbers, len(places))]


def require_valid(entries: Entries) -> None:
    """Refuses what cannot be completed.

    Raises:
      ValueError: no cell, a cell outside of the matrix or twice, or a value that is not finite.
    """
    if not len(entries.rows):
        raise ValueError("the matrix has no observed cell: nothing to impute from")
    values = np.asarray(entries.values)
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise ValueError(
            f"expected finite observed values, got {values[wrong[0]]} at row "
            f"{entries.rows[wrong[0]]}, column {entries.columns[wrong[0]]}; correct it or make it "
            "missing"
        )
    for kind, places, size in zip(
        ("row", "column"), (entries.rows, entries.columns), entries.shape, strict=True
    ):
        if places.min() < 0 or places.max() >= size:
            raise ValueError(
                f"expected {kind}s from 0 to {size - 1} in a matrix of shape {entries.shape}, got "
                f"{places.min()} to {places.max()}"
            )
    flat = np.sort(entries.rows.astype(np.int64) * entries.shape[1] + entries.columns)
    twice = np.flatnonzero(flat[1:] == flat[:-1])
    if len(twice):
        row, column = divmod(int(flat[twice[0]]), entries.shape[1])
        raise ValueError(f"the cell at row {row}, column {column} is given twice; keep one")
