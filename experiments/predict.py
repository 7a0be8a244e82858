"""Predicts cells, or the best columns of rows, from factors that ``experiments.factorize`` left.

    python -m experiments.predict --factors=runs/ml1m --pairs=cells.csv --output=values.csv
    python -m experiments.predict --factors=runs/ml1m --top=10 --rows=users.txt \
        --exclude=ratings.csv --output=best.csv

The answer has a line for each cell: row, column, value, and in ``known`` whether row and column
stood in the training table: ``both``, only the ``row``, only the ``column``, or ``neither``. What
is not known is answered by the mean of the known ones. Factors may also be a LIBMF model in text;
``--libmf_output`` writes one.
"""

import csv
import io
import os
import pathlib

import numpy as np
from absl import flags

from experiments import common, shared_flags
from metamf_jax.data import libmf_text, tables
from metamf_jax.data.tables import write as write_tables
from metamf_jax.factorization import prediction
from metamf_jax.factorization.factor_file import load_factors
from metamf_jax.runs.files import write_text
from metamf_jax.types import Factors

_OUTPUT = shared_flags.output()
_PAIRS = shared_flags.pairs()
_FACTORS = flags.DEFINE_string(
    "factors", None, "Workdir of a factorization, its factors.safetensors, or a LIBMF model."
)
_TOP = flags.DEFINE_integer(
    "top", None, "Writes so many columns with the largest values for each row.", lower_bound=1
)
_ROWS = flags.DEFINE_string("rows", None, "File of row ids, one a line, for --top. Default: all.")
_EXCLUDE = flags.DEFINE_string(
    "exclude", None, "Table whose cells --top leaves out, for instance the training ratings."
)
_LIBMF_OUTPUT = flags.DEFINE_string(
    "libmf_output", None, "File to write the factors to, as a model for LIBMF's mf-predict."
)
_LIBMF_NUMBERS = flags.DEFINE_enum(
    "libmf_numbers",
    "ids",
    ["ids", "order"],
    "LIBMF's numbers of rows and columns: their ids, or their order, listed in FILE.rows.csv and"
    " FILE.columns.csv.",
)

# Of row and column, -1 for unknown.
_KNOWN = np.array(["both", "row", "column", "neither"], object)


def read_factors(path: str | os.PathLike) -> tuple[Factors, np.ndarray, np.ndarray]:
    """(factors, row ids, column ids) from a workdir, a safetensors file or a LIBMF model.

    Raises:
      ValueError: there is no such file, or it holds something else.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        path = path / "factors.safetensors"
    if path.exists():
        with path.open("rb") as file:
            start = file.read(2)
        # A safetensors file starts with the length of its header in eight bytes.
        if start in (b"f ", b"\x1f\x8b"):
            return libmf_text.read_libmf(path)
    return load_factors(path)


def write_pairs(
    path: str,
    factors: Factors,
    row_ids: np.ndarray,
    column_ids: np.ndarray,
    asked_rows: np.ndarray,
    asked_columns: np.ndarray,
) -> None:
    """Answers the cells asked for, in their order.

    Args:
      path: the file to write.
      factors: ``u`` [N, K] and ``v`` [M, K].
      row_ids: [N].
      column_ids: [M].
      asked_rows: [P] ids.
      asked_columns: [P] ids.
    """
    rows = tables.positions(asked_rows, row_ids)
    columns = tables.positions(asked_columns, column_ids)
    values = prediction.predict(prediction.with_unknown(factors), rows, columns)
    known = _KNOWN[(columns < 0) + 2 * (rows < 0)]
    write_tables.write_pairs(path, asked_rows, asked_columns, values, extra={"known": known})
    some = {name: int((known == name).sum()) for name in _KNOWN[1:]}
    print(
        f"wrote {path}: {len(values)} cells; column unknown {some['row']}, row unknown"
        f" {some['column']}, both unknown {some['neither']}"
    )


def write_top(
    path: str,
    factors: Factors,
    row_ids: np.ndarray,
    column_ids: np.ndarray,
    count: int,
    asked_rows: np.ndarray | None = None,
    excluded: tuple[np.ndarray, np.ndarray] | None = None,
) -> None:
    """Writes the columns with the largest values for each row, the largest first.

    Args:
      path: the file to write.
      factors: ``u`` [N, K] and ``v`` [M, K].
      row_ids: [N].
      column_ids: [M].
      count: columns a row; fewer where fewer are left.
      asked_rows: [R] ids; None for all. An unknown row is answered like the mean of the known ones.
      excluded: ids of the rows [X] and columns [X] of cells to leave out.
    """
    asked = row_ids if asked_rows is None else asked_rows
    # Every row asked for gets a number of its own, so that unknown ones leave out cells too.
    numbers = tables.positions(asked, row_ids)
    left_out = np.zeros((2, 0), int)
    if excluded is not None:
        left_out = np.stack(
            [tables.positions(excluded[0], asked), tables.positions(excluded[1], column_ids)]
        )
        left_out = left_out[:, (left_out >= 0).all(axis=0)]
    u = prediction.with_unknown(factors).u[numbers]
    everyone = np.arange(len(asked))
    columns, values = prediction.top_columns(
        Factors(u, factors.v), everyone, count, (left_out[0], left_out[1])
    )
    kept = np.isfinite(values)
    rows = np.broadcast_to(everyone[:, None], kept.shape)[kept]
    known = _KNOWN[2 * (numbers[rows] < 0)]
    write_tables.write_pairs(
        path, asked[rows], column_ids[columns[kept]], values[kept], extra={"known": known}
    )
    print(
        f"wrote {path}: {kept.sum()} cells of {len(asked)} rows, {(numbers < 0).sum()} of them"
        " unknown"
    )


def write_libmf(
    path: str, factors: Factors, row_ids: np.ndarray, column_ids: np.ndarray, numbers: str = "ids"
) -> None:
    """Writes a LIBMF model; under ``numbers="order"`` with the two lists of ids beside it."""
    if numbers == "order":
        for kind, ids in (("rows", row_ids), ("columns", column_ids)):
            text = io.StringIO()
            lines = csv.writer(text, lineterminator="\n")
            lines.writerows([("number", "id"), *enumerate(ids.tolist())])
            write_text(f"{path}.{kind}.csv", text.getvalue())
        row_ids, column_ids = np.arange(len(row_ids)), np.arange(len(column_ids))
    libmf_text.write_libmf(path, factors, row_ids, column_ids)
    print(f"wrote {path}")


def main() -> None:
    source = common.needed(_FACTORS)
    wanted = [flag for flag in (_PAIRS, _TOP, _LIBMF_OUTPUT) if flag.value is not None]
    if len(wanted) != 1:
        raise ValueError(
            "expected one of --pairs=FILE, --top=N and --libmf_output=FILE, got"
            f" {', '.join(f'--{flag.name}' for flag in wanted) or 'none of them'}"
        )
    if _TOP.value is None and (_ROWS.value or _EXCLUDE.value):
        raise ValueError("--rows and --exclude go with --top=N")
    output = common.needed(_OUTPUT) if _LIBMF_OUTPUT.value is None else ""
    table = read_factors(source)
    if _LIBMF_OUTPUT.value is not None:
        write_libmf(_LIBMF_OUTPUT.value, *table, _LIBMF_NUMBERS.value)
    elif _PAIRS.value is not None:
        write_pairs(output, *table, *tables.read_pairs(_PAIRS.value))
    elif _TOP.value is not None:
        write_top(
            output,
            *table,
            _TOP.value,
            tables.read_ids(_ROWS.value) if _ROWS.value else None,
            tables.read_pairs(_EXCLUDE.value) if _EXCLUDE.value else None,
        )


if __name__ == "__main__":
    common.run_main(main)
