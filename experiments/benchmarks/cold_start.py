"""The imputer with tables of features: rows and columns never seen, and what noise costs.

Claim: films without a rating are answered better from their tables than by any mean; users without
one hardly, by theirs; cells of rows and columns with ratings gain a little, and tables of noise
cost next to nothing.

    python -m experiments.benchmarks.cold_start --dataset=ml100k --data_dir=DIR \
        --row_features=users.csv --column_features=films.csv --random_splits=3 --noise_features=20

Held out are all entries of a tenth of the rows and of a tenth of the columns, and a tenth of the
others. Column means are those of what is left, of a column without entries that of all. A split
takes a minute on two cores.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np
from absl import flags

from experiments import common, shared_flags
from experiments.imputation_tasks import select
from metamf_jax.data import sources, tables
from metamf_jax.data.tables.features import read_features
from metamf_jax.imputation import completion, feature_tables, pipeline
from metamf_jax.imputation.feature_tables import SideTable
from metamf_jax.imputation.prior import load_prior
from metamf_jax.runs.run_log import RunLog
from metamf_jax.types import Entries, FeatureColumn, FeatureTable, Table

_DATASET = shared_flags.dataset()
_METHODS = shared_flags.methods()
_ROW_FEATURES = shared_flags.row_features()
_COLUMN_FEATURES = shared_flags.column_features()
_RANDOM_SPLITS = shared_flags.random_splits()
_NOISE = flags.DEFINE_integer(
    "noise_features", 0, "Also by so many random numbers of each row and column, in their place."
)

_HELD_OUT = 0.1
METHODS = "without", "features", "noise"
PARTS = "cells", "rows", "columns", "rows and columns"
_WITHIN = 1.645


@dataclasses.dataclass(frozen=True)
class Config:
    """What is compared; the names are those of the flags."""

    dataset: str
    methods: tuple[str, ...]
    row_features: str | None
    column_features: str | None
    random_splits: int
    noise_features: int


def split(entries: Entries, seed: int) -> tuple[Entries, dict[str, Entries]]:
    """What is shown, and the held-out entries of each of `PARTS`."""
    rng = np.random.default_rng(seed)
    new_rows, new_columns = (rng.random(size) < _HELD_OUT for size in entries.shape)
    of_row, of_column = new_rows[entries.rows], new_columns[entries.columns]
    seen = ~of_row & ~of_column
    cells = seen & (rng.random(len(seen)) < _HELD_OUT)
    kept = (cells, of_row & ~of_column, of_column & ~of_row, of_row & of_column)
    return select(entries, seen & ~cells), {
        name: select(entries, which) for name, which in zip(PARTS, kept, strict=True)
    }


def _given(config: Config, table: Table) -> dict[str, tuple[SideTable | None, SideTable | None]]:
    """Tables of features by the name of what uses them."""

    def read(path: str | None, side: str, ids: np.ndarray) -> SideTable | None:
        if path is None:
            return None
        told = read_features(path, side)
        return SideTable(told, tables.positions(ids, told.ids))

    of_user = (
        read(config.row_features, "row", table.row_ids),
        read(config.column_features, "column", table.column_ids),
    )
    found: dict[str, tuple[SideTable | None, SideTable | None]] = {"without": (None, None)}
    if of_user != (None, None):
        found["features"] = of_user
    if config.noise_features:
        rows, columns = (_noise(config.noise_features, size) for size in table.entries.shape)
        found["noise"] = rows, columns
    return {name: sides for name, sides in found.items() if name in config.methods}


def _noise(width: int, size: int) -> SideTable:
    values = np.random.default_rng(size).standard_normal((width, size))
    columns = tuple(FeatureColumn(str(n), "number", x) for n, x in enumerate(values))
    return SideTable(FeatureTable("noise", np.arange(size), columns), np.arange(size))


def _column_means(train: Entries, test: Entries) -> np.ndarray:
    counts = np.bincount(train.columns, minlength=train.shape[1])
    sums = np.bincount(train.columns, train.values, train.shape[1])
    means = np.where(counts > 0, sums / np.maximum(counts, 1), np.mean(train.values))
    return means[test.columns]


def _rmse(found: np.ndarray, test: Entries) -> float:
    return float(np.sqrt(((found - test.values) ** 2).mean(dtype=np.float64)))


def run(
    config: Config, workdir: str | pathlib.Path | None = None, data_dir: str | None = None
) -> dict[str, Any]:
    """Imputes each split by each method, prints errors as they come, and then their means.

    Raises:
      ValueError: an unknown method, or data or features that cannot be read or used.
    """
    unknown = set(config.methods) - set(METHODS)
    if unknown:
        raise ValueError(f"unknown methods {sorted(unknown)}; there are {', '.join(METHODS)}")
    log = RunLog(workdir, "benchmarks.cold_start", config) if workdir else None
    table = sources.load(config.dataset, data_dir)
    prior, given = load_prior("general"), _given(config, table)
    found: dict[str, dict[str, list[float]]] = {}
    for seed in range(config.random_splits):
        train, held = split(table.entries, seed)
        for part, test in held.items():
            by_means = found.setdefault("column means", {}).setdefault(part, [])
            by_means.append(_rmse(_column_means(train, test), test))
        for name, sides in given.items():
            coded = feature_tables.coded(*sides, train.shape)
            fitted = pipeline.complete(prior, train, given=coded)
            line = f"{seed} {name:<12}"
            for part, test in held.items():
                values, errors = completion.predict(
                    fitted, np.asarray(test.rows), np.asarray(test.columns)
                )
                found.setdefault(name, {}).setdefault(part, []).append(_rmse(values, test))
                inside = (np.abs(values - test.values) <= _WITHIN * errors).mean()
                line += f"  {part} {found[name][part][-1]:.4f} ({inside:.1%} in 90%)"
            print(line, flush=True)
    means = {
        name: {part: float(np.mean(errors)) for part, errors in of_method.items()}
        for name, of_method in found.items()
    }
    for name, of_method in means.items():
        listed = "  ".join(f"{part} {error:.4f}" for part, error in of_method.items())
        print(f"mean {name:<12}  {listed}")
    results = {"rmse": found, "means": means}
    if log:
        log.finish(results)
    return results


def main() -> None:
    config = Config(
        dataset=_DATASET.value,
        methods=METHODS if _METHODS.value == ["all"] else tuple(_METHODS.value),
        row_features=_ROW_FEATURES.value,
        column_features=_COLUMN_FEATURES.value,
        random_splits=_RANDOM_SPLITS.value,
        noise_features=_NOISE.value,
    )
    run(config, common.WORKDIR.value, common.DATA_DIR.value)


if __name__ == "__main__":
    common.run_main(main)
