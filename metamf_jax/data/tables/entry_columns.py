"""Further columns of a table of entries, by their names: what is known of each entry."""

import datetime
import os

import numpy as np
import pyarrow as pa

from metamf_jax.data.tables import arrow
from metamf_jax.data.tables import format as table_format
from metamf_jax.data.tables import parquet as parquet_tables
from metamf_jax.data.tables import text as text_tables
from metamf_jax.data.tables.format import TableFormat
from metamf_jax.data.tables.source import Source, load, mistake


def read_entry_columns(
    path: str | os.PathLike, names: tuple[str, ...], required: bool = True
) -> dict[str, np.ndarray]:
    """Reads columns of a table in the layout `pairs`, or of a list of cells, with a header.

    A column holds numbers if all that is not blank are numbers, or ISO 8601 dates, which become
    seconds; else words. ``time`` is also the column that `read_table` takes for the times.

    Args:
      path: text or Parquet.
      names: as in the header.
      required: whether each must be there; otherwise those that are not are left out.

    Returns:
      By name [E], in the order of the file: float64, NaN for a blank, or strings (object).

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it has no such column, or cannot be read.
    """
    source = load(path, None)
    if source.format in ("mtx", "npz"):
        raise mistake(path, None, f"expected named columns, got {source.format}", "write text")
    if source.format == "parquet":
        table = parquet_tables.parquet_table(source)
        places = _places(source, table.column_names, names, required)
        return {name: _of_parquet(table.column(place)) for name, place in places.items()}
    kind, delimiter, (first, *_) = text_tables.sniff(source)
    places = _places(source, first, names, required)
    found = TableFormat(kind, "pairs", delimiter, len(first), tuple(first))
    column = text_tables.Column(text_tables.STRINGS, lambda source, line, token: token)
    arrays = text_tables.read_columns(source, found, dict.fromkeys(places.values(), column))
    return {name: _typed(*arrays[place]) for name, place in places.items()}


def _places(
    source: Source, header: list[str], names: tuple[str, ...], required: bool
) -> dict[str, int]:
    roles, places = table_format.find_roles(header), {}
    for name in names:
        if name in header:
            places[name] = header.index(name)
        elif name == "time" and "time" in roles:
            places[name] = roles["time"]
        elif required:
            raise mistake(
                source.path,
                1,
                f"expected a column named {name!r}, got {', '.join(header)[:200]}",
                "give the name of one, in a table with a header",
            )
    return places


def _of_parquet(column: pa.ChunkedArray) -> np.ndarray:
    if parquet_tables.is_numeric(column.type):
        return arrow.to_numpy(column.cast(pa.float64(), safe=False))
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        zone = getattr(column.type, "tz", None)
        seconds = column.cast(pa.timestamp("s", zone), safe=False).cast(pa.int64())
        return arrow.to_numpy(seconds.cast(pa.float64(), safe=False))
    listed = ["" if x is None else str(x) for x in column.to_pylist()]
    words, codes = np.unique(np.array(listed, object), return_inverse=True)
    return _typed(codes, words)


def _typed(codes: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Numbers, seconds or words of a coded column."""
    words = [str(word).strip() for word in ids.tolist()]
    for parse in (float, _seconds):
        try:
            return np.array([parse(word) if word else np.nan for word in words])[codes]
        except ValueError:
            continue
    named = np.empty(len(words), object)
    named[:] = words
    return named[codes]


def _seconds(word: str) -> float:
    moment = datetime.datetime.fromisoformat(word)
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()
