"""Matrices with removed cells, and what the benchmarks of imputers say of them in common."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from metamf_jax.imputation import scaling
from metamf_jax.types import Entries

# Imputers of dense matrices are left out above it: scikit-learn's would take minutes to hours.
MOST_DENSE_CELLS = 2 * 10**5


class Task(NamedTuple):
    """A matrix with removed cells; tasks of one name are repeats.

    Attributes:
      name: of the task.
      kind: of the matrix, or of how its cells went missing.
      train: the cells that are left.
      test: the removed ones.
      units: [M], what divides errors.
      published: errors of others, as they were published or of answers that were, by their names.
      categories: [M], of a column of zeros and ones the number of the category that it is a level
        of, -1 of numbers; None if there are numbers alone. All levels are missing together.
    """

    name: str
    kind: str
    train: Entries
    test: Entries
    units: np.ndarray
    published: Mapping[str, float] = {}
    categories: np.ndarray | None = None


# Predictions [Q] at the test's cells, from the training cells and a setting.
Predict = Callable[[Entries, Entries, dict[str, Any]], np.ndarray]


def remove(values: np.ndarray, missing: np.ndarray) -> tuple[Entries, Entries]:
    """The cells of a matrix [N, M] that are left and those that are missing, row by row."""

    def listed(where: np.ndarray) -> Entries:
        rows, columns = np.nonzero(where)
        shape = values.shape[0], values.shape[1]
        return Entries(
            rows.astype(np.int32), columns.astype(np.int32), values[rows, columns], shape
        )

    return listed(~missing), listed(missing)


def select(entries: Entries, which: np.ndarray | slice) -> Entries:
    """Some of the entries, by a mask [E], numbers or a slice."""
    rows, columns, values = (
        np.asarray(x)[which] for x in (entries.rows, entries.columns, entries.values)
    )
    return Entries(rows, columns, values, entries.shape)


def hold_out(rng: np.random.Generator, entries: Entries, count: int) -> tuple[Entries, Entries]:
    """(kept, held out) entries, of which so many are held out at random, at least one."""
    held = rng.permutation(len(entries.rows)) < max(1, count)
    return select(entries, ~held), select(entries, held)


def deviations(values: np.ndarray) -> np.ndarray:
    """Of the columns of a matrix [N, M]; 1 for constant ones."""
    found = values.std(axis=0)
    return np.where(found > 0, found, 1)


def column_mean(train: Entries, test: Entries, setting: dict[str, Any]) -> np.ndarray:
    """Of the training cells of each test cell's column, of all where it has none."""
    del setting
    sums = np.bincount(train.columns, train.values, train.shape[1])
    counts = np.bincount(train.columns, minlength=train.shape[1])
    means = np.where(counts > 0, sums / np.maximum(counts, 1), train.values.mean())
    return means[test.columns]


def standardised(predict: Predict) -> Predict:
    """A baseline of `metamf_jax.baselines` on values standardised as the setting says."""

    def of_values(train, test, setting):
        setting = dict(setting)
        fitted = scaling.fit_scaling(train, setting.pop("standardize"))
        answer = predict(scaling.standardize(train, fitted), test, setting)
        return fitted.centers[test.columns] + fitted.scales[test.columns] * answer

    return of_values
