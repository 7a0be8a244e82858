"""Data frames of pandas and polars, and tables of pyarrow: read as numbers, and filled in.

A filled frame is of the same kind, with the same index, names, order and types of columns. Cells
that were observed are not touched. The libraries are imported by whoever made the frame.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from metamf_jax.imputation import columns, declared
from metamf_jax.imputation.columns import Column
from metamf_jax.imputation.declared import Types


def is_frame(table: Any) -> bool:
    """Whether it is a data frame of pandas or polars, or a table of pyarrow."""
    return isinstance(table, pa.Table) or _library(table) in ("pandas", "polars")


def has_levels(frame: Any) -> bool:
    """Whether a column of it is no column of numbers: text, categories, or times."""
    _names(frame)
    return any(columns.has_levels(array) for array in _arrays(frame))


def describe(frame: Any, types: Types | None = None) -> tuple[Column, ...]:
    """Finds out what the columns of a frame are.

    Args:
      frame: of N rows and M columns.
      types: types, bounds and levels of columns by their names, where they are known
        (`metamf_jax.imputation.declared`).

    Raises:
      ValueError: a type that is unknown or does not fit, of a column that is not there, a cell
        beyond declared bounds or levels, or cells that are no numbers, levels or times.
    """
    names = _names(frame)
    return tuple(map(columns.describe, names, _arrays(frame), declared.of_columns(types, names)))


def extend(
    frame: Any, described: Sequence[Column], types: Types | None = None
) -> tuple[Column, ...]:
    """What the columns are with the rows of a further frame; see `columns.extend`.

    Args:
      frame: with the columns that were described, in their order.
      described: what they were.
      types: that were declared.
    """
    _require_names(frame, described)
    known = declared.of_columns(types, _names(frame))
    return tuple(map(columns.extend, described, _arrays(frame), known))


def encode(frame: Any, described: Sequence[Column]) -> np.ndarray:
    """The cells as float64 [N, M]: numbers, or places among levels; NaN where missing.

    Args:
      frame: with the columns that were described, in their order.
      described: what they are.

    Raises:
      ValueError: other columns, an infinite number, or cells of another kind.
    """
    _require_names(frame, described)
    found = [
        columns.encode(column, array)
        for column, array in zip(described, _arrays(frame), strict=True)
    ]
    return np.column_stack(found) if found else np.zeros((len(frame), 0))


def decode(frame: Any, described: Sequence[Column], values: np.ndarray) -> Any:
    """The frame with its missing cells filled in.

    Args:
      frame: with the columns that were described, in their order.
      described: what they are.
      values: [N, M] as of `encode`; NaN where a cell is to stay missing.

    Raises:
      ValueError: other columns, or values of another shape.
    """
    _require_names(frame, described)
    arrays = _arrays(frame)
    if values.shape != (len(frame), len(arrays)):
        raise ValueError(f"expected values [{len(frame)}, {len(arrays)}], got shape {values.shape}")
    fills = []
    for m, (column, array) in enumerate(zip(described, arrays, strict=True)):
        rows = np.flatnonzero(columns.is_missing(array) & ~np.isnan(values[:, m]))
        of_type = array
        if pa.types.is_null(array.type):
            # Nothing is known of the type of a column without cells.
            of_type = pa.array([], pa.float64()) if column.levels is None else column.levels
        fills.append((rows, columns.decode(column, values[rows, m], of_type)))
    if _library(frame) == "pandas":
        return _filled_pandas(frame, fills)
    filled = [_filled(array, *fill) for array, fill in zip(arrays, fills, strict=True)]
    names = [column.name for column in described]
    if isinstance(frame, pa.Table):
        return pa.table(filled, names=names).replace_schema_metadata(frame.schema.metadata)
    import polars as pl

    series = []
    for name, array, dtype in zip(names, filled, frame.dtypes, strict=True):
        column = pl.Series(name, pl.from_arrow(array))
        series.append(column if dtype == pl.Null else column.cast(dtype))
    return pl.DataFrame(series)


def select(frame: Any, kept: np.ndarray) -> Any:
    """The columns of a frame that are kept; bool [M]."""
    if _library(frame) == "pandas":
        return frame.loc[:, kept]
    return frame.select([name for name, keep in zip(_names(frame), kept, strict=True) if keep])


def append(frame: Any, names: Sequence[str], values: np.ndarray) -> Any:
    """The frame with further columns of numbers [N, K] behind its own."""
    if isinstance(frame, pa.Table):
        for name, column in zip(names, values.T, strict=True):
            frame = frame.append_column(name, pa.array(column))
        return frame
    further = dict(zip(names, values.T, strict=True))
    if _library(frame) == "pandas":
        return frame.assign(**further)
    import polars as pl

    return frame.with_columns(pl.Series(name, column) for name, column in further.items())


def named_arrays(frame: Any) -> list[tuple[Any, pa.Array]]:
    """The columns of a frame, by their names.

    Raises:
      ValueError: two have one name, or a column is not of one kind of cells.
    """
    return list(zip(_names(frame), _arrays(frame), strict=True))


def index(frame: Any) -> list[Any] | None:
    """What the rows of a frame are called: None where that is not said, or numbers from 0.

    Raises:
      ValueError: an index of several levels.
    """
    if _library(frame) != "pandas":
        return None
    found = frame.index
    if found.nlevels > 1:
        raise ValueError(f"expected an index of one level, got {found.nlevels}: reset_index")
    numbered = type(found).__name__ == "RangeIndex" and (found.start, found.step) == (0, 1)
    return None if numbered and found.name is None else found.tolist()


def _library(table: Any) -> str:
    return type(table).__module__.partition(".")[0] if hasattr(table, "columns") else ""


def _names(frame: Any) -> list[str]:
    names = frame.column_names if isinstance(frame, pa.Table) else list(frame.columns)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two columns have the name {twice!r}")
    return names


def _require_names(frame: Any, described: Sequence[Column]) -> None:
    names, expected = _names(frame), [column.name for column in described]
    if names != expected:
        missing = [name for name in expected if name not in names]
        more = [name for name in names if name not in expected]
        raise ValueError(
            "expected the columns that were fitted, in their order; "
            f"missing: {', '.join(map(str, missing)) or 'none'}; "
            f"unknown: {', '.join(map(str, more)) or 'none'}"
        )


def _arrays(frame: Any) -> list[pa.Array]:
    """The columns of a frame."""
    if _library(frame) == "pandas":
        found = [_of_pandas(frame.iloc[:, m]) for m in range(frame.shape[1])]
    else:
        table = frame if isinstance(frame, pa.Table) else frame.to_arrow()
        found = [column.combine_chunks() for column in table.columns]
    # One chunk is left of a column of several, or several where they are too large for one.
    return [
        pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array
        for array in found
    ]


def _of_pandas(series: Any) -> pa.Array | pa.ChunkedArray:
    try:
        return pa.array(series, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise ValueError(
            f"column {series.name!r} of dtype {series.dtype} is not of one kind of cells: {error}"
        ) from error


def _filled(array: pa.Array, rows: np.ndarray, values: pa.Array) -> pa.Array:
    if pa.types.is_null(array.type):
        array = array.cast(values.type)
    places = np.arange(len(array))
    places[rows] = len(array) + np.arange(len(rows))
    return pa.concat_arrays([array, values]).take(pa.array(places))


def _filled_pandas(frame: Any, fills: list[tuple[np.ndarray, pa.Array]]) -> Any:
    filled = frame.copy()
    for m, (rows, values) in enumerate(fills):
        if len(rows):
            series = frame.iloc[:, m].copy()
            series.iloc[rows] = values.to_pylist()
            filled.isetitem(m, series)
    return filled
