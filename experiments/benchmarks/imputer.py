"""Measures the packaged imputer, zero-shot, against imputers tuned on each matrix.

Claim: without tuning and without a gradient step on the target, `MetaMFImputer` is below the
shrunken bias model on every whole rating matrix, and its 90% intervals hold 85% to 95% of cells
removed at random. Where large values are removed they hold fewer: see experiments/RESULTS.md.

    python -m experiments.benchmarks.imputer --preset=paper --data_dir=DIR --workdir=runs/imputer
    python -m experiments.benchmarks.imputer --ablation --preset=paper --workdir=runs/ablation

A task is a matrix with cells removed: whole rating sets, cuts of them, and scikit-learn's tables,
at random and not at random (the larger a value, the likelier it is missing). Every other method is
tuned by cross-validation on the observed cells. With --ablation ours without one of its parts
takes the others' place, on more draws of smaller cuts: without the learned prior, an encoder that
was never trained starts the posterior; without the hyperprior or the pattern, draws are under flat
hyperpriors, or know nothing of which cells are observed. For cuts draws alone are compared too.
With "no learned part" the encoder is untrained, hyperpriors are flat and the share of draws starts
where it does for any matrix. Lines that fit or draw alike share that, so that their seconds are of
what they add. Errors are root mean squares in units of each column's deviation for tables, in
rating points otherwise. The same command goes on with a run that was stopped.
"""

import dataclasses
import functools
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import common, shared_flags
from experiments.imputation_tasks import (
    MOST_DENSE_CELLS,
    Predict,
    Task,
    column_mean,
    deviations,
    hold_out,
    remove,
    standardised,
)
from experiments.rating_cuts import rating_cut, rating_set
from metamf_jax.baselines import bias, iterative, knn, mf, soft_impute
from metamf_jax.data import movielens
from metamf_jax.imputation import completion, held_out, pipeline, sampled
from metamf_jax.imputation.candidates import OF_ROWS
from metamf_jax.imputation.memory import Memory
from metamf_jax.imputation.prior import LearnedPrior, load_prior
from metamf_jax.meta_learning import padding
from metamf_jax.meta_learning.meta_loss import MetaParams, ModelConfig, make_model
from metamf_jax.posterior.learned_hyperprior import LearnedHyperprior
from metamf_jax.runs.run_log import RunLog, read_metrics
from metamf_jax.types import Entries

_METHODS = shared_flags.methods()
_DRAWS = shared_flags.draws()
_TASKS = flags.DEFINE_list(
    "tasks", [], "Only tasks whose names start with one of these; all if not given."
)
_ABLATION = flags.DEFINE_bool("ablation", False, "Compares with ours without each of its parts.")
_WEIGHTS = flags.DEFINE_string("weights", "general", "Name or file of the learned prior.")

TABLES = ("iris", "wine", "breast_cancer", "diabetes", "digits")
RATINGS = ("ml100k", "ml1m", "latest_small", "jester")
_FOLDS, _HELD_OUT = 2, 0.15


@dataclasses.dataclass(frozen=True)
class Config:
    """Which tasks.

    Attributes:
      tables: of scikit-learn.
      removed: shares of their cells that are removed.
      ratings: rating sets, whole and cut.
      sides: of the cuts, of whose cells a fifth is held out.
      shown: of further cuts of the first side all but so many cells are held out.
      repeats: draws of each removal and whole set.
      cut_repeats: draws of each cut.
      methods: those compared with; empty for all.
      tasks: how the names of the tasks begin; empty for all.
      ablation: whether ours without each of its parts is compared with, not other methods.
      weights: of the imputer.
      seed: of all draws.
    """

    preset: str
    tables: tuple[str, ...]
    removed: tuple[float, ...]
    ratings: tuple[str, ...]
    whole: bool
    sides: tuple[int, ...]
    shown: tuple[int, ...]
    repeats: int
    cut_repeats: int
    methods: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    ablation: bool = False
    weights: str = "general"
    seed: int = 0


PRESETS = {
    "smoke": Config("smoke", ("iris",), (0.5,), (), False, (), (), 1, 1),
    "tiny": Config("tiny", TABLES[:4], (0.1, 0.5, 0.8), (), False, (), (), 2, 2),
    "paper": Config("paper", TABLES, (0.1, 0.5, 0.8), RATINGS, True, (30, 100, 300), (), 3, 3),
}
PRESETS["best"] = dataclasses.replace(PRESETS["paper"], preset="best", repeats=10, cut_repeats=10)
# With --ablation; small matrices tell little each.
_ABLATION_RATINGS, _ABLATION_SIDES, _ABLATION_CUTS = (*RATINGS, "filmtrust"), (30, 60, 100, 150), 20
_ABLATION_SHOWN = 15, 30, 80


def tasks(config: Config, data_dir: str | None) -> Iterator[Task]:
    """Draws the tasks one after the other, those of the first repeat first."""
    for task in _all_tasks(config, data_dir):
        if not config.tasks or task.name.startswith(config.tasks):
            yield task


def _all_tasks(config: Config, data_dir: str | None) -> Iterator[Task]:
    load = functools.cache(lambda name: rating_set(name, data_dir))
    for repeat in range(max(config.repeats, config.cut_repeats)):
        for name in config.ratings if repeat < config.cut_repeats else ():
            of_sides = [(side, None) for side in config.sides]
            for side, shown in of_sides + [(config.sides[0], shown) for shown in config.shown]:
                rng = np.random.default_rng([config.seed, repeat, side])
                cut, told = rating_cut(rng, load(name), side), f"{name} {side} x {side}"
                held = round(0.2 * len(cut.rows))
                if shown is not None:
                    held, told = len(cut.rows) - shown, f"{told}, {shown} shown"
                train, test = hold_out(rng, cut, held)
                yield Task(told, "cut", train, test, np.ones(train.shape[1]))
        if repeat >= config.repeats:
            continue
        for name in config.tables:
            values = _table(name)
            units = deviations(values)
            for share in config.removed:
                for way in ("random", "high values"):
                    rng = np.random.default_rng([config.seed, repeat, int(100 * share)])
                    train, test = _remove(rng, values, share, way)
                    yield Task(f"{name}, {share:.0%} {way}", "table", train, test, units)
        for name in config.ratings if config.whole else ():
            if name == "ml100k" and repeat < 5:
                split = movielens.ml100k_split(movielens.SPLITS_100K[repeat], data_dir)
                train, test = (part.entries for part in split)
                folds = "u1" if config.repeats == 1 else f"u1..u{min(5, config.repeats)}"
                yield Task(f"ml100k {folds}", "whole", train, test, np.ones(train.shape[1]))
            elif name != "ml100k":
                rng = np.random.default_rng([config.seed, repeat])
                whole = load(name)
                train, test = hold_out(rng, whole, round(0.1 * len(whole.rows)))
                yield Task(f"{name} 90/10", "whole", train, test, np.ones(train.shape[1]))


def _table(name: str) -> np.ndarray:
    from sklearn import datasets

    return getattr(datasets, f"load_{name}")().data


def _remove(rng, values: np.ndarray, share: float, way: str) -> tuple[Entries, Entries]:
    score = rng.gumbel(size=values.shape)
    if way == "high values":
        score += (values - values.mean(axis=0)) / np.maximum(values.std(axis=0), 1e-9)
    return remove(values, score >= np.quantile(score, 1 - share))


def _tuned(
    predict: Predict,
    grid: list[dict[str, Any]],
    seed: int,
    units: np.ndarray,
    train: Entries,
    test: Entries,
) -> np.ndarray:
    """The setting with the least error on held-out observed cells, then the test's cells."""
    best, rng = grid[0], np.random.default_rng(seed)
    if len(grid) > 1 and len(train.rows) > 3:
        errors = np.zeros(len(grid))
        for _ in range(_FOLDS if len(train.rows) < 10**5 else 1):
            kept, held = hold_out(rng, train, round(_HELD_OUT * len(train.rows)))
            for n, setting in enumerate(grid):
                left = (predict(kept, held, setting) - held.values) / units[held.columns]
                errors[n] += (left**2).mean()
        best = grid[int(np.argmin(errors))]
    return predict(train, test, best)


def _of_jax(module) -> Predict:
    """A baseline that is compiled, for few sizes of lists."""
    compiled = jax.jit(module.predict)

    def predict(train, test, setting):
        rows, columns = (padding.bucket_size(size, 16) for size in train.shape)
        support, query = (
            jax.tree.map(
                lambda x: x[0],
                padding.stack_entries([part], (rows, columns), padding.bucket_size(len(part.rows))),
            )
            for part in (train, test)
        )
        return np.asarray(compiled(support, query, setting))[: len(test.rows)]

    return standardised(predict)


def _bias_then_mf(train, test, setting):
    """Factorization of what a bias model leaves over: the stronger of the usual forms."""
    of_bias = {k: setting[k] for k in (*bias.GRID[0], "standardize")}
    of_mf = {k: setting[k] for k in mf.GRID[0]}
    left = train.values - _BIAS(train, train, of_bias)
    residuals = dataclasses.replace(train, values=left)
    of_mf["standardize"] = "matrix"
    return _BIAS(train, test, of_bias) + _MF(residuals, test, of_mf)


_BIAS, _MF = _of_jax(bias), _of_jax(mf)


def _grid(**choices) -> list[dict[str, Any]]:
    return [
        dict(zip(choices, chosen, strict=True)) for chosen in itertools.product(*choices.values())
    ]


def methods(way: str) -> dict[str, tuple[Predict, list[dict[str, Any]], bool]]:
    """Every other method, its grid, and whether it needs a dense matrix.

    Args:
      way: how values are standardised: ``columns`` for tables, ``matrix`` for ratings. Imputers
        that know of no column effects always take ``columns``.
    """
    shrinkages = (1.0, 3.0, 8.0, 20.0)
    of_bias = _grid(
        mean_shrinkage=(0.0,),
        row_shrinkage=shrinkages,
        column_shrinkage=shrinkages,
        standardize=(way,),
    )
    of_mf = [
        {**setting, "column_shrinkage": setting["row_shrinkage"]}
        for setting in _grid(
            mean_shrinkage=(0.0,),
            row_shrinkage=(3.0, 1e6),
            rank=(1, 2, 4, 8, 16),
            precision=(0.5, 2.0, 8.0, 16.0, 32.0),
            standardize=(way,),
        )
    ]
    by_column = {"standardize": ("columns",)}
    shares = _grid(shrinkage=(0.03, 0.08, 0.15, 0.25, 0.4), **by_column)
    neighbors = _grid(neighbors=(3, 10, 30), weights=("uniform", "distance"), **by_column)
    return {
        "mean": (column_mean, [{}], False),
        "bias": (_BIAS, of_bias, False),
        "knn": (standardised(knn.predict), neighbors, True),
        "iterative": (
            standardised(iterative.predict_with_learned_precision),
            _grid(**by_column),
            True,
        ),
        "soft_impute": (_SOFT_IMPUTE, shares, True),
        "mf": (_bias_then_mf, of_mf, False),
    }


_SOFT_IMPUTE = _of_jax(soft_impute)


# Draws alone are compared with each other, all else with ours.
_DRAWS_ALONE = "draws alone"
_REFERENCES = {
    f"{_DRAWS_ALONE} under flat hyperpriors": _DRAWS_ALONE,
    f"{_DRAWS_ALONE} without pattern": _DRAWS_ALONE,
}
_Answer = Callable[[Entries, Entries], np.ndarray]


def ablations(prior: LearnedPrior, task: Task, memory: Memory, seed: int = 0) -> dict[str, _Answer]:
    """Ours without one of its parts, for the task; they share what they fit and draw alike."""
    untrained = _untrained(prior)

    def without(*parts: str, prior: LearnedPrior = prior) -> _Answer:
        allowed = [name for name in pipeline.PARTS if name not in parts]
        return functools.partial(_completed, prior, allowed, seed, memory)

    learned_parts = "learned", pipeline.RATINGS, pipeline.HYPERPRIOR, pipeline.SHARE
    answers = {
        "no draws": without(pipeline.DRAWS),
        "no learned hyperprior": without(pipeline.HYPERPRIOR),
        "no learned share": without(pipeline.SHARE),
        "no pattern": without(pipeline.PATTERN),
        "no encoder of ratings": without(pipeline.RATINGS),
        "no learned prior": without("learned", prior=untrained),
        "no learned part": without(*learned_parts, prior=untrained),
        "no posterior": without("posterior"),
        "no rows alike": without(*OF_ROWS),
        "effects alone": functools.partial(_completed, prior, ["bias", "mean"], seed, memory),
    }
    if task.kind == "cut":
        learned = sampled.packaged_hyperprior()
        answers |= {
            _DRAWS_ALONE: functools.partial(_drawn, learned, True, memory),
            f"{_DRAWS_ALONE} under flat hyperpriors": functools.partial(_drawn, None, True, memory),
            f"{_DRAWS_ALONE} without pattern": functools.partial(_drawn, learned, False, memory),
        }
    return answers


@functools.cache
def _untrained_params(config: ModelConfig) -> MetaParams:
    return make_model(config).init(jax.random.key(0))


def _untrained(prior: LearnedPrior) -> LearnedPrior:
    """The same with random weights."""
    return prior._replace(params=_untrained_params(prior.config))


def _completed(
    prior: LearnedPrior,
    allowed: Sequence[str],
    seed: int,
    memory: Memory,
    train: Entries,
    test: Entries,
) -> np.ndarray:
    found = pipeline.complete(prior, train, allowed=allowed, seed=seed, memory=memory)
    return completion.predict(found, np.asarray(test.rows), np.asarray(test.columns))[0]


def _drawn(
    learned: LearnedHyperprior | None,
    with_pattern: bool,
    memory: Memory,
    train: Entries,
    test: Entries,
) -> np.ndarray:
    found = memory.get(
        pipeline.draws_key(learned, with_pattern, False, None),
        lambda: sampled.fit(train, "matrix", learned=learned, with_pattern=with_pattern),
    )
    return sampled.predict(found, np.asarray(test.rows), np.asarray(test.columns))[0]


def run(config: Config, workdir: str | os.PathLike, data_dir: str | None = None) -> dict[str, Any]:
    """Runs every method on every task; returns what ``summary.json`` holds.

    Raises:
      ValueError, FileNotFoundError: a method is unknown, or a data set or the weights cannot be
        read.
    """
    prior = load_prior(config.weights)
    none = np.zeros(0, np.int32)
    nothing = Entries(none, none, none, (1, 1))
    a_cut = Task("", "cut", nothing, nothing, np.ones(1))
    known = ablations(prior, a_cut, Memory()) if config.ablation else methods("matrix")
    unknown = set(config.methods) - known.keys()
    if unknown:
        raise ValueError(f"unknown methods {sorted(unknown)}; there are {', '.join(known)}")
    log = RunLog(workdir, "benchmarks.imputer", config)
    done = len(read_metrics(workdir))
    log.resume_at(done - 1)
    names = []
    for number, task in enumerate(tasks(config, data_dir)):
        names.append((task.name, task.kind))
        if number >= done:
            log.metrics(number, _measure(prior, task, config))
            log.print(f"        {task.name}")
    rows: dict[str, Any] = {}
    for name, kind in dict.fromkeys(names):
        lines = [
            line
            for line, named in zip(read_metrics(workdir), names, strict=True)
            if named[0] == name
        ]
        rows[name] = {"kind": kind, **_compare(lines)}
        errors = "  ".join(f"{m} {error:.4f}" for m, error in rows[name]["rmse"].items())
        mark = "+" if rows[name]["within_one_error_of_the_best"] else "-"
        log.print(f"{mark} {name:28s} {errors}  coverage {rows[name]['coverage']:.3f}")
        for other, (share, error) in rows[name]["share"].items() if config.ablation else ():
            log.print(f"    {other:32s} mean square larger by {share:+.2%} +- {error:.2%}")
    if not rows:
        raise ValueError(f"no task begins with {' or '.join(config.tasks)}; try without --tasks")
    good = float(np.mean([row["within_one_error_of_the_best"] for row in rows.values()]))
    log.print(f"best or within one standard error of it: {good:.0%} of {len(rows)} tasks")
    parts = _of_all_cuts(rows) if config.ablation else {}
    for name, (share, error) in parts.items():
        log.print(f"all cuts, {name:32s} mean square larger by {share:+.2%} +- {error:.2%}")
    return log.finish({"tasks": rows, "best_or_within_one_error": good, "all_cuts": parts})


def _of_all_cuts(rows: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """By which share the squared error of cuts is larger without a part: mean, standard error."""
    shares = [row["share"] for row in rows.values() if row["kind"] == "cut"]
    found = {}
    for name in shares[0] if shares else ():
        mean, error = np.array([of_task[name] for of_task in shares]).T
        found[name] = float(mean.mean()), float(np.sqrt((error**2).sum()) / len(error))
    return found


def _measure(prior: LearnedPrior, task: Task, config: Config) -> dict[str, float]:
    """A line of ``metrics.jsonl``.

    Of each method its mean squared error and seconds; of the others also by how much their squared
    errors are larger than ours, and the standard error of that over cells.
    """
    rows, columns = np.asarray(task.test.rows), np.asarray(task.test.columns)
    units = task.units[columns]
    squares, seconds, memory = {}, {}, Memory()
    started = time.perf_counter()
    completed = pipeline.complete(prior, task.train, seed=config.seed, memory=memory)
    values, errors = completion.predict(completed, rows, columns)
    seconds["metamf"] = time.perf_counter() - started
    squares["metamf"] = ((values - task.test.values) / units) ** 2
    inside = np.abs(values - task.test.values) <= held_out.NORMAL_QUANTILE * errors
    way = "columns" if task.kind == "table" else "matrix"
    others: dict[str, _Answer] = {}
    if config.ablation:
        others = ablations(prior, task, memory, config.seed)
    else:
        for name, (predict, grid, dense) in methods(way).items():
            if not dense or np.prod(task.train.shape) <= MOST_DENSE_CELLS:
                others[name] = functools.partial(_tuned, predict, grid, config.seed, task.units)
    for name, answer in others.items():
        if config.methods and name not in config.methods:
            continue
        started = time.perf_counter()
        predicted = answer(task.train, task.test)
        seconds[name] = time.perf_counter() - started
        squares[name] = ((predicted - task.test.values) / units) ** 2
    line = {"coverage": float(inside.mean())}
    for name, square in squares.items():
        line[f"mse/{name}"] = float(square.mean())
        line[f"seconds/{name}"] = seconds[name]
        reference = squares.get(_REFERENCES.get(name, "metamf"))
        if name != "metamf" and reference is not None:
            more = square - reference
            line[f"more/{name}"] = float(more.mean())
            line[f"more_error/{name}"] = float(more.std() / np.sqrt(len(more)))
    return line


def _compare(lines: list[dict[str, float]]) -> dict[str, Any]:
    """Errors over all repeats, and whether ours is within a paired standard error of the best.

    Repeats of a task are draws of matrices, or of cells, and count alike: the standard error is
    over repeats, and over cells where there is one repeat.
    """

    def means(kind):
        return {
            name.removeprefix(f"{kind}/"): float(np.mean([line[name] for line in lines]))
            for name in lines[0]
            if name.startswith(f"{kind}/")
        }

    rmse = {name: square**0.5 for name, square in means("mse").items()}
    compared = [name.removeprefix("more/") for name in lines[0] if name.startswith("more/")]
    best = min((name for name in compared if name not in _REFERENCES), key=rmse.__getitem__)
    more, errors, shares = {}, {}, {}
    for name in compared:
        each = np.array([line[f"more/{name}"] for line in lines])
        more[name] = float(each.mean())
        errors[name] = lines[0][f"more_error/{name}"]
        if len(each) > 1:
            errors[name] = float(each.std(ddof=1) / np.sqrt(len(each)))
        of_reference = rmse[_REFERENCES.get(name, "metamf")] ** 2
        shares[name] = more[name] / of_reference, errors[name] / of_reference
    return {
        "draws": len(lines),
        "share": shares,
        "more": more,
        "more_errors": errors,
        "rmse": rmse,
        "coverage": float(np.mean([line["coverage"] for line in lines])),
        "seconds": means("seconds"),
        "best_other": best,
        "more_than_ours": more[best],
        "more_error": errors[best],
        "within_one_error_of_the_best": -more[best] <= errors[best],
    }


def main() -> None:
    preset = PRESETS[common.PRESET.value]
    if _ABLATION.value and preset.ratings:
        preset = dataclasses.replace(
            preset,
            ratings=_ABLATION_RATINGS,
            sides=_ABLATION_SIDES,
            shown=_ABLATION_SHOWN,
            cut_repeats=_ABLATION_CUTS,
        )
    if _DRAWS.value is not None:
        preset = dataclasses.replace(preset, repeats=_DRAWS.value, cut_repeats=_DRAWS.value)
    chosen = () if _METHODS.value == ["all"] else tuple(_METHODS.value)
    config = dataclasses.replace(
        preset,
        methods=chosen,
        tasks=tuple(_TASKS.value),
        ablation=_ABLATION.value,
        weights=_WEIGHTS.value,
        seed=common.SEED.value,
    )
    run(config, common.WORKDIR.value or f"runs/imputer-{config.preset}", common.DATA_DIR.value)


if __name__ == "__main__":
    common.run_main(main)
