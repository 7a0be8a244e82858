"""Langevin dynamics on a block store: its test error against time, beside solvers and Gibbs.

Claim: on a matrix that is read from disk, Langevin dynamics from DSGD's factors on lowers their
error in a few epochs, each of about twice DSGD's time and a third of a Gibbs sweep's, with the
factors and a few strata in memory; from random factors it takes several times as many.

    python -m experiments.benchmarks.langevin --dataset=synthetic:300000x15000x100 \\
        --devices=2 --workdir=runs/langevin

The matrix has planted factors and noise, so that the least error is known. Each method is a run of
``experiments.factorize`` of its own in ``WORKDIR/METHOD``, which goes on where it was cut short,
and so does this program; the store is ``WORKDIR/store``. SGD, ALS and Gibbs sampling hold the
matrix in memory (leave them out with ``--methods`` where it does not fit), with other test cells of
the same kind. The workdir receives ``plots/error.png``; ``summary.json`` has curves, seconds an
epoch and the most memory.
"""

import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from experiments import common, shared_flags
from metamf_jax import plotting
from metamf_jax.data import synthetic
from metamf_jax.plotting import Panel
from metamf_jax.runs.run_log import RunLog, read_metrics

_DATASET = shared_flags.dataset()
_METHODS = shared_flags.methods()
_TEST_FRACTION = shared_flags.test_fraction()
_LENGTHS = flags.DEFINE_list(
    "lengths",
    ["12", "6", "20", "40", "12"],
    "Epochs of SGD and DSGD, of ALS, sweeps of Gibbs, epochs of Langevin dynamics from random"
    " factors, and from DSGD's. Of samplers' the later half is kept.",
)

# What `synthetic.low_rank_stream` draws.
_PLANTED_RANK, _NOISE = 8, 0.5


@dataclasses.dataclass(frozen=True)
class Config:
    """What is compared; the names are those of the flags."""

    dataset: str
    test_fraction: float
    methods: tuple[str, ...]
    lengths: tuple[int, ...]
    devices: int
    seed: int
    blocks: int = 8
    rank: int = 16


class Method(NamedTuple):
    """One curve.

    Attributes:
      title: of the legend.
      solver: of ``experiments.factorize``.
      length: which of the `Config.lengths`.
      from_store: whether it reads the store; else the matrix is in memory.
      after: the method from whose factors it starts.
    """

    title: str
    solver: str
    length: int
    from_store: bool = False
    after: str | None = None


METHODS = {
    "dsgd": Method("DSGD (store)", "dsgd", 0, True),
    "dsgld-from-dsgd": Method("DSGLD from DSGD (store)", "dsgld", 4, True, "dsgd"),
    "als": Method("ALS (memory)", "als", 1),
    "gibbs": Method("Gibbs (memory)", "gibbs", 2),
    "dsgld": Method("DSGLD (store)", "dsgld", 3, True),
    "sgd": Method("SGD (memory)", "sgd", 0),
}
_SAMPLERS = "gibbs", "dsgld"


def flags_of(name: str, config: Config, workdir: pathlib.Path) -> list[str]:
    """Of ``experiments.factorize``."""
    method = METHODS[name]
    length = config.lengths[method.length]
    given = {
        "dataset": config.dataset,
        "solver": method.solver,
        "rank": config.rank,
        "test_fraction": config.test_fraction,
        "seed": config.seed,
        "evaluate_every": 1,
        "workdir": workdir / name,
    }
    if method.solver != "sgd":
        given["devices"] = config.devices
    if method.from_store:
        given |= {"block_store": workdir / "store", "blocks": config.blocks}
    if method.solver in _SAMPLERS:
        kept = length - length // 2
        given |= {"chains": 1, "burn_in": length // 2, "draws": kept, "thin": 1}
        given |= {"pattern_features": 0}
    else:
        # What the planted factors and the noise make of it; samplers draw it.
        strength = _NOISE**2 / _factor_variance()
        given |= {"epochs": length, "penalty": "l2", "regularization": strength}
    if method.after is not None:
        given["start"] = workdir / method.after / "factors.safetensors"
    return [f"--{name}={value}" for name, value in given.items()]


def _factor_variance() -> float:
    return 1 / math.sqrt(_PLANTED_RANK)


def factorize(given: list[str]) -> int:
    """Runs the binary with these flags; its exit code."""
    command = [sys.executable, "-m", "experiments.factorize", *given]
    return subprocess.run(command, check=False).returncode


def least_error(config: Config) -> float:
    """A bound below any RMSE: the noise, and what a row's entries leave open of its factors.

    Columns, noise and spread are taken for known, and the entries for as informative as they are on
    average, which by Jensen's inequality they are at most.
    """
    _, _, cells = synthetic.sizes_named(config.dataset)
    spread, entries = _factor_variance(), cells * (1 - config.test_fraction)
    precision = 1 / spread + entries * spread / _NOISE**2
    return math.sqrt(_NOISE**2 + _PLANTED_RANK * spread / precision)


def curve_of(workdir: pathlib.Path) -> dict[str, list[float]]:
    """Seconds of training up to each epoch or sweep, and the error.

    Each takes the median of their times: the first one compiles, as does one that goes on. The
    error of a sampler is that of the mean of the draws kept so far; before there are any, of the
    last alone.
    """
    lines = read_metrics(workdir)

    def listed(*names: str) -> list[float]:
        """What each line has under the first of the names that it has."""
        return [line[next(name for name in names if name in line)] for line in lines]

    taken = listed("epoch_seconds", "sweep_seconds")
    seconds = np.median(taken) * (1 + np.arange(len(lines)))
    errors = listed("test_rmse", "sweep_test_rmse")
    return {"seconds": seconds.tolist(), "test_rmse": errors}


def run(config: Config, workdir: str | os.PathLike) -> dict[str, Any]:
    """Runs what is missing, draws, and returns what ``summary.json`` holds.

    Raises:
      ValueError: an unknown method, a method without the one from which it starts, or one that
        failed.
    """
    unknown = set(config.methods) - set(METHODS)
    if unknown:
        raise ValueError(f"unknown methods {sorted(unknown)}; there are {', '.join(METHODS)}")
    for name in config.methods:
        after = METHODS[name].after
        if after is not None and after not in config.methods:
            raise ValueError(f"the method {name} starts from {after}: add it to --methods")
    floor = least_error(config)
    log = RunLog(workdir, "benchmarks.langevin", config)
    curves, told = {}, {}
    for name, method in METHODS.items():
        if name not in config.methods:
            continue
        folder = log.workdir / name
        if not (folder / "summary.json").exists():
            given = flags_of(name, config, log.workdir)
            log.print(" ".join(("experiments.factorize", *given)))
            if factorize(given):
                raise ValueError(f"{name} ended early; see above")
        curve = curve_of(folder)
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        told[name] = {
            "seconds_an_epoch": curve["seconds"][0],
            "seconds": curve["seconds"][-1],
            "test_rmse": curve["test_rmse"][-1],
            "coverage_90": summary["results"].get("test_coverage_90"),
            "peak_memory_bytes": summary["peak_memory_bytes"],
        }
        if method.after is not None:
            begin = curves[METHODS[method.after].title]["seconds"][-1]
            curve["seconds"] = [begin + seconds for seconds in curve["seconds"]]
        curves[method.title] = curve
        log.print(f"{name}: {json.dumps(told[name])}")
    drawn = {title: (curve["seconds"], curve["test_rmse"]) for title, curve in curves.items()}
    drawn["least possible"] = [max(max(x) for x, _ in drawn.values())], [floor]
    panel = Panel(
        "error on held-out entries",
        "seconds of training",
        "RMSE",
        drawn,
        {"least possible": floor},
        x_scale="log",
        y_scale="log",
    )
    plotting.panels(log.plot_path("error"), [panel], f"{config.dataset}, rank {config.rank}")
    return log.finish({"least_error": floor, "methods": told, "curves": curves})


def main() -> None:
    if len(_LENGTHS.value) != 5 or not all(x.isdecimal() and int(x) > 1 for x in _LENGTHS.value):
        raise ValueError(f"--lengths takes five numbers from 2, got {','.join(_LENGTHS.value)}")
    config = Config(
        dataset=_DATASET.value,
        test_fraction=_TEST_FRACTION.value,
        methods=tuple(METHODS) if _METHODS.value == ["all"] else tuple(_METHODS.value),
        lengths=tuple(map(int, _LENGTHS.value)),
        devices=common.DEVICES.value or 1,
        seed=common.SEED.value,
    )
    run(config, common.needed(common.WORKDIR))


if __name__ == "__main__":
    common.run_main(main)
