"""Draws what the literature on distributed SGD draws: solvers, workers, ranks, losses, scaling.

Claim: an epoch of DSGD lowers the objective as much as one of serial SGD, whatever the number of
workers, while parameter mixing lags the more behind the more workers there are; the fixed part of
an epoch's time limits how small a matrix is worth sharing out.

    python -m experiments.solver_comparison --dataset=ml100k --data_dir=DIR --workdir=runs/solvers

The workdir receives ``plots/solvers.png``, ``workers.png``, ``ranks.png``, ``losses.png``,
``scaling.png`` and ``posterior.png`` (samplers beside solvers), and their numbers in
``epochs.csv``, a line for each epoch of each run. A run that was cut short goes on with the next
curve. On a CPU the workers are virtual devices of one process; the figures say how many cores they
shared.

Gemulla, Nijkamp, Haas, Sismanis: Large-scale matrix factorization with distributed stochastic
gradient descent, KDD 2011.
"""

import csv
import dataclasses
import io
import json
import math
import os
import pathlib
import time
from typing import Any

import numpy as np
from absl import flags

from experiments import common, shared_flags, splits
from metamf_jax import parallel, plotting
from metamf_jax.data import sources
from metamf_jax.factorization import objective as objectives
from metamf_jax.factorization import prediction, solver, solvers, step_size
from metamf_jax.factorization.dsgd import DsgdConfig
from metamf_jax.factorization.objective import Objective
from metamf_jax.factorization.sgd import SgdConfig
from metamf_jax.factorization.solvers import SOLVERS, SolverConfig
from metamf_jax.plotting import Panel
from metamf_jax.posterior import chains, gibbs, langevin, row_conditional
from metamf_jax.posterior import fit as fit_posterior
from metamf_jax.runs.files import write_text
from metamf_jax.runs.run_log import RunLog
from metamf_jax.types import Entries, Table

FIGURES = ("solvers", "workers", "ranks", "losses", "scaling", "posterior")

_DATASET = shared_flags.dataset()
_FIGURES = shared_flags.figures()
_WORKERS = flags.DEFINE_list("workers", None, "Numbers of workers. Default: the preset's.")

_PRESETS = {
    "smoke": {
        "rank": 2,
        "epochs": 2,
        "workers": (1, 2),
        "ranks": (2, 3),
        "losses": ("nzl2", "gkl"),
    },
    "tiny": {"rank": 16, "epochs": 12},
    "paper": {"rank": 50, "epochs": 30, "ranks": (10, 25, 50, 100, 200)},
    "best": {"rank": 64, "epochs": 60, "ranks": (8, 16, 32, 64, 128, 256)},
}
_TITLES = {name: kind.title for name, kind in SOLVERS.items()}
_FIELDS = ("curve", "epoch", "seconds", "objective", "test_rmse", "step_size")
# Epochs whose time tells how long one takes; the first compiles, and comes before.
_TIMED_EPOCHS = 5
# Samplers, how many sweeps they run for each epoch of the solvers, and the blocks of Langevin
# dynamics.
_SAMPLERS, _LANGEVIN_BLOCKS = {"gibbs": ("Gibbs", 2), "dsgld": ("Langevin (DSGLD)", 6)}, 8
# An objective of so many times its start is not drawn among the losses.
_MOST_DRAWN = 3.0


@dataclasses.dataclass(frozen=True)
class Config:
    """What is compared.

    Attributes:
      dataset: a name of `metamf_jax.data.sources`, or a path.
      rank: K where ranks are not compared.
      epochs: of each run.
      workers: numbers of workers, rising; the last runs where they are not compared.
      ranks: to compare.
      losses: to compare, `objective.ALIASES` or losses without penalty.
      regularization: of every penalty.
      test_fraction: part of the entries held out.
      seed: of split, start and order.
    """

    dataset: str = "synthetic"
    rank: int = 16
    epochs: int = 12
    workers: tuple[int, ...] = (1, 2, 4, 8)
    ranks: tuple[int, ...] = (4, 8, 16, 32, 64)
    losses: tuple[str, ...] = ("nzsl", "sl", "l2", "nzl2", "gkl")
    regularization: float = 0.05
    test_fraction: float = 0.1
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Curve:
    """One run: a solver on (part of) the matrix.

    Attributes:
      solver: a key of `solvers.SOLVERS`.
      workers: devices; for parameter mixing also shards.
      rank: K.
      loss: as in `Config.losses`.
      copies: of all rows, so many times the data.
      share: part of the entries.
      epochs: how many.
    """

    solver: str
    workers: int
    rank: int
    loss: str
    copies: int = 1
    share: float = 1.0
    epochs: int = 0

    @property
    def name(self) -> str:
        """A name for files, of its own."""
        return (
            f"{self.solver}-w{self.workers}-k{self.rank}-{self.loss}-x{self.copies}"
            f"-part{self.share:g}-e{self.epochs}"
        )


def copied(entries: Entries, copies: int, share: float, seed: int) -> Entries:
    """So many copies of all rows below each other, on the same columns, or part of the entries."""
    rows, columns, values = (np.asarray(x) for x in (entries.rows, entries.columns, entries.values))
    if share < 1:
        kept = np.random.default_rng(seed).random(len(values)) < share
        rows, columns, values = rows[kept], columns[kept], values[kept]
    shift = entries.shape[0] * np.repeat(np.arange(copies, dtype=np.int32), len(rows))
    return Entries(
        np.tile(rows, copies) + shift,
        np.tile(columns, copies),
        np.tile(values, copies),
        (entries.shape[0] * copies, entries.shape[1]),
    )


def objective_of(loss: str, config: Config) -> Objective:
    """The objective that a name in `Config.losses` means."""
    own = None if loss in objectives.ALIASES else "none"
    return Objective(*objectives.resolve_names(loss, own), config.regularization)


def choose_step_size(rank: int, loss: str, train: Entries, config: Config) -> step_size.StepSize:
    """A bold driver that starts from what serves SGD best on a sample."""
    objective = objective_of(loss, config)
    entries, _ = solver.centre(objective, train)
    rule = step_size.StepSize("bold_driver")
    return solvers.choose_step_size(objective, entries, rank, rule, SgdConfig(seed=config.seed))


def fit(
    curve: Curve, rule: step_size.StepSize, train: Entries, test: Entries, config: Config
) -> list[dict[str, float]]:
    """Runs it; a line for the start and for each epoch.

    ``seconds`` are those of the epochs so far, without compilation, which an epoch before the first
    pays for, and without evaluation.
    """
    objective = objective_of(curve.loss, config)
    entries = copied(train, curve.copies, curve.share, config.seed)
    objectives.check_values(objective, entries)
    entries, mean = solver.centre(objective, entries)
    # All of them share one P, so that the blocks, and with them the factors, are the same.
    sharded = SOLVERS[curve.solver].sharded
    blocks = curve.workers if sharded else math.lcm(*config.workers)
    work = SolverConfig(blocks, curve.workers, seed=config.seed)
    terms = objectives.make_terms(objective, entries)
    rng = np.random.default_rng(config.seed)
    start = solver.initial_factors(objective, entries, terms, curve.rank, rng)
    method = solvers.make_solver(curve.solver, objective, entries, work, width=curve.rank)
    method.epoch(method.init(start), 1, rule.first())
    places = np.asarray(test.rows), np.asarray(test.columns)
    lines, seconds = [], 0.0

    def record(progress):
        factors = solver.add_mean(objective, method.factors(progress.state), mean)
        error = test.values - prediction.predict(factors, *places)
        lines.append(
            {
                "epoch": progress.epoch,
                "seconds": seconds,
                "objective": progress.objective,
                "test_rmse": float(np.sqrt(np.mean(error**2))),
                "step_size": progress.step_size,
            }
        )

    progress = solver.start(method, start, rule)
    record(progress)
    for _ in range(curve.epochs):
        progress = solver.advance(method, rule, progress)
        seconds += progress.seconds
        record(progress)
    return lines


def sample_posterior(
    curve: Curve, train: Entries, test: Entries, config: Config
) -> list[dict[str, float | None]]:
    """Runs one chain of a sampler, which knows the entries alone; a line for each sweep.

    The error is that of the mean over the later half of the draws so far. ``seconds`` are as in
    `fit`.
    """
    scale, features = fit_posterior.scale_of(train.values), fit_posterior.features_of(train, 0)
    entries = fit_posterior.standardised(train, scale)
    rows, columns = features
    of_sides = (rows.features, columns.features), (rows.groups, columns.groups)
    if curve.solver == "gibbs":
        model = gibbs.GibbsConfig(curve.rank)
        data = gibbs.prepare(entries, *of_sides, model)
    else:
        model = langevin.LangevinConfig(curve.rank)
        cut = DsgdConfig(num_blocks=_LANGEVIN_BLOCKS, seed=config.seed)
        data = langevin.prepare(entries, *of_sides, model, cut)
    lengths = chains.ChainsConfig(1, 0, curve.epochs, seed=config.seed)
    start = chains.init(data, model, lengths)
    next(chains.sweeps(start, data, model, lengths))
    sums, lines, seconds = [np.zeros(len(test.values))], [], 0.0
    left = chains.sweeps(start, data, model, lengths)
    for epoch in range(1, curve.epochs + 1):
        begin = time.perf_counter()
        _, (state,) = next(left)
        seconds += time.perf_counter() - begin
        factors = state.rows.factors, state.columns.factors
        found = np.asarray(row_conditional.fitted(*factors, test.rows, test.columns), np.float64)
        values = np.clip(scale.center + scale.unit * found, scale.low, scale.high)
        sums.append(sums[-1] + values)
        mean = (sums[-1] - sums[epoch // 2]) / (epoch - epoch // 2)
        error = float(np.sqrt(np.mean((mean - test.values) ** 2)))
        line = {"epoch": epoch, "seconds": seconds, "test_rmse": error}
        lines.append({**line, "objective": None, "step_size": None})
    return lines


class Runs:
    """Runs curves once, and keeps their lines in ``WORKDIR/curves`` for a run that goes on."""

    def __init__(self, log: RunLog, train: Entries, test: Entries, config: Config):
        self._log, self._train, self._test, self._config = log, train, test, config
        self._folder = log.workdir / "curves"
        self._folder.mkdir(exist_ok=True)
        self.lines: dict[str, list[dict[str, float]]] = {}
        self._rules: dict[tuple[int, str], step_size.StepSize] = {}

    def _rule(self, curve: Curve) -> step_size.StepSize:
        """The same for all solvers and workers; ALS and L-BFGS do not read it."""
        key = curve.rank, curve.loss
        if key not in self._rules:
            self._rules[key] = choose_step_size(*key, self._train, self._config)
        return self._rules[key]

    def __call__(self, solver_name: str, workers: int, **changes: Any) -> list[dict[str, float]]:
        config = self._config
        settings = {"rank": config.rank, "loss": "nzl2", "epochs": config.epochs, **changes}
        curve = Curve(solver_name, workers, **settings)
        if curve.name not in self.lines:
            path = self._folder / f"{curve.name}.json"
            if not path.exists():
                if solver_name in _SAMPLERS:
                    lines = sample_posterior(curve, self._train, self._test, config)
                    reached = ""
                else:
                    lines = fit(curve, self._rule(curve), self._train, self._test, config)
                    reached = f"objective {lines[-1]['objective']:.6g} "
                write_text(path, json.dumps(lines) + "\n")
                end = lines[-1]
                self._log.print(
                    f"{curve.name}: {reached}after {curve.epochs} epochs"
                    f" and {end['seconds']:.3f} s, RMSE {end['test_rmse']:.4f} on the test entries"
                )
            self.lines[curve.name] = json.loads(path.read_text(encoding="utf-8"))
        return self.lines[curve.name]

    def csv(self) -> str:
        """All lines of all curves."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(_FIELDS)
        for name, lines in self.lines.items():
            table.writerows([name, *(line[field] for field in _FIELDS[1:])] for line in lines)
        return text.getvalue()


def seconds_per_epoch(lines: list[dict[str, float]]) -> float:
    """The median over epochs."""
    return float(np.median(np.diff([line["seconds"] for line in lines])))


def fixed_overhead(sizes: list[int], seconds: list[float]) -> tuple[float, float]:
    """(seconds of an epoch without entries, seconds an entry): a straight line by least squares."""
    slope, intercept = np.polyfit(sizes, seconds, 1)
    return float(intercept), float(slope)


def _workers_named(count: int) -> str:
    return f"{count} worker{'s' * (count > 1)}"


def _xy(lines, x, y, divide_by=1.0):
    return [line[x] for line in lines], [line[y] / divide_by for line in lines]


def _convergence(curves, divide_by=1.0, y_label="objective / training entries"):
    """Panels of the objective against epochs and against seconds."""
    by_epoch = {n: _xy(lines, "epoch", "objective", divide_by) for n, lines in curves.items()}
    by_time = {n: _xy(lines, "seconds", "objective", divide_by) for n, lines in curves.items()}
    return [
        Panel("loss against epochs", "epoch", y_label, by_epoch, y_scale="log"),
        Panel("loss against time", "seconds of training", y_label, by_time, y_scale="log"),
    ]


def _errors(curves, x="epoch", x_label="epoch"):
    found = {name: _xy(lines, x, "test_rmse") for name, lines in curves.items()}
    return Panel("error on held-out entries", x_label, "RMSE", found)


def _solvers(runs, config, num_entries):
    most = max(config.workers)
    curves = {}
    for name, title in _TITLES.items():
        if SOLVERS[name].several_processes:
            curves[f"{title}, {_workers_named(most)}"] = runs(name, most)
        else:
            curves[title] = runs(name, 1)
    panels = [*_convergence(curves, num_entries), _errors(curves, "seconds", "seconds of training")]
    ends = {title: lines[-1]["objective"] for title, lines in curves.items()}
    return panels, {"objective_at_the_end": ends}


def _workers(runs, config, num_entries):
    distributed = {w: runs("dsgd", w) for w in config.workers}
    mixed = {w: runs("psgd", w) for w in config.workers}
    ends = {w: lines[-1]["objective"] for w, lines in distributed.items()}
    same = len(set(ends.values())) == 1
    if same:
        curves = {f"DSGD, {', '.join(map(str, ends))} workers": next(iter(distributed.values()))}
    else:
        curves = {f"DSGD, {_workers_named(w)}": lines for w, lines in distributed.items()}
    curves |= {f"parameter mixing, {_workers_named(w)}": lines for w, lines in mixed.items()}
    times = {
        title: (list(by), [1e3 * seconds_per_epoch(lines) for lines in by.values()])
        for title, by in (("DSGD", distributed), ("parameter mixing", mixed))
    }
    panels = [
        _convergence(curves, num_entries)[0],
        Panel("time of an epoch", "workers", "milliseconds", times, x_scale="log2"),
    ]
    return panels, {
        "dsgd_same_objective_on_any_workers": same,
        "dsgd_epoch_ms": dict(zip(map(str, times["DSGD"][0]), times["DSGD"][1], strict=True)),
    }


def _ranks(runs, config, num_entries):
    by_rank = {k: runs("dsgd", max(config.workers), rank=k) for k in config.ranks}
    curves = {f"rank {k}": lines for k, lines in by_rank.items()}
    times = [1e3 * seconds_per_epoch(lines) for lines in by_rank.values()]
    time = Panel(
        "time of an epoch", "rank", "milliseconds", {"DSGD": (config.ranks, times)}, x_scale="log2"
    )
    best = {str(k): min(line["test_rmse"] for line in lines) for k, lines in by_rank.items()}
    return [_convergence(curves, num_entries)[0], _errors(curves), time], {"best_test_rmse": best}


def _losses(runs, config, num_entries):
    del num_entries
    curves, missing = {}, False
    for loss in config.losses:
        lines = runs("dsgd", max(config.workers), loss=loss)
        first = lines[0]["objective"]
        relative = [{**line, "objective": line["objective"] / first} for line in lines]
        # Not to scale with the rest: epochs that diverged.
        curves[loss] = [line for line in relative if line["objective"] < _MOST_DRAWN]
        missing |= len(curves[loss]) < len(lines)
    fallen = {loss: lines[-1]["objective"] for loss, lines in curves.items()}
    note = "\n(diverged epochs left out)" if missing else ""
    label = f"objective / objective at the start{note}"
    return _convergence(curves, y_label=label), {"fallen_to": fallen}


def _scaling(runs, config, num_entries):
    epochs = {"epochs": min(config.epochs, _TIMED_EPOCHS)}
    together = [
        1e3 * seconds_per_epoch(runs("dsgd", w, copies=w, **epochs)) for w in config.workers
    ]
    alone = [1e3 * seconds_per_epoch(runs("dsgd", 1, copies=w, **epochs)) for w in config.workers]
    shares = (0.125, 0.25, 0.5, 1.0)
    by_size, overheads = {}, {}
    for w in config.workers:
        times = [seconds_per_epoch(runs("dsgd", w, share=share, **epochs)) for share in shares]
        intercept, _ = fixed_overhead([num_entries * share for share in shares], times)
        overheads[str(w)] = 1e3 * intercept
        title = f"{_workers_named(w)}: {1e3 * intercept:.1f} ms fixed"
        by_size[title] = [num_entries * share / 1e3 for share in shares], [1e3 * t for t in times]
    panels = [
        Panel(
            "data and workers grow together",
            f"workers = copies of the {num_entries} entries",
            "milliseconds an epoch",
            {"as many workers": (config.workers, together), "one worker": (config.workers, alone)},
            x_scale="log2",
        ),
        Panel("the same workers, more data", "thousand entries", "milliseconds an epoch", by_size),
    ]
    return panels, {"overhead_ms": overheads, "together_ms": together, "one_worker_ms": alone}


def _posterior(runs, config, num_entries):
    """Samplers beside solvers, from the first epoch or sweep on."""
    del num_entries
    curves = {_TITLES[name]: runs(name, 1) for name in ("sgd", "als") if name in _TITLES}
    most = max(config.workers)
    curves[f"{_TITLES['dsgd']}, {_workers_named(most)}"] = runs("dsgd", most)
    for name, (title, sweeps) in _SAMPLERS.items():
        curves[title] = runs(name, 1, epochs=sweeps * config.epochs)
    after = {title: lines[1:] for title, lines in curves.items()}
    panels = [
        dataclasses.replace(_errors(after, x, label), x_scale="log")
        for x, label in (("epoch", "epoch, or sweep"), ("seconds", "seconds of training"))
    ]
    ends = {title: lines[-1] for title, lines in curves.items()}
    told = ("test_rmse", "seconds", "epoch")
    return panels, {title: {name: end[name] for name in told} for title, end in ends.items()}


_DRAW = {
    "solvers": _solvers,
    "workers": _workers,
    "ranks": _ranks,
    "losses": _losses,
    "scaling": _scaling,
    "posterior": _posterior,
}


def run(
    config: Config,
    workdir: str | os.PathLike,
    data_dir: str | None = None,
    figures: tuple[str, ...] = FIGURES,
) -> dict[str, Any]:
    """Runs what is missing and draws; returns what ``summary.json`` holds.

    Raises:
      ValueError: the data cannot be read, or there are fewer devices than workers.
    """
    parallel.make_mesh(max(config.workers))
    table: Table = sources.load(config.dataset, data_dir, config.seed)
    split = splits.Split(
        dataset=config.dataset, test_fraction=config.test_fraction, seed=config.seed
    )
    train, test = splits.split_entries(table, split, data_dir)
    log = RunLog(workdir, "solver_comparison", config)
    runs = Runs(log, train.entries, test, config)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    platform = parallel.devices()[0].platform
    kind = f"virtual devices on {cores} CPU core(s)" if platform == "cpu" else f"{platform} devices"
    num_entries = len(train.entries.values)
    results: dict[str, Any] = {"training_cells": num_entries, "workers_are": kind}
    for figure in figures:
        panels, results[figure] = _DRAW[figure](runs, config, num_entries)
        title = (
            f"{pathlib.Path(config.dataset).name}, {num_entries} training entries;"
            f" rank {config.rank} unless said; workers are {kind}"
        )
        plotting.panels(log.plot_path(figure), panels, title)
        write_text(log.workdir / "epochs.csv", runs.csv())
        log.print(f"wrote {log.plot_path(figure)}")
    return log.finish(results)


def _figures(wanted: list[str]) -> tuple[str, ...]:
    unknown = set(wanted) - {"all", *FIGURES}
    if unknown:
        raise ValueError(
            f"expected figures among all, {', '.join(FIGURES)}, got {', '.join(sorted(unknown))}"
        )
    return FIGURES if "all" in wanted else tuple(dict.fromkeys(wanted))


def main() -> None:
    workdir = common.needed(common.WORKDIR)
    chosen = dict(_PRESETS[common.PRESET.value])
    if _WORKERS.value:
        if not all(text.isdecimal() and int(text) for text in _WORKERS.value):
            raise ValueError(f"expected --workers as numbers such as 1,2,4, got {_WORKERS.value}")
        chosen["workers"] = tuple(sorted(map(int, _WORKERS.value)))
    config = Config(dataset=_DATASET.value, seed=common.SEED.value, **chosen)
    # Before the first array: one process has devices for the most workers, and fewer of them make
    # smaller meshes.
    parallel.use_devices(common.DEVICES.value or max(config.workers))
    run(config, workdir, common.DATA_DIR.value, _figures(_FIGURES.value))


if __name__ == "__main__":
    common.run_main(main)
