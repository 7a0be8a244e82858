"""A table's own file again, with its blanks filled and nothing else changed."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from metamf_jax.data.tables import digits as digits_of
from metamf_jax.data.tables import format as table_format
from metamf_jax.data.tables import parquet as parquet_tables
from metamf_jax.data.tables import text as text_tables
from metamf_jax.data.tables import write as write_tables
from metamf_jax.data.tables.digits import Digits
from metamf_jax.data.tables.format import TableFormat
from metamf_jax.data.tables.source import Source, load, mistake
from metamf_jax.runs.files import written_aside
from metamf_jax.types import Table

# From it on, what stands for a true cell is True.
_TRUE = 0.5


def column_digits(path: str | os.PathLike, found: TableFormat, table: Table) -> list[Digits]:
    """The digits of what is imputed: of each column of a matrix; of pairs one, of all values."""
    entries = table.entries
    source = schema = None
    if found.format == "parquet":
        schema = pyarrow.parquet.read_schema(path)
    elif found.delimiter and digits_of.extreme(np.asarray(entries.values)).any():
        source = load(path, found.format)

    def of_column(values: np.ndarray, position: int) -> Digits:
        kind = schema.field(position).type if schema else None
        return digits_of.of_observed(
            values.astype(np.float32) if kind == pa.float32() else values,
            whole=kind is not None and pa.types.is_integer(kind),
            scientific=source is not None and _has_exponents(source, found, values, position),
        )

    if not found.dense:
        return [of_column(np.asarray(entries.values), found.roles[2])]
    skipped = 1 if found.row_names else 0
    by_column = np.asarray(entries.values)[np.argsort(entries.columns, kind="stable")]
    ends = np.cumsum(np.bincount(entries.columns, minlength=entries.shape[1]))[:-1]
    return [
        of_column(values, position)
        for position, values in enumerate(np.split(by_column, ends), skipped)
    ]


def rounded_cells(values: np.ndarray, columns: np.ndarray, digits: list[Digits]) -> np.ndarray:
    """Values [P] of cells in these columns [P] with their columns' digits, or with all cells'."""
    if len(digits) == 1:
        return digits_of.rounded(values, digits[0])
    values = np.array(values, np.float64)
    unknown = Digits(max(column.decimals for column in digits))
    which = np.append(np.arange(len(digits)), len(digits))[np.minimum(columns, len(digits))]
    distinct = [*digits, unknown]
    for own in set(distinct):
        same = np.array([column == own for column in distinct])[which]
        values[same] = digits_of.rounded(values[same], own)
    return values


def typed_values(path: str | os.PathLike, found: TableFormat, values: np.ndarray) -> np.ndarray:
    """Values [P] for the value column of pairs, in the type of the Parquet file that was read."""
    if found.format != "parquet" or found.dense:
        return values
    kind = pyarrow.parquet.read_schema(path).field(found.roles[2]).type
    if pa.types.is_integer(kind):
        return _whole(values, kind)
    return values.astype(np.float32) if kind == pa.float32() else values


def _whole(values: np.ndarray, kind: pa.DataType) -> np.ndarray:
    """Whole numbers as integers of that kind."""
    limits = np.iinfo(kind.to_pandas_dtype())
    # A double next to the limits of 64 bits may lie beyond them.
    whole = [min(max(int(x), int(limits.min)), int(limits.max)) for x in values.tolist()]
    return np.array(whole, limits.dtype)


def _has_exponents(source: Source, found: TableFormat, values: np.ndarray, position: int) -> bool:
    return bool(digits_of.extreme(values).any()) and any(
        re.search(r"\d\.?[eE]", record[position])
        for _, record in _records(source, found)
        if record is not None
    )


def write_filled(
    output: str | os.PathLike,
    path: str | os.PathLike,
    found: TableFormat,
    table: Table,
    values: np.ndarray,
) -> None:
    """Writes a matrix's file again with values at its missing cells.

    From text to text what was observed keeps its characters, and separators, quotes, blank lines
    and line ends stay. From Parquet to Parquet columns keep their types. Otherwise numbers are
    written as `write.write_dense` does. Columns of True and False are filled with these.

    Args:
      output: ends in .csv, .tsv or .parquet, text also in .gz.
      path: the file that was read.
      found, table: what was found in it, values in float64.
      values: [N, M], read at missing cells only.

    Raises:
      ValueError: ``output`` cannot be written, or the file was changed since it was read.
    """
    output = Path(output)
    entries = table.entries
    missing = np.ones(entries.shape, bool)
    missing[entries.rows, entries.columns] = False
    digits = column_digits(path, found, table)
    values = np.array(values, np.float64)
    for column, own in enumerate(digits):
        absent = missing[:, column]
        values[absent, column] = digits_of.rounded(values[absent, column], own)
    source = load(path, found.format)
    into_parquet = write_tables.format_to_write(output, found) == "parquet"
    if found.format == "parquet":
        filled = _filled_columns(source, found, missing, values)
        if into_parquet:
            with written_aside(output) as aside:
                pyarrow.parquet.write_table(filled, aside)
        else:
            write_tables.write_columns(output, filled)
    elif into_parquet:
        values[entries.rows, entries.columns] = entries.values
        write_tables.write_dense(output, values, table.row_ids, table.column_ids, like=found)
    else:
        text = _filled_text(source, found, missing, values, digits)
        write_tables.write_text(output, text.encode())


def _filled_columns(source: Source, found: TableFormat, missing, values) -> pa.Table:
    schema = pyarrow.parquet.read_schema(pa.BufferReader(source.data))
    table = parquet_tables.parquet_table(source).replace_schema_metadata(schema.metadata)
    if table.num_rows != len(missing):
        raise _changed(source)
    for n, position in enumerate(range(1 if found.row_names else 0, table.num_columns)):
        field, absent = table.schema.field(position), missing[:, n]
        column = table.column(position).combine_chunks()
        fills = values[absent, n]
        if pa.types.is_boolean(field.type):
            fills = fills >= _TRUE
        elif pa.types.is_integer(field.type):
            fills = _whole(fills, field.type)
        elif pa.types.is_decimal(field.type):
            fills = pa.array(fills).cast(field.type, safe=False)
        filled = pyarrow.compute.call_function(
            "replace_with_mask",
            [column, pa.array(absent), pa.array(fills).cast(field.type, safe=False)],
        )
        table = table.set_column(position, field, filled)
    return table


def _filled_text(source: Source, found: TableFormat, missing, values, digits: list[Digits]) -> str:
    skipped = 1 if found.row_names else 0
    words = _boolean_words(source, found, missing.shape[1], skipped)
    pieces, row = [], 0
    for raw, record in _records(source, found):
        if record is None:
            pieces.append(raw)
            continue
        if row == len(missing) or len(record) != found.num_columns:
            raise _changed(source)
        absent = np.flatnonzero(missing[row])
        own = values[row, absent]
        plain, fills = digits_of.texts(own), {}
        for column, value, text in zip(absent.tolist(), own, plain, strict=True):
            if not table_format.is_missing(record[skipped + column]):
                raise _changed(source)
            if column in words:
                text = words[column][int(value >= _TRUE)]
            elif digits[column].significant is not None:
                text = digits_of.texts(np.array([value]), scientific=True)[0]
            fills[skipped + column] = text
        pieces.append(_refilled(raw, found, fills) if fills else raw)
        row += 1
    if row != len(missing):
        raise _changed(source)
    return "".join(pieces)


def _changed(source: Source) -> ValueError:
    return mistake(source.path, None, "the file changed while it was read", "run it again")


def _boolean_words(source: Source, found, num_columns: int, skipped: int) -> dict:
    """(False, True) as each column of them writes the two."""
    words: dict[int, tuple[str, str]] = {}
    left = set(range(num_columns))
    for _, record in _records(source, found):
        if not left:
            break
        if record is None:
            continue
        for column in list(left):
            token = record[skipped + column].strip()
            if table_format.is_missing(token):
                continue
            left.remove(column)
            if table_format.is_boolean(token):
                case = next((c for c in (str.lower, str.upper) if c(token) == token), str.title)
                words[column] = case("false"), case("true")
    return words


def _records(source: Source, found: TableFormat) -> Iterator[tuple[str, list[str] | None]]:
    """Pieces that make up the text, each with its cells; None for blank lines and the header."""
    header = found.header is not None
    for _, raw, tokens in text_tables.split(source, found.delimiter, found.num_columns == 1):
        yield raw, None if header or not tokens else tokens
        header = header and not tokens


def _refilled(raw: str, found: TableFormat, fills: dict[int, str]) -> str:
    """A record with some of its cells replaced, and their quotes and the space around them kept."""
    if found.delimiter == " ":
        field = r"\S+"
    elif found.delimiter == "::":
        field = r"(?:\A|(?<=::)).*?(?=::|\r?\n?\Z)"
    else:
        mark = re.escape(found.delimiter)
        field = rf'(?:\A|(?<={mark}))(?:"(?:[^"]|"")*"|[^{mark}\r\n]*)(?={mark}|[\r\n]|\Z)'
    if found.num_columns == 1:
        field = r"\A[^\r\n]*"
    pieces, end = [], 0
    for position, match in enumerate(re.finditer(field, raw)):
        if position not in fills:
            continue
        inner = re.fullmatch(r'(\s*"?\s*)([^\s"]*)(\s*"?\s*)', match[0])
        filled = fills[position]
        if inner and (inner[2] or '"' in match[0]):
            around = (inner[1], inner[3]) if inner[2] else ('"', '"')
            filled = around[0] + filled + around[1]
        pieces += [raw[end : match.start()], filled]
        end = match.end()
    return "".join(pieces) + raw[end:]
