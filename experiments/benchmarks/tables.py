"""Measures the packaged imputer on tables whose columns have units of their own.

Claim: as it comes, `MetaMFImputer` is below chained ridge regressions, chained forests and nearest
rows in the geometric mean over the tables `numeric`, however the cells went missing, and on none of
these more than 1.4 times as far off as the best of them.

    python -m experiments.benchmarks.tables --preset=paper --data_dir=DIR --workdir=runs/tables
    python -m experiments.benchmarks.tables --sets=grape --draws=5 --preset=paper --data_dir=DIR \
        --workdir=runs/grape

DIR, or DIR/tables, holds one folder or more, all of complete tables:

    numeric/*.csv[.gz]    with a header; three tenths of the cells are removed in seven ways
    mixed/*.csv[.gz]      the same, with categories of up to 20 levels as text
    grape/*.txt[.gz]      of numbers, the last column is left out; GRAPE's protocol and results
    missbench/*-KIND.npz  `true`, `missing`, and others' answers at the missing cells

Errors are root mean squares in units of the columns' deviations; of grape mean absolute ones on
columns scaled to 0..1; of missbench the mean over columns of the root mean square error over the
deviation of the missing values. Of categories the share of wrong ones is told, and the mean of
-log of the chance of the right one, which is at least 0.001; the mean says the shares of the
levels, `forest_of_types` (chained classifying forests) the shares in their leaves, and others
impute a column of zeros and ones for each level. All but ours have settings
that are usual, none is tuned. With --peers_python HyperImpute and miceforest (6.0.5 needs a
LightGBM below 4.6) are measured too, if that Python has them. The same command goes on with a run
that was stopped. On two cores `paper` takes 7 minutes for `numeric`, 4 to 8 for `missbench` and
2 for `grape`.
"""

import dataclasses
import os
import pathlib
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from absl import flags
from pyarrow import csv

from experiments import chained_forests, common, missing, peers, shared_flags
from experiments.imputation_tasks import (
    MOST_DENSE_CELLS,
    Predict,
    Task,
    column_mean,
    deviations,
    remove,
    standardised,
)
from metamf_jax.baselines import iterative, knn, scikit_learn
from metamf_jax.data.data_dir import VARIABLE, data_dir_or_default
from metamf_jax.imputation import held_out
from metamf_jax.runs.run_log import RunLog, read_metrics
from metamf_jax.types import Entries

_METHODS = shared_flags.methods()
_DRAWS = shared_flags.draws()
_PEERS_PYTHON = shared_flags.peers_python()
_SETS = flags.DEFINE_list("sets", ["all"], "Folders of tables, or all that are there.")
_KINDS = flags.DEFINE_list(
    "kinds", ["all"], f"How cells are removed, or all: {', '.join(missing.KINDS)}."
)

OURS = "metamf"
_SHARE = 0.3
# Of a column's deviation.
_ROUNDING = 1e-6
# Text of more levels is a name.
_MOST_LEVELS = 20
_LEAST_CHANCE = 1e-3

# Mean absolute errors on columns scaled to 0..1 with 30% of the cells missing at random, means of
# five seeds (You et al., Handling Missing Data with Graph Representation Learning, NeurIPS 2020).
# GRAPE's network is trained on each table.
_GRAPE_TABLES = (
    *("concrete", "energy", "housing", "kin8nm", "naval", "power", "protein", "wine", "yacht"),
)
_GRAPE_RESULTS = {
    "published mean": (0.181, 0.311, 0.185, 0.249, 0.231, 0.167, 0.091, 0.098, 0.212),
    "published knn": (0.115, 0.184, 0.097, 0.277, 0.0101, 0.137, 0.045, 0.072, 0.166),
    "published MICE": (0.134, 0.158, 0.116, 0.249, 0.0197, 0.116, 0.033, 0.076, 0.167),
    "published GAIN": (0.165, 0.173, 0.135, 0.279, 0.031, 0.157, 0.053, 0.089, 0.217),
    "published MIWAE": (0.156, 0.153, 0.098, 0.262, 0.0197, 0.117, 0.042, 0.087, 0.224),
    "published GRAPE": (0.0895, 0.136, 0.0746, 0.249, 0.0085, 0.102, 0.027, 0.063, 0.151),
}

# Run by --peers_python with: file of the table with gaps, file for the completed one.
_PEER = """
import sys, time
import numpy, pandas
{imports}
table = pandas.DataFrame(numpy.load(sys.argv[1])).add_prefix("x")
start = time.perf_counter()
{completed}
seconds = time.perf_counter() - start
numpy.save(sys.argv[2], numpy.asarray(completed, float))
print()
print(seconds)
"""
PEERS = {
    "hyperimpute": _PEER.format(
        imports="from hyperimpute.plugins.imputers import Imputers",
        completed='completed = Imputers().get("hyperimpute", random_state=0).fit_transform(table)',
    ),
    "miceforest": _PEER.format(
        imports="import miceforest",
        completed="""
kernel = miceforest.ImputationKernel(table, num_datasets=5, random_state=0)
kernel.mice(5)
completed = numpy.mean([kernel.complete_data(dataset=n) for n in range(5)], axis=0)
""",
    ),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured.

    Attributes:
      sets: folders of tables; empty for all that are there.
      kinds: how cells are removed, where that is not given with the table.
      most_tables: of each set, the first; None for all.
      repeats: draws of the removed cells.
      methods: besides the columns' means.
      peers_python: of `PEERS`.
      seed: of the draws.
    """

    preset: str
    sets: tuple[str, ...] = ()
    kinds: tuple[str, ...] = tuple(missing.KINDS)
    most_tables: int | None = None
    repeats: int = 1
    methods: tuple[str, ...] = ()
    peers_python: str | None = None
    seed: int = 0


PRESETS = {
    "smoke": Config("smoke", kinds=("mcar", "self_high"), most_tables=1),
    "tiny": Config("tiny", kinds=("mcar", "self_high"), most_tables=3),
    "paper": Config("paper"),
    "best": Config("best", repeats=5),
}


class TableSet(NamedTuple):
    """A folder of tables: the files' endings, their tasks in a repeat, an error of answers [Q]."""

    endings: tuple[str, ...]
    tasks: Callable[[pathlib.Path, Config, int], Iterator[Task]]
    error: Callable[[np.ndarray, Task], float]


def _removed_by_kind(path: pathlib.Path, config: Config, repeat: int) -> Iterator[Task]:
    """Of a table of numbers, in each of the ways that the configuration names."""
    values = np.column_stack(_columns(path)[0])
    for kind in config.kinds:
        gone = missing.missing_cells(values, kind, _SHARE, config.seed + repeat)
        yield Task(f"{_name(path)}, {kind}", kind, *remove(values, gone), deviations(values))


def _mixed(path: pathlib.Path, config: Config, repeat: int) -> Iterator[Task]:
    """Of a table with categories, in each of the ways that the configuration names."""
    numbers, text = _columns(path)
    codes = [np.unique(column, return_inverse=True)[1] for column in text]
    codes = [code for code in codes if code.max() < _MOST_LEVELS]
    # [N, L]
    levels = [code[:, None] == np.arange(code.max() + 1) for code in codes]
    values = np.column_stack([*numbers, *levels]).astype(float)
    widths = [1] * len(numbers) + [level.shape[1] for level in levels]
    categories = np.repeat([-1] * len(numbers) + list(range(len(levels))), widths)
    units = np.where(categories < 0, deviations(values), 1)
    for kind in config.kinds:
        gone = missing.missing_cells(
            np.column_stack([*numbers, *codes]), kind, _SHARE, config.seed + repeat
        )
        parts = remove(values, np.repeat(gone, widths, axis=1))
        yield Task(f"{_name(path)}, {kind}", kind, *parts, units, categories=categories)


def _grape(path: pathlib.Path, config: Config, repeat: int) -> Iterator[Task]:
    """GRAPE's protocol; its masks are of another generator of random numbers."""
    name, values = _name(path), np.loadtxt(path)[:, :-1]
    span = np.ptp(values, axis=0)
    values = (values - values.min(axis=0)) / np.where(span > 0, span, 1)
    gone = np.random.default_rng([config.seed, repeat]).random(values.shape) < _SHARE
    published = {}
    if name in _GRAPE_TABLES:
        place = _GRAPE_TABLES.index(name)
        published = {other: errors[place] for other, errors in _GRAPE_RESULTS.items()}
    yield Task(name, name, *remove(values, gone), np.ones(values.shape[1]), published)


def _missbench(path: pathlib.Path, config: Config, repeat: int) -> Iterator[Task]:
    """A table with given gaps, and what others answered: it is the same in each repeat."""
    if repeat:
        return
    held = np.load(path)
    values, gone = held["true"], held["missing"].astype(bool)
    name, _, kind = _name(path).rpartition("-")
    origin = "synthetic" if name.startswith("fri_") else "real"
    task = Task(f"{name}, {kind}", f"{kind}, {origin}", *remove(values, gone), deviations(values))
    others = {
        f"published {other}": by_columns(held[other], task)
        for other in held.files
        if other not in ("true", "missing")
    }
    yield task._replace(published=others)


def root_mean_square(answers: np.ndarray, task: Task) -> float:
    """Of all removed numbers, in the task's units."""
    off = (answers - task.test.values) / task.units[task.test.columns]
    if task.categories is not None:
        off = off[task.categories[task.test.columns] < 0]
    return float(np.sqrt(np.mean(off**2)))


def mean_absolute(answers: np.ndarray, task: Task) -> float:
    """Of all removed cells."""
    return float(np.abs(answers - task.test.values).mean())


def by_columns(answers: np.ndarray, task: Task) -> float:
    """Mean over columns of the root mean square error over the missing values' deviation.

    Columns whose missing cells are all alike, but for rounding, do not count: a table of MissBench
    has some, and would give all its weight to them.
    """
    errors = []
    for column in np.unique(task.test.columns):
        inside = task.test.columns == column
        deviation = task.test.values[inside].std()
        if deviation > _ROUNDING * task.units[column]:
            off = answers[inside] - task.test.values[inside]
            errors.append(np.sqrt(np.mean(off**2)) / deviation)
    return float(np.mean(errors))


def of_categories(answers: np.ndarray, task: Task) -> tuple[float, float]:
    """Share of removed categories that are wrong, and mean of -log of the right one's chance."""
    assert task.categories is not None
    wrong, chances = [], []
    for category in range(task.categories.max() + 1):
        inside = task.categories[task.test.columns] == category
        # Row by row: [cells * L] -> [cells, L]
        shape = -1, int((task.categories == category).sum())
        said, true = answers[inside].reshape(shape), task.test.values[inside].reshape(shape)
        right = true.argmax(axis=1)
        wrong.append(said.argmax(axis=1) != right)
        chances.append(said[np.arange(len(said)), right])
    least = np.clip(np.concatenate(chances), _LEAST_CHANCE, 1)
    return float(np.concatenate(wrong).mean()), float(-np.log(least).mean())


SETS = {
    "numeric": TableSet((".csv", ".csv.gz"), _removed_by_kind, root_mean_square),
    "mixed": TableSet((".csv", ".csv.gz"), _mixed, root_mean_square),
    "grape": TableSet((".txt", ".txt.gz"), _grape, mean_absolute),
    "missbench": TableSet((".npz",), _missbench, by_columns),
}


def tasks(config: Config, data_dir: str | os.PathLike | None) -> Iterator[tuple[str, Task]]:
    """Names of sets and their tasks, one after the other.

    Raises:
      ValueError, FileNotFoundError: a set is unknown or is not there, or a table is not complete.
    """
    for name, paths in _files(config, data_dir).items():
        for repeat in range(config.repeats):
            for path in paths[: config.most_tables]:
                for task in SETS[name].tasks(path, config, repeat):
                    yield name, task


def _files(config: Config, data_dir: str | os.PathLike | None) -> dict[str, list[pathlib.Path]]:
    """Of each set its tables, by name."""
    root = data_dir_or_default(data_dir)
    if root is None:
        raise FileNotFoundError(
            f"no folder with tables is known; give --data_dir, or set {VARIABLE}"
        )
    folder = root / "tables" if (root / "tables").is_dir() else root
    unknown = set(config.sets) - set(SETS)
    if unknown:
        raise ValueError(f"expected sets among {', '.join(SETS)}, got {', '.join(sorted(unknown))}")
    found = {}
    for name in config.sets or SETS:
        paths = sorted(folder.glob(f"{name}/*"))
        found[name] = [path for path in paths if path.name.endswith(SETS[name].endings)]
        if config.sets and not found[name]:
            endings = " or ".join(SETS[name].endings)
            raise FileNotFoundError(f"{folder / name} holds no file that ends in {endings}")
    if not any(found.values()):
        raise FileNotFoundError(f"{folder} holds none of the folders {', '.join(SETS)} with tables")
    return found


def _name(path: pathlib.Path) -> str:
    """Of a table's file, without endings; a name may have dots."""
    name = path.name.removesuffix(".gz")
    return name.rpartition(".")[0]


def _columns(path: pathlib.Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The columns of a text file [N] that are numbers, in float64, and the others."""
    numbers, others = [], []
    for column in csv.read_csv(path).columns:
        is_number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
        if is_number:
            column = column.cast(pa.float64(), safe=False)
        elif not pa.types.is_boolean(column.type):
            column = column.cast(pa.string())
        values = column.combine_chunks().to_numpy(zero_copy_only=False)
        if column.null_count or (is_number and not np.isfinite(values).all()):
            raise ValueError(f"{path}: expected columns without gaps and infinite numbers")
        (numbers if is_number else others).append(values)
    if not numbers:
        raise ValueError(f"{path}: expected columns of numbers")
    return numbers, others


def _forest(train: Entries, test: Entries, setting: dict[str, Any]) -> np.ndarray:
    """Chained forests (missForest; Stekhoven and Buehlmann, Bioinformatics 2012), in four turns."""
    del setting
    scikit_learn.module("experimental.enable_iterative_imputer")
    forest = scikit_learn.module("ensemble").RandomForestRegressor(
        n_estimators=30, max_features="sqrt", random_state=0
    )
    imputer = scikit_learn.module("impute").IterativeImputer(
        forest, max_iter=4, keep_empty_features=True, random_state=0
    )
    with warnings.catch_warnings():
        # It warns that so few turns did not converge.
        warnings.simplefilter("ignore", scikit_learn.module("exceptions").ConvergenceWarning)
        return scikit_learn.impute(imputer, train, test)


# Of every other method here, its predictions and setting.
METHODS: dict[str, tuple[Predict, dict[str, Any]]] = {
    "mean": (column_mean, {}),
    "ridge": (
        standardised(iterative.predict_with_learned_precision),
        {"standardize": "columns"},
    ),
    "knn": (
        standardised(knn.predict),
        {"neighbors": 5, "weights": "uniform", "standardize": "columns"},
    ),
    "forest": (standardised(_forest), {"standardize": "columns"}),
}
# Of tables with categories alone.
OF_TYPES = "forest_of_types"
TELL_CHANCES = (OURS, OF_TYPES, "mean")
# Left out above `MOST_DENSE_CELLS`.
SLOW = ("knn", "forest", OF_TYPES, *PEERS)


class Answers(NamedTuple):
    """What a method says of the removed cells.

    Attributes:
      values: [Q].
      seconds: to fit and to answer.
      errors: [Q], standard errors, if it tells them; NaN at levels.
    """

    values: np.ndarray
    seconds: float
    errors: np.ndarray | None = None


def answer(method: str, task: Task, config: Config) -> Answers:
    """Runs a method of a task.

    Raises:
      ValueError: another package cannot be run.
    """
    if method in PEERS:
        return _by_peer(task, str(config.peers_python), PEERS[method])
    if method == OURS:
        return _ours(task) if task.categories is None else _ours_of_types(task)
    if method == OF_TYPES:
        return _forests_of_types(task)
    predict, setting = METHODS[method]
    started = time.perf_counter()
    values = predict(task.train, task.test, setting)
    return Answers(values, time.perf_counter() - started)


def _ours(task: Task) -> Answers:
    # scikit-learn, on which it stands, is optional.
    from metamf_jax.imputation.estimator import MetaMFImputer

    matrix, at = _matrix(task.train), (task.test.rows, task.test.columns)
    started = time.perf_counter()
    completed, errors = MetaMFImputer().fit(matrix).transform(matrix, return_std=True)
    return Answers(completed[at], time.perf_counter() - started, errors[at])


def _ours_of_types(task: Task) -> Answers:
    from metamf_jax.imputation.estimator import MetaMFImputer

    assert task.categories is not None
    frame = _frame(task)
    started = time.perf_counter()
    imputer = MetaMFImputer(types="auto").fit(frame)
    completed, deviation = imputer.transform(frame, return_std=True)
    chances = imputer.predict_chances(frame)
    seconds = time.perf_counter() - started
    values, errors = np.zeros(task.train.shape), np.full(task.train.shape, np.nan)
    for column, category in enumerate(task.categories):
        name = f"number {column}" if category < 0 else f"category {category}"
        if category >= 0:
            # Levels without an observed cell have no chance.
            values[:, column] = chances[name].get(str(column), 0)
        elif name in chances:
            # Few whole numbers are levels to it: their mean.
            values[:, column] = sum(level * of for level, of in chances[name].items())
        else:
            values[:, column] = completed[name].to_numpy()
            errors[:, column] = deviation[:, completed.column_names.index(name)]
    at = task.test.rows, task.test.columns
    return Answers(values[at], seconds, errors[at])


def _forests_of_types(task: Task) -> Answers:
    """By `chained_forests`."""
    assert task.categories is not None
    matrix, parts, counts = _matrix(task.train), [], []
    places = [np.flatnonzero(task.categories == each) for each in range(task.categories.max() + 1)]
    numbers = np.flatnonzero(task.categories < 0)
    for inside in places:
        level = np.nan_to_num(matrix[:, inside]).argmax(axis=1)
        parts.append(np.where(np.isnan(matrix[:, inside[0]]), np.nan, level))
        counts.append(len(inside))
    table = np.column_stack([matrix[:, numbers], *parts])
    started = time.perf_counter()
    completed, chances = chained_forests.complete(table, [0] * len(numbers) + counts)
    seconds, values = time.perf_counter() - started, np.zeros(task.train.shape)
    values[:, numbers] = completed[:, : len(numbers)]
    for m, inside in enumerate(places, len(numbers)):
        values[:, inside] = chances[m]
    return Answers(values[task.test.rows, task.test.columns], seconds)


def _frame(task: Task) -> pa.Table:
    """The table with gaps; a category's levels are the numbers of their columns, as text."""
    assert task.categories is not None
    matrix, columns = _matrix(task.train), {}
    for column in np.flatnonzero(task.categories < 0):
        columns[f"number {column}"] = pa.array(matrix[:, column], from_pandas=True)
    for category in range(task.categories.max() + 1):
        inside = np.flatnonzero(task.categories == category)
        levels = inside[np.nan_to_num(matrix[:, inside]).argmax(axis=1)].astype(str)
        columns[f"category {category}"] = pa.array(levels, mask=np.isnan(matrix[:, inside[0]]))
    return pa.table(columns)


def _by_peer(task: Task, python: str, code: str) -> Answers:
    """In a process of its own, whose start does not count."""
    with tempfile.TemporaryDirectory() as folder:
        gaps, completed = (str(pathlib.Path(folder) / f"{name}.npy") for name in ("gaps", "full"))
        np.save(gaps, _matrix(task.train))
        _, told = peers.run_program([python, "-c", code, gaps, completed])
        values = np.load(completed)[task.test.rows, task.test.columns]
    return Answers(values, float(told.split()[-1]))


def _matrix(entries: Entries) -> np.ndarray:
    """[N, M], with NaN at its gaps."""
    values = np.full(entries.shape, np.nan)
    values[entries.rows, entries.columns] = entries.values
    return values


def measure(set_name: str, task: Task, config: Config) -> dict[str, float]:
    """A line of ``metrics.jsonl``: each method's error and seconds, and our intervals' cover."""
    large = np.prod(task.train.shape) > MOST_DENSE_CELLS
    line: dict[str, float] = {}
    # The others' errors are divided by the mean's.
    for method in dict.fromkeys(("mean", *config.methods)):
        if (large and method in SLOW) or (method == OF_TYPES and task.categories is None):
            continue
        found = answer(method, task, config)
        line[f"error/{method}"] = SETS[set_name].error(found.values, task)
        line[f"seconds/{method}"] = found.seconds
        if task.categories is not None and task.categories.max() >= 0:
            line[f"wrong/{method}"], log_score = of_categories(found.values, task)
            if method in TELL_CHANCES:
                line[f"log_score/{method}"] = log_score
        if found.errors is not None and not np.isnan(found.errors).all():
            told = ~np.isnan(found.errors)
            off = np.abs(found.values - task.test.values)[told]
            inside = off <= held_out.NORMAL_QUANTILE * found.errors[told]
            line["coverage"] = float(inside.mean())
    return line | {f"error/{name}": error for name, error in task.published.items()}


def summarise(lines: list[dict[str, float]]) -> dict[str, Any]:
    """Of tasks of one kind, what each method that answered all of them did.

    Returns:
      The number of ``tasks``, our mean ``coverage``, and by ``methods``: ``mean`` and ``median``
      error; ``ratio``, the geometric mean of errors over the columns' means'; ``wins``, how often
      none had a lower error; ``worst``, the largest error over the least of the task; ``seconds``,
      median and largest; means of ``wrong`` and ``log_score`` where there are categories.
    """

    def of_all(prefix: str) -> dict[str, np.ndarray]:
        names = [key for key in lines[0] if key.startswith(prefix)]
        return {
            name.removeprefix(prefix): np.array([line[name] for line in lines])
            for name in names
            if all(name in line for line in lines)
        }

    errors, seconds = of_all("error/"), of_all("seconds/")
    # A method may hit all cells; what is divided by must not be zero.
    errors = {name: np.maximum(error, 1e-12) for name, error in errors.items()}
    least = np.min(list(errors.values()), axis=0)
    methods = {}
    for name, error in errors.items():
        methods[name] = {
            "mean": float(error.mean()),
            "median": float(np.median(error)),
            "ratio": float(np.exp(np.log(error / errors["mean"]).mean())),
            "wins": int((error <= least).sum()),
            "worst": float((error / least).max()),
        }
        for score in ("wrong", "log_score"):
            of_methods = of_all(f"{score}/")
            if name in of_methods:
                methods[name][score] = float(of_methods[name].mean())
        if name in seconds:
            taken = seconds[name]
            methods[name]["seconds"] = [float(np.median(taken)), float(taken.max())]
    summary = {"tasks": len(lines), "methods": methods}
    coverages = [line["coverage"] for line in lines if "coverage" in line]
    return summary | ({"coverage": float(np.mean(coverages))} if coverages else {})


def _table_of(title: str, summary: dict[str, Any]) -> Iterator[str]:
    """Lines to print."""
    cover = f", 90% intervals hold {summary['coverage']:.1%}" if "coverage" in summary else ""
    yield f"{title}: {summary['tasks']} tasks{cover}"
    yield f"    {'':22s}   mean  median   ratio  wins   worst  seconds: median, largest"
    for name, of in summary["methods"].items():
        seconds = "{:8.2f} {:8.2f}".format(*of["seconds"]) if "seconds" in of else ""
        for score in ("wrong", "log_score"):
            seconds += f"  {score} {of[score]:.4f}" if score in of else ""
        yield (
            f"    {name:22s}{of['mean']:7.4f} {of['median']:7.4f} {of['ratio']:7.3f} "
            f"{of['wins']:5d} {of['worst']:7.2f} {seconds}"
        )


def run(
    config: Config, workdir: str | os.PathLike, data_dir: str | os.PathLike | None = None
) -> dict[str, Any]:
    """Runs every method on every task; returns what ``summary.json`` holds.

    Raises:
      ValueError, FileNotFoundError: a method or a set is unknown, or tables cannot be read.
    """
    known = {OURS, *METHODS, OF_TYPES, *(PEERS if config.peers_python else ())}
    unknown = set(config.methods) - known
    if unknown:
        raise ValueError(
            f"expected methods among {', '.join(sorted(known))}, got {', '.join(sorted(unknown))};"
            f" {' and '.join(PEERS)} need --peers_python"
        )
    log = RunLog(workdir, "benchmarks.tables", config)
    done = len(read_metrics(workdir))
    log.resume_at(done - 1)
    groups: dict[str, list[int]] = {}
    for number, (set_name, task) in enumerate(tasks(config, data_dir)):
        groups.setdefault(f"{set_name}, {task.kind}", []).append(number)
        if number >= done:
            log.metrics(number, measure(set_name, task, config))
            log.print(f"        {set_name}: {task.name}")
    lines = read_metrics(workdir)
    results = {}
    for title, numbers in groups.items():
        results[title] = summarise([lines[number] for number in numbers])
        for text in _table_of(title, results[title]):
            log.print(text)
    return log.finish(results)


def main() -> None:
    preset, python = PRESETS[common.PRESET.value], _PEERS_PYTHON.value
    methods = [OURS, *METHODS, OF_TYPES]
    if python:
        methods += [name for name in PEERS if peers.has_package(python, name)]

    def chosen(flag: flags.FlagHolder[list[str]], of_all: tuple[str, ...]) -> tuple[str, ...]:
        return of_all if flag.value == ["all"] else tuple(flag.value)

    config = dataclasses.replace(
        preset,
        sets=chosen(_SETS, preset.sets),
        kinds=chosen(_KINDS, preset.kinds),
        repeats=_DRAWS.value or preset.repeats,
        methods=chosen(_METHODS, tuple(methods)),
        peers_python=python,
        seed=common.SEED.value,
    )
    run(config, common.WORKDIR.value or f"runs/tables-{config.preset}", common.DATA_DIR.value)


if __name__ == "__main__":
    common.run_main(main)
