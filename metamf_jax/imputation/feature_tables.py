"""What is told of rows and columns beside a matrix: a user's tables, coded for the sampler.

A table is a data frame with a line for each id or for each row, or an array of numbers with a line
for each row. Ids are the frame's index, if it is of pandas and not merely numbered from 0, else its
column ``id``, else rows are taken in their order. Numbers, truth values and times are numbers; text
and categories are categories; lists, and text with several labels between ``|``, are labels. A name
may end in the kind that its column is to have: ``zip:category``.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from metamf_jax.imputation import frames
from metamf_jax.posterior import given
from metamf_jax.posterior.given import GivenFeatures
from metamf_jax.types import FeatureColumn, FeatureTable

_OF_IDS = "id"
_KINDS = ("number", "category", "labels")
_LABELS_BETWEEN = "|"


class SideTable(NamedTuple):
    """A table of features, and where the rows (or columns) of a matrix stand in it.

    Attributes:
      table: what is told.
      lines: [N] int, -1 for a row of which it tells nothing.
    """

    table: FeatureTable
    lines: np.ndarray


class Names(NamedTuple):
    """What the rows (or columns) of a matrix are called.

    Attributes:
      ids: [N], their numbers where they have no names.
      named: whether they have.
    """

    ids: Sequence[Any]
    named: bool


class Features(NamedTuple):
    """Features of a matrix's rows and columns, and what held-out cells said of them.

    Attributes:
      given: of the rows [N, ..] and of the columns [M, ..].
      rmse, rmse_without: of draws with them and without, at the same held-out cells.
      used: whether the draws that answer have them.
    """

    given: tuple[GivenFeatures, GivenFeatures]
    rmse: float
    rmse_without: float
    used: bool


def coded(
    rows: SideTable | None, columns: SideTable | None, shape: tuple[int, int]
) -> tuple[GivenFeatures, GivenFeatures] | None:
    """The features of a matrix's rows and columns; None without a table.

    Raises:
      ValueError: see `given.given_features`.
    """
    if rows is None and columns is None:
        return None
    return _coded(rows, shape[0]), _coded(columns, shape[1])


def _coded(side: SideTable | None, count: int) -> GivenFeatures:
    return given.none_given(count) if side is None else given.given_features(*side)


def of_further(features: Features | None, side: int, told: SideTable | None) -> np.ndarray | None:
    """The features [N', F] of further rows (side 0) or columns (1); None where none are used.

    Raises:
      ValueError: the matrix was fitted without such a table, or see `given.of_further_rows`.
    """
    if told is None:
        return None
    name = ("row_features", "column_features")[side]
    if features is None or not features.given[side].codings:
        raise ValueError(
            f"{told.table.path}: the matrix was fitted without {name}: fit it with them, or leave"
            " them out"
        )
    found = given.of_further_rows(features.given[side], *told)
    return found if features.used else None


def grown(of_rows: GivenFeatures, count: int, told: SideTable | None) -> GivenFeatures:
    """The features of one side of a matrix that has grown to so many rows.

    Args:
      of_rows: of the N rows before.
      count: N', no smaller.
      told: of the N' - N further rows; None where nothing is known of them.
    """
    further = np.zeros((count - len(of_rows.features), of_rows.features.shape[1]), np.float32)
    if told is not None:
        further = given.of_further_rows(of_rows, *told)
    return of_rows._replace(features=np.concatenate([of_rows.features, further]))


def read(told: Any, names: Names, side: str) -> SideTable | None:
    """What a user's table tells.

    Args:
      told: a data frame of pandas or polars, a table of pyarrow, or an array [N] or [N, F] of
        numbers; None for nothing.
      names: of the rows (or columns) of the matrix.
      side: ``row`` or ``column``, which it tells of.

    Raises:
      ValueError: another number of rows, an id twice, blank or unknown, or cells of another kind.
    """
    if told is None:
        return None
    path = f"{side}_features"
    if not frames.is_frame(told):
        return _of_array(path, told, names, side)
    ids, columns = _ids_apart(path, frames.named_arrays(told), frames.index(told))
    if not columns:
        raise ValueError(f"{path}: expected one or more columns beside the ids, got none")
    lines, ids = _lines(path, ids, len(columns[0][1]), names, side)
    table = FeatureTable(path, ids, tuple(_column(path, *column) for column in columns))
    return SideTable(table, lines)


def _of_array(path: str, told: Any, names: Names, side: str) -> SideTable:
    array = np.asarray(told)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(
            f"{path}: expected a data frame or an array with a line for each {side}, got shape "
            f"{np.shape(told)}"
        )
    try:
        values = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected numbers in an array, got {error}; give a data frame, whose columns"
            " may be categories"
        ) from error
    lines, ids = _lines(path, None, len(values), names, side)
    columns = [
        FeatureColumn(str(n), "number", _finite(path, str(n), column))
        for n, column in enumerate(values.T)
    ]
    return SideTable(FeatureTable(path, ids, tuple(columns)), lines)


def _ids_apart(
    path: str, columns: list[tuple[Any, pa.Array]], index: list[Any] | None
) -> tuple[list[Any] | None, list[tuple[Any, pa.Array]]]:
    """Ids, if there are any, and the other columns."""
    if index is not None:
        return index, columns
    found = [array.to_pylist() for name, array in columns if name == _OF_IDS]
    return (found[0] if found else None), [each for each in columns if each[0] != _OF_IDS]


def _lines(
    path: str, ids: list[Any] | None, count: int, names: Names, side: str
) -> tuple[np.ndarray, np.ndarray]:
    """Where the matrix's rows stand among so many lines, and the ids of these."""
    size = len(names.ids)
    if ids is None:
        if count != size:
            raise ValueError(
                f"{path}: expected {size} rows, one for each {side} of X, got {count}; for another"
                f" order or number give each its {side}'s id: by an index of pandas, or a column"
                f" named {_OF_IDS!r}"
            )
        return np.arange(size), np.arange(size)
    place: dict[str, int] = {}
    for n, each in enumerate(map(_written, ids)):
        if not each:
            raise ValueError(f"{path}: expected an id in row {n}, got a blank; name the row")
        if place.setdefault(each, n) != n:
            raise ValueError(
                f"{path}: the id {each!r} of row {n} is there already, in row {place[each]}; keep "
                "one of them"
            )
    written = [*map(_written, names.ids)]
    unknown = next(iter(place.keys() - set(written)), None)
    if not names.named and unknown is not None:
        by = "an index" if side == "row" else "columns"
        raise ValueError(
            f"{path}: the {side}s of X have no names, so that ids are their numbers from 0 to "
            f"{size - 1}, got {unknown!r}; give X names ({by} of pandas),"
            f" or one line of features for each {side} in X's order"
        )
    told = np.empty(len(ids), object)
    told[:] = ids
    return np.array([place.get(each, -1) for each in written], int), told


def _written(value: Any) -> str:
    """An id or a level as text: whole numbers without a point, blank where there is none."""
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _column(path: str, header: Any, array: pa.Array) -> FeatureColumn:
    name, _, declared = str(header).rpartition(":")
    if declared not in _KINDS:
        name, declared = str(header), ""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind = declared or _kind(path, name, array)
    if kind == "number":
        return FeatureColumn(name, kind, _numbers(path, name, array))
    values = np.empty(len(array), object)
    values[:] = [_text(cell) for cell in array.to_pylist()]
    return FeatureColumn(name, kind, values)


def _kind(path: str, name: str, array: pa.Array) -> str:
    kind = array.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return "labels"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        several = any(_LABELS_BETWEEN in cell for cell in array.to_pylist() if cell is not None)
        return "labels" if several else "category"
    tests = pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean
    if any(test(kind) for test in (*tests, pa.types.is_temporal, pa.types.is_null)):
        return "number"
    raise ValueError(
        f"{path}: expected numbers, text, categories or lists of labels in column {name!r}, got"
        f" {kind}; leave it out"
    )


def _text(cell: Any) -> str:
    return _LABELS_BETWEEN.join(map(_written, cell)) if isinstance(cell, list) else _written(cell)


def _numbers(path: str, name: str, array: pa.Array) -> np.ndarray:
    if pa.types.is_temporal(array.type):
        seconds = pa.types.is_date(array.type) or pa.types.is_timestamp(array.type)
        array = array.cast(pa.timestamp("us")) if seconds else array
        array = array.cast(pa.int64())
    values = np.full(len(array), np.nan)
    for n, cell in enumerate(array.to_pylist()):
        try:
            values[n] = np.nan if cell is None else float(cell)
        except (TypeError, ValueError):
            raise ValueError(
                f"{path}: expected a number in column {name!r}, got {cell!r} in row {n}; correct"
                f" it, or name the column {name}:category"
            ) from None
    return _finite(path, name, values)


def _finite(path: str, name: str, values: np.ndarray) -> np.ndarray:
    wrong = np.flatnonzero(np.isinf(values))
    if len(wrong):
        raise ValueError(
            f"{path}: expected finite numbers in column {name!r}, got {values[wrong[0]]} in row "
            f"{wrong[0]}; correct it or leave it blank"
        )
    return values
