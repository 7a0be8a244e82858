"""The models that LIBMF's ``mf-train`` writes and ``mf-predict`` reads, as text.

    f 0              the function that was minimised, a number of LIBMF's
    m 2              rows
    n 3              columns
    k 2              rank
    b 3.5            the value of a cell whose row or column was not seen in training
    p0 T 0.1 -0.2    a line for each row: its number from 0, whether it was seen, its factors
    p1 F 0 0
    q0 T 1.2 0.3     and for each column
    ..

LIBMF: Chin, Yuan, Yang, Zhuang, Juan, Lin: LIBMF: A library for parallel matrix factorization in
shared-memory systems, JMLR 2016.
"""

import os

import numpy as np
import pyarrow as pa

from metamf_jax.data.tables import arrow
from metamf_jax.data.tables.source import FLOAT32_MAX, load, mistake
from metamf_jax.runs.files import written_aside
from metamf_jax.types import Factors

# LIBMF's numbers of its functions: three of regression (squared, absolute, KL), three of
# classification (logistic and two hinges), three of one-class classification.
_FUNCTIONS = (0, 1, 2, 5, 6, 7, 10, 11, 12)
_SQUARED = 0
_HEADER = ("f", "m", "n", "k", "b")
_REMEDY = "write the model again with mf-train or --libmf_output"
# Ids that leave more gaps than this would make a file of gaps.
_MOST_GAPS = 1_000_000


def write_libmf(
    path: str | os.PathLike, factors: Factors, row_ids: np.ndarray, column_ids: np.ndarray
) -> None:
    """Writes factors as a LIBMF model of the squared loss, with which predictions are ``u . v``.

    A row's id is its number there; numbers between that no row has become rows not seen. Such cells
    LIBMF answers with b, here the mean of ``u . v`` over all cells.

    Args:
      path: the file; written aside and renamed.
      factors: ``u`` [N, K], ``v`` [M, K], finite.
      row_ids: [N] integers from 0.
      column_ids: [M] likewise.

    Raises:
      ValueError: factors are not finite, or ids are no such integers or leave a million gaps.
    """
    sides = []
    for kind, factor, ids in (("row", factors.u, row_ids), ("column", factors.v, column_ids)):
        factor, ids = np.asarray(factor, np.float32), np.asarray(ids)
        if not np.isfinite(factor).all():
            raise ValueError(
                f"{path}: expected finite factors of every {kind}, got NaN or infinity"
            )
        integers = np.issubdtype(ids.dtype, np.integer)
        bad = ids[ids < 0] if integers else ids
        if len(bad) or ids.max(initial=-1) >= len(ids) + _MOST_GAPS:
            example = bad.tolist()[0] if len(bad) else int(ids.max())
            raise ValueError(
                f"{path}: LIBMF numbers rows and columns from 0 without large gaps, but the"
                f" {len(ids)} {kind}s have such ids as {example!r}; number them in their order"
                " (--libmf_numbers=order)"
            )
        # C++ streams stop at numbers below the normal ones.
        tiny = np.finfo(np.float32).tiny
        sides.append((np.where(np.abs(factor) < tiny, np.float32(0), factor), ids))
    (u, rows), (v, columns) = sides
    mean = u.mean(0, dtype=np.float64) @ v.mean(0, dtype=np.float64)
    sizes = rows.max(initial=-1) + 1, columns.max(initial=-1) + 1
    header = zip(_HEADER, (_SQUARED, *sizes, u.shape[1], repr(float(mean))), strict=True)
    with written_aside(path) as aside, aside.open("w", encoding="ascii") as file:
        file.writelines(f"{name} {value}\n" for name, value in header)
        for letter, factor, ids, size in (("p", u, rows, sizes[0]), ("q", v, columns, sizes[1])):
            place = np.full(size, -1)
            place[ids] = np.arange(len(ids))
            unseen = "F" + " 0" * u.shape[1]
            for number, at in enumerate(place.tolist()):
                seen = "T " + " ".join(_texts(factor[at])) if at >= 0 else unseen
                file.write(f"{letter}{number} {seen}\n")


def _texts(numbers: np.ndarray) -> list[str]:
    """The shortest texts that read back as the same numbers."""
    return arrow.from_numpy(numbers).cast(pa.string()).to_pylist()


def read_libmf(path: str | os.PathLike) -> tuple[Factors, np.ndarray, np.ndarray]:
    """Reads a LIBMF model, text or text in gzip.

    Returns:
      (factors, row ids, column ids): of the rows and columns that were seen; ids are LIBMF's
      numbers, int64.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: naming file, line and remedy, if it is no such model.
    """
    lines = load(path, "libmf").data.decode("utf-8").removesuffix("\n").split("\n")
    num_rows, num_columns, rank = _read_header(path, lines)
    end_of_rows = len(_HEADER) + num_rows
    expected = end_of_rows + num_columns
    if len(lines) > expected:
        what = f"expected {num_rows} rows and {num_columns} columns, and no line more"
        raise mistake(path, expected + 1, f"{what}, got {lines[expected][:60]!r}", _REMEDY)
    u, row_ids = _read_side(path, lines, "p", range(len(_HEADER), end_of_rows), rank)
    v, column_ids = _read_side(path, lines, "q", range(end_of_rows, expected), rank)
    for letter, ids in (("p", row_ids), ("q", column_ids)):
        if not len(ids):
            raise mistake(
                path, None, f"none of the lines {letter}0 .. was seen in training", _REMEDY
            )
    return Factors(u, v), row_ids, column_ids


def _read_header(path, lines: list[str]) -> tuple[int, int, int]:
    """Rows, columns and rank."""
    numbers = []
    for n, name in enumerate(_HEADER):
        what = f"`{name}` and {'a number' if name == 'b' else 'an integer of at least 0'}"
        got = _fields(path, lines, n, what)
        number = _number(got[1]) if len(got) == 2 and got[0] == name else None
        if number is None or (name != "b" and (number < 0 or number != int(number))):
            raise mistake(path, n + 1, f"expected {what}, got {lines[n][:60]!r}", _REMEDY)
        numbers.append(number)
    function, num_rows, num_columns, rank = map(int, numbers[:4])
    if function not in _FUNCTIONS:
        known = ", ".join(map(str, _FUNCTIONS))
        raise mistake(path, 1, f"expected a function among {known}, got {function}", _REMEDY)
    if rank < 1:
        raise mistake(path, 4, "expected a rank of at least 1, got 0", _REMEDY)
    return num_rows, num_columns, rank


def _read_side(
    path, lines: list[str], letter: str, places: range, rank: int
) -> tuple[np.ndarray, np.ndarray]:
    """Factors [N, K] and numbers [N] of the rows, or columns, that were seen."""
    factors, ids = [], []
    for number, n in enumerate(places):
        what = f"`{letter}{number}`, T or F, and {rank} numbers"
        got = _fields(path, lines, n, what)
        if len(got) != 2 + rank or got[0] != f"{letter}{number}" or got[1] not in ("T", "F"):
            what += f", got {len(got)} fields: {lines[n][:60]!r}"
            raise mistake(path, n + 1, f"expected {what}", _REMEDY)
        if got[1] == "F":
            continue
        values = [_number(text) for text in got[2:]]
        if None in values:
            wrong = got[2 + values.index(None)]
            raise mistake(path, n + 1, f"expected finite numbers, got {wrong[:40]!r}", _REMEDY)
        factors.append(values)
        ids.append(number)
    return np.array(factors, np.float32).reshape(len(ids), rank), np.array(ids, np.int64)


def _fields(path, lines: list[str], n: int, what: str) -> list[str]:
    if n >= len(lines):
        raise mistake(path, len(lines), f"the file ends here; expected {what} next", _REMEDY)
    return lines[n].split()


def _number(text: str) -> float | None:
    """The number that a text stands for, or None if it is none of single precision."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if abs(number) <= FLOAT32_MAX else None
