"""Fills the missing cells of a table, from priors that ``experiments.train`` left in a workdir.

    python -m experiments.impute --checkpoint=runs/ml100k --input=ratings.csv --output=completed.csv

A table with a line for each cell is answered by one of all missing cells, or of those that
``--pairs`` lists, in their order; a dense table with blanks by the same table without them.
"""

import dataclasses

import numpy as np
from absl import flags

from experiments import common, shared_flags
from metamf_jax import cli
from metamf_jax.data import tables
from metamf_jax.imputation import impute
from metamf_jax.imputation.prior import load_prior

_INPUT = shared_flags.input_table()
_OUTPUT = shared_flags.output()
_PAIRS = shared_flags.pairs()
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Workdir of a run of experiments.train.")


def run(checkpoint: str, input_path: str, output_path: str, pairs_path: str | None) -> None:
    """Reads, imputes and writes.

    Raises:
      ValueError: a file cannot be read, or the answer would be too large.
      FileNotFoundError: a file is missing.
    """
    prior = load_prior(checkpoint)
    found = tables.detect(input_path)
    table = tables.read_table(input_path, dtype=np.float64)
    print(cli.describe(input_path, found, table))
    pairs = tables.read_pairs(pairs_path) if pairs_path else None
    if pairs is None:
        cli.require_few_cells(input_path, table)
    single = dataclasses.replace(table.entries, values=table.entries.values.astype(np.float32))
    imputation = impute.impute(prior, single)
    scale = "their own scale" if imputation.own_scale else "the scale of the training data"
    print(f"values standardised on {scale}; factors found by {imputation.solver} steps")

    def without_errors(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return values, np.zeros_like(values)

    answers = cli.Answers(
        lambda rows, columns: without_errors(impute.predict(imputation, rows, columns)),
        lambda first, last: without_errors(impute.predict_rows(imputation, first, last)),
    )
    cli.write_answers(output_path, answers, table, found, input_path, pairs=pairs)
    print(f"wrote {output_path}")


def main() -> None:
    with common.profiled(common.WORKDIR.value):
        run(
            common.needed(_CHECKPOINT),
            common.needed(_INPUT),
            common.needed(_OUTPUT),
            _PAIRS.value,
        )


if __name__ == "__main__":
    common.run_main(main)
