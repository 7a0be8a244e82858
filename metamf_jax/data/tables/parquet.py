"""Parquet to a table. Rows are counted from 1."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from metamf_jax.data.tables import arrow
from metamf_jax.data.tables.format import TableFormat
from metamf_jax.data.tables.source import (
    Coded,
    Source,
    dense_column_ids,
    dense_table,
    make_table,
    mistake,
    no_entry,
    without_duplicates,
)
from metamf_jax.types import Table

# Runs of equal values take next to no bytes, so a small file may hold many rows; not any number.
_ROWS_PER_BYTE, _ROWS_AT_LEAST = 100, 1_000_000


def parquet_table(source: Source) -> pa.Table:
    try:
        file = pyarrow.parquet.ParquetFile(pa.BufferReader(source.data))
        claimed = file.metadata.num_rows
        if claimed > _ROWS_PER_BYTE * len(source.data) + _ROWS_AT_LEAST:
            raise mistake(
                source.path,
                None,
                f"claims {claimed} rows in {len(source.data)} bytes",
                "write the file again",
            )
        table = file.read()
        table.validate(full=True)
        # Names that are not UTF-8 fail here, and nowhere else.
        return table.rename_columns(table.column_names)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise mistake(
            source.path,
            None,
            f"expected a Parquet file, got one that cannot be read ({error})",
            "write it again",
        ) from None


def is_numeric(kind: pa.DataType) -> bool:
    """Whether a column holds numbers, or True and False."""
    return (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_boolean(kind)
    )


def parquet_ids(source: Source, table: pa.Table, position: int) -> Coded:
    """Codes and ids. Integers stay integers and strings stay strings, as the file types them."""
    column = table.column(position)
    name = table.column_names[position]
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy())[0]) + 1
        raise mistake(source.path, f", row {row}", f"column {name!r} holds no id", "name it")
    try:
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            column = column.cast(pa.int64())
        elif not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise pa.ArrowInvalid(str(kind))
    except pa.ArrowInvalid:
        raise mistake(
            source.path,
            None,
            f"expected integers or strings as ids in column {name!r}, got {kind}",
            "convert the column",
        ) from None
    coded = column.dictionary_encode().unify_dictionaries().combine_chunks()
    if isinstance(coded, pa.ChunkedArray):
        raise no_entry(source)
    ids = coded.dictionary
    if pa.types.is_integer(ids.type):
        return arrow.to_numpy(coded.indices), arrow.to_numpy(ids)
    strings = np.empty(len(ids), object)
    strings[:] = ids.to_pylist()
    return arrow.to_numpy(coded.indices), strings


def _parquet_numbers(source: Source, table: pa.Table, position: int) -> np.ndarray:
    column, name = table.column(position), table.column_names[position]
    if not is_numeric(column.type):
        raise mistake(
            source.path,
            None,
            f"expected numbers in column {name!r}, got {column.type}",
            "convert it or leave it out, or name the columns row, column, value",
        )
    # Unsafe: integers beyond 2**53 are rounded, as they are in a text.
    return arrow.to_numpy(column.cast(pa.float64(), safe=False))


def read_parquet(source: Source, found: TableFormat) -> Table:
    table = parquet_table(source)
    if not table.num_rows:
        raise no_entry(source)
    if found.dense:
        skipped = 1 if found.row_names else 0
        values = np.stack(
            [_parquet_numbers(source, table, n) for n in range(skipped, found.num_columns)], axis=1
        )
        _refuse(source, np.isinf(values).any(axis=1), "an infinite value")
        _refuse_large(source, (np.abs(values) > source.largest).any(axis=1))
        row_ids = None
        if skipped:
            codes, row_ids = parquet_ids(source, table, 0)
            _refuse(source, codes != np.arange(len(codes)), "a row name given already")
        return dense_table(source, values, row_ids, dense_column_ids(source, found))
    row, column, value, *time = found.roles
    values = _parquet_numbers(source, table, value)
    _refuse(source, ~np.isfinite(values), "a blank, NaN or infinite value")
    _refuse_large(source, np.abs(values) > source.largest)
    times = None
    if time:
        times = table.column(time[0])
        if pa.types.is_timestamp(times.type) or pa.types.is_date(times.type):
            times = times.cast(pa.timestamp("s", getattr(times.type, "tz", None)), safe=False)
        try:
            if times.null_count:
                _refuse(source, times.is_null().to_numpy(), "no time")
            times = arrow.to_numpy(times.cast(pa.int64()))
        except pa.ArrowInvalid:
            raise mistake(
                source.path,
                None,
                f"expected times in whole seconds in column {table.column_names[time[0]]!r}",
                "convert the column to integers or timestamps",
            ) from None
    rows, columns = (parquet_ids(source, table, role) for role in (row, column))
    read = make_table(source, rows, columns, values, times)
    return without_duplicates(source, read, lambda entry: f"row {entry + 1}")


def _refuse_large(source: Source, wrong) -> None:
    _refuse(source, wrong, f"a value beyond {source.precision}")


def _refuse(source: Source, wrong, what: str) -> None:
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0]) + 1
        raise mistake(
            source.path, f", row {row}", f"expected a finite number, got {what}", "correct the row"
        )
