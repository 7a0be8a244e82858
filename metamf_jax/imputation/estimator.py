"""`MetaMFImputer`, the scikit-learn shell around `metamf_jax.imputation.pipeline`."""

import numbers
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.impute import MissingIndicator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from metamf_jax.imputation import bounds as bounds_of_values
from metamf_jax.imputation import (
    completion,
    feature_tables,
    fit_file,
    fold_in,
    frames,
    mixed,
    pipeline,
    typed,
    update,
)
from metamf_jax.imputation import quantiles as of_quantiles
from metamf_jax.imputation.completion import Completion
from metamf_jax.imputation.declared import Types
from metamf_jax.imputation.feature_tables import Names, SideTable
from metamf_jax.imputation.fit_file import NamedCompletion
from metamf_jax.imputation.mixed import Mixed
from metamf_jax.imputation.prior import load_prior
from metamf_jax.imputation.scaling import STANDARDIZATIONS, Bounds
from metamf_jax.types import Entries

# A dense answer of more cells would fill the memory: 10^8 take 0.8 GB.
_MOST_CELLS = 10**8
_DENSE = "{method} of a sparse matrix would be dense: use transform or {method}(rows, columns)"

_AS_COLUMNS = (
    "a frame of typed columns was given; what is known of its rows can be further columns of it"
)
_AS_ROWS = "cells were asked for by number; give the rows that the features are of as X"


def _require_few_cells(shape: tuple[int, int]) -> None:
    if shape[0] * shape[1] > _MOST_CELLS:
        raise ValueError(
            f"the completed matrix {shape[0]} x {shape[1]} would have more than {_MOST_CELLS} "
            "cells; ask for those that you need: predict(rows, columns)"
        )


def _row_names(X: Any, count: int) -> Names:
    """What the rows of a matrix are called: as a frame of pandas has it, else by number."""
    index = frames.index(X) if frames.is_frame(X) else None
    return Names(range(count), False) if index is None else Names(index, True)


def _require_no_features(*given: Any, remedy: str = _AS_COLUMNS) -> None:
    if any(each is not None for each in given):
        raise ValueError(f"features of rows and columns are not used here: {remedy}")


def _is_none(value: Any) -> bool:
    """Whether it is None or `pandas.NA`, which is not imported for that."""
    return value is None or type(value).__name__ == "NAType"


class MetaMFImputer(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Imputes missing values from priors learned on other matrices; nothing is trained.

    Rows and columns are treated alike, as those of a matrix that is a low-rank one, row and column
    effects, and noise, more or less. Values may be of any scale; columns of different units are
    found out and standardised each by itself.

        completed = MetaMFImputer().fit_transform(X)
        values, errors = MetaMFImputer().fit(X).transform(X, return_std=True)
        low, high = MetaMFImputer().fit(X).predict_quantiles(X, quantiles=(0.05, 0.95))

    A data frame may hold text, categories, dates and whole numbers, too:

        completed = MetaMFImputer(types={"age": "integer"}).fit_transform(frame)

    Then columns keep their types, one joint model of all columns answers
    (`metamf_jax.imputation.mixed`), and frames come back where matrices are spoken of below: of
    pandas, polars or pyarrow. Frames of numbers alone are matrices, unless ``types`` are given.

    Further rows are folded in by `transform`. The columns are those of `fit`, as everywhere in
    scikit-learn; a further one is folded in, without a fit, by
    `metamf_jax.imputation.fold_in.fold_in_columns`. To `predict`, row and column numbers beyond
    those of `fit` stand for rows and columns of which nothing is known.

    What is known of rows and columns beside a sparse matrix of one unit, such as ratings, goes in
    as tables of numbers, categories and labels (`metamf_jax.imputation.feature_tables`), and
    answers for rows and columns without any cell:

        imputer = MetaMFImputer().fit(ratings, row_features=users, column_features=films)
        completed = imputer.transform(new_users_ratings, row_features=new_users)

    They are arguments of `fit`, not of the constructor, since they belong to the data as sample
    weights do: ``row_features`` go where X goes, by ``set_fit_request`` and
    ``set_transform_request`` through pipelines.

    Error bars are measured on held-out observed cells, so they hold for cells that are missing for
    reasons that have nothing to do with their own values.

    Args:
      weights: the learned prior, a name or a path as `metamf_jax.imputation.prior.load_prior` takes
        it.
      standardize: ``auto``, ``matrix`` (one unit for all cells), ``columns`` (each its own) or
        ``rows`` (each its own, as of a sensor with its readings in a row).
      missing: why cells are missing: ``at_random``, for whatever else is observed, or ``by_value``,
        for what they would say. The latter moves and doubts what is imputed, as far as a narrow
        table shows that large values, or small ones, are the likelier to be missing
        (`metamf_jax.imputation.row_gaussian.missing_by_value`). It is off by default because
        observed cells cannot tell the two apart for sure: of 24 tables whose cells were missing by
        other columns it made 11 worse and 2 better (``experiments/RESULTS.md``).
      missing_values: what stands for a missing value in dense input: NaN, a number, None or
        ``pandas.NA``. In sparse input the entries that are not stored are missing.
      add_indicator: whether `transform` appends a column of zeros and ones for each column that had
        missing cells in `fit`, as `sklearn.impute.MissingIndicator` has them.
      keep_empty_features: whether `transform` keeps columns without any cell in `fit`, by what the
        others say of them; else they are left out.
      types: of the columns of a data frame, by their names: numeric, integer, binary, ordinal or
        nominal (`metamf_jax.imputation.columns`), or with more that is known of them, such as
        ``{"type": "integer", "low": 0, "high": 120}`` and ``{"type": "ordinal", "levels": ["low",
        "high"]}`` (`metamf_jax.imputation.declared`); what is not said is found out. ``auto`` finds
        out all; so does None where a frame holds more than numbers.
      bounds: of the values of a matrix, a pair (low, high), or such pairs by the numbers or names
        of columns (`metamf_jax.imputation.bounds`): all answers are within.
      copy: whether `transform` leaves a dense array as it is; else it may fill that in.
      random_state: seed of the held-out check on observed cells, which weights the candidates
        and scales the error bars; an integer, None (0), or a ``numpy.random.RandomState``.

    Attributes:
      completion_: the fitted `metamf_jax.imputation.completion.Completion`; of a matrix.
      mixed_: the fitted `metamf_jax.imputation.mixed.Mixed`; of a frame of typed columns.
      check_: what was found on held-out cells, a `metamf_jax.imputation.held_out.Check`.
      indicator_: a `sklearn.impute.MissingIndicator`, or None.
      n_features_in_, feature_names_in_: as everywhere in scikit-learn.
    """

    def __init__(
        self,
        *,
        weights: str | os.PathLike = "general",
        standardize: str = "auto",
        missing: str = "at_random",
        missing_values: Any = np.nan,
        random_state: Any = None,
        add_indicator: bool = False,
        keep_empty_features: bool = False,
        types: Types | str | None = None,
        bounds: bounds_of_values.Declared | None = None,
        copy: bool = True,
    ):
        self.weights = weights
        self.standardize = standardize
        self.missing = missing
        self.missing_values = missing_values
        self.random_state = random_state
        self.add_indicator = add_indicator
        self.keep_empty_features = keep_empty_features
        self.types = types
        self.bounds = bounds
        self.copy = copy

    def fit(
        self, X: Any, y: Any = None, row_features: Any = None, column_features: Any = None
    ) -> "MetaMFImputer":
        """Completes the matrix X.

        Args:
          X: [N, M] array or data frame with missing values, a scipy.sparse matrix whose stored
            entries are the observed ones, or `metamf_jax.types.Entries`.
          y: not used.
          row_features: what is known of rows: a data frame of pandas, polars or pyarrow with a line
            for each id, those of X's index, else row numbers, in the frame's index or its column
            ``id``; or without ids, or an array of numbers, a line for each row. See
            `metamf_jax.imputation.feature_tables`.
          column_features: the same of columns, whose ids are their names, else their numbers.

        Raises:
          ValueError: X has no observed cell or an infinite one; an array has text; or see
            `metamf_jax.imputation.typed.fit`. Features of a frame of typed columns, or of a matrix
            that is not answered by draws; and what they lack.
        """
        for fitted in ("completion_", "mixed_", "check_", "feature_names_in_"):
            vars(self).pop(fitted, None)
        if typed.suits(X, self.types):
            if self.bounds is not None:
                raise ValueError(
                    "bounds are those of a matrix; of a frame of typed columns give them by types, "
                    'such as {"age": {"low": 0, "high": 120}}'
                )
            _require_no_features(row_features, column_features)
            return self._take_typed(typed.fit(X, self.types, self._seed()))
        if self.standardize not in ("auto", *STANDARDIZATIONS):
            raise ValueError(
                f"standardize must be auto, {', '.join(STANDARDIZATIONS[:-1])} or "
                f"{STANDARDIZATIONS[-1]}, got {self.standardize!r}"
            )
        if self.missing not in pipeline.MISSING:
            raise ValueError(
                f"missing must be {' or '.join(pipeline.MISSING)}, got {self.missing!r}"
            )
        prior, entries = load_prior(self.weights), self._entries(X)
        bounds_of_values.require_within(self._limits, entries)
        given = feature_tables.coded(
            feature_tables.read(row_features, _row_names(X, entries.shape[0]), "row"),
            feature_tables.read(column_features, self._column_names(), "column"),
            entries.shape,
        )
        return self._take(pipeline.complete(prior, entries, given=given, **self._options()))

    def fit_transform(
        self, X: Any, y: Any = None, row_features: Any = None, column_features: Any = None
    ) -> Any:
        """`fit`, then `transform` with the same features of rows."""
        fitted = self.fit(X, y, row_features=row_features, column_features=column_features)
        return fitted.transform(X, row_features=row_features)

    def _column_names(self) -> Names:
        names = getattr(self, "feature_names_in_", None)
        if names is None:
            return Names(range(self.n_features_in_), False)
        return Names(names, True)

    def partial_fit(self, X: Any, y: Any = None, row_features: Any = None) -> "MetaMFImputer":
        """Appends the rows of X to the fitted matrix, as its rows N, N + 1 and so on; see `update`.

        Where nothing was fitted, as `fit`. A frame of typed columns is fitted anew with its former
        rows, which the fit keeps. There a further level of a category, or of numbers, is one more,
        unless levels were declared.

        Args:
          X: as for `fit`, with the same columns.
          y: not used.
          row_features: of the rows of X, as for `fit`, if that had such.

        Raises:
          ValueError: X has other columns, an infinite cell, or one that was not declared.
        """
        if not (hasattr(self, "completion_") or self._is_typed):
            return self.fit(X, row_features=row_features)
        if self._is_typed:
            _require_no_features(row_features)
            return self._take_typed(typed.grow(self.mixed_, X, self.types, self._seed()))
        further, shape = self._entries(X, reset=False), self.completion_.shape
        rows = further.rows + np.int32(shape[0])
        both = shape[0] + further.shape[0], shape[1]
        told = feature_tables.read(row_features, _row_names(X, further.shape[0]), "row")
        cells = Entries(rows, further.columns, further.values, both)
        return self._update(cells, (told, None))

    def update(
        self,
        entries: Entries,
        feature_names: Sequence[str] = (),
        row_features: Any = None,
        column_features: Any = None,
    ) -> "MetaMFImputer":
        """Adds cells to the fitted matrix, in rows and columns that it has and in further ones.

        Where draws of the posterior answer too (``completion_.sampled`` is not None), their chains
        go on from their last states, 60 sweeps each where `fit` makes 80 and 90 more for the
        held-out check; their share and the error bars that this found stand, so `fit` anew from
        time to time. Else, and where the matrix grows by more than half, it is completed anew, as
        by `fit` of all its cells.

        Args:
          entries: cells, NumPy arrays, new ones or such as replace fitted ones. Rows and columns
            keep their numbers, further ones have those from N and M on; the shape is (N', M') after
            the update.
          feature_names: of the further columns, where the fitted ones have names.

        Raises:
          ValueError: a smaller shape, a cell twice or not finite, another number of names, or a
            frame of typed columns was fitted, whose cells are not all numbers: its further rows are
            for `partial_fit`.
        """
        self._require_matrix("update", ": give whole rows to partial_fit, or fit the frame anew")
        names = getattr(self, "feature_names_in_", None)
        more = entries.shape[1] - self.completion_.shape[1]
        if len(feature_names) != (0 if names is None else max(more, 0)):
            raise ValueError(
                f"expected names of {0 if names is None else more} further columns, got "
                f"{len(feature_names)}"
            )
        fitted = self.completion_.shape
        rows = Names(range(fitted[0], entries.shape[0]), True)
        columns = Names(feature_names or range(fitted[1], entries.shape[1]), True)
        told = (
            feature_tables.read(row_features, rows, "row"),
            feature_tables.read(column_features, columns, "column"),
        )
        self._update(entries, told)
        self.n_features_in_ = entries.shape[1]
        if names is not None:
            vars(self)["feature_names_in_"] = np.append(names, np.array(feature_names, object))
        return self

    def _update(
        self, entries: Entries, tables: tuple[SideTable | None, SideTable | None]
    ) -> "MetaMFImputer":
        bounds_of_values.require_within(self._limits, entries)
        options = self._options()
        return self._take(update.update(self.completion_, entries, tables=tables, **options))

    def _take(self, completed: Completion) -> "MetaMFImputer":
        """What is fitted."""
        self.completion_, self.check_ = completed, completed.check
        missing = None
        if self.add_indicator:
            entries = completed.entries
            _require_few_cells(entries.shape)
            missing = np.ones(entries.shape, bool)
            missing[entries.rows, entries.columns] = False
        self._fit_indicator(missing)
        return self

    def _take_typed(self, fitted: Mixed) -> "MetaMFImputer":
        """What is fitted, of a frame."""
        self.mixed_ = fitted
        names = [column.name for column in fitted.columns]
        self.n_features_in_ = len(names)
        if all(isinstance(name, str) for name in names):
            vars(self)["feature_names_in_"] = np.array(names, object)
        self._fit_indicator(np.isnan(fitted.values))
        return self

    def _fit_indicator(self, missing: np.ndarray | None) -> None:
        self.indicator_ = None
        if self.add_indicator and missing is not None:
            shown = np.where(missing, np.nan, 0)
            self.indicator_ = MissingIndicator(error_on_new=False).fit(shown)

    def transform(self, X: Any, return_std: bool = False, row_features: Any = None) -> Any:
        """X with its missing cells imputed; observed cells come back as they are.

        Each row is folded in by itself, given what was fitted of the columns.

        Args:
          X: as for `fit`, with the same columns; its rows may be others.
          return_std: whether to give standard errors too, zero at observed cells: an imputed value
            lies within 1.645 of them in nine of ten cases.
          row_features: of the rows of X, as for `fit`. Without them a row that has no cells is
            answered as one of which nothing is known, also if it was fitted.

        Returns:
          The completed matrix [N', M], of X's floating dtype, less empty columns and with those of
          the indicator; or (matrix, standard errors [N', M] less empty columns).
        """
        if self._is_typed:
            _require_no_features(row_features)
            return self._transform_typed(X, return_std)
        values, observed = self._checked(X, self.copy)
        features = self._features_of(X, len(values), row_features)
        fitted, errors = fold_in.fold_in_rows(self.completion_, values, observed, features)
        fitted = bounds_of_values.clip(fitted.astype(values.dtype), self._limits)
        np.copyto(values, fitted, where=~observed)
        completed = values if self._kept.all() else values[:, self._kept]
        if self.indicator_ is not None:
            shown = self.indicator_.transform(np.where(observed, 0, np.nan))
            completed = np.hstack([completed, shown.astype(values.dtype)])
        if return_std:
            return completed, np.where(observed, 0, errors).astype(values.dtype)[:, self._kept]
        return completed

    def _transform_typed(self, frame: Any, return_std: bool) -> Any:
        found, errors = typed.complete(self.mixed_, frame)
        found = frames.select(found, self._kept)
        if self.indicator_ is not None:
            missing = np.isnan(frames.encode(frame, self.mixed_.columns))
            shown = np.asarray(self.indicator_.transform(np.where(missing, np.nan, 0)))
            names = list(self.get_feature_names_out()[int(self._kept.sum()) :])
            found = frames.append(found, names, shown)
        return (found, errors[:, self._kept]) if return_std else found

    def predict_chances(self, X: Any) -> dict[str, dict[Any, np.ndarray]]:
        """How likely the levels of columns are that are no numbers; of a frame of typed columns.

        Args:
          X: as for `transform`.

        Returns:
          By column and level the probabilities [N'], 0 or 1 where the cell is observed.

        Raises:
          ValueError: a matrix was fitted.
        """
        check_is_fitted(self)
        if not self._is_typed:
            raise ValueError("chances are those of levels, but a matrix of numbers was fitted")
        return typed.chances(self.mixed_, X)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the columns that `transform` gives."""
        check_is_fitted(self)
        every = np.asarray(super().get_feature_names_out(input_features), object)
        if self.indicator_ is None:
            return every[self._kept]
        return np.append(every[self._kept], self.indicator_.get_feature_names_out(every))

    @property
    def _kept(self) -> np.ndarray:
        """Which columns `transform` gives; bool [M]."""
        if self._is_typed:
            empty = [mixed.is_empty(margin) for margin in self.mixed_.margins]
            return ~np.array(empty) | self.keep_empty_features
        entries = self.completion_.entries
        kept = np.full(entries.shape[1], self.keep_empty_features)
        kept[entries.columns] = True
        return kept

    @property
    def _limits(self) -> Bounds:
        """Of the columns of a matrix, as they were declared."""
        names = getattr(self, "feature_names_in_", None)
        return bounds_of_values.of_columns(self.bounds, self.n_features_in_, names)

    @property
    def _is_typed(self) -> bool:
        """Whether a frame of typed columns was fitted."""
        return hasattr(self, "mixed_")

    def _require_matrix(self, asked: str, instead: str = "") -> None:
        check_is_fitted(self)
        if self._is_typed:
            raise ValueError(
                f"{asked} is of matrices of numbers, but a frame of typed columns was fitted"
                f"{instead}"
            )

    def _features_of(self, X: Any, count: int, row_features: Any) -> np.ndarray | None:
        """Features [N', F] of the rows of X, so many; None without."""
        told = feature_tables.read(row_features, _row_names(X, count), "row")
        return feature_tables.of_further(self.completion_.features, 0, told)

    def predict(
        self, rows: Any, columns: Any = None, return_std: bool = False, row_features: Any = None
    ) -> Any:
        """Values at cells of the fitted matrix, observed or not, and of unknown rows and columns.

        Args:
          rows: [P] row numbers from 0; or, without ``columns``, a matrix X as for `transform`, of
            which every cell is answered by the model's value, observed ones too.
          columns: [P] column numbers.
          return_std: whether to give standard errors too.
          row_features: of the rows of X, as for `transform`; not with ``columns``.

        Returns:
          [P] values, or [N', M]; or (values, standard errors).
        """
        self._require_matrix("predict")
        if columns is not None:
            _require_no_features(row_features, remedy=_AS_ROWS)
            found, errors = completion.predict(
                self.completion_, np.asarray(rows), np.asarray(columns)
            )
            found = bounds_of_values.clip(found, self._limits, np.asarray(columns))
            return (found, errors) if return_std else found
        if scipy.sparse.issparse(rows):
            raise ValueError(_DENSE.format(method="predict"))
        values, observed = self._checked(rows)
        features = self._features_of(rows, len(values), row_features)
        fitted, errors = fold_in.fold_in_rows(self.completion_, values, observed, features)
        fitted, errors = fitted.astype(values.dtype), errors.astype(values.dtype)
        fitted = bounds_of_values.clip(fitted, self._limits)
        return (fitted, errors) if return_std else fitted

    def predict_quantiles(
        self,
        rows: Any,
        columns: Any = None,
        quantiles: Sequence[float] = (0.05, 0.95),
        row_features: Any = None,
    ) -> np.ndarray:
        """Quantiles of the values of cells; a method of its own since they answer without a mean.

        Where draws of the posterior answer (``completion_.sampled`` is not None), of the mixture of
        these, which need not be symmetric; else of a Gaussian with the errors of `predict`. Within
        the range that `predict` keeps to, and as wide as held-out cells demand.

        Args:
          rows, columns, row_features: as for `predict`.
          quantiles: Q probabilities between 0 and 1.

        Returns:
          [Q, P] quantiles, or [Q, N', M] of X's floating dtype, observed cells too; of a frame of
          typed columns NaN where these are no numbers, and observed cells as they are.

        Raises:
          ValueError: a probability is not between 0 and 1.
        """
        check_is_fitted(self)
        if self._is_typed:
            _require_no_features(row_features)
            return typed.quantiles(self.mixed_, rows, quantiles)
        if columns is not None:
            _require_no_features(row_features, remedy=_AS_ROWS)
            at = np.asarray(rows), np.asarray(columns)
            found = of_quantiles.of_cells(self.completion_, *at, quantiles)
            return bounds_of_values.clip(found, self._limits, at[1])
        if scipy.sparse.issparse(rows):
            raise ValueError(_DENSE.format(method="predict_quantiles"))
        values, observed = self._checked(rows)
        features = self._features_of(rows, len(values), row_features)
        found = of_quantiles.of_rows(self.completion_, values, observed, quantiles, features)
        return bounds_of_values.clip(found.astype(values.dtype), self._limits)

    def sample(self, X: Any, imputations: int = 5, row_features: Any = None) -> list[Any]:
        """Completes X several times, for multiple imputation (Rubin 1987).

        Missing cells are drawn from the posterior predictive distribution of one joint model
        (`metamf_jax.posterior`): each time another draw of parameters and noise. Where a large
        sparse matrix of one unit was fitted (``completion_.sampled`` is not None), rows are
        completed by its draws, within the range of the observed values; so are frames of typed
        columns by theirs. Otherwise a model is fitted to the cells of X alone, of the columns of a
        narrow table or of the factors of any other matrix (`fold_in.impute`), and the imputations
        are not those of `transform` with noise: that weights other models too. Estimates on each
        are pooled by `metamf_jax.pool`.

        Args:
          X: as for `transform`.
          imputations: how many, at most 100.
          row_features: of the rows of X, as for `transform`.

        Returns:
          So many completed matrices [N', M], of X's floating dtype; observed cells as they are.

        Raises:
          ValueError: fewer than one imputation or more than 100, or no observed cell.
        """
        check_is_fitted(self)
        if self._is_typed:
            _require_no_features(row_features)
            several = typed.impute(self.mixed_, X, imputations)
            return [frames.select(each, self._kept) for each in several]
        values, observed = self._checked(X)
        features, seed = self._features_of(X, len(values), row_features), self._seed()
        several = fold_in.impute(self.completion_, values, observed, imputations, seed, features)
        return [bounds_of_values.clip(each, self._limits) for each in several]

    def save(self, path: str | os.PathLike) -> None:
        """Writes the fitted imputer as one safetensors file, aside and renamed.

        Raises:
          ValueError: ``random_state`` is neither an integer nor None, or there is no such folder.
          OSError: the file cannot be written.
        """
        check_is_fitted(self)
        options = self.get_params() | {"weights": os.fspath(self.weights)}
        if _is_none(self.missing_values):
            options["missing_values"] = None
        if self.random_state is not None:
            if not isinstance(self.random_state, numbers.Integral):
                raise ValueError(
                    "expected an integer or None as random_state of an imputer to be saved, got "
                    f"{self.random_state!r}"
                )
            options["random_state"] = int(self.random_state)
        names = None if self._is_typed else getattr(self, "feature_names_in_", None)
        fitted = self.mixed_ if self._is_typed else self.completion_
        fit_file.save(path, NamedCompletion(fitted, None, names, options))

    @classmethod
    def load(cls, path: str | os.PathLike) -> "MetaMFImputer":
        """The imputer that `save` wrote, or ``metamf impute --save``: its answers are the same.

        Raises:
          ValueError: there is no such file, it holds something else, or another version wrote it.
        """
        held = fit_file.load(path)
        imputer = cls(**held.options)
        if isinstance(held.completion, Mixed):
            return imputer._take_typed(held.completion)
        imputer._take(held.completion)
        imputer.n_features_in_ = held.completion.shape[1]
        if held.column_ids is not None and held.column_ids.dtype == object:
            vars(imputer)["feature_names_in_"] = held.column_ids
        return imputer

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _options(self) -> dict[str, Any]:
        """Of `pipeline.complete`."""
        return {
            "standardize": None if self.standardize == "auto" else self.standardize,
            "missing": self.missing,
            "seed": self._seed(),
        }

    def _seed(self) -> int:
        if self.random_state is None:
            return 0
        if isinstance(self.random_state, numbers.Integral):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31))

    def _validated(self, X: Any, reset: bool, copy: bool = False) -> Any:
        """An array with NaN at the missing cells, or a scipy.sparse matrix."""
        none = _is_none(self.missing_values)
        if none and isinstance(X, np.ndarray) and X.dtype.kind == "O":
            shown = [[_is_none(x) for x in row] for row in X]
            X = X.copy()
            X[np.array(shown, bool).reshape(X.shape)] = np.nan
        given: Any = X
        number = not none and not np.isnan(self.missing_values)
        X = validate_data(
            self,
            given,
            reset=reset,
            accept_sparse=("csr", "csc", "coo"),
            dtype=(np.float64, np.float32),
            ensure_all_finite="allow-nan",
            copy=copy,
        )
        if scipy.sparse.issparse(X) or not number:
            return X
        return np.where(np.equal(X, self.missing_values), np.nan, X).astype(X.dtype)

    def _entries(self, X, reset: bool = True) -> Entries:
        if isinstance(X, Entries):
            if not reset and X.shape[1] != self.n_features_in_:
                raise ValueError(
                    f"expected {self.n_features_in_} columns, those of fit, got {X.shape[1]}"
                )
            self.n_features_in_ = X.shape[1]
            rows, columns, values = (np.asarray(part) for part in (X.rows, X.columns, X.values))
            return Entries(rows, columns, values, X.shape)
        X = self._validated(X, reset=reset)
        if scipy.sparse.issparse(X):
            # In the order of a dense array, so that the same cells are held out.
            by_row = scipy.sparse.csr_array(X)
            by_row.sort_indices()
            listed = scipy.sparse.coo_array(by_row)
            rows, columns = listed.coords
            kept = ~np.isnan(listed.data)
            return Entries(
                rows[kept].astype(np.int32),
                columns[kept].astype(np.int32),
                listed.data[kept],
                X.shape,
            )
        rows, columns = np.nonzero(~np.isnan(X))
        return Entries(rows.astype(np.int32), columns.astype(np.int32), X[rows, columns], X.shape)

    def _checked(self, X, copy: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Values [N', M], of a copy of X or not, and which of them are observed."""
        check_is_fitted(self)
        if isinstance(X, Entries):
            X = scipy.sparse.coo_array(
                (np.asarray(X.values), (np.asarray(X.rows), np.asarray(X.columns))), shape=X.shape
            )
        X = self._validated(X, False, copy)
        _require_few_cells(X.shape)
        values = X
        if scipy.sparse.issparse(X):
            listed = scipy.sparse.coo_array(X)
            values = np.full(X.shape, np.nan, X.dtype)
            values[listed.coords] = listed.data
        observed = ~np.isnan(values)
        if self.bounds is not None:
            rows, columns = np.nonzero(observed)
            entries = Entries(rows, columns, values[rows, columns], (len(values), X.shape[1]))
            bounds_of_values.require_within(self._limits, entries)
        return values, observed
