"""Sparse matrices to cells: Matrix Market, and scipy.sparse's npz.

Every stored entry is an observed cell, zeros included. Nothing is allocated on a header's word, and
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

from metamf_jax.data.tables.format import TableFormat, is_integer
from metamf_jax.data.tables.source import (
    Source,
    make_table,
    mistake,
    no_entry,
    without_duplicates,
)
from metamf_jax.data.tables.text import body, read_pairs_text
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
    path = source.path
    lines = source.data.split(b"\n", 1)[0].decode("utf-8").lower().split()
    if lines[1:3] != ["matrix", "coordinate"] or lines[3:4] not in (["real"], ["integer"]):
        raise mistake(
            path,
            1,
            f"expected `%%MatrixMarket matrix coordinate` with real or integer values, got "
            f"{' '.join(lines)[:80]!r}",
            "write it by scipy.io.mmwrite(path, scipy.sparse.coo_array(matrix))",
        )
    if lines[4:] not in (["general"], ["symmetric"]):
        raise mistake(
            path, 1, f"expected general or symmetric, got {lines[4:]}", "write it as general"
        )
    start, number = 0, 0
    while True:
        number += 1
        end = source.data.find(b"\n", start)
        line = source.data[start : end if end >= 0 else None].strip()
        if line and not line.startswith(b"%"):
            break
        if end < 0:
            raise mistake(path, number, "expected sizes, got the end", "write the file again")
        start = end + 1
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
    below = source._replace(data=source.data[end + 1 :] if end >= 0 else b"", lines_before=number)
    found = TableFormat("libmf", "pairs", " ")
    pairs = read_pairs_text(below, found)
    entries = pairs.entries
    if len(entries.rows) != num_entries:
        raise mistake(
            path,
            number,
            f"expected {num_entries} entries as the header claims, got {len(entries.rows)}",
            "fetch or write the file again",
        )
    places = []
    for part, ids, codes, size in (
        ("row", pairs.row_ids, entries.rows, num_rows),
        ("column", pairs.column_ids, entries.columns, num_columns),
    ):
        numbers = np.array([int(i) if is_integer(str(i)) else 0 for i in ids.tolist()])
        legal = (numbers >= 1) & (numbers <= size)
        if not legal.all():
            entry = int(np.flatnonzero(~legal[codes])[0])
            line = next(itertools.islice(body(below, found), entry, None)).line
            raise mistake(
                path,
                line,
                f"expected a {part} from 1 to {size}, got {ids[codes[entry]]}",
                "correct the entry or the header",
            )
        places.append((numbers - 1)[codes])
    rows, columns, values = *places, np.asarray(entries.values)
    if lines[4] == "symmetric":
        off = rows != columns
        rows, columns = np.append(rows, columns[off]), np.append(columns, rows[off])
        values = np.append(values, values[off])
    ids = np.arange(1, num_rows + 1), np.arange(1, num_columns + 1)
    table = make_table(source, (rows, ids[0]), (columns, ids[1]), values)
    return without_duplicates(source, table, lambda entry: f"entry {entry + 1}")


def read_npz(source: Source) -> Table:
    arrays = _npz_arrays(source)

    def broken(what: str) -> ValueError:
        return mistake(
            source.path,
            None,
            what,
            "write it by scipy.sparse.save_npz(path, scipy.sparse.coo_array(matrix))",
        )

    stored = arrays.get("format", np.array(""))
    kind = stored.item() if stored.size == 1 else ""
    kind = kind.decode("latin1") if isinstance(kind, bytes) else str(kind)
    names = {"coo": ("row", "col"), "csr": ("indices", "indptr"), "csc": ("indices", "indptr")}
    if kind not in names:
        raise broken(f"expected a scipy.sparse matrix in coo, csr or csc format, got {kind!r}")
    missing = [name for name in ("shape", "data", *names[kind]) if name not in arrays]
    if missing:
        raise broken(f"expected the arrays of a {kind} matrix, got none named {missing[0]}")
    shape = arrays["shape"].ravel().tolist()
    if len(shape) != 2 or not all(isinstance(side, int) for side in shape):
        raise broken(f"expected two sides as shape, got {shape}")
    _require_sane_shape(source, (shape[0], shape[1]), None)
    values = arrays["data"]
    first, second = (arrays[name] for name in names[kind])
    if values.ndim != 1 or values.dtype.kind not in "fiub":
        raise broken(f"expected a list of real numbers as data, got {values.dtype} {values.shape}")
    if any(index.ndim != 1 or index.dtype.kind not in "iu" for index in (first, second)):
        raise broken("expected lists of integers as indices")
    first, second = first.astype(np.int64), second.astype(np.int64)
    if kind != "coo":
        side = shape[0] if kind == "csr" else shape[1]
        steps = np.diff(second)
        if len(second) != side + 1 or second[0] != 0 or (steps < 0).any():
            raise broken("expected indptr to rise from 0 with one step for each row or column")
        if second[-1] != len(first):
            raise broken(f"expected {second[-1]} indices as indptr claims, got {len(first)}")
        major = np.repeat(np.arange(side), steps)
        first, second = (major, first) if kind == "csr" else (first, major)
    if not len(first) == len(second) == len(values):
        raise broken(f"expected {len(values)} rows and columns, got {len(first)}, {len(second)}")
    if not len(values):
        raise no_entry(source)
    for part, index, side in (("row", first, shape[0]), ("column", second, shape[1])):
        if index.min() < 0 or index.max() >= side:
            entry = int(np.flatnonzero((index < 0) | (index >= side))[0])
            raise broken(f"entry {entry + 1} lies in {part} {index[entry]} of {side}")
    values = values.astype(np.float64)
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
    table = make_table(source, (first, ids[0]), (second, ids[1]), values)
    return without_duplicates(source, table, lambda entry: f"entry {entry + 1}")


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
