"""Prints what real rating sets and the synthetic worlds of ratings are like, side by side.

Claim: but for two numbers of FilmTrust, the ranges of `metamf_jax.data.rating_worlds` cover what
five rating sets show. They were set by these numbers, not by errors of imputation.

    python -m experiments.rating_statistics --preset=paper --data_dir=DIR --workdir=runs/statistics

Each number is of one cut, a matrix of so many rows and columns, drawn uniformly or the likelier the
more ratings they have; of a set it is the mean over cuts, of the synthetic worlds the 5%, 50% and
95% quantiles over worlds.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.special
import scipy.stats

from experiments import common, shared_flags
from experiments.rating_cuts import RATING_SETS, rating_cut, rating_set
from metamf_jax.data.rating_worlds import draw_world
from metamf_jax.runs.run_log import RunLog
from metamf_jax.types import Entries

_SETS = shared_flags.rating_sets()

# Rows and columns with fewer ratings say little of their own mean and spread.
_FEWEST = 8
_SHRINKAGE, _SWEEPS = 3.0, 10
# Sides of a world, in sides of its cut.
_WORLD = 3


@dataclasses.dataclass(frozen=True)
class Config:
    """Which cuts: their side, how many of each set, how many worlds; uniform or popular."""

    preset: str
    sets: tuple[str, ...]
    side: int
    cuts: int
    worlds: int
    seed: int = 0


PRESETS = {
    "smoke": Config("smoke", (), 40, 1, 2),
    "tiny": Config("tiny", (), 200, 2, 20),
    "paper": Config("paper", (), 300, 4, 100),
}
PRESETS["best"] = dataclasses.replace(PRESETS["paper"], preset="best", worlds=400)


def statistics(entries: Entries) -> dict[str, float]:
    """What a rating matrix is like.

    * ``observed``: share of its cells. ``row_counts``, ``column_counts``: deviation of their logs.
    * ``columns``, ``rows``: shares of the variance between them, from products of two cells of one
      column (row). ``interaction``: the same from products of four cells at the corners of
      rectangles, of what a bias model leaves over; the root of the sum of the squared shares of
      factors, so that it is the share itself where there is one factor.
    * ``popular_liked``, ``active_like``: correlation of log counts with means, columns and rows.
    * ``levels``, ``mode``: number, share of the commonest. ``skew``: of the values.
    * ``row_mode``: mean share of a row's own commonest value.
    * ``row_noise``, ``column_noise``: deviation of the log variance of what a bias model leaves
      over in a row (column), beyond what chance gives of so few.
    * ``tastes_seen``: correlation over pairs of rows of agreement in what is rated with agreement
      in how, both beyond counts and effects.
    """
    rows, columns = np.asarray(entries.rows), np.asarray(entries.columns)
    values = np.asarray(entries.values, np.float64)
    x = (values - values.mean()) / values.std()
    row_counts, column_counts = (
        np.bincount(side, minlength=size)
        for side, size in zip((rows, columns), entries.shape, strict=True)
    )
    left = _beyond_effects(x, rows, columns, row_counts, column_counts)
    _, level_counts = np.unique(values, return_counts=True)
    matrix, observed = np.zeros(entries.shape), np.zeros(entries.shape)
    matrix[rows, columns], observed[rows, columns] = left, 1
    return {
        "observed": len(x) / np.prod(entries.shape),
        "row_counts": float(np.log(row_counts[row_counts > 0]).std()),
        "column_counts": float(np.log(column_counts[column_counts > 0]).std()),
        "columns": _shared(x, columns, column_counts),
        "rows": _shared(x, rows, row_counts),
        "interaction": _of_rectangles(matrix, observed),
        "popular_liked": _counts_and_means(x, columns, column_counts),
        "active_like": _counts_and_means(x, rows, row_counts),
        "levels": len(level_counts),
        "mode": level_counts.max() / len(x),
        "skew": float(scipy.stats.skew(x)),
        "row_mode": _own_mode(values, rows, row_counts),
        "row_noise": _noise_spread(left, rows, row_counts),
        "column_noise": _noise_spread(left, columns, column_counts),
        "tastes_seen": _tastes_seen(matrix, observed),
    }


def _beyond_effects(x, rows, columns, row_counts, column_counts) -> np.ndarray:
    """What shrunken effects of rows and columns leave over."""
    of_rows, of_columns = np.zeros(len(row_counts)), np.zeros(len(column_counts))
    for _ in range(_SWEEPS):
        of_rows = np.bincount(rows, x - of_columns[columns], len(of_rows))
        of_rows /= row_counts + _SHRINKAGE
        of_columns = np.bincount(columns, x - of_rows[rows], len(of_columns))
        of_columns /= column_counts + _SHRINKAGE
    return x - of_rows[rows] - of_columns[columns]


def _shared(x: np.ndarray, groups: np.ndarray, counts: np.ndarray) -> float:
    """Mean product of two cells of one group; groups weigh as they have cells."""
    sums, squares = np.bincount(groups, x, len(counts)), np.bincount(groups, x**2, len(counts))
    many = counts > 1
    products = (sums**2 - squares)[many] / (counts[many] - 1)
    return float(products.sum() / counts[many].sum())


def _of_rectangles(matrix: np.ndarray, observed: np.ndarray) -> float:
    """Root of the mean product over rectangles of four observed cells; its sign is kept."""

    def over_pairs(x):
        product = (x @ x.T) ** 2 - (x**2) @ (x**2).T
        return product.sum() - np.trace(product)

    mean = over_pairs(matrix) / max(over_pairs(observed), 1)
    return float(np.sign(mean) * np.sqrt(abs(mean)))


def _counts_and_means(x: np.ndarray, groups: np.ndarray, counts: np.ndarray) -> float:
    often = counts >= _FEWEST
    means = np.bincount(groups, x, len(counts))[often] / counts[often]
    return _correlation(np.log(counts[often]), means)


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    if len(x) < 3 or x.std() == 0 or y.std() == 0:
        return np.nan
    return float(np.corrcoef(x, y)[0, 1])


def _own_mode(values: np.ndarray, groups: np.ndarray, counts: np.ndarray) -> float:
    levels, level = np.unique(values, return_inverse=True)
    table = np.zeros((len(counts), len(levels)))
    np.add.at(table, (groups, level), 1)
    often = counts >= _FEWEST
    return float((table.max(axis=1)[often] / counts[often]).mean()) if often.any() else np.nan


def _noise_spread(left: np.ndarray, groups: np.ndarray, counts: np.ndarray) -> float:
    often = counts >= _FEWEST
    if often.sum() < 3:
        return np.nan
    degrees = counts[often] - 1.0
    sums, squares = np.bincount(groups, left, len(counts)), np.bincount(groups, left**2)
    squares = np.pad(squares, (0, len(counts) - len(squares)))
    variances = (squares - sums**2 / np.maximum(counts, 1))[often] / degrees
    logs = np.log(np.maximum(variances, 1e-3)) - scipy.special.digamma(degrees / 2)
    logs = logs + np.log(degrees / 2)
    beyond = logs.var() - scipy.special.polygamma(1, degrees / 2).mean()
    return float(np.sqrt(max(beyond, 0)))


def _tastes_seen(matrix: np.ndarray, observed: np.ndarray) -> float:
    expected = observed.sum(axis=1)[:, None] * observed.sum(axis=0) / observed.sum()
    pattern = (observed - expected) / np.sqrt(np.maximum(expected, 1e-9))
    both = observed @ observed.T
    pairs = np.triu(both >= _FEWEST, 1)
    agree = (matrix @ matrix.T)[pairs] / np.sqrt(both[pairs])
    length = np.sqrt((pattern**2).sum(axis=1))
    alike = (pattern @ pattern.T / np.outer(length, length).clip(1e-9))[pairs]
    return _correlation(agree, alike)


def run(config: Config, workdir: str | os.PathLike, data_dir: str | None = None) -> dict[str, Any]:
    """Measures, prints a table for each way of cutting; returns what ``summary.json`` holds."""
    log = RunLog(workdir, "rating_statistics", config)
    results: dict[str, Any] = {}
    for way in ("uniform", "popular"):
        table = {}
        for name in config.sets:
            entries = rating_set(name, data_dir)
            found = []
            for i in range(config.cuts):
                rng = np.random.default_rng([config.seed, i])
                found.append(statistics(rating_cut(rng, entries, config.side, way == "popular")))
            table[name] = _over(found, lambda x: float(x.mean()))
        drawn = []
        for i in range(config.worlds):
            rng = np.random.default_rng([config.seed, i])
            world = draw_world(rng, (_WORLD * config.side, _WORLD * config.side))
            drawn.append(statistics(rating_cut(rng, world, config.side, way == "popular")))
        for quantile in (0.05, 0.5, 0.95):
            table[f"synthetic {quantile:.0%}"] = _over(
                drawn, lambda x, q=quantile: float(np.quantile(x, q))
            )
        results[way] = table
        log.print(f"{way} cuts of {config.side} x {config.side}")
        log.print(_written(table))
    return log.finish(results)


def _over(
    found: list[dict[str, float]], summary: Callable[[np.ndarray], float]
) -> dict[str, float]:
    """Of each statistic, over the cuts that have it."""
    told = {}
    for name in found[0]:
        values = np.array([each[name] for each in found])
        values = values[np.isfinite(values)]
        told[name] = summary(values) if len(values) else np.nan
    return told


def _written(table: dict[str, dict[str, float]]) -> str:
    names = list(table)
    lines = ["| | " + " | ".join(names) + " |", "| --- " * (len(names) + 1) + "|"]
    for statistic in table[names[0]]:
        cells = (f"{table[name][statistic]:.2f}" for name in names)
        lines.append(f"| {statistic} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    sets = tuple(_SETS.value or RATING_SETS)
    config = dataclasses.replace(PRESETS[common.PRESET.value], sets=sets, seed=common.SEED.value)
    workdir = common.WORKDIR.value or f"runs/statistics-{config.preset}"
    run(config, workdir, common.DATA_DIR.value)


if __name__ == "__main__":
    common.run_main(main)
