"""``metamf impute --types``: columns of numbers, levels and categories as they are."""

import argparse

from metamf_jax.cli.names import beside
from metamf_jax.imputation import impute_typed


def run(flags: argparse.Namespace) -> None:
    """Completes a table of typed columns, once or several times, with a report if asked for."""
    several = flags.imputations is not None
    paths = [flags.output]
    if several:
        paths = [beside(flags.output, f"-{n + 1}") for n in range(flags.imputations)]
    told = impute_typed.impute(
        flags.input,
        paths,
        types=flags.types or "auto",
        seed=flags.seed,
        several=several,
        report_path=flags.report,
        save=flags.save,
        fitted=flags.fitted,
    )
    print("\n".join(told))
