"""Draws how the error of a learned prior falls with what it is learned from, and with its size.

Claim: more synthetic rating matrices lower the error on real ones of sets never seen, slowly; that
they come from more worlds than eight does not matter, and more channels than 8 little.

    python -m experiments.scaling_curves --preset=paper --data_dir=DIR --workdir=runs/scaling

Varied one at a time: matrices seen (each run has a schedule of its own), worlds of ratings that
these are cut from, channels, the most cells that are shown of a matrix in training, and the
inference that the prior is trained through. Errors are those of `experiments.zero_shot` on the
protocol's test matrices, standardised by their own support, and the mean log error on held-out
synthetic matrices. A run that is there is not made again.
"""

import csv
import dataclasses
import io
import os
import pathlib
from typing import Any

import numpy as np
from absl import flags

from experiments import common, pretraining, shared_flags, zero_shot_errors
from metamf_jax import plotting
from metamf_jax.imputation.prior import load_prior
from metamf_jax.meta_learning.map_estimation import MapConfig
from metamf_jax.meta_learning.meta_loss import ModelConfig
from metamf_jax.metrics import mean_and_standard_error
from metamf_jax.runs.files import write_text
from metamf_jax.runs.run_log import RunLog

_SETS = shared_flags.rating_sets()
_SEEDS = flags.DEFINE_integer("seeds", 1, "Runs of each point.", lower_bound=1)


@dataclasses.dataclass(frozen=True)
class Config:
    """What is varied, about the values that the others have meanwhile.

    Attributes:
      matrices: seen in training.
      worlds: that these are cut from; new ones all the time for the others.
      channels: of the encoder.
      cells: most observed cells of a training matrix.
      forms: names of `_FORMS`.
      usual: matrices seen where these are not varied.
      sets: rating sets tested on.
      seeds: of each point.
    """

    preset: str
    matrices: tuple[int, ...]
    worlds: tuple[int, ...]
    channels: tuple[int, ...]
    cells: tuple[int, ...]
    usual: int
    forms: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()
    seeds: int = 1


_FORMS = {
    "ridge 1": MapConfig(1, "ridge"),
    "ridge 10": MapConfig(10, "ridge"),
    "curvature 10": MapConfig(10, "curvature"),
    "converged": MapConfig(memory="implicit"),
}

PRESETS = {
    "smoke": Config("smoke", (8,), (), (), (), 8),
    "tiny": Config("tiny", (256, 1024), (8,), (8,), (32,), 1024),
    "paper": Config(
        "paper",
        (256, 1024, 4096, 8192, 16384, 32768),
        (8, 64, 512),
        (8, 16, 64),
        (16, 64, 256),
        8192,
        ("ridge 1", "ridge 10", "curvature 10", "converged"),
    ),
}
PRESETS["best"] = dataclasses.replace(PRESETS["paper"], preset="best", usual=16384)


def points(config: Config) -> dict[tuple[str, int | str], pretraining.Config]:
    """The run of each value of what is varied."""
    base = pretraining.of_ratings(
        pretraining.PRESETS["smoke" if config.preset == "smoke" else "best"]
    )
    # Of the smallest matrices alone: all that the protocol asks for.
    size = base.classes[0]

    def made(
        matrices=config.usual,
        worlds=None,
        channels=base.model.encoder.channels,
        cells=None,
        inner=base.model.inner,
    ):
        steps = max(1, matrices // size.batch)
        encoder = dataclasses.replace(base.model.encoder, channels=channels)
        shorter = dataclasses.replace(base.training, max_steps=steps, evaluate_every=steps)
        return dataclasses.replace(
            base,
            model=ModelConfig(encoder, inner),
            training=shorter,
            classes=(size._replace(cells=cells or size.cells),),
            worlds=worlds,
        )

    return {
        **{("matrices", n): made(matrices=n) for n in config.matrices},
        **{("worlds", n): made(worlds=n) for n in config.worlds},
        **{("channels", n): made(channels=n) for n in config.channels},
        **{("cells", n): made(cells=n) for n in config.cells},
        **{("form", name): made(inner=_FORMS[name]) for name in config.forms},
    }


def run(config: Config, workdir: str | os.PathLike, data_dir: str | None = None) -> dict[str, Any]:
    """Trains and measures all points; returns what ``summary.json`` holds."""
    log = RunLog(workdir, "scaling_curves", config)
    tests = {name: zero_shot_errors.protocol_matrices(name, 0, data_dir) for name in config.sets}
    rows = []
    for (varied, value), training in points(config).items():
        for seed in range(config.seeds):
            folder = log.workdir / f"{varied}-{value}-{seed}".replace(" ", "-")
            try:
                trained = pretraining.run(dataclasses.replace(training, seed=seed), folder)
            except FloatingPointError as error:
                log.print(f"{varied} {value}: {error}")
                continue
            row = {"varied": varied, "value": value, "seed": seed}
            row["synthetic"] = trained["results"]["validation_loss"]
            prior = load_prior(folder)
            for name, test in tests.items():
                errors = zero_shot_errors.protocol_errors(prior, test)["own"]
                row[name], row[f"{name}_error"] = mean_and_standard_error(errors)
            rows.append(row)
            log.print("  ".join(f"{k} {x}" for k, x in row.items()))
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(log.workdir / "scaling.csv", text.getvalue())
    _draw(log.workdir / "plots", config, rows)
    return log.finish({"points": rows})


def _draw(folder: pathlib.Path, config: Config, rows: list[dict[str, Any]]) -> None:
    """A picture for each set of points; the bars are standard errors over test matrices."""
    for varied in ("matrices", "worlds", "channels", "cells"):
        of_these = [row for row in rows if row["varied"] == varied]
        series = {
            name: [_point(of_these, value, name) for value in getattr(config, varied)]
            for name in config.sets
        }
        if of_these and series:
            plotting.error_curves(folder / f"{varied}.png", series, varied, log=True)


def _point(rows: list[dict[str, Any]], value: float, name: str) -> tuple[float, float, float]:
    """(value, error, standard error) of a rating set, mean over seeds."""
    of_value = [row for row in rows if row["value"] == value]
    error, spread = (np.mean([row[k] for row in of_value]) for k in (name, f"{name}_error"))
    return value, float(error), float(spread)


def main() -> None:
    sets = tuple(_SETS.value or ("ml100k", "ml1m", "jester"))
    config = dataclasses.replace(PRESETS[common.PRESET.value], sets=sets, seeds=_SEEDS.value)
    workdir = common.WORKDIR.value or f"runs/scaling-{config.preset}"
    run(config, workdir, common.DATA_DIR.value)


if __name__ == "__main__":
    common.run_main(main)
