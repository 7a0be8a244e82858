"""``metamf impute``: reads, fits or applies a fit, and writes."""

import argparse
import time

from metamf_jax.cli import fit, further, inputs, outputs
from metamf_jax.cli.names import beside, quantile_name
from metamf_jax.runs import compilation_cache


def run(flags: argparse.Namespace) -> None:
    """Reads a table, fits it or applies a fit, and writes what is asked for."""
    started = time.monotonic()
    given, pairs = inputs.read(flags)
    compilation_cache.use(None)
    if flags.fitted:
        given, answers = further.by_fitted(flags.fitted, given)
    else:
        answers = fit.fitted(flags, given, started)
    if flags.imputations is not None:
        files = outputs.write_imputations(
            flags.output, answers, given, flags.imputations, flags.seed
        )
        print(f"wrote {len(files)} imputations, {files[0]} to {files[-1]}")
        return
    count = outputs.write_imputed(
        flags.output,
        answers,
        given,
        pairs=pairs,
        top=flags.top,
        std=flags.std,
        quantiles=flags.quantiles,
    )
    print(f"wrote {count} imputed cells to {flags.output}")
    if given.found.dense and pairs is None and flags.top is None:
        if flags.std:
            print(f"wrote their standard errors to {beside(flags.output)}")
        for p in flags.quantiles:
            path = beside(flags.output, f".{quantile_name(p)}")
            print(f"wrote their {p} quantiles to {path}")
    if flags.plot:
        from metamf_jax import plotting

        plotting.completed_matrix(flags.plot, given.table.entries, answers.rows)
        print(f"wrote {flags.plot}")
