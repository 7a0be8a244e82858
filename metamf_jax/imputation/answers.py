"""What is said of the cells of a table: by its own fit, or as further rows of a fitted matrix."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from metamf_jax.imputation import completion, fold_in, quantiles
from metamf_jax.imputation.completion import Completion


class Answers(Protocol):
    """Values and standard errors of the cells of a table with N rows and M columns."""

    def cells(self, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """At cells ``(rows, columns)``, each [P]; float64 [P], twice."""
        ...

    def rows(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Of all cells of rows ``first .. last - 1``; float64 [last - first, M], twice."""
        ...

    def quantiles(
        self, rows: np.ndarray, columns: np.ndarray, probabilities: Sequence[float]
    ) -> np.ndarray:
        """At cells, [Q, P]; see `quantiles.of_cells`."""
        ...

    def impute(self, imputations: int, seed: int) -> list[np.ndarray]:
        """The table completed so many times, [N, M] each; see `fold_in.impute`."""
        ...


@dataclasses.dataclass(frozen=True)
class OfFitted:
    """`Answers` of the fitted matrix itself."""

    completion: Completion

    def cells(self, rows, columns):
        return completion.predict(self.completion, rows, columns)

    def rows(self, first, last):
        return completion.predict_rows(self.completion, first, last)

    def quantiles(self, rows, columns, probabilities):
        return quantiles.of_cells(self.completion, rows, columns, probabilities)

    def impute(self, imputations, seed):
        cells = self.completion.entries
        values = np.full(cells.shape, np.nan)
        values[cells.rows, cells.columns] = cells.values
        features, drawn = None, self.completion.sampled
        if drawn is not None and drawn.given is not None:
            features = drawn.given[0].features
        observed = ~np.isnan(values)
        return fold_in.impute(self.completion, values, observed, imputations, seed, features)


@dataclasses.dataclass(frozen=True)
class OfFurtherRows:
    """`Answers` of rows over the columns of a fitted matrix; from `of_further_rows`.

    Attributes:
      completion: of the fitted matrix, with M' columns.
      known: [N, M'], NaN at missing cells.
      columns: [M], which of the fitted ones the table has.
      values: [N, M'], those known among them.
      errors: [N, M'], zero at these.
      features: [N, F] of the rows, where such are used.
    """

    completion: Completion
    known: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    errors: np.ndarray
    features: np.ndarray | None

    def cells(self, rows, columns):
        at = rows, self.columns[columns]
        return self.values[at], self.errors[at]

    def rows(self, first, last):
        part = slice(first, last)
        return self.values[part][:, self.columns], self.errors[part][:, self.columns]

    def quantiles(self, rows, columns, probabilities):
        asked, places = np.unique(rows, return_inverse=True)
        known, columns = self.known[asked], self.columns[columns]
        features = None if self.features is None else self.features[asked]
        found = quantiles.of_rows(self.completion, known, ~np.isnan(known), probabilities, features)
        own = known[places, columns]
        return np.where(np.isnan(own), found[:, places, columns], own)

    def impute(self, imputations, seed):
        observed = ~np.isnan(self.known)
        several = fold_in.impute(
            self.completion, self.known, observed, imputations, seed, self.features
        )
        return [each[:, self.columns] for each in several]


def of_further_rows(
    completed: Completion,
    known: np.ndarray,
    columns: np.ndarray,
    features: np.ndarray | None = None,
) -> OfFurtherRows:
    """Folds rows into a fitted matrix.

    Args:
      completed: the fitted matrix, with M' columns.
      known: [N, M'] float64, NaN at missing cells; a row with the cells of a fitted one is answered
        as that.
      columns: [M], which of the fitted columns are asked for.
      features: [N, F] of the rows; see `fold_in.fold_in_rows`.
    """
    observed = ~np.isnan(known)
    values, errors = fold_in.fold_in_rows(completed, known, observed, features)
    return OfFurtherRows(
        completed,
        known,
        columns,
        np.where(observed, known, values),
        np.where(observed, 0, errors),
        features,
    )
