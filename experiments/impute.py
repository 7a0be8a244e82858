"""Fills the missing cells of a table, from priors that ``experiments.train`` left in a workdir.

    python -m experiments.impute --checkpoint=runs/ml100k --input=ratings.csv --output=completed.csv

A table with a line for each cell is answered by one of all missing cells, or of those that
``--pairs`` lists, in their order; a dense table with blanks by the same table without them.
"""

import numpy as np
from absl import flags

from experiments import common
from experiments.answer_flags import OUTPUT, PAIRS
from experiments.input_flag import INPUT
from metamf_jax.data import tables, write_tables
from metamf_jax.imputation import impute
from metamf_jax.types import Table

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Workdir of a run of experiments.train.")

# Above it the answer would fill the memory: 10^8 cells take 2 GB as three columns.
_MOST_CELLS = 10**8


def run(checkpoint: str, input_path: str, output_path: str, pairs_path: str | None) -> None:
    """Reads, imputes and writes.

    Raises:
      ValueError: a file cannot be read, or the answer would be too large.
      FileNotFoundError: a file is missing.
    """
    prior = impute.load_prior(checkpoint)
    found = tables.detect(input_path)
    table = tables.read_table(input_path)
    num_rows, num_columns = table.entries.shape
    cells = len(table.entries.rows)
    print(f"{input_path}: {found}")
    print(
        f"{num_rows} rows, {num_columns} columns, {cells} observed cells "
        f"({cells / (num_rows * num_columns):.2%})"
    )
    pairs = tables.read_pairs(pairs_path) if pairs_path else None
    if pairs is None and num_rows * num_columns - cells > _MOST_CELLS:
        raise ValueError(
            f"{input_path} has {num_rows * num_columns - cells} missing cells, more than "
            f"{_MOST_CELLS}; list those that you need in a file and give it as --pairs"
        )
    imputation = impute.impute(prior, table.entries)
    scale = "their own scale" if imputation.own_scale else "the scale of the training data"
    print(f"values standardised on {scale}; factors found by {imputation.solver} steps")
    if pairs is not None:
        _write_pairs(output_path, table, imputation, *pairs)
    elif found.dense:
        completed = impute.predict_rows(imputation, 0, num_rows)
        completed[table.entries.rows, table.entries.columns] = table.entries.values
        write_tables.write_dense(
            output_path, completed, table.row_ids, table.column_ids, like=found
        )
    else:
        missing = np.ones((num_rows, num_columns), bool)
        missing[table.entries.rows, table.entries.columns] = False
        rows, columns = np.nonzero(missing)
        values = impute.predict_rows(imputation, 0, num_rows)[rows, columns]
        write_tables.write_pairs(
            output_path, table.row_ids[rows], table.column_ids[columns], values
        )
    print(f"wrote {output_path}")


def _write_pairs(
    output_path: str,
    table: Table,
    imputation: impute.Imputation,
    row_ids: np.ndarray,
    column_ids: np.ndarray,
) -> None:
    rows = tables.positions(row_ids, table.row_ids)
    columns = tables.positions(column_ids, table.column_ids)
    for kind, places, ids in (("row", rows, row_ids), ("column", columns, column_ids)):
        unknown = np.flatnonzero(places < 0)
        if len(unknown):
            raise ValueError(
                f"--pairs asks for {kind} {ids[unknown[0]]!r} (its cell {unknown[0] + 1}), which "
                f"the input does not have; {len(unknown)} cells have such a {kind}. Remove them"
            )
    values = impute.predict(imputation, rows, columns)
    write_tables.write_pairs(output_path, row_ids, column_ids, values)


def main() -> None:
    with common.profiled(common.WORKDIR.value):
        run(
            common.needed(_CHECKPOINT),
            common.needed(INPUT),
            common.needed(OUTPUT),
            PAIRS.value,
        )


if __name__ == "__main__":
    common.run_main(main)
