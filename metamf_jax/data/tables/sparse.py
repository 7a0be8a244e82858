"""Sparse matrices to tables: Matrix Market, and scipy.sparse's npz.

Every stored entry is observed, zeros included. Nothing is allocated on a header's word, and
nothing is unpickled.
"""

import io
import itertools
import math
import re
import struct
import tokenize
import warnings
import zipfile
import zlib

import numpy as np

from metamf_jax.data.tables import text as text_tables
from metamf_jax.data.tables.format import TableFormat, is_integer
from metamf_jax.data.tables.source import (
    Source,
    make_table,
    mistake,
    no_entry,
    without_duplicates,
)
from metamf_jax.types import Table

# A matrix may have that many more rows or columns than its file has bytes. Real files stay far
# below; a header that claims more is refused before anything is allocated.
_EMPTY_LINES_ALLOWED = 1_000_000


def _require_sane_shape(source: Source, shape: tuple[int, int], line: int | None) -> None:
    most = len(source.data) + _EMPTY_LINES_ALLOWED
    if min(shape) < 1 or max(shape) > most:
        raise mistake(
            source.path,
            line,
            f"the header claims {shape[0]} rows and {shape[1]} columns, which cannot be in a file "
            f"of {len(source.data)} bytes (from 1 to {most} each)",
            "correct the header, or write pairs if most rows or columns are empty",
        )


def read_matrix_market(source: Source) -> Table:
    symmetric, shape, num_entries, body = _market_header(source)
    layout = TableFormat("libmf", "pairs", " ")
    pairs = text_tables.read_pairs_text(body, layout)
    entries = pairs.entries
    if len(entries.rows) != num_entries:
        raise mistake(
            source.path,
            body.lines_before,
            f"expected {num_entries} entries as the header claims, got {len(entries.rows)}",
            "fetch or write the file again",
        )
    places = []
    for part, ids, codes, size in (
        ("row", pairs.row_ids, entries.rows, shape[0]),
        ("column", pairs.column_ids, entries.columns, shape[1]),
    ):
        numbers = np.array([int(i) if is_integer(str(i)) else 0 for i in ids.tolist()])
        legal = (numbers >= 1) & (numbers <= size)
        if not legal.all():
            entry = int(np.flatnonzero(~legal[codes])[0])
            record = next(itertools.islice(text_tables.body(body, layout), entry, None))
            raise mistake(
                source.path,
                record.line,
                f"expected a {part} from 1 to {size}, got {ids[codes[entry]]}",
                "correct the entry or the header",
            )
        places.append((numbers - 1)[codes])
    rows, columns, values = *places, np.asarray(entries.values)
    if symmetric:
        off = rows != columns
        rows, columns = np.append(rows, columns[off]), np.append(columns, rows[off])
        values = np.append(values, values[off])
    ids = np.arange(1, shape[0] + 1), np.arange(1, shape[1] + 1)
    table = make_table(source, (rows, ids[0]), (columns, ids[1]), values)
    return without_duplicates(source, table, lambda entry: f"entry {entry + 1}")


def _market_header(source: Source) -> tuple[bool, tuple[int, int], int, Source]:
    """(whether the matrix is symmetric, its shape, the number of entries, what is below)."""
    path, lines = source.path, io.BytesIO(source.data)
    words = next(lines).decode("utf-8").lower().split()
    if words[1:3] != ["matrix", "coordinate"] or words[3:4] not in (["real"], ["integer"]):
        raise mistake(
            path,
            1,
            f"expected `%%MatrixMarket matrix coordinate` with real or integer values, got "
            f"{' '.join(words)[:80]!r}",
            "write it by scipy.io.mmwrite(path, scipy.sparse.coo_array(matrix))",
        )
    if words[4:] not in (["general"], ["symmetric"]):
        raise mistake(
            path, 1, f"expected general or symmetric, got {words[4:]}", "write it as general"
        )
    number = 2
    while (line := lines.readline()).isspace() or line.lstrip().startswith(b"%"):
        number += 1
    if not line:
        last = source.data.count(b"\n") + 1
        raise mistake(path, last, "expected sizes, got the end", "write the file again")
    line = line.strip()
    sizes = re.fullmatch(rb"(\d{1,18})\s+(\d{1,18})\s+(\d{1,18})", line)
    if not sizes:
        raise mistake(
            path,
            number,
            f"expected the sizes `rows columns entries`, got {line[:60].decode()!r}",
            "write the file again",
        )
    num_rows, num_columns, num_entries = map(int, sizes.groups())
    _require_sane_shape(source, (num_rows, num_columns), number)
    body = source._replace(data=lines.read(), lines_before=number)
    return words[4] == "symmetric", (num_rows, num_columns), num_entries, body


def read_npz(source: Source) -> Table:
    kind, shape, values, first, second = _stored_matrix(source)
    if kind == "coo":
        rows, columns = first, second
    else:
        side = shape[0] if kind == "csr" else shape[1]
        major = _uncompressed(source, first, second, side)
        rows, columns = (major, first) if kind == "csr" else (first, major)
    if not len(rows) == len(columns) == len(values):
        raise _broken(
            source, f"expected {len(values)} rows and columns, got {len(rows)}, {len(columns)}"
        )
    if not len(values):
        raise no_entry(source)
    for part, index, side in (("row", rows, shape[0]), ("column", columns, shape[1])):
        if index.min() < 0 or index.max() >= side:
            entry = int(np.flatnonzero((index < 0) | (index >= side))[0])
            raise _broken(source, f"entry {entry + 1} lies in {part} {index[entry]} of {side}")
    wrong = ~(np.abs(values) <= source.largest)
    if wrong.any():
        entry = int(np.flatnonzero(wrong)[0])
        raise mistake(
            source.path,
            f", entry {entry + 1}",
            f"expected a finite number in {source.precision}, got {values[entry]}",
            "correct it, or do not store the entry if the cell is not observed",
        )
    ids = np.arange(shape[0]), np.arange(shape[1])
    table = make_table(source, (rows, ids[0]), (columns, ids[1]), values)
    return without_duplicates(source, table, lambda entry: f"entry {entry + 1}")


def _stored_matrix(source: Source):
    """(coo, csr or csc; shape; values, float64; the two arrays that say where they lie, int64)."""
    arrays = _npz_arrays(source)
    stored = arrays.get("format", np.array(""))
    kind = stored.item() if stored.size == 1 else ""
    kind = kind.decode("latin1") if isinstance(kind, bytes) else str(kind)
    names = {"coo": ("row", "col"), "csr": ("indices", "indptr"), "csc": ("indices", "indptr")}
    if kind not in names:
        raise _broken(
            source, f"expected a scipy.sparse matrix in coo, csr or csc format, got {kind!r}"
        )
    missing = [name for name in ("shape", "data", *names[kind]) if name not in arrays]
    if missing:
        raise _broken(
            source, f"expected the arrays of a {kind} matrix, got none named {missing[0]}"
        )
    shape = arrays["shape"].ravel().tolist()
    if len(shape) != 2 or not all(isinstance(side, int) for side in shape):
        raise _broken(source, f"expected two sides as shape, got {shape}")
    _require_sane_shape(source, (shape[0], shape[1]), None)
    values = arrays["data"]
    first, second = (arrays[name] for name in names[kind])
    if values.ndim != 1 or values.dtype.kind not in "fiub":
        got = f"{values.dtype} {values.shape}"
        raise _broken(source, f"expected a list of real numbers as data, got {got}")
    if any(index.ndim != 1 or index.dtype.kind not in "iu" for index in (first, second)):
        raise _broken(source, "expected lists of integers as indices")
    return kind, shape, values.astype(np.float64), first.astype(np.int64), second.astype(np.int64)


def _uncompressed(source: Source, indices: np.ndarray, indptr: np.ndarray, side: int) -> np.ndarray:
    """The rows of a csr matrix's entries, or the columns of a csc matrix's."""
    steps = np.diff(indptr)
    if len(indptr) != side + 1 or indptr[0] != 0 or (steps < 0).any():
        raise _broken(source, "expected indptr to rise from 0 with one step for each row or column")
    if indptr[-1] != len(indices):
        raise _broken(source, f"expected {indptr[-1]} indices as indptr claims, got {len(indices)}")
    return np.repeat(np.arange(side), steps)


def _broken(source: Source, what: str) -> ValueError:
    remedy = "write it by scipy.sparse.save_npz(path, scipy.sparse.coo_array(matrix))"
    return mistake(source.path, None, what, remedy)


def _npz_arrays(source: Source) -> dict[str, np.ndarray]:
    """The arrays of an archive; none is unpickled, none larger than its member is allocated."""
    arrays = {}
    try:
        with zipfile.ZipFile(io.BytesIO(source.data)) as archive:
            for member in archive.infolist():
                # Deflate cannot shrink further than 1032 to 1.
                if member.file_size > 1032 * min(member.compress_size, len(source.data)) + 1024:
                    raise ValueError(f"{member.filename} claims {member.file_size} bytes")
                data = io.BytesIO(archive.read(member))
                version = np.lib.format.read_magic(data)
                if version != (1, 0):
                    raise ValueError(f"{member.filename} has NumPy format {version}")
                with warnings.catch_warnings():
                    # It tells that a file of Python 2 takes longer to read.
                    warnings.simplefilter("ignore", UserWarning)
                    shape, fortran, kind = np.lib.format.read_array_header_1_0(data)
                claimed = math.prod(shape) * kind.itemsize
                left = member.file_size - data.tell()
                if kind.hasobject:
                    raise ValueError(f"{member.filename} holds pickled objects")
                if claimed != left or (len(shape) > 1 and fortran):
                    raise ValueError(f"{member.filename} claims {claimed} bytes and holds {left}")
                array = np.frombuffer(data.read(), kind).reshape(shape)
                arrays[member.filename.removesuffix(".npy")] = array
    # What zipfile and NumPy raise at damaged headers, encryption and the like.
    except (
        ValueError,
        TypeError,
        KeyError,
        OverflowError,
        RecursionError,
        RuntimeError,
        OSError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        tokenize.TokenError,
    ) as error:
        raise mistake(
            source.path,
            None,
            f"expected a file of scipy.sparse.save_npz, got one that cannot be read ({error})",
            "write it again",
        ) from None
    return arrays
