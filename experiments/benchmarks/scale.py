"""Times encoder and inner loop on one large sparse matrix, and measures their memory.

Claim: a prior for every row and column of a matrix of a million ratings, and ten scaled steps from
it, take seconds, and memory grows in proportion to the number of ratings.

    python -m experiments.benchmarks.scale
    python -m experiments.benchmarks.scale --dataset=ml1m --data_dir=DIR
"""

import dataclasses
import os
import resource
import statistics
import sys
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import common, presets, shared_flags
from experiments.imputation_tasks import select
from metamf_jax.data import sources, synthetic
from metamf_jax.meta_learning import meta_loss
from metamf_jax.meta_learning.encoder import make_encoder
from metamf_jax.meta_learning.energy import ridge_step
from metamf_jax.meta_learning.episodes import fit_standardization, standardize
from metamf_jax.runs.run_log import RunLog
from metamf_jax.types import Entries, Factors

_DATASET = shared_flags.dataset()
_ROWS = flags.DEFINE_integer("num_rows", 6040, "N of the synthetic matrix.", lower_bound=1)
_COLUMNS = flags.DEFINE_integer("num_columns", 3706, "M of the synthetic matrix.", lower_bound=1)
_CELLS = flags.DEFINE_integer("cells", 1_000_000, "E of the synthetic matrix.", lower_bound=1)
_RUNS = flags.DEFINE_integer("timed_runs", 5, "Timed runs.", lower_bound=1)


@dataclasses.dataclass(frozen=True)
class Config:
    """What is timed.

    Attributes:
      dataset: a name of `metamf_jax.data.sources`, or a path.
      shape: of the synthetic matrix.
      cells: observed entries of the synthetic matrix.
      model: sizes of the model.
      seed: of the matrix and parameters.
      runs: timed runs.
    """

    dataset: str
    shape: tuple[int, int]
    cells: int
    model: meta_loss.ModelConfig
    seed: int
    runs: int


def load(config: Config, data_dir: str | None = None) -> Entries:
    """The matrix, standardised, its entries in random order."""
    if config.dataset == "synthetic":
        density = min(config.cells / (config.shape[0] * config.shape[1]), 1.0)
        table = synthetic.synthetic_ratings(config.seed, *config.shape, density)
    else:
        table = sources.load(config.dataset, data_dir, config.seed)
    entries = standardize(table.entries, fit_standardization(np.asarray(table.entries.values)))
    return select(entries, np.random.default_rng(config.seed).permutation(len(entries.rows)))


def measure(config: Config, params: meta_loss.MetaParams, entries: Entries) -> dict[str, float]:
    """Milliseconds and bytes on these entries; the memory is the greatest of the process so far."""
    model, encoder = meta_loss.make_model(config.model), make_encoder(config.model.encoder)

    def sweep(prior, entries):
        start = Factors(prior.u_mean, prior.v_mean)
        return ridge_step(entries, start, prior)

    entries = jax.device_put(entries)
    adapt = jax.jit(model.adapt).lower(params, entries).compile()
    encode = jax.jit(encoder.apply)
    prior = encode(params.encoder, entries)
    ridge = jax.jit(sweep)
    # ru_maxrss is in kilobytes, but in bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    found = {
        "cells": len(entries.rows),
        "adapt_ms": common.seconds(lambda: adapt(params, entries), config.runs),
        "encoder_ms": common.seconds(lambda: encode(params.encoder, entries), config.runs),
        "ridge_sweep_ms": common.seconds(lambda: ridge(prior, entries), config.runs),
    }
    return {
        **{k: v if k == "cells" else 1e3 * min(v) for k, v in found.items()},
        "adapt_ms_median": 1e3 * statistics.median(found["adapt_ms"]),
        "temporary_bytes": common.temporary_bytes(adapt),
        "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
    }


def run(
    config: Config, workdir: str | os.PathLike | None = None, data_dir: str | None = None
) -> dict[str, Any]:
    """Measures on a quarter, half and all of the entries, prints, and returns the results."""
    log = RunLog(workdir, "benchmarks.scale", config) if workdir else None
    entries = load(config, data_dir)
    params = meta_loss.make_model(config.model).init(jax.random.key(config.seed))
    print(
        f"{entries.shape[0]} x {entries.shape[1]}, {config.model.inner.steps} scaled steps; "
        "least milliseconds after compilation, and MB"
    )
    titles = ("cells", "encoder + steps", "encoder", "a ridge sweep", "temporaries", "peak RSS")
    print("".join(f"{title:>16}" for title in titles))
    parts = []
    for share in (4, 2, 1):
        found = measure(config, params, select(entries, slice(len(entries.rows) // share)))
        parts.append(found)
        print(
            f"{found['cells']:>16}{found['adapt_ms']:>16.1f}{found['encoder_ms']:>16.1f}"
            f"{found['ridge_sweep_ms']:>16.1f}{found['temporary_bytes'] / 1e6:>16.1f}"
            f"{found['peak_resident_bytes'] / 1e6:>16.1f}",
            flush=True,
        )
    per_cell = (parts[-1]["temporary_bytes"] - parts[0]["temporary_bytes"]) / (
        parts[-1]["cells"] - parts[0]["cells"]
    )
    print(f"{per_cell:.0f} bytes of temporaries for each further entry")
    print(f"{parts[-1]['adapt_ms_median']:.2f} ms for encoder and steps, the median")
    results = {"shape": list(entries.shape), "parts": parts, "bytes_per_cell": per_cell}
    if log:
        log.finish(results)
    return results


def main() -> None:
    model = presets.TRAIN[common.PRESET.value]["model"]
    inner = dataclasses.replace(model.inner, step_form="scaled")
    config = Config(
        dataset=_DATASET.value,
        shape=(_ROWS.value, _COLUMNS.value),
        cells=_CELLS.value,
        model=dataclasses.replace(model, inner=inner),
        seed=common.SEED.value,
        runs=_RUNS.value,
    )
    with common.profiled(common.WORKDIR.value):
        run(config, common.WORKDIR.value, common.DATA_DIR.value)


if __name__ == "__main__":
    common.run_main(main)
