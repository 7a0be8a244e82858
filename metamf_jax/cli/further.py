"""Further rows of a table, by the fit of another one."""

import numpy as np

from metamf_jax.cli.inputs import MOST_CELLS, Input, names_rows, side_tables
from metamf_jax.data import tables
from metamf_jax.imputation import answers, feature_tables, fit_file
from metamf_jax.imputation.answers import Answers
from metamf_jax.imputation.completion import Completion
from metamf_jax.types import Entries


def by_fitted(path: str, given: Input) -> tuple[Input, Answers]:
    """The rows of a table by the fit in a file; and the table, of pairs with all fitted columns.

    Columns are matched by their ids. Those that the table lacks are missing throughout. Rows whose
    ids were fitted have the cells that were fitted too, unless the table gives these anew.

    Raises:
      ValueError: the table has a column that was not fitted, or too many cells; or the file holds
        no fit, or one with declared bounds.
    """
    named, found, table = fit_file.load(path), given.found, given.table
    completion = named.completion
    assert isinstance(completion, Completion)
    if named.options.get("bounds") is not None:
        raise ValueError(
            f"{path} has declared bounds, which this command does not keep: answer by "
            "MetaMFImputer.load"
        )
    fitted = completion.entries
    ids = named.column_ids if named.column_ids is not None else np.arange(fitted.shape[1])
    columns = tables.positions(table.column_ids, ids)
    unknown = np.flatnonzero(columns < 0)
    if len(unknown):
        raise ValueError(
            f"{given.path} has column {table.column_ids[unknown[0]]!r}, which {path} was not fitted"
            f" with; {len(unknown)} columns are such. Remove them, or fit anew with --save"
        )
    shape = table.entries.shape[0], fitted.shape[1]
    if np.prod(shape, dtype=float) > MOST_CELLS:
        raise ValueError(
            f"{given.path} has {shape[0]} rows, and {path} {shape[1]} columns: more than "
            f"{MOST_CELLS} cells. Split the rows"
        )
    known = np.full(shape, np.nan)
    numbers = np.full(shape[0], -1)
    if named.row_ids is not None and names_rows(found):
        numbers = tables.positions(table.row_ids, named.row_ids)
        places = np.full(fitted.shape[0], -1)
        places[numbers[numbers >= 0]] = np.flatnonzero(numbers >= 0)
        at = places[fitted.rows]
        known[at[at >= 0], fitted.columns[at >= 0]] = fitted.values[at >= 0]
    known[table.entries.rows, columns[table.entries.columns]] = table.entries.values
    print(
        f"answered by {path}, fitted to {fitted.shape[0]} rows and {fitted.shape[1]} columns; "
        f"{int((numbers >= 0).sum())} of the {shape[0]} rows are among these"
    )
    if not found.dense:
        rows, columns = np.nonzero(~np.isnan(known))
        entries = Entries(rows, columns, known[rows, columns], shape)
        table = table._replace(entries=entries, column_ids=ids)
        columns = np.arange(shape[1])
    features = _features_by_fitted(completion, given, numbers)
    answered = answers.of_further_rows(completion, known, columns, features)
    return given._replace(table=table), answered


def _features_by_fitted(
    completion: Completion, given: Input, numbers: np.ndarray
) -> np.ndarray | None:
    """Features [N, F] of rows: what the input's table tells, else those that were fitted.

    Args:
      completion: the fit.
      given: the input.
      numbers: [N], which of the fitted rows they are; -1 for none.
    """
    told = side_tables(given)[0]
    features = feature_tables.of_further(completion.features, 0, told)
    drawn = completion.sampled
    if drawn is None or drawn.given is None:
        return None
    fitted = drawn.given[0].features
    of_fitted = np.where((numbers >= 0)[:, None], fitted[np.maximum(numbers, 0)], np.float32(0))
    if told is None or features is None:
        return of_fitted
    return np.where((told.lines >= 0)[:, None], features, of_fitted)
