"""A table completed by its own fit."""

import argparse
import sys
import time

from metamf_jax.cli.inputs import Input, names_rows, side_tables
from metamf_jax.cli.tell import tell
from metamf_jax.imputation import feature_tables, fit_file, pipeline
from metamf_jax.imputation.answers import Answers, OfFitted
from metamf_jax.imputation.completion import Completion
from metamf_jax.imputation.fit_file import NamedCompletion
from metamf_jax.imputation.prior import load_prior

# From so many cells on, what is being done is told while it is done.
_LONG = 100_000


def fitted(flags: argparse.Namespace, given: Input, started: float) -> Answers:
    """The table, completed and saved where that is asked for."""
    table = given.table

    def progress(stage: str) -> None:
        if len(table.entries.rows) >= _LONG:
            print(f"  {time.monotonic() - started:.1f} s: {stage}", file=sys.stderr, flush=True)

    completed = pipeline.complete(
        load_prior(flags.weights),
        table.entries,
        standardize=None if flags.standardize == "auto" else flags.standardize,
        missing=flags.missing,
        seed=flags.seed,
        progress=progress,
        given=feature_tables.coded(*side_tables(given), table.entries.shape),
    )
    tell(completed, table, flags.weights)
    if flags.save:
        _save(flags, completed, given)
    return OfFitted(completed)


def _save(flags: argparse.Namespace, completed: Completion, given: Input) -> None:
    options = {name: getattr(flags, name) for name in ("weights", "standardize", "missing")}
    row_ids = given.table.row_ids if names_rows(given.found) else None
    named = NamedCompletion(
        completed, row_ids, given.table.column_ids, options | {"random_state": flags.seed}
    )
    fit_file.save(flags.save, named)
    print(f"wrote the fit to {flags.save}")
