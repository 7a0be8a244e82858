"""Imputed cells as files of the input's layout."""

from collections.abc import Mapping, Sequence

import numpy as np

from metamf_jax.cli.inputs import Input
from metamf_jax.cli.names import beside, quantile_name
from metamf_jax.data import tables
from metamf_jax.data.tables import digits, fill, write
from metamf_jax.imputation.answers import Answers
from metamf_jax.types import Entries, Table


def write_imputed(
    output: str,
    answers: Answers,
    given: Input,
    *,
    pairs: tuple[np.ndarray, np.ndarray] | None = None,
    top: int | None = None,
    std: bool = False,
    quantiles: Sequence[float] = (),
) -> int:
    """Writes imputed cells; returns how many.

    Args:
      output: the file.
      answers: what is said of the table's cells.
      given: the table.
      pairs: row ids and column ids of the cells to write, in this order; None for all missing.
      top: only so many missing cells of each row, the highest first.
      std: whether to write errors too: a column, or for a matrix a file of its own, whose name ends
        in ``.std`` before the extension.
      quantiles: probabilities, whose quantiles are written too: a column each, such as ``q0.05``,
        or for a matrix a file each, which ends in ``.q0.05`` before the extension.

    Raises:
      ValueError: ``pairs`` names a row or column that the table does not have, or a file cannot be
        written.
    """
    if given.found.dense and pairs is None and top is None:
        return _write_matrix(output, answers, given, std, quantiles)
    if pairs is not None:
        rows, columns = _places(pairs, given.table)
        values, errors = answers.cells(rows, columns)
    else:
        rows, columns, values, errors = _missing_cells(answers, given.table, top)
    spread = answers.quantiles(rows, columns, quantiles) if quantiles else ()
    by_quantile = dict(zip(quantiles, spread, strict=True))
    _write_pairs(output, given, (rows, columns), values, errors if std else None, by_quantile)
    return len(values)


def _write_matrix(
    output: str, answers: Answers, given: Input, std: bool, quantiles: Sequence[float]
) -> int:
    """The same matrix without blanks, and beside it errors and quantiles of what was imputed."""
    table = given.table
    values, errors = answers.rows(0, table.entries.shape[0])
    fill.write_filled(output, given.path, given.found, table, values)
    if std:
        errors[table.entries.rows, table.entries.columns] = 0
        errors = digits.significant(errors)
        write.write_dense(beside(output), errors, table.row_ids, table.column_ids, like=given.found)
    missing = _missing(table.entries)
    if quantiles:
        rows, columns = np.nonzero(missing)
        several = answers.quantiles(rows, columns, quantiles)
        for p, found in zip(quantiles, several, strict=True):
            values[rows, columns] = found
            path = beside(output, f".{quantile_name(p)}")
            fill.write_filled(path, given.path, given.found, table, values)
    return int(missing.sum())


def write_imputations(
    output: str, answers: Answers, given: Input, imputations: int, seed: int
) -> list[str]:
    """Writes all missing cells several times, by draws; returns the names of the files.

    They are those of `output` with a hyphen and a number, from 1, before the extension.

    Raises:
      ValueError: fewer than one imputation or more than there are draws.
    """
    rows, columns = np.nonzero(_missing(given.table.entries))
    files = []
    for n, each in enumerate(answers.impute(imputations, seed), start=1):
        files.append(beside(output, f"-{n}"))
        if given.found.dense:
            fill.write_filled(files[-1], given.path, given.found, given.table, each)
        else:
            _write_pairs(files[-1], given, (rows, columns), each[rows, columns])
    return files


def _places(pairs: tuple[np.ndarray, np.ndarray], table: Table) -> list[np.ndarray]:
    """Row and column numbers of pairs of ids."""
    places = []
    for kind, ids, known in zip(
        ("row", "column"), pairs, (table.row_ids, table.column_ids), strict=True
    ):
        places.append(tables.positions(ids, known))
        unknown = np.flatnonzero(places[-1] < 0)
        if len(unknown):
            raise ValueError(
                f"--pairs asks for {kind} {ids[unknown].tolist()[0]!r} (its cell {unknown[0] + 1}),"
                f" which the input does not have; {len(unknown)} cells have such a {kind}. "
                "Remove them"
            )
    return places


def _missing(entries: Entries) -> np.ndarray:
    """Which cells of a table are missing, [N, M]."""
    missing = np.ones(entries.shape, bool)
    missing[entries.rows, entries.columns] = False
    return missing


def _missing_cells(answers: Answers, table: Table, top: int | None) -> tuple[np.ndarray, ...]:
    """Rows, columns, values and errors of all missing cells, or of the highest of each row."""
    num_rows, num_columns = table.entries.shape
    missing = _missing(table.entries)
    parts = []
    step = max(1, 2**22 // num_columns)
    for first in range(0, num_rows, step):
        seen = ~missing[first : first + step]
        values, errors = answers.rows(first, first + step)
        if top is None:
            rows, columns = np.nonzero(~seen)
        else:
            ranked = np.argsort(np.where(seen, np.inf, -values), axis=1)[:, :top]
            rows, columns = np.repeat(np.arange(len(seen)), ranked.shape[1]), ranked.ravel()
            kept = ~seen[rows, columns]
            rows, columns = rows[kept], columns[kept]
        parts.append((rows + first, columns, values[rows, columns], errors[rows, columns]))
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


def _write_pairs(
    output: str,
    given: Input,
    places: tuple[np.ndarray, np.ndarray],
    values: np.ndarray,
    errors: np.ndarray | None = None,
    quantiles: Mapping[float, np.ndarray] | None = None,
) -> None:
    """A line for each cell, under the names of the input's columns."""
    path, found, table, _ = given
    header = found.header if not found.dense else None
    row, column, value = (
        (header[role] for role in found.roles[:3]) if header else ("row", "column", "value")
    )
    own = fill.column_digits(path, found, table)

    def written(cells: np.ndarray) -> np.ndarray:
        return fill.typed_values(path, found, fill.rounded_cells(cells, places[1], own))

    extra = {} if errors is None else {"error": digits.significant(errors)}
    extra |= {quantile_name(p): written(cells) for p, cells in (quantiles or {}).items()}
    write.write_pairs(
        output,
        table.row_ids[places[0]],
        table.column_ids[places[1]],
        written(values),
        extra=extra or None,
        names=(row, column, value),
        scientific=any(column.significant is not None for column in own),
    )
