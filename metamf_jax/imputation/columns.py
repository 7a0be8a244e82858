"""The columns of a table: what type each is of, and its cells as numbers.

    numeric    any number, dates and times too
    integer    a whole number
    binary     one of two levels
    ordinal    one of some levels that have an order
    nominal    one of some levels that have none

A number stays what it is; a level becomes its place among the column's levels, from 0. What is
missing, NaN, or a level that was not there when the column was described, becomes NaN.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow.compute import SetLookupOptions, call_function

TYPES = ("numeric", "integer", "binary", "ordinal", "nominal")
NUMBERS, LEVELS = TYPES[:2], TYPES[2:]

# So few whole numbers are taken to be levels, if each is there so many times in the mean: answers
# of a questionnaire, rooms of a house.
_MOST_LEVELS, _CELLS_A_LEVEL = 10, 5
# Two different numbers among fewer cells may be two by chance.
_FEWEST_OF_TWO = 10


class Column(NamedTuple):
    """What a column is.

    Attributes:
      name: as in the table.
      type: one of `TYPES`.
      levels: of one of `LEVELS`, in their order; None of numbers.
    """

    name: str
    type: str
    levels: pa.Array | None = None


def describe(name: str, array: pa.Array, type_: str | None = None) -> Column:
    """Finds out what a column is.

    Categories are nominal, ordered ones ordinal, text nominal, yes and no binary. Numbers are
    binary where they are two, ordinal where they are few and whole, integer where they are whole.

    Args:
      name: of the column.
      array: its cells; NaN is missing.
      type_: one of `TYPES`, if it is known.

    Raises:
      ValueError: an unknown type, or one that such cells cannot be of.
    """
    if type_ is not None and type_ not in TYPES:
        raise ValueError(
            f"column {name!r}: expected a type among {', '.join(TYPES)}, got {type_!r}"
        )
    if _is_number(array.type):
        return _describe_numbers(name, array, type_)
    if type_ in NUMBERS:
        raise ValueError(f"column {name!r} is {type_}, but its cells are of type {array.type}")
    if pa.types.is_dictionary(array.type):
        levels = array.dictionary
        found = "ordinal" if array.type.ordered else "nominal"
    elif pa.types.is_boolean(array.type):
        levels, found = pa.array([False, True]), "binary"
    elif _is_text(array.type):
        levels, found = _distinct(array), "nominal"
    else:
        raise ValueError(
            f"column {name!r}: expected numbers, text, categories, dates or booleans, got cells of "
            f"type {array.type}"
        )
    if type_ is None:
        type_ = "binary" if len(levels) == 2 else found
    return _of_levels(name, type_, levels)


def encode(column: Column, array: pa.Array) -> np.ndarray:
    """The cells as float64 [N]: numbers, or places among the column's levels; NaN where missing.

    Raises:
      ValueError: an infinite number, or cells of another kind than those that were described.
    """
    if column.levels is not None:
        if pa.types.is_dictionary(array.type):
            array = array.cast(array.type.value_type)
        if pa.types.is_null(array.type):
            return np.full(len(array), np.nan)
        try:
            places = _places(array, column.levels.cast(array.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ValueError(
                f"column {column.name!r}: expected levels as {column.levels[0]}, got cells of type "
                f"{array.type}"
            ) from error
        return np.asarray(places.cast(pa.float64()).fill_null(np.nan))
    if not _is_number(array.type):
        raise ValueError(
            f"column {column.name!r}: expected numbers, got cells of type {array.type}"
        )
    values = _numbers(array)
    if np.isinf(values).any():
        raise ValueError(
            f"column {column.name!r} holds an infinite number: leave the cell empty instead"
        )
    return values


def decode(column: Column, values: np.ndarray, like: pa.Array) -> pa.Array:
    """Cells from numbers, as an array of the type of ``like``.

    Whole numbers stay within what their type holds; numbers of a type of whole numbers are rounded.

    Args:
      column: what they are.
      values: [N] finite numbers, or places among the levels.
      like: cells of the column.
    """
    if column.levels is not None:
        places = pa.array(np.rint(values).astype(np.int32))
        if pa.types.is_dictionary(like.type):
            of_levels = _places(column.levels, like.dictionary.cast(column.levels.type))
            indices = of_levels.take(places).cast(like.type.index_type)
            return pa.DictionaryArray.from_arrays(
                indices, like.dictionary, ordered=like.type.ordered
            )
        return column.levels.take(places).cast(like.type)
    if column.type == "integer":
        values = np.rint(values)
    if pa.types.is_floating(like.type):
        return pa.array(values).cast(like.type, safe=False)
    if pa.types.is_decimal(like.type):
        return pa.array(np.round(values, like.type.scale)).cast(like.type, safe=False)
    # Whole numbers, and dates and times, which are so inside.
    inner = like.type if pa.types.is_integer(like.type) else pa.int64()
    if pa.types.is_temporal(like.type) and like.type.bit_width == 32:
        inner = pa.int32()
    limits = np.iinfo(inner.to_pandas_dtype())
    # The largest float64 that is not above the limit.
    most = np.nextafter(float(limits.max) + 1, 0) if limits.bits == 64 else limits.max
    whole = np.clip(np.rint(values), limits.min, most).astype(limits.dtype)
    return pa.array(whole, inner).cast(like.type)


def is_missing(array: pa.Array) -> np.ndarray:
    """Which cells are null or NaN; bool [N]."""
    return np.asarray(array.is_null(nan_is_null=True))


def has_levels(array: pa.Array) -> bool:
    """Whether the cells are no numbers: text, categories, or times."""
    type_ = array.type
    return _is_text(type_) or pa.types.is_dictionary(type_) or pa.types.is_temporal(type_)


def require_known(types: Mapping[str, str] | None, names: list[str]) -> Mapping[str, str]:
    """The declared types, of columns that are there.

    Raises:
      ValueError: a type of a column that is not.
    """
    unknown = [name for name in types or {} if name not in names]
    if unknown:
        raise ValueError(
            f"types are given for {', '.join(map(repr, unknown))}, but the columns are "
            f"{', '.join(map(str, names[:20]))}{', ..' if len(names) > 20 else ''}"
        )
    return types or {}


def of_matrix(
    values: np.ndarray, names: list[str] | None = None, types: Mapping[str, str] | None = None
) -> tuple[np.ndarray, tuple[Column, ...]]:
    """Describes and encodes a matrix of numbers [N, M], NaN where missing.

    Args:
      values: the matrix.
      names: of the columns; x0, x1, .. without.
      types: those that are known.
    """
    names = [f"x{m}" for m in range(values.shape[1])] if names is None else names
    known = require_known(types, names)
    arrays = [pa.array(column, from_pandas=True) for column in np.asarray(values).T]
    columns = tuple(
        describe(name, array, known.get(name)) for name, array in zip(names, arrays, strict=True)
    )
    found = [encode(column, array) for column, array in zip(columns, arrays, strict=True)]
    return np.column_stack(found), columns


def to_matrix(described: Sequence[Column], values: np.ndarray) -> np.ndarray:
    """Numbers of a matrix [N, M] whose places of levels become these again; see `of_matrix`."""
    found = values.copy()
    for m, column in enumerate(described):
        if column.levels is not None:
            levels = np.asarray(column.levels, np.float64)
            rows = np.flatnonzero(~np.isnan(values[:, m]))
            found[rows, m] = levels[values[rows, m].astype(int)]
    return found


def _describe_numbers(name: str, array: pa.Array, type_: str | None) -> Column:
    values = _numbers(array)
    values = values[np.isfinite(values)]
    if type_ is None:
        type_ = "numeric" if pa.types.is_temporal(array.type) else _type_of_numbers(values)
    if type_ in NUMBERS:
        return Column(name, type_)
    return _of_levels(name, type_, _distinct(array))


def _type_of_numbers(values: np.ndarray) -> str:
    if not len(values):
        return "numeric"
    distinct = len(np.unique(values))
    if distinct == 2 and len(values) >= _FEWEST_OF_TWO:
        return "binary"
    if (values != np.rint(values)).any():
        return "numeric"
    few = 2 < distinct <= _MOST_LEVELS and len(values) >= _CELLS_A_LEVEL * distinct
    return "ordinal" if few else "integer"


def _of_levels(name: str, type_: str, levels: pa.Array) -> Column:
    if type_ == "binary" and len(levels) > 2:
        raise ValueError(
            f"column {name!r} is binary, but has {len(levels)} levels: "
            f"{', '.join(map(str, levels[:5].to_pylist()))}{', ..' if len(levels) > 5 else ''}"
        )
    return Column(name, type_, levels)


def _distinct(array: pa.Array) -> pa.Array:
    """The different cells, ascending."""
    return array.filter(pa.array(~is_missing(array))).unique().sort()


def _places(array: pa.Array, levels: pa.Array) -> pa.Array:
    """Where each cell is among the levels; null where it is not."""
    return call_function("index_in", [array], SetLookupOptions(levels))


def _numbers(array: pa.Array) -> np.ndarray:
    if pa.types.is_null(array.type):
        return np.full(len(array), np.nan)
    if pa.types.is_temporal(array.type):
        array = array.cast(pa.int32() if array.type.bit_width == 32 else pa.int64())
    return np.array(array.cast(pa.float64(), safe=False).fill_null(np.nan))


def _is_number(type_: Any) -> bool:
    of_time = pa.types.is_temporal(type_) and not pa.types.is_interval(type_)
    kinds = pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null
    return of_time or any(kind(type_) for kind in kinds)


def _is_text(type_: Any) -> bool:
    kinds = pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view
    return any(kind(type_) for kind in kinds)
