"""How a file of observed entries is laid out, and how that is found out.

Two layouts. `pairs`: a line for each entry, ``row,column,value[,time]``. `dense`: a line
for each row of the matrix, with blanks at the missing cells. Detection looks at the extension and
at the first lines only; every finding can be overridden.
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

FORMATS = {
    "csv": "separated by commas (or semicolons), quoted where needed",
    "tsv": "separated by tabs, quoted where needed",
    "libmf": "separated by spaces, without header: LIBMF's `row column value`",
    "dat": "separated by `::`, without header: MovieLens's `row::column::value::time`",
    "parquet": "Apache Parquet",
    "mtx": "Matrix Market coordinate",
    "npz": "a scipy.sparse matrix saved by scipy.sparse.save_npz",
}
EXTENSIONS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".libmf": "libmf",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".mtx": "mtx",
    ".npz": "npz",
}
DELIMITERS = {"csv": ",", "tsv": "\t", "libmf": " ", "dat": "::"}
LAYOUTS = ("pairs", "dense")
# Earlier names win where a file has several columns that could play a part.
_ROLE_NAMES = {
    part: tuple(names.split())
    for part, names in {
        "row": "row rowid userid user uid customerid customer personid person",
        "column": "column col columnid itemid item iid movieid movie productid product asin isbn "
        "bookid book jokeid joke",
        "value": "value rating ratings score stars",
        "time": "time timestamp unixreviewtime datetime date",
    }.items()
}
# A corner cell that says beyond doubt that names stand below it and to its right.
CORNER = "row/column"
MISSING = ("", "NA", "N/A", "NaN", "?")
_MISSING = frozenset(token.lower() for token in MISSING)
_INTEGER = re.compile(r"\s*[+-]?[0-9]{1,18}\s*")
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")


@dataclasses.dataclass(frozen=True)
class TableFormat:
    """What was found in a file, or asked for.

    Attributes:
      format: a key of `FORMATS`.
      layout: "pairs" or "dense".
      delimiter: what separates the columns of a text file; "" for other formats.
      num_columns: columns of the file.
      header: the names of the columns as in the file, or None without a header.
      roles: pairs: the positions of row, column, value and, if there is one, time.
      row_names: dense: whether the first column holds names of rows.
      gzip: whether the file is compressed with gzip.
    """

    format: str
    layout: str
    delimiter: str = ""
    num_columns: int = 3
    header: tuple[str, ...] | None = None
    roles: tuple[int, ...] = (0, 1, 2)
    row_names: bool = False
    gzip: bool = False

    @property
    def dense(self) -> bool:
        """Whether the file is a matrix with blanks, to be answered by a full matrix."""
        return self.layout == "dense"

    def __str__(self) -> str:
        name = {";": "csv separated by semicolons"}.get(self.delimiter, self.format)
        parts = [name + (", gzip" if self.gzip else "")]
        if self.dense:
            parts.append("a dense matrix with blanks")
            parts.append("with a header" if self.header else "without header")
            parts.append("row names in the first column" if self.row_names else "no row names")
        elif self.format in ("mtx", "npz"):
            parts.append("a sparse matrix")
        else:
            names = [self.header[r] if self.header else f"column {r + 1}" for r in self.roles]
            parts.append("a line for each cell")
            parts += [f"{part}={name}" for part, name in zip(_ROLE_NAMES, names, strict=False)]
        return "; ".join(parts)


def of_name(path: Path) -> str:
    """The format that the name of a file tells, compressed or not; "" for none."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    return EXTENSIONS.get(suffixes[-1], "") if suffixes else ""


def is_missing(token: str) -> bool:
    """Whether a cell of a dense file stands for a missing value: blank, NA, NaN or ?."""
    return token.strip().lower() in _MISSING


def is_number(token: str) -> bool:
    """Whether a token is a decimal number; words such as nan and inf are not."""
    return _NUMBER.fullmatch(token.strip()) is not None


def is_boolean(token: str) -> bool:
    """Whether a token says True or False, in any case."""
    return token.strip().lower() in ("true", "false")


def is_integer(token: str) -> bool:
    return _INTEGER.fullmatch(token) is not None


def text_format(
    name: str,
    delimiter: str,
    records: Sequence[Sequence[str]],
    *,
    layout: str | None = None,
    header: bool | None = None,
    row_names: bool | None = None,
) -> TableFormat:
    """Settles what the overrides leave open from the first records of a text file.

    Args:
      name: a text format of `FORMATS`.
      delimiter: what separates its columns.
      records: the first records, at least one.
      layout: "pairs", "dense" or None to find out.
      header: whether the first record holds names, or None to find out.
      row_names: dense only: whether the first column holds names, or None to find out.

    Raises:
      ValueError: without file and line, which the caller knows; if the parts of the columns cannot
        be told.
    """
    first, body = records[0], records[1:]
    if name in ("libmf", "dat") and header is None:
        header = False
    named = header or (header is None and not any(is_number(t) or is_boolean(t) for t in first))
    found = find_roles(first) if named else {}
    if layout is None:
        layout = _guess_layout(name, first, body, found)
    if layout == "pairs":
        roles = pair_roles(len(first), found)
        if header is None:
            header = bool(found) or _looks_like_names(first, body, roles)
        if len(roles) == 3 and len(first) > 3 and not found:
            times = [record[3] for record in body or records if len(record) > 3]
            if times and all(is_integer(time) for time in times):
                roles = (*roles, 3)
        return TableFormat(
            name, layout, delimiter, len(first), tuple(first) if header else None, roles
        )
    if header is None:
        header = _has_column_names(first, body)
    if row_names is None:
        corner = header and first[0].strip() in ("", CORNER)
        below = [record[0] for record in (body if header else records) if record]
        row_names = len(first) > 1 and (corner or any(map(_is_word, below)))
    if row_names and len(first) == 1:
        raise ValueError(
            "expected columns of values beside the row names, got none; say row_names=no"
        )
    return TableFormat(
        name,
        layout,
        delimiter,
        len(first),
        tuple(first) if header else None,
        row_names=row_names,
    )


def find_roles(names: Sequence[str]) -> dict[str, int]:
    """The position of each part (row, column, value, time) that the names of a header tell."""
    plain = [re.sub(r"[^a-z0-9]", "", name.lower()) for name in names]
    found = {}
    for part, known in _ROLE_NAMES.items():
        for name in known:
            if name in plain:
                found[part] = plain.index(name)
                break
    return found


def pair_roles(num_columns: int, found: dict[str, int]) -> tuple[int, ...]:
    """Positions of row, column, value and, if found, time: by name, else the first three in order.

    Raises:
      ValueError: with fewer than three columns, or if the names found contradict the order.
    """
    if num_columns < 3:
        raise ValueError(
            f"expected three or more columns (row, column, value), got {num_columns}; add the "
            "missing columns, or say layout=dense if this is a matrix with blanks"
        )
    wanted = ("row", "column", "value")
    time = (found["time"],) if "time" in found else ()
    free = [n for n in range(num_columns) if n not in found.values()]
    absent = [part for part in wanted if part not in found]
    if len(absent) == 1 and len(free) == 1:
        found = {**found, absent[0]: free[0]}
    elif absent:
        if any(found.get(part, n) != n for n, part in enumerate(wanted)) or 0 in time:
            raise ValueError(
                f"cannot tell which column holds the {' and the '.join(absent)}; name the columns "
                "row, column, value and, if there is one, time"
            )
        found = {part: n for n, part in enumerate(wanted)}
        time = tuple(n for n in time if n > 2)
    return (*(found[part] for part in wanted), *time)


def _guess_layout(name, first, body, found) -> str:
    if {"row", "column", "value"} <= found.keys():
        return "pairs"
    if name == "dat":
        return "pairs"
    if len(first) < 3 or first[0].strip() == CORNER:
        return "dense"
    if not first[0].strip() and _has_column_names(first, body):
        return "dense"
    if name == "libmf":
        return "pairs" if len(first) == 3 else "dense"
    if len(first) > 4:
        return "pairs" if len(found) > 1 and "value" in found else "dense"
    # Three or four columns without known names: blanks among numbers make it a matrix.
    records = body if _has_column_names(first, body) else [first, *body]
    cells = [token for record in records for token in record[1:]]
    if any(map(is_missing, cells)) and not any(map(_is_word, cells)):
        return "dense"
    return "pairs"


def _is_word(token: str) -> bool:
    plain = token.strip().lstrip("+-").lower()
    value = is_number(token) or is_boolean(token) or is_missing(token)
    return not (value or plain in ("inf", "infinity", "nan"))


def _looks_like_names(first, body, roles) -> bool:
    """Whether the first line of pairs is a header, though none of its names is known.

    A word in the place of the value makes it one, unless the word starts like a number, or an id of
    the line stands below it again: then it is an entry with a mistake.
    """
    row, column, value = roles[:3]
    token = first[value].strip()
    if not _is_word(token) or re.match(r"[+-]?[.,]?[0-9]", token):
        return False
    return not any(
        len(record) == len(first) and (record[row] == first[row] or record[column] == first[column])
        for record in body
    )


def _has_column_names(first, body) -> bool:
    """Whether the first line of a dense matrix holds the names of the columns."""
    corner, names = first[0].strip().lower(), first[1:] or first
    if corner == CORNER or corner in ("id", "name", "index", *_ROLE_NAMES["row"]):
        return True
    # A word here and there among numbers is a mistake to be reported, not a header.
    if 2 * sum(map(_is_word, names)) > len(names):
        return True
    # The numbered names of a data frame: blank corner, columns and rows counted alike.
    below = [record[0] for record in body]
    return (
        corner == ""
        and _counted(names)
        and bool(body)
        and (_counted(below) or all(map(_is_word, below)))
    )


def _counted(tokens: Sequence[str]) -> bool:
    counted = [str(n) for n in range(len(tokens) + 1)]
    return list(tokens) in (counted[:-1], counted[1:])
