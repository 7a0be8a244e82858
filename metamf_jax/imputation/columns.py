"""The columns of a table: what type each is of, and its cells as numbers.

    numeric    any number, dates and times too
    integer    a whole number
    binary     one of two levels
    ordinal    one of some levels that have an order
    nominal    one of some levels that have none

A number stays what it is; a level becomes its place among the column's levels, from 0. What is
missing, NaN, or a level that was not there when the column was described, becomes NaN.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow.compute import SetLookupOptions, call_function

from metamf_jax.imputation import declared as declarations
from metamf_jax.imputation.declared import NOTHING, NUMBERS, Declared, Types

# So few whole numbers are taken to be levels, if each is there so many times in the mean: answers
# of a questionnaire, rooms of a house.
_MOST_LEVELS, _CELLS_A_LEVEL = 10, 5
# Two different numbers among fewer cells may be two by chance.
_FEWEST_OF_TWO = 10


class Column(NamedTuple):
    """What a column is.

    Attributes:
      name: as in the table.
      type: one of `declared.TYPES`.
      levels: of one of `declared.LEVELS`, in their order; None of numbers.
      low, high: within these lies every number, both included, as far as that was declared.
    """

    name: str
    type: str
    levels: pa.Array | None = None
    low: float = -np.inf
    high: float = np.inf

    @property
    def of_numbers(self) -> bool:
        """Whether the levels, if there are any, are numbers."""
        return self.levels is None or _is_number(self.levels.type)


def describe(name: str, array: pa.Array, declared: Declared = NOTHING) -> Column:
    """Finds out what a column is.

    Categories are nominal, ordered ones ordinal, text nominal, yes and no binary. Numbers are
    binary where they are two, ordinal where they are few and whole, integer where they are whole.

    Args:
      name: of the column.
      array: its cells; NaN is missing.
      declared: what is known of it.

    Raises:
      ValueError: a type, bounds or levels that such cells cannot be of.
    """
    type_ = declared.type
    if _is_number(array.type) and declared.levels is None:
        return _describe_numbers(name, array, declared)
    if type_ in NUMBERS or declared.low is not None or declared.high is not None:
        raise ValueError(
            f"column {name!r} is {type_ or 'bounded'}, but its cells are of type {array.type}"
        )
    if declared.levels is not None:
        return _of_declared_levels(name, array, declared)
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
      ValueError: an infinite number, one beyond declared bounds, or cells of another kind than
        those that were described.
    """
    if column.levels is not None:
        array = _decoded(array)
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
    _require_within(column, values, array)
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


def extend(column: Column, array: pa.Array, declared: Declared = NOTHING) -> Column:
    """What a column is with further cells: levels that were not there before are added.

    Of two levels a third makes several, of whole numbers a broken one makes numbers, unless they
    were declared.

    Raises:
      ValueError: a level that was not declared, one whose place among ordered categories is not
        known, a number beyond declared bounds, or cells of another kind.
    """
    if column.levels is None:
        if column.type == "integer" and declared.type is None:
            values = encode(column._replace(type="numeric"), array)
            if (values[~np.isnan(values)] % 1 != 0).any():
                return column._replace(type="numeric")
        elif column.type == "integer":
            return describe(column.name, array, declared)
        return column
    cells = _decoded(array)
    known = ~is_missing(cells)
    unknown = known & np.isnan(encode(column, array))
    if not unknown.any():
        return column
    new = cells.filter(pa.array(unknown)).unique().cast(column.levels.type)
    shown = f"column {column.name!r}, row {np.flatnonzero(unknown)[0] + 1} of the further ones"
    if declared.levels is not None or declared.type == "binary":
        raise ValueError(f"{shown}: {new[0]} is none of {', '.join(map(str, column.levels))}")
    ordered = _is_number(column.levels.type) and column.type != "nominal"
    if column.type == "ordinal" and not ordered:
        raise ValueError(
            f"{shown}: {new[0]} has no known place among the levels "
            f"{', '.join(map(str, column.levels))}: fit anew with all of them, in their order"
        )
    levels = pa.concat_arrays([column.levels, new])
    if ordered:
        return column._replace(type="ordinal", levels=levels.sort())
    return column._replace(type="nominal", levels=levels)


def moved(before: Column, after: Column, values: np.ndarray) -> np.ndarray:
    """Places [N] among the levels of ``before`` as those among the levels of ``after``."""
    if before.levels is None or after.levels is None or before.levels.equals(after.levels):
        return values
    at = np.asarray(_places(before.levels, after.levels), np.float64)
    missing = np.isnan(values)
    return np.where(missing, np.nan, at[np.where(missing, 0, values).astype(int)])


def is_missing(array: pa.Array) -> np.ndarray:
    """Which cells are null or NaN; bool [N]."""
    return np.asarray(array.is_null(nan_is_null=True))


def has_levels(array: pa.Array) -> bool:
    """Whether the cells are no numbers: text, categories, or times."""
    type_ = array.type
    return _is_text(type_) or pa.types.is_dictionary(type_) or pa.types.is_temporal(type_)


def of_matrix(
    values: np.ndarray, names: list[str] | None = None, types: Types | None = None
) -> tuple[np.ndarray, tuple[Column, ...]]:
    """Describes and encodes a matrix of numbers [N, M], NaN where missing.

    Args:
      values: the matrix.
      names: of the columns; x0, x1, .. without.
      types: those that are known.
    """
    names = [f"x{m}" for m in range(values.shape[1])] if names is None else names
    arrays = [pa.array(column, from_pandas=True) for column in np.asarray(values).T]
    known = declarations.of_columns(types, names)
    columns = tuple(map(describe, names, arrays, known))
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


def _describe_numbers(name: str, array: pa.Array, declared: Declared) -> Column:
    type_, values = declared.type, _numbers(array)
    finite = values[np.isfinite(values)]
    bounded = declared.low is not None or declared.high is not None
    if type_ is None:
        type_ = "numeric" if pa.types.is_temporal(array.type) else _type_of_numbers(finite)
        if bounded and type_ not in NUMBERS:
            type_ = "integer" if (finite == np.rint(finite)).all() else "numeric"
    elif type_ == "integer":
        broken = np.flatnonzero(np.isfinite(values) & (values != np.rint(values)))
        if len(broken):
            raise ValueError(
                f"column {name!r} is integer, but row {broken[0] + 1} (the first is 1) holds "
                f"{array[int(broken[0])].as_py()}"
            )
    if type_ not in NUMBERS:
        return _of_levels(name, type_, _distinct(array))
    column = Column(name, type_)
    if bounded:
        column = _with_bounds(column, array.type, declared)
    _require_within(column, values, array)
    return column


def _with_bounds(column: Column, type_: Any, declared: Declared) -> Column:
    """The column with the innermost numbers that its cells can hold within the declared bounds."""
    low, high = -np.inf, np.inf
    if declared.low is not None:
        low = _representable(column, type_, _bound(column.name, type_, declared.low), up=True)
    if declared.high is not None:
        high = _representable(column, type_, _bound(column.name, type_, declared.high), up=False)
    if low > high:
        raise ValueError(
            f"column {column.name!r}: no {column.type} cell of type {type_} lies between the "
            f"declared low {declared.low} and high {declared.high}"
        )
    return column._replace(low=low, high=high)


def _bound(name: str, type_: Any, given: Any) -> float:
    """A declared bound as the number that `encode` would make of such a cell."""
    try:
        if pa.types.is_temporal(type_):
            return float(_numbers(pa.array([given]).cast(type_))[0])
        found = np.nan if isinstance(given, bool | str) else float(given)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise ValueError(
            f"column {name!r}: expected a bound that cells of type {type_} can hold, got {given!r}"
        ) from error
    if np.isnan(found):
        raise ValueError(f"column {name!r}: expected a number as bound, got {given!r}")
    return found


def _representable(column: Column, type_: Any, bound: float, up: bool) -> float:
    """The next number, upward or downward, that a cell can hold."""
    whole = np.ceil if up else np.floor
    of_whole = pa.types.is_integer(type_) or pa.types.is_temporal(type_)
    if column.type == "integer" or of_whole:
        return float(whole(bound))
    if pa.types.is_decimal(type_):
        unit = 10.0**type_.scale
        return float(whole(bound * unit) / unit)
    if pa.types.is_floating(type_) and np.isfinite(bound):
        dtype = type_.to_pandas_dtype()
        near = dtype(bound)
        # As Python's floats: NumPy would round the bound, too, before it compares.
        if float(near) < bound if up else float(near) > bound:
            near = np.nextafter(near, dtype(np.inf if up else -np.inf))
        return float(near)
    return bound


def _require_within(column: Column, values: np.ndarray, array: pa.Array) -> None:
    """Refuses numbers beyond declared bounds."""
    for bound, beyond, side in (
        (column.low, values < column.low, "below the declared low"),
        (column.high, values > column.high, "above the declared high"),
    ):
        rows = np.flatnonzero(beyond)
        if len(rows):
            shown: Any = f"{bound:.15g}"
            if pa.types.is_temporal(array.type):
                shown = decode(column, np.array([bound]), array[:0])[0].as_py()
            raise ValueError(
                f"column {column.name!r}, row {rows[0] + 1} (the first is 1): "
                f"{array[int(rows[0])].as_py()} is {side} {shown}; {len(rows)} cells are. Correct "
                "them, leave them empty, or declare other bounds"
            )


def _of_declared_levels(name: str, array: pa.Array, declared: Declared) -> Column:
    """A column whose levels are said, and hold all that was observed."""
    coded, cells = pa.types.is_dictionary(array.type), _decoded(array)
    of_cells = cells.type
    try:
        levels = pa.array(declared.levels)
        if not pa.types.is_null(of_cells):
            levels = levels.cast(of_cells)
    except (pa.ArrowException, TypeError) as error:
        raise ValueError(
            f"column {name!r}: expected levels that cells of type {of_cells} can hold, got "
            f"{list(declared.levels or ())}"
        ) from error
    unknown = np.flatnonzero(~is_missing(array) & np.asarray(_places(cells, levels).is_null()))
    if len(unknown):
        raise ValueError(
            f"column {name!r}, row {unknown[0] + 1} (the first is 1): "
            f"{cells[int(unknown[0])].as_py()!r} is none of the declared levels "
            f"{', '.join(map(str, declared.levels or ()))}; {len(unknown)} cells are none. Correct "
            "them, leave them empty, or declare these levels too"
        )
    if coded and _places(levels, array.dictionary).null_count:
        raise ValueError(
            f"column {name!r} has the categories {', '.join(map(str, array.dictionary))}, which "
            "lack some of the declared levels: add them to the categories"
        )
    ordered = array.type.ordered if coded else _is_number(of_cells)
    found = "binary" if len(levels) == 2 else "ordinal" if ordered else "nominal"
    return _of_levels(name, declared.type or found, levels)


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


def _decoded(array: pa.Array) -> pa.Array:
    """Categories as the levels that they stand for."""
    return array.cast(array.type.value_type) if pa.types.is_dictionary(array.type) else array


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
