"""Text to arrays: in bulk by pyarrow where nothing is wrong, else by one strict pass.

The strict pass gives the same, or names the first line that is wrong.
"""

import csv
import datetime
import functools
import io
import itertools
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.csv

from metamf_jax.data.tables import arrow
from metamf_jax.data.tables import format as table_format
from metamf_jax.data.tables.format import DELIMITERS, TableFormat
from metamf_jax.data.tables.source import (
    Coded,
    Source,
    dense_column_ids,
    dense_table,
    first_duplicate,
    make_table,
    mistake,
    no_entry,
    typed_ids,
)
from metamf_jax.types import Table

STRINGS = pa.dictionary(pa.int32(), pa.string())
_HEAD_RECORDS = 50
_WRITE_NUMBERS = "write 1 for True and 0 for False"


class Record(NamedTuple):
    """A line of a text, or several where quotes hold a line's end.

    Attributes:
      line: the number in the file of the line on which it starts.
      text: as it stands in the file, with its end.
      tokens: of its columns; none on a blank line.
    """

    line: int
    text: str
    tokens: list[str]


class Column(NamedTuple):
    """A column to be read, and how.

    Attributes:
      kind: what pyarrow takes it for: `STRINGS` for ids, float64 for values, or a kind of time.
      parse: what one token says, to the strict pass; of (source, line, token).
      blanks: whether a value may be missing.
    """

    kind: pa.DataType
    parse: Callable[[Source, int, str], str | float | int]
    blanks: bool = False


# By the column's position: ids `Coded`, values [E] float64, times [E] int64.
Arrays: TypeAlias = dict[int, Any]


# ------------------------------------------------------------------------------------- records


def split(source: Source, delimiter: str, one_column: bool = False) -> Iterator[Record]:
    """The records of a text, blank lines among them.

    Args:
      source: a text, or a piece of one.
      delimiter: of its columns; with spaces or ``::`` there are no quotes.
      one_column: whether there is but one, without quotes, in which a blank line is a cell.

    Raises:
      ValueError: at a quote that is not closed, and the like.
    """
    quoted = delimiter not in (" ", "::") and not one_column
    lines = io.TextIOWrapper(io.BytesIO(source.data), "utf-8", newline="" if quoted else "\n")
    if quoted:
        yield from _split_quoted(source, lines, delimiter)
        return
    for number, text in enumerate(lines, source.lines_before + 1):
        line = text.rstrip("\r\n")
        if one_column:
            tokens = [line]
        elif delimiter == " ":
            tokens = line.split()
        else:
            tokens = line.split("::") if line.strip() else []
        yield Record(number, text, tokens)


def _split_quoted(source: Source, lines: Iterator[str], delimiter: str) -> Iterator[Record]:
    lines, kept = itertools.tee(lines)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    before = 0
    try:
        for tokens in reader:
            text = "".join(itertools.islice(kept, reader.line_num - before))
            yield Record(source.lines_before + before + 1, text, tokens)
            before = reader.line_num
    except csv.Error as error:
        raise mistake(
            source.path,
            source.lines_before + before + 1,
            f"cannot split the line ({error})",
            "mend its quotes or line end",
        ) from None


def body(source: Source, found: TableFormat) -> Iterator[Record]:
    """The records below the header, each held to the number of columns of the first."""
    records = split(source, found.delimiter, found.num_columns == 1)
    records = (record for record in records if record.tokens)
    for record in itertools.islice(records, 1 if found.header else 0, None):
        if len(record.tokens) != found.num_columns:
            raise mistake(
                source.path,
                record.line,
                f"expected {found.num_columns} columns as in the first line, got "
                f"{len(record.tokens)}",
                "add or remove columns, and quote ids that hold the separator",
            )
        yield record


def sniff(source: Source) -> tuple[str, str, list[list[str]]]:
    """The name of a text format, its delimiter, and its first records."""
    lines = io.TextIOWrapper(io.BytesIO(source.data), "utf-8", newline="\n")
    head = list(itertools.islice(filter(str.strip, lines), _HEAD_RECORDS))
    if not head:  # White space that ASCII does not have.
        raise no_entry(source)
    name = source.format
    if name == "text":
        name = next(
            (name for name in ("dat", "tsv", "csv") if DELIMITERS[name] in head[0]),
            "csv" if ";" in head[0] else "libmf",
        )
    delimiter = _csv_delimiter(head) if name == "csv" else DELIMITERS[name]
    records = (record.tokens for record in split(source, delimiter) if record.tokens)
    return name, delimiter, list(itertools.islice(records, _HEAD_RECORDS))


def _csv_delimiter(head: list[str]) -> str:
    """The first of comma, semicolon and tab that splits all lines alike, else that splits any."""
    some = [c for c in ",;\t" if c in head[0]]
    even = [c for c in some if len({line.count(c) for line in head}) == 1]
    return (even or some or [","])[0]


# ------------------------------------------------------------------------------------- columns


def read_columns(
    source: Source, found: TableFormat, columns: dict[int, Column], key: tuple[int, ...] = ()
) -> Arrays:
    """Some columns of a text by their position.

    Args:
      source: the text.
      found: how it is laid out.
      columns: what is wanted of it.
      key: columns of ids which must not say the same on two lines.

    Raises:
      ValueError: at the first line that is wrong.
    """
    arrays = _in_bulk(source, found, columns, key)
    return arrays if arrays is not None else _strictly(source, found, columns, key)


def _in_bulk(source: Source, found: TableFormat, columns, key) -> Arrays | None:
    """The columns, or None where something may be wrong."""
    parsed = arrow_columns(source, found, {n: column.kind for n, column in columns.items()})
    if parsed is None:
        return None
    arrays = {}
    for position, column in columns.items():
        if column.kind == STRINGS:
            arrays[position] = coded(parsed[position])
            sound = "" not in arrays[position][1]
        elif column.kind == pa.float64():
            values = arrays[position] = arrow.to_numpy(parsed[position])
            # NaN compares as False.
            large = np.abs(values) > source.largest
            sound = not (large.any() if column.blanks else (large | np.isnan(values)).any())
        else:
            sound = not parsed[position].null_count
            arrays[position] = arrow.to_numpy(parsed[position].cast(pa.int64()))
        if not sound:
            return None
    return None if key and first_duplicate(*(arrays[n] for n in key)) else arrays


def _strictly(source: Source, found: TableFormat, columns, key) -> Arrays:
    """The same as `_in_bulk`, line by line; raises at the first line that is wrong."""
    listed = {position: [] for position in columns}
    lines: dict[str, int] = {}
    for line, _, tokens in body(source, found):
        for position, column in columns.items():
            listed[position].append(column.parse(source, line, tokens[position]))
        # No text holds a zero byte; a million tuples would keep the garbage collector busy.
        first = lines.setdefault("\0".join([tokens[n] for n in key]), line)
        if key and first != line:
            raise given_twice(source, found, tokens, (first, line))
    return {
        position: _coded_list(listed[position])
        if column.kind == STRINGS
        else np.array(listed[position], np.float64 if column.kind == pa.float64() else np.int64)
        for position, column in columns.items()
    }


def given_twice(
    source: Source, found: TableFormat, tokens: list[str], lines: tuple[int, int]
) -> ValueError:
    """That an entry, or a row of a matrix, was given on two lines."""
    if found.dense:
        what = f"row {tokens[0]!r}"
        remedy = "give every row a name of its own, or leave the column out if it holds words"
    else:
        row, column = (tokens[role] for role in found.roles[:2])
        what = f"row {row!r}, column {column!r}"
        remedy = "keep one of them"
        if found.header is None and found.format in ("csv", "tsv"):
            remedy += ", or say layout=dense if the file is a matrix with blanks"
    return mistake(source.path, lines[1], f"{what} was given on line {lines[0]} already", remedy)


def arrow_columns(
    source: Source, found: TableFormat, types: dict[int, pa.DataType]
) -> dict[int, pa.ChunkedArray] | None:
    """Some columns by position, parsed in bulk; None where pyarrow must not or cannot."""
    data, delimiter = source.data, found.delimiter
    quoted = delimiter not in (" ", "::")
    # A blank line may be a cell, and where a quote is not closed the strict pass knows the line.
    if (found.num_columns == 1 and found.dense) or (quoted and data.count(b'"') % 2):
        return None
    if data.count(b"\r") != data.count(b"\r\n"):  # pyarrow would end a line there.
        return None
    if delimiter == "::":
        if b"\t" in data:
            return None
        data, delimiter = data.replace(b"::", b"\t"), "\t"
    elif delimiter == " " and re.search(rb"  |\t| \r| \n|\n |\A | \Z", data):
        data = re.sub(rb"[ \t]+", b" ", data)
        data = re.sub(rb" ?(\r?\n) ?", rb"\1", data).strip(b" ")
    names = [str(position) for position in range(found.num_columns)]
    first_line = data.find(b"\n") + 1 or len(data)
    block_size = max(1 << 22, 8 * first_line)
    try:
        table = pyarrow.csv.read_csv(
            pa.py_buffer(data),
            read_options=pyarrow.csv.ReadOptions(
                column_names=names,
                skip_rows_after_names=1 if found.header else 0,
                block_size=block_size,
                # Threads gain nothing there, and a process that ended at once sometimes aborted
                # (pyarrow 26 beside JAX).
                use_threads=len(data) > block_size,
            ),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=delimiter,
                quote_char='"' if quoted else False,
                newlines_in_values=quoted and b'"' in data,
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types={str(position): kind for position, kind in types.items()},
                include_columns=[str(position) for position in types],
                null_values=["", "NA", "N/A", "NaN", "nan", "na", "n/a", "?"],
            ),
        )
    except pa.ArrowInvalid:
        return None
    return {position: table.column(str(position)) for position in types}


def coded(column: pa.ChunkedArray) -> Coded:
    """Codes [E] int32 and ids of a dictionary column, in the order of first appearance."""
    whole = column.unify_dictionaries().combine_chunks()
    if isinstance(whole, pa.ChunkedArray):
        whole = whole.chunk(0) if whole.num_chunks else pa.array([], STRINGS)
    return arrow.to_numpy(whole.indices), typed_ids(whole.dictionary.to_pylist())


def _coded_list(ids: list[str]) -> Coded:
    """As `coded`, of a list."""
    index: dict[str, int] = {}
    codes = [index.setdefault(name, len(index)) for name in ids]
    return np.array(codes, np.int32), typed_ids(list(index))


# -------------------------------------------------------------------------------------- tokens


def ids(part: str) -> Column:
    """A column of ids of rows, or of columns; ``part`` says which."""
    return Column(STRINGS, functools.partial(_id, part))


def _id(part: str, source: Source, line: int, token: str) -> str:
    if token == "":
        raise mistake(
            source.path, line, f"expected the id of a {part}, got a blank", f"name the {part}"
        )
    return token


def _number(source: Source, line: int, token: str, column: str | None = None) -> float:
    """The number that is written; ``column`` of a matrix is named where there is none."""
    where = f" in column {column}" if column else ""
    if not table_format.is_number(token):
        what = f"{token.strip()[:40]!r}" if token.strip() else "a blank"
        remedy = "correct it, or leave the line out if the cell is not observed"
        if table_format.is_boolean(token):
            remedy = _WRITE_NUMBERS
        elif column:
            remedy = "correct it, or leave the column out if it holds words"
        raise mistake(source.path, line, f"expected a finite number, got {what}{where}", remedy)
    value = float(token.strip())
    if not abs(value) <= source.largest:
        raise mistake(
            source.path,
            line,
            f"expected a finite number in {source.precision}, got {token.strip()[:40]}{where}",
            "rescale the values",
        )
    return value


def _time(source: Source, line: int, token: str) -> int:
    try:
        if table_format.is_number(token):
            seconds = float(token.strip())
            if table_format.is_integer(token):
                return int(token.strip())
            if seconds == math.floor(seconds) and abs(seconds) < 2**53:
                return int(seconds)
        else:
            moment = datetime.datetime.fromisoformat(token.strip())
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=datetime.UTC)
            return math.floor(moment.timestamp())
    except (ValueError, OverflowError):
        pass  # Told below, with file and line.
    raise mistake(
        source.path,
        line,
        f"expected a time in whole seconds or as an ISO 8601 date, got {token.strip()[:40]!r}",
        "correct it, or give the column another name than time",
    )


class _DenseColumn:
    """Parses a column of a matrix: numbers or, throughout, True and False."""

    def __init__(self, name: str):
        self._name = name
        self._boolean: bool | None = None

    def __call__(self, source: Source, line: int, token: str) -> float:
        if table_format.is_missing(token):
            return math.nan
        boolean = table_format.is_boolean(token)
        if self._boolean not in (None, boolean):
            got = token.strip()[:40]
            what = f"column {self._name} mixes numbers with True or False: got {got!r}"
            raise mistake(source.path, line, what, _WRITE_NUMBERS)
        self._boolean = boolean
        if boolean:
            return float(token.strip().lower() == "true")
        return _number(source, line, token, self._name)


# -------------------------------------------------------------------------------------- tables


def read_pairs_text(source: Source, found: TableFormat) -> Table:
    """The entries of a text of pairs, or of a piece."""
    row, column, value, *time = found.roles
    columns = {row: ids("row"), column: ids("column"), value: Column(pa.float64(), _number)}
    if time:
        first = next(body(source, found), None)
        whole = first is None or table_format.is_integer(first.tokens[time[0]])
        columns[time[0]] = Column(pa.int64() if whole else pa.timestamp("s"), _time)
    arrays = read_columns(source, found, columns, key=(row, column))
    if not len(arrays[value]):
        raise no_entry(source)
    times = arrays[time[0]] if time else None
    return make_table(source, arrays[row], arrays[column], arrays[value], times)


def read_dense_text(source: Source, found: TableFormat) -> Table:
    """The entries of a matrix with blanks."""
    skipped = 1 if found.row_names else 0
    columns = {0: ids("row")} if skipped else {}
    for n in range(skipped, found.num_columns):
        name = repr(found.header[n]) if found.header else str(n + 1)
        columns[n] = Column(pa.float64(), _DenseColumn(name), blanks=True)
    arrays = read_columns(source, found, columns, key=(0,) if skipped else ())
    row_ids = arrays.pop(0)[1] if skipped else None
    values = np.stack(list(arrays.values()), axis=1)
    return dense_table(source, values, row_ids, dense_column_ids(source, found))
