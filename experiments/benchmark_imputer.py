"""Measures the packaged imputer, zero-shot, against imputers tuned on each matrix.

Claim, not measured yet: without tuning and without a gradient step on the target, `MetaMFImputer`
is the best of all or within one standard error of it on nine of ten tasks, below the shrunken bias
model on every whole rating matrix, and its 90% intervals hold 85% to 95% of the removed cells.

    python -m experiments.benchmark_imputer --preset=paper --data_dir=DIR --workdir=runs/imputer

A task is a matrix with cells removed: whole rating sets, cuts of them, and scikit-learn's tables,
at random and not at random (the larger a value, the likelier it is missing). Every other method is
tuned by cross-validation on the observed cells. Errors are root mean squares in units of each
column's deviation for tables, in rating points otherwise.
"""

import dataclasses
import os
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from experiments import common
from metamf_jax.baselines import bias, mf
from metamf_jax.data import jester, movielens
from metamf_jax.imputation import completion, pretrained, scaling
from metamf_jax.meta_learning import padding
from metamf_jax.run_log import RunLog
from metamf_jax.types import Entries

_WEIGHTS = flags.DEFINE_string("weights", "general", "Name or file of the learned prior.")

TABLES = ("iris", "wine", "breast_cancer", "diabetes", "digits")
RATINGS = ("ml100k", "ml1m", "latest_small", "jester")
# Dense imputers are left out above it: scikit-learn's would take minutes to hours.
_MOST_DENSE_CELLS = 2 * 10**5
_FOLDS, _HELD_OUT = 2, 0.15


@dataclasses.dataclass(frozen=True)
class Config:
    """Which tasks.

    Attributes:
      tables: of scikit-learn.
      removed: shares of their cells that are removed.
      ratings: rating sets, whole and cut.
      sides: of the cuts.
      repeats: draws of each cut and of each removal.
      weights: of the imputer.
      seed: of all draws.
    """

    preset: str
    tables: tuple[str, ...]
    removed: tuple[float, ...]
    ratings: tuple[str, ...]
    whole: bool
    sides: tuple[int, ...]
    repeats: int
    weights: str = "general"
    seed: int = 0


PRESETS = {
    "smoke": Config("smoke", ("iris",), (0.5,), (), False, (), 1),
    "tiny": Config("tiny", TABLES[:4], (0.1, 0.5, 0.8), (), False, (), 2),
    "paper": Config("paper", TABLES, (0.1, 0.5, 0.8), RATINGS, True, (30, 100, 300), 3),
}
PRESETS["best"] = dataclasses.replace(PRESETS["paper"], preset="best", repeats=10)


class Task(NamedTuple):
    """A matrix with removed cells: ``units`` [M] divide errors; tasks of one name are repeats."""

    name: str
    kind: str
    train: Entries
    test: Entries
    units: np.ndarray


def tasks(config: Config, data_dir: str | None) -> Iterator[Task]:
    """Draws the tasks one after the other."""
    for name in config.tables:
        values = _table(name)
        units = np.maximum(values.std(axis=0), 1e-9)
        for share in config.removed:
            for way in ("random", "high values"):
                for repeat in range(config.repeats):
                    rng = np.random.default_rng([config.seed, repeat, int(100 * share)])
                    train, test = _remove(rng, values, share, way)
                    yield Task(f"{name}, {share:.0%} {way}", "table", train, test, units)
    for name in config.ratings:
        whole = _ratings(name, data_dir)
        for side in config.sides:
            for repeat in range(config.repeats):
                rng = np.random.default_rng([config.seed, repeat, side])
                train, test = _split(rng, _cut(rng, whole, side), 0.2)
                yield Task(f"{name} {side} x {side}", "cut", train, test, np.ones(train.shape[1]))
        if not config.whole:
            continue
        if name == "ml100k":
            for split in movielens.SPLITS_100K[:5]:
                train, test = (t.entries for t in movielens.ml100k_split(split, data_dir))
                yield Task("ml100k u1..u5", "whole", train, test, np.ones(train.shape[1]))
        else:
            train, test = _split(np.random.default_rng(config.seed), whole, 0.1)
            yield Task(f"{name} 90/10", "whole", train, test, np.ones(train.shape[1]))


def _table(name: str) -> np.ndarray:
    from sklearn import datasets

    return getattr(datasets, f"load_{name}")().data


def _ratings(name: str, data_dir: str | None) -> Entries:
    load = jester.jester if name == "jester" else getattr(movielens, name)
    return load(data_dir).entries


def _remove(rng, values: np.ndarray, share: float, way: str) -> tuple[Entries, Entries]:
    score = rng.gumbel(size=values.shape)
    if way == "high values":
        deviations = np.maximum(values.std(axis=0), 1e-9)
        score += (values - values.mean(axis=0)) / deviations
    removed = score >= np.quantile(score, 1 - share)

    def listed(where: np.ndarray) -> Entries:
        rows, columns = np.nonzero(where)
        shape = values.shape[0], values.shape[1]
        return Entries(
            rows.astype(np.int32), columns.astype(np.int32), values[rows, columns], shape
        )

    return listed(~removed), listed(removed)


def _select(entries: Entries, which: np.ndarray) -> Entries:
    return Entries(
        entries.rows[which], entries.columns[which], entries.values[which], entries.shape
    )


def _split(rng, entries: Entries, share: float) -> tuple[Entries, Entries]:
    held = rng.permutation(len(entries.rows)) < max(1, round(share * len(entries.rows)))
    return _select(entries, ~held), _select(entries, held)


def _cut(rng, entries: Entries, side: int) -> Entries:
    """Random rows and columns, more likely those with more cells: random ones would be empty."""
    places = []
    for listed, size in zip((entries.rows, entries.columns), entries.shape, strict=True):
        counts = np.bincount(listed, minlength=size).astype(float)
        count = min(side, size)
        picked = rng.choice(size, count, replace=False, p=counts / counts.sum())
        place = np.full(size, -1, np.int32)
        place[picked] = np.arange(count)
        places.append((place, count))
    rows, columns = places[0][0][entries.rows], places[1][0][entries.columns]
    inside = (rows >= 0) & (columns >= 0)
    shape = places[0][1], places[1][1]
    return Entries(rows[inside], columns[inside], entries.values[inside], shape)


# Predictions [Q] at the test's cells, from the training cells and a setting.
Predict = Callable[[Entries, Entries, dict[str, Any]], np.ndarray]


def _tuned(predict: Predict, grid: list[dict[str, Any]], task: Task, rng) -> np.ndarray:
    """The setting with the least error on held-out observed cells, then the test's cells."""
    best = grid[0]
    if len(grid) > 1 and len(task.train.rows) > 3:
        errors = np.zeros(len(grid))
        for _ in range(_FOLDS if len(task.train.rows) < 10**5 else 1):
            kept, held = _split(rng, task.train, _HELD_OUT)
            for n, setting in enumerate(grid):
                left = (predict(kept, held, setting) - held.values) / task.units[held.columns]
                errors[n] += (left**2).mean()
        best = grid[int(np.argmin(errors))]
    return predict(task.train, task.test, best)


def _column_mean(train, test, setting):
    sums = np.bincount(train.columns, train.values, train.shape[1])
    counts = np.bincount(train.columns, minlength=train.shape[1])
    means = np.where(counts > 0, sums / np.maximum(counts, 1), train.values.mean())
    return means[test.columns]


def _of_jax(module) -> Predict:
    """A baseline of `metamf_jax.baselines`, on values standardised as the setting says."""
    compiled = jax.jit(module.predict)

    def predict(train, test, setting):
        setting = dict(setting)
        fitted = scaling.fit_scaling(train, setting.pop("standardize"))
        rows, columns = (padding.bucket_size(size, 16) for size in train.shape)
        lists = [
            padding.stack_entries([part], (rows, columns), padding.bucket_size(len(part.rows)))
            for part in (scaling.standardize(train, fitted), test)
        ]
        support, query = (jax.tree.map(lambda x: x[0], part) for part in lists)
        answer = np.asarray(compiled(support, query, setting))[: len(test.rows)]
        return fitted.centers[test.columns] + fitted.scales[test.columns] * answer

    return predict


def _bias_then_mf(train, test, setting):
    """Factorization of what a bias model leaves over: the stronger of the usual forms."""
    of_bias = {k: setting[k] for k in (*bias.GRID[0], "standardize")}
    of_mf = {k: setting[k] for k in mf.GRID[0]}
    left = train.values - _BIAS(train, train, of_bias)
    residuals = dataclasses.replace(train, values=left)
    of_mf["standardize"] = "matrix"
    return _BIAS(train, test, of_bias) + _MF(residuals, test, of_mf)


_BIAS, _MF = _of_jax(bias), _of_jax(mf)
_BIAS_GRID = [
    {"mean_shrinkage": 0.0, "row_shrinkage": row, "column_shrinkage": column, "standardize": way}
    for row in (1.0, 3.0, 8.0, 20.0)
    for column in (1.0, 3.0, 8.0, 20.0)
    for way in scaling.SCALINGS
]
_MF_GRID = [
    {
        "mean_shrinkage": 0.0,
        "row_shrinkage": effects,
        "column_shrinkage": effects,
        "rank": rank,
        "precision": precision,
        "standardize": way,
    }
    for effects in (3.0, 1e6)
    for rank in (1, 2, 4, 8)
    for precision in (0.1, 0.5, 2.0, 8.0)
    for way in scaling.SCALINGS
]


def _dense_input(train) -> tuple[np.ndarray, scaling.Scaling]:
    fitted = scaling.fit_scaling(train, "columns")
    dense = np.full(train.shape, np.nan)
    dense[train.rows, train.columns] = scaling.standardize(train, fitted).values
    return dense, fitted


def _of_dense(complete: Callable[[np.ndarray, dict[str, Any]], Any]) -> Predict:
    """A method that completes an array with NaN, on columns standardised each by itself."""

    def predict(train, test, setting):
        dense, fitted = _dense_input(train)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of convergence, and of empty columns.
            completed = complete(dense, setting)
        answer = completed[test.rows, test.columns]
        return fitted.centers[test.columns] + fitted.scales[test.columns] * answer

    return predict


def _nearest(dense, setting):
    from sklearn.impute import KNNImputer

    return KNNImputer(keep_empty_features=True, **setting).fit_transform(dense)


def _iterative(dense, setting):
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer

    nearest = 20 if dense.shape[1] > 40 else None
    imputer = IterativeImputer(
        max_iter=10, keep_empty_features=True, n_nearest_features=nearest, random_state=0, **setting
    )
    return imputer.fit_transform(dense)


def _soft_impute(dense, setting):
    """Mazumder, Hastie and Tibshirani 2010: iterated shrinkage of the singular values."""
    observed = ~np.isnan(dense)
    filled = np.where(observed, dense, 0)
    shrinkage = setting["shrinkage"] * np.linalg.norm(filled, 2)
    fitted = np.zeros_like(filled)
    for _ in range(100):
        left, singular, right = np.linalg.svd(
            np.where(observed, dense, fitted), full_matrices=False
        )
        before, fitted = fitted, (left * np.maximum(singular - shrinkage, 0)) @ right
        if ((fitted - before) ** 2).sum() < 1e-8 * max((fitted**2).sum(), 1e-30):
            break
    return fitted


# name: (predict, grid, whether it needs a dense matrix)
METHODS: dict[str, tuple[Predict, list[dict[str, Any]], bool]] = {
    "mean": (_column_mean, [{}], False),
    "bias": (_BIAS, _BIAS_GRID, False),
    "knn": (_of_dense(_nearest), [{"n_neighbors": k} for k in (3, 10, 30)], True),
    "iterative": (_of_dense(_iterative), [{}], True),
    "soft_impute": (
        _of_dense(_soft_impute),
        [{"shrinkage": s} for s in (0.03, 0.08, 0.15, 0.25, 0.4)],
        True,
    ),
    "mf": (_bias_then_mf, _MF_GRID, False),
}


def run(config: Config, workdir: str | os.PathLike, data_dir: str | None = None) -> dict[str, Any]:
    """Runs every method on every task; returns what ``summary.json`` holds.

    Raises:
      ValueError, FileNotFoundError: a data set or the weights cannot be read.
    """
    prior = pretrained.load(config.weights)
    log = RunLog(workdir, "benchmark_imputer", config)
    squares: dict[str, dict[str, list[np.ndarray]]] = {}
    found: dict[str, dict[str, Any]] = {}
    for number, task in enumerate(tasks(config, data_dir)):
        of_task = squares.setdefault(task.name, {})
        facts = found.setdefault(task.name, {"kind": task.kind, "coverage": [], "seconds": []})

        def keep(name, predicted, task=task, of_task=of_task):
            left = (predicted - task.test.values) / task.units[task.test.columns]
            of_task.setdefault(name, []).append(left**2)

        started = time.perf_counter()
        completed = completion.complete(prior, task.train, seed=config.seed)
        values, errors = completion.predict(
            completed, np.asarray(task.test.rows), np.asarray(task.test.columns)
        )
        facts["seconds"].append(time.perf_counter() - started)
        keep("metamf", values)
        inside = np.abs(values - task.test.values) <= completion.NORMAL_QUANTILE * errors
        facts["coverage"].append(float(inside.mean()))
        for name, (predict, grid, dense) in METHODS.items():
            if not dense or np.prod(task.train.shape) <= _MOST_DENSE_CELLS:
                keep(name, _tuned(predict, grid, task, np.random.default_rng(config.seed)))
        log.print(_line(f"{number + 1:4d}  {task.name}", of_task, facts))
    rows = {name: {**found[name], **_compare(squares[name])} for name in squares}
    for name, row in rows.items():
        errors = "  ".join(f"{method} {error:.4f}" for method, error in row["rmse"].items())
        mark = "+" if row["within_one_error_of_the_best"] else "-"
        log.print(f"{mark} {name:28s} {errors}  coverage {np.mean(row['coverage']):.3f}")
    good = float(np.mean([row["within_one_error_of_the_best"] for row in rows.values()]))
    log.print(f"best or within one standard error of it: {good:.0%} of {len(rows)} tasks")
    return log.finish({"tasks": rows, "best_or_within_one_error": good})


def _line(name, of_task, facts) -> str:
    errors = "  ".join(f"{m} {np.sqrt(e[-1].mean()):.4f}" for m, e in of_task.items())
    return f"{name:34s} {errors}  coverage {facts['coverage'][-1]:.3f}"


def _compare(squares: dict[str, list[np.ndarray]]) -> dict[str, Any]:
    """Errors over all repeats, and whether ours is within a paired standard error of the best.

    Repeats of a task are draws of matrices, or of cells, and count alike: the standard error is
    over repeats, and over cells where there is one repeat.
    """
    rmse = {name: float(np.sqrt(np.concatenate(e).mean())) for name, e in squares.items()}
    best = min((name for name in rmse if name != "metamf"), key=rmse.__getitem__)
    ours, theirs = squares["metamf"], squares[best]
    differences = np.array([(a - b).mean() for a, b in zip(ours, theirs, strict=True)])
    if len(differences) == 1:
        differences = ours[0] - theirs[0]
    error = differences.std(ddof=1) / np.sqrt(len(differences))
    return {
        "rmse": rmse,
        "best_other": best,
        "difference": float(differences.mean()),
        "difference_error": float(error),
        "within_one_error_of_the_best": bool(differences.mean() <= error),
    }


def main() -> None:
    preset = PRESETS[common.PRESET.value]
    config = dataclasses.replace(preset, weights=_WEIGHTS.value, seed=common.SEED.value)
    run(config, common.WORKDIR.value or f"runs/imputer-{config.preset}", common.DATA_DIR.value)


if __name__ == "__main__":
    common.run_main(main)
