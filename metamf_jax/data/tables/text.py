"""Text to cells: in bulk by pyarrow where nothing is wrong, line by line where something may be."""

import csv
import datetime
import io
import itertools
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from metamf_jax.data.tables import format as table_format
from metamf_jax.data.tables.format import TableFormat
from metamf_jax.data.tables.source import (
    Cells,
    Source,
    dense_column_ids,
    dense_table,
    first_duplicate,
    make_table,
    mistake,
    no_cell,
    typed_ids,
)
from metamf_jax.types import Table

STRINGS = pa.dictionary(pa.int32(), pa.string())
_DELIMITERS = {"tsv": "\t", "libmf": " ", "dat": "::"}
_HEAD_RECORDS = 50
_WRITE_NUMBERS = "write 1 for True and 0 for False"


def sniff(source: Source) -> tuple[str, str, list[list[str]]]:
    """The name of a text format, its delimiter, and its first records."""
    end = 0
    for _ in range(_HEAD_RECORDS):
        end = source.data.find(b"\n", end) + 1
        if end == 0:
            break
    head = source.data[: end or None].decode("utf-8")
    if not head.strip():  # That many blank lines, or white space that ASCII does not have.
        head = source.data.decode("utf-8")
    line = next((line for line in head.split("\n") if line.strip()), None)
    if line is None:
        raise no_cell(source)
    name = source.format
    if name == "text":
        name = next(
            (name for name, sep in (("dat", "::"), ("tsv", "\t"), ("csv", ",")) if sep in line),
            "csv" if ";" in line else "libmf",
        )
    delimiter = _DELIMITERS.get(name) or _csv_delimiter(head)
    try:
        records = [record for _, record in _split(source.path, head, delimiter)]
    except ValueError:  # The head may end within a quoted id; then the whole file knows better.
        whole = _split(source.path, source.data.decode("utf-8"), delimiter)
        records = [record for _, record in itertools.islice(whole, _HEAD_RECORDS)]
    if not records:
        raise no_cell(source)
    return name, delimiter, records


def _csv_delimiter(head: str) -> str:
    """The first of comma, semicolon and tab that splits all lines alike, else that splits any."""
    lines = [line for line in head.split("\n") if line.strip()]
    some = [c for c in ",;\t" if c in lines[0]]
    even = [c for c in some if len({line.count(c) for line in lines}) == 1]
    return (even or some or [","])[0]


def _split(
    path: Path, text: str, delimiter: str, lines_before: int = 0
) -> Iterator[tuple[int, list[str]]]:
    """The records of a text with the number of the line on which each starts; skips blank lines."""
    if delimiter in (" ", "::"):
        for number, line in enumerate(text.split("\n"), lines_before + 1):
            if line.strip():
                yield number, line.split() if delimiter == " " else line.rstrip("\r").split("::")
        return
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        start = lines_before + reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise mistake(
                path, start, f"cannot split the line ({error})", "mend its quotes or line end"
            ) from None
        if record:
            yield start, record


def body_records(source: Source, found: TableFormat) -> Iterator[tuple[int, list[str]]]:
    """The records after the header, each held to the number of columns of the first."""
    text = source.data.decode("utf-8")
    records = _split(source.path, text, found.delimiter, source.lines_before)
    for line, record in itertools.islice(records, 1 if found.header else 0, None):
        if len(record) != found.num_columns:
            raise mistake(
                source.path,
                line,
                f"expected {found.num_columns} columns as in the first line, got {len(record)}",
                "add or remove columns, and quote ids that hold the separator",
            )
        yield line, record


def arrow_columns(
    source: Source, found: TableFormat, types: dict[int, pa.DataType]
) -> dict[int, pa.ChunkedArray] | None:
    """Some columns by position, parsed in bulk; None where the careful pass must have its say."""
    data, delimiter = source.data, found.delimiter
    quoted = delimiter not in (" ", "::")
    # A blank line may be a cell, and where a quote is not closed the careful pass knows the line.
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
    try:
        table = pyarrow.csv.read_csv(
            pa.py_buffer(data),
            read_options=pyarrow.csv.ReadOptions(
                column_names=names,
                skip_rows_after_names=1 if found.header else 0,
                block_size=max(1 << 22, 8 * first_line),
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


def coded(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Codes [E] int32 and ids of a dictionary column, in the order of first appearance."""
    whole = column.unify_dictionaries().combine_chunks()
    if isinstance(whole, pa.ChunkedArray):
        whole = whole.chunk(0) if whole.num_chunks else pa.array([], STRINGS)
    return whole.indices.to_numpy(), typed_ids(whole.dictionary.to_pylist())


def id_of(source: Source, line: int | str, part: str, token: str) -> str:
    if token == "":
        raise mistake(
            source.path, line, f"expected the id of a {part}, got a blank", f"name the {part}"
        )
    return token


def _number(source: Source, line: int | str, token: str, column: str | None = None) -> float:
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


def read_pairs_text(source: Source, found: TableFormat) -> Table:
    return make_table(source, pairs_of(source, found))


def pairs_of(source: Source, found: TableFormat) -> Cells:
    """The cells of a text of pairs, or of a piece; raises at the first line that is wrong."""
    cells = _pairs_in_bulk(source, found)
    return cells if cells is not None and _sound(source, cells) else _pairs_with_care(source, found)


def _pairs_in_bulk(source: Source, found: TableFormat) -> Cells | None:
    row, column, value, *time = found.roles
    types = {row: STRINGS, column: STRINGS, value: pa.float64()}
    if time:
        first = next(body_records(source, found), None)
        integer = first is None or table_format.is_integer(first[1][time[0]])
        types[time[0]] = pa.int64() if integer else pa.timestamp("s")
    columns = arrow_columns(source, found, types)
    if columns is None or any(columns[role].null_count for role in (value, *time)):
        return None
    times = columns[time[0]].cast(pa.int64()).to_numpy() if time else None
    return Cells(*coded(columns[row]), *coded(columns[column]), columns[value].to_numpy(), times)


def _sound(source: Source, cells: Cells) -> bool:
    """Whether nothing is wrong: finite values, ids given, at least one cell, none twice."""
    return bool(
        len(cells.values)
        and (np.abs(cells.values) <= source.largest).all()
        and "" not in cells.row_ids
        and "" not in cells.column_ids
        and first_duplicate(cells) is None
    )


def _pairs_with_care(source: Source, found: TableFormat) -> Cells:
    """The same as `_pairs_in_bulk`, line by line; raises at the first line that is wrong."""
    row, column, value, *time = found.roles
    index: tuple[dict[str, int], dict[str, int]] = ({}, {})
    # Keys are n << 32 | m: a million tuples would keep the garbage collector busy.
    lines: dict[int, int] = {}
    values, times = [], []
    for line, record in body_records(source, found):
        n = index[0].setdefault(id_of(source, line, "row", record[row]), len(index[0]))
        m = index[1].setdefault(id_of(source, line, "column", record[column]), len(index[1]))
        values.append(_number(source, line, record[value]))
        if time:
            times.append(_time(source, line, record[time[0]]))
        if lines.setdefault(n << 32 | m, line) != line:
            raise given_twice(source, found, record, (lines[n << 32 | m], line))
    if not values:
        raise no_cell(source)
    codes = np.array(list(lines), np.int64)
    return Cells(
        codes >> 32,
        typed_ids(list(index[0])),
        codes & 0xFFFFFFFF,
        typed_ids(list(index[1])),
        np.array(values),
        np.array(times, np.int64) if time else None,
    )


def given_twice(
    source: Source, found: TableFormat, record: list[str], lines: tuple[int, int]
) -> ValueError:
    """That a record's cell was given on two lines."""
    remedy = "keep one of them"
    if found.header is None and found.format in ("csv", "tsv"):
        remedy += ", or say layout=dense if the file is a matrix with blanks"
    row, column = (record[role] for role in found.roles[:2])
    what = f"row {row!r}, column {column!r} was given on line {lines[0]} already"
    return mistake(source.path, lines[1], what, remedy)


def _with_nan(column: pa.ChunkedArray) -> np.ndarray:
    """Float64 numbers, NaN where null.

    As ``column.to_numpy()``, which imports pandas where that is installed: a third of a second.
    """
    parts = [np.empty(0)]
    for chunk in column.chunks:
        valid, data = chunk.buffers()
        part = slice(chunk.offset, chunk.offset + len(chunk))
        parts.append(np.frombuffer(data, np.float64)[part])
        if chunk.null_count:
            bits = np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little")[part]
            parts[-1] = np.where(bits, parts[-1], np.nan)
    return np.concatenate(parts)


def read_dense_text(source: Source, found: TableFormat) -> Table:
    skipped = 1 if found.row_names else 0
    types = {n: pa.float64() for n in range(skipped, found.num_columns)}
    if skipped:
        types = {0: pa.string(), **types}
    columns = arrow_columns(source, found, types)
    if columns is not None:
        values = np.stack(
            [_with_nan(columns[n]) for n in range(skipped, found.num_columns)], axis=1
        )
        names = columns[0].to_pylist() if skipped else None
        named = names is None or (len(set(names)) == len(names) and "" not in names)
        if not named or (np.abs(values) > source.largest).any():
            columns = None
    if columns is None:
        values, names = _dense_with_care(source, found)
    row_ids = np.arange(len(values)) if names is None else typed_ids(names)
    return dense_table(source, values, row_ids, dense_column_ids(source, found))


def _dense_with_care(source: Source, found: TableFormat) -> tuple[np.ndarray, list[str] | None]:
    skipped = 1 if found.row_names else 0
    rows, lines = [], {}
    # By column, whether it holds True and False rather than numbers.
    boolean: dict[int, bool] = {}

    def cell(line: int, n: int, token: str) -> float:
        name = repr(found.header[n]) if found.header else str(n + 1)
        if table_format.is_boolean(token) != boolean.setdefault(n, table_format.is_boolean(token)):
            what = f"column {name} mixes numbers with True or False: got {token.strip()[:40]!r}"
            raise mistake(source.path, line, what, _WRITE_NUMBERS)
        if boolean[n]:
            return float(token.strip().lower() == "true")
        return _number(source, line, token, name)

    for line, record in _dense_records(source, found):
        if skipped:
            name = id_of(source, line, "row", record[0])
            if lines.setdefault(name, line) != line:
                raise mistake(
                    source.path,
                    line,
                    f"row {name!r} was given on line {lines[name]} already",
                    "give every row a name of its own, or leave the column out if it holds words",
                )
        rows.append(
            [
                math.nan if table_format.is_missing(token) else cell(line, n, token)
                for n, token in enumerate(record[skipped:], skipped)
            ]
        )
    values = np.array(rows, np.float64).reshape(len(rows), found.num_columns - skipped)
    return values, list(lines) if skipped else None


def _dense_records(source: Source, found: TableFormat) -> Iterable[tuple[int, list[str]]]:
    if found.num_columns > 1:
        return body_records(source, found)
    # In a single column a blank line is a missing cell.
    lines = source.data.decode("utf-8").removesuffix("\n").split("\n")
    records = [(number, [line.rstrip("\r")]) for number, line in enumerate(lines, 1)]
    return records[1:] if found.header else records
