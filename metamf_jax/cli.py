"""The console command ``metamf``."""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

# NumPy, JAX and the readers are imported when a command runs: `metamf --help` answers at once.
if TYPE_CHECKING:
    import numpy as np

    from metamf_jax.data.tables.format import TableFormat
    from metamf_jax.imputation.answers import Answers
    from metamf_jax.imputation.completion import Completion
    from metamf_jax.imputation.feature_tables import Features, SideTable
    from metamf_jax.imputation.fit_file import NamedCompletion
    from metamf_jax.types import Entries, FeatureTable, Table

# Above it the answer would fill the memory: 10^8 cells take 2 GB as three columns.
MOST_CELLS = 10**8
# From so many cells on, what is being done is told while it is done.
_LONG = 100_000
# Above it the worst columns are not named.
_FEW_COLUMNS = 100

_DESCRIPTION = """\
Fills in the missing cells of tables of ratings, surveys, measurements or pixels, from priors that
were learned on other matrices. Nothing is trained on yours: an answer takes seconds.
"""
_EXAMPLES = """\
examples:
  metamf impute ratings.csv --output completed.csv
      user,item,rating in; a rating for every missing pair out
  metamf impute survey.csv --output filled.csv --plot filled.png
      a table with blanks in; the same table without blanks out, and a picture of both
  metamf impute ratings.csv --output best.csv --top 10 --std
      the ten highest predicted items of each user, with error bars
  metamf impute ratings.csv --output asked.csv --pairs wanted.csv
      only the pairs that wanted.csv lists, in its order
  metamf impute ratings.csv --output best.csv --top 10 --row_features users.csv
      what is known of the users beside their ratings; those without any are answered too
  metamf impute survey.csv --output drawn.csv --types auto --imputations 20 --report report.html
      numbers, levels and categories as they are; twenty completed tables, and a page on them
  metamf impute survey.csv --output filled.csv --save fit.safetensors
  metamf impute further.csv --output further_filled.csv --fitted fit.safetensors
      further rows of the same columns, by the fit of the former
"""
_IMPUTE = """\
Reads a table, measures on a part of its observed cells how well it can be imputed, and writes the
missing cells.

INPUT is a line for each observed cell (row id, column id, value), or a matrix with blanks: .csv,
.tsv, .parquet, .libmf, MovieLens .dat, Matrix Market .mtx or scipy .npz; text may be in .gz. Its
layout is found out. A table of pairs is answered by one with the same two id columns and a value
column; a matrix by the same matrix without blanks.
"""


class Input(NamedTuple):
    """A table as it was read.

    Attributes:
      path: its file; a matrix's is written again with its blanks filled.
      found: how it was laid out.
      table: in float64.
      told: tables of features of its rows and of its columns.
    """

    path: str
    found: TableFormat
    table: Table
    told: tuple[FeatureTable | None, FeatureTable | None] = (None, None)


def describe(path: str, found: TableFormat, table: Table) -> str:
    """What was found in a file, in two lines."""
    num_rows, num_columns = table.entries.shape
    cells = len(table.entries.rows)
    return (
        f"{path}: {found}\n{num_rows} rows, {num_columns} columns, {cells} observed cells "
        f"({cells / (num_rows * num_columns):.2%})"
    )


def require_few_cells(path: str, table: Table) -> None:
    """Refuses to write more missing cells than memory holds.

    Raises:
      ValueError: there are more than `MOST_CELLS`.
    """
    num_rows, num_columns = table.entries.shape
    missing = num_rows * num_columns - len(table.entries.rows)
    if missing > MOST_CELLS:
        raise ValueError(
            f"{path} has {missing} missing cells, more than {MOST_CELLS}; list those that you need "
            "in a file and give it as --pairs"
        )


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
    beside = dict(zip(quantiles, spread, strict=True))
    _write_pairs(output, given, (rows, columns), values, errors if std else None, beside)
    return len(values)


def _write_matrix(
    output: str, answers: Answers, given: Input, std: bool, quantiles: Sequence[float]
) -> int:
    """The same matrix without blanks, and beside it errors and quantiles of what was imputed."""
    import numpy as np

    from metamf_jax.data.tables import digits, fill, write

    table = given.table
    values, errors = answers.rows(0, table.entries.shape[0])
    fill.write_filled(output, given.path, given.found, table, values)
    if std:
        errors[table.entries.rows, table.entries.columns] = 0
        errors = digits.significant(errors)
        write.write_dense(
            _beside(output), errors, table.row_ids, table.column_ids, like=given.found
        )
    missing = _missing(table.entries)
    if quantiles:
        rows, columns = np.nonzero(missing)
        several = answers.quantiles(rows, columns, quantiles)
        for p, found in zip(quantiles, several, strict=True):
            values[rows, columns] = found
            path = _beside(output, f".{_name(p)}")
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
    import numpy as np

    from metamf_jax.data.tables import fill

    rows, columns = np.nonzero(_missing(given.table.entries))
    files = []
    for n, each in enumerate(answers.impute(imputations, seed), start=1):
        files.append(_beside(output, f"-{n}"))
        if given.found.dense:
            fill.write_filled(files[-1], given.path, given.found, given.table, each)
        else:
            _write_pairs(files[-1], given, (rows, columns), each[rows, columns])
    return files


def _places(pairs: tuple[np.ndarray, np.ndarray], table: Table) -> list[np.ndarray]:
    """Row and column numbers of pairs of ids."""
    import numpy as np

    from metamf_jax.data import tables

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
    import numpy as np

    missing = np.ones(entries.shape, bool)
    missing[entries.rows, entries.columns] = False
    return missing


def _missing_cells(answers: Answers, table: Table, top: int | None) -> tuple[np.ndarray, ...]:
    """Rows, columns, values and errors of all missing cells, or of the highest of each row."""
    import numpy as np

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
    from metamf_jax.data.tables import digits, fill, write

    path, found, table, _ = given
    header = found.header if not found.dense else None
    row, column, value = (
        (header[role] for role in found.roles[:3]) if header else ("row", "column", "value")
    )
    own = fill.column_digits(path, found, table)

    def written(cells: np.ndarray) -> np.ndarray:
        return fill.typed_values(path, found, fill.rounded_cells(cells, places[1], own))

    extra = {} if errors is None else {"error": digits.significant(errors)}
    extra |= {_name(p): written(cells) for p, cells in (quantiles or {}).items()}
    write.write_pairs(
        output,
        table.row_ids[places[0]],
        table.column_ids[places[1]],
        written(values),
        extra=extra or None,
        names=(row, column, value),
        scientific=any(column.significant is not None for column in own),
    )


def with_unknown(table: Table, pairs: tuple[np.ndarray, np.ndarray]) -> Table:
    """The table with the rows and columns that only these ids name, without an observed cell."""
    import numpy as np

    from metamf_jax.data import tables
    from metamf_jax.types import Entries

    sides = []
    for asked, known in zip(pairs, (table.row_ids, table.column_ids), strict=True):
        new = np.unique(asked[tables.positions(asked, known) < 0])
        if known.dtype == object or new.dtype == object:
            both = np.empty(len(known) + len(new), object)
            both[:] = [*known.tolist(), *new.tolist()]
        else:
            both = np.concatenate([known, new])
        sides.append(both)
    cells = table.entries
    shape = len(sides[0]), len(sides[1])
    entries = Entries(cells.rows, cells.columns, cells.values, shape)
    return table._replace(entries=entries, row_ids=sides[0], column_ids=sides[1])


def _name(probability: float) -> str:
    return f"q{probability}"


def _beside(output: str, mark: str = ".std") -> str:
    """``completed.csv.gz`` to ``completed.std.csv.gz``."""
    import pathlib

    path = pathlib.Path(output)
    suffixes = "".join(path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:])
    stem = path.name[: len(path.name) - len(suffixes)]
    return str(path.with_name(f"{stem}{mark}{suffixes}"))


def _impute(flags: argparse.Namespace) -> None:
    from metamf_jax.runs import compilation_cache

    _require_consistent(flags)
    if flags.types or flags.report:
        _impute_typed(flags)
        return
    started = time.monotonic()
    given, pairs = _read(flags)
    compilation_cache.use(None)
    if flags.fitted:
        given, answers = _by_fitted(flags.fitted, given)
    else:
        answers = _fitted(flags, given, started)
    if flags.imputations is not None:
        files = write_imputations(flags.output, answers, given, flags.imputations, flags.seed)
        print(f"wrote {len(files)} imputations, {files[0]} to {files[-1]}")
        return
    count = write_imputed(
        flags.output,
        answers,
        given,
        pairs=pairs,
        top=flags.top,
        std=flags.std,
        quantiles=flags.quantiles,
    )
    print(f"wrote {count} imputed cells to {flags.output}")
    if given.found.dense and pairs is None and flags.top is None:
        if flags.std:
            print(f"wrote their standard errors to {_beside(flags.output)}")
        for p in flags.quantiles:
            print(f"wrote their {p} quantiles to {_beside(flags.output, f'.{_name(p)}')}")
    if flags.plot:
        from metamf_jax import plotting

        plotting.completed_matrix(flags.plot, given.table.entries, answers.rows)
        print(f"wrote {flags.plot}")


def _impute_typed(flags: argparse.Namespace) -> None:
    from metamf_jax.imputation import impute_typed

    several = flags.imputations is not None
    outputs = [flags.output]
    if several:
        outputs = [_beside(flags.output, f"-{n + 1}") for n in range(flags.imputations)]
    told = impute_typed.impute(
        flags.input, outputs, flags.types or "auto", flags.seed, several, flags.report
    )
    print("\n".join(told))


def _require_consistent(flags: argparse.Namespace) -> None:
    if flags.top is not None and flags.top < 1:
        raise ValueError(f"--top must be at least 1, got {flags.top}")
    if flags.top is not None and flags.pairs:
        raise ValueError(
            "--top and --pairs exclude each other: one picks cells, the other lists them"
        )
    if flags.imputations is not None and (
        flags.top or flags.pairs or flags.std or flags.quantiles or flags.plot
    ):
        raise ValueError(
            "--imputations writes all missing cells, and no errors: it excludes --top, --pairs, "
            "--std, --quantiles and --plot"
        )
    if flags.types or flags.report:
        names = "pairs", "top", "std", "quantiles", "plot", "save", "fitted", "layout"
        names = *names, "row_features", "column_features"
        others = [f"--{name}" for name in names if getattr(flags, name)]
        if others:
            raise ValueError(f"--types and --report exclude {', '.join(others)}")
        if flags.imputations is not None and not 1 <= flags.imputations <= 100:
            raise ValueError(f"expected 1 to 100 imputations, got {flags.imputations}")
    if flags.fitted and flags.save:
        raise ValueError("--save writes a fit and --fitted reads one instead: give one of them")
    if flags.fitted and flags.column_features:
        raise ValueError(
            "--fitted answers for the columns that it was fitted with, and knows their features:"
            " leave --column_features out, or fit anew with --save"
        )


def _read(flags: argparse.Namespace) -> tuple[Input, tuple[np.ndarray, np.ndarray] | None]:
    """The table and the pairs; with the rows and columns that pairs name besides.

    So has a list without pairs those that only the tables of features name.
    """
    import numpy as np

    from metamf_jax.data import tables
    from metamf_jax.data.tables.features import read_features

    found = tables.detect(flags.input, layout=flags.layout)
    table = tables.read_table(flags.input, layout=flags.layout, dtype=np.float64)
    print(describe(flags.input, found, table), flush=True)
    told = (
        read_features(flags.row_features, "row") if flags.row_features else None,
        read_features(flags.column_features, "column") if flags.column_features else None,
    )
    if not flags.pairs:
        if not found.dense:
            table = _with_told(table, told)
        require_few_cells(flags.input, table)
        return Input(flags.input, found, table, told), None
    pairs = tables.read_pairs(flags.pairs)
    known = table.entries.shape
    table = with_unknown(table, pairs)
    new = np.subtract(table.entries.shape, known)
    if new.any():
        print(
            f"{flags.pairs} names {new[0]} rows and {new[1]} columns without an observed cell:"
            " answered from the others"
        )
    return Input(flags.input, found, table, told), pairs


def _with_told(table: Table, told: tuple[FeatureTable | None, FeatureTable | None]) -> Table:
    """The table with the rows and columns of which only features tell."""
    import numpy as np

    known, sides = table.entries.shape, (table.row_ids, table.column_ids)
    named = [
        ids[:0] if of_side is None else of_side.ids
        for of_side, ids in zip(told, sides, strict=True)
    ]
    table = with_unknown(table, (named[0], named[1]))
    for of_side, side, new in zip(
        told, ("row", "column"), np.subtract(table.entries.shape, known), strict=True
    ):
        if of_side is not None and new == len(of_side.ids):
            raise ValueError(
                f"{of_side.path}: none of its {new} ids, such as {of_side.ids.tolist()[0]!r},"
                " stands in the input; write ids as they are written there"
            )
        if of_side is not None and new:
            print(f"{of_side.path} tells of {new} {side}s without an observed cell: answered too")
    return table


def _side_tables(given: Input) -> tuple[SideTable | None, SideTable | None]:
    """Where the rows and columns of the input stand in the tables of features."""
    from metamf_jax.data import tables
    from metamf_jax.imputation.feature_tables import SideTable

    rows, columns = (
        None if table is None else SideTable(table, tables.positions(ids, table.ids))
        for table, ids in zip(
            given.told, (given.table.row_ids, given.table.column_ids), strict=True
        )
    )
    return rows, columns


def _fitted(flags: argparse.Namespace, given: Input, started: float) -> Answers:
    """The table, completed and saved where that is asked for."""
    from metamf_jax.imputation import feature_tables, pipeline
    from metamf_jax.imputation.answers import OfFitted
    from metamf_jax.imputation.prior import load_prior

    table = given.table

    def progress(stage: str) -> None:
        if len(table.entries.rows) >= _LONG:
            print(f"  {time.monotonic() - started:.1f} s: {stage}", file=sys.stderr, flush=True)

    completed = pipeline.complete(
        load_prior(flags.weights),
        table.entries,
        standardize=None if flags.standardize == "auto" else flags.standardize,
        missing=flags.missing,
        seed=flags.seed,
        progress=progress,
        given=feature_tables.coded(*_side_tables(given), table.entries.shape),
    )
    _tell(completed, table, flags.weights)
    if flags.save:
        _save(flags, completed, given)
    return OfFitted(completed)


def _save(flags: argparse.Namespace, completed: Completion, given: Input) -> None:
    from metamf_jax.imputation import fit_file
    from metamf_jax.imputation.fit_file import NamedCompletion

    options = {name: getattr(flags, name) for name in ("weights", "standardize", "missing")}
    row_ids = given.table.row_ids if _names_rows(given.found) else None
    named = NamedCompletion(
        completed, row_ids, given.table.column_ids, options | {"random_state": flags.seed}
    )
    fit_file.save(flags.save, named)
    print(f"wrote the fit to {flags.save}")


def _names_rows(found: TableFormat) -> bool:
    """Whether a file names its rows, and not only numbers them."""
    return found.row_names if found.dense else found.format not in ("mtx", "npz")


def _by_fitted(path: str, given: Input) -> tuple[Input, Answers]:
    """The rows of a table by the fit in a file; and the table, of pairs with all fitted columns.

    Columns are matched by their ids. Those that the table lacks are missing throughout. Rows whose
    ids were fitted have the cells that were fitted too, unless the table gives these anew.

    Raises:
      ValueError: the table has a column that was not fitted, or too many cells; or the file holds
        no fit.
    """
    import numpy as np

    from metamf_jax.data import tables
    from metamf_jax.imputation import answers, fit_file
    from metamf_jax.types import Entries

    named, found, table = fit_file.load(path), given.found, given.table
    fitted = named.completion.entries
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
    if named.row_ids is not None and _names_rows(found):
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
    features = _features_by_fitted(named, given, numbers)
    answered = answers.of_further_rows(named.completion, known, columns, features)
    return given._replace(table=table), answered


def _features_by_fitted(
    named: NamedCompletion, given: Input, numbers: np.ndarray
) -> np.ndarray | None:
    """Features [N, F] of rows: what the input's table tells, else those that were fitted.

    Args:
      named: the fit.
      given: the input.
      numbers: [N], which of the fitted rows they are; -1 for none.
    """
    import numpy as np

    from metamf_jax.imputation import feature_tables

    told = _side_tables(given)[0]
    features = feature_tables.of_further(named.completion.features, 0, told)
    drawn = named.completion.sampled
    if drawn is None or drawn.given is None:
        return None
    fitted = drawn.given[0].features
    of_fitted = np.where((numbers >= 0)[:, None], fitted[np.maximum(numbers, 0)], np.float32(0))
    if told is None or features is None:
        return of_fitted
    return np.where((told.lines >= 0)[:, None], features, of_fitted)


def _tell(completed: Completion, table: Table, weights: str) -> None:
    """Prints the error to expect, and how values were standardised."""
    import numpy as np

    check, by = completed.check, completed.standardized_by
    if not check.cells:
        print("too few observed cells to hold some out: the error is not known")
    elif by == "matrix":
        print(
            f"held-out error on {check.cells} of the observed cells: {check.rmse:.4g} (root mean "
            f"square), {check.bias_rmse:.4g} by row and column effects alone"
        )
    else:
        side, ids = by.removesuffix("s"), table.column_ids if by == "columns" else table.row_ids
        print(
            f"held-out error on {check.cells} of the observed cells: {check.relative:.4g} of a "
            f"{side}'s deviation (root mean square), {check.mean_relative:.4g} by the {side}s' "
            "means"
        )
        known = np.flatnonzero(~np.isnan(check.by_column))
        if len(known) <= _FEW_COLUMNS:
            worst = known[np.argsort(-check.by_column[known])][:3]
            listed = ", ".join(f"{ids[m]} {check.by_column[m]:.3g}" for m in worst)
            print(f"largest errors of {side}s: {listed}")
    unit = {
        "matrix": "one unit for all cells",
        "columns": "each column in its own unit",
        "rows": "each row in its own unit",
    }
    print(f"standardised with {unit[by]}; weights {weights}")
    if completed.features is not None:
        _tell_of_features(completed.features)


def _tell_of_features(features: Features) -> None:
    """Prints how many there are, and what they are worth."""
    counts = [of_side.features.shape for of_side in features.given]
    told = [int(of_side.features.any(axis=1).sum()) for of_side in features.given]
    sides = [
        f"{width} of {known} of {size} {side}s"
        for side, known, (size, width) in zip(("row", "column"), told, counts, strict=True)
        if width
    ]
    ending = "" if features.used else ": they are not used"
    print(
        f"features: {', '.join(sides)}; held-out error of draws {features.rmse:.4g} with them, "
        f"{features.rmse_without:.4g} without{ending}"
    )


def _probabilities(text: str) -> tuple[float, ...]:
    try:
        found = tuple(map(float, text.split(",")))
    except ValueError:
        found = ()
    if not found or not all(0 < p < 1 for p in found):
        raise argparse.ArgumentTypeError(
            f"expected probabilities between 0 and 1, such as 0.05,0.95, got {text!r}"
        )
    return found


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="metamf", description=_DESCRIPTION, epilog=_EXAMPLES, formatter_class=formatter
    )
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    impute = commands.add_parser(
        "impute",
        help="fill in the missing cells of a table",
        description=_IMPUTE,
        epilog=_EXAMPLES,
        formatter_class=formatter,
    )
    impute.add_argument("input", metavar="INPUT", help="the table to be completed")
    impute.add_argument(
        "--output", required=True, metavar="FILE", help="file to write: .csv, .tsv or .parquet"
    )
    impute.add_argument(
        "--pairs", metavar="FILE", help="table of row and column ids: only these cells, in order"
    )
    impute.add_argument(
        "--top", type=int, metavar="N", help="only the N highest missing cells of each row"
    )
    impute.add_argument(
        "--std",
        action="store_true",
        help="write standard errors too (a column; for a matrix a second file): the true value "
        "lies within 1.645 of them in nine of ten cases",
    )
    impute.add_argument(
        "--quantiles",
        type=_probabilities,
        default=(),
        metavar="Q,Q..",
        help="write these quantiles of each value too, such as 0.05,0.95 (columns q0.05 and q0.95; "
        "for a matrix files of its own)",
    )
    impute.add_argument(
        "--save", metavar="FIT", help="write the fit too, a .safetensors file for --fitted"
    )
    impute.add_argument(
        "--fitted",
        metavar="FIT",
        help="fit nothing: answer by a fit that --save wrote, whose columns INPUT's are, by name, "
        "or some of them; rows of the same name are the fitted ones, with their cells",
    )
    impute.add_argument(
        "--imputations",
        type=int,
        metavar="M",
        help="draw the missing cells M times, for multiple imputation, into FILE-1 to FILE-M (the "
        "number before the extension)",
    )
    impute.add_argument(
        "--types",
        metavar="FILE.json",
        help='columns of numbers, whole numbers, levels and categories: a file such as {"age": '
        '"integer"} (numeric, integer, binary, ordinal or nominal; the rest is found out), or auto',
    )
    impute.add_argument(
        "--report",
        metavar="FILE.html",
        help="write a page on the columns, their errors and what was imputed; implies --types auto",
    )
    impute.add_argument(
        "--row_features",
        metavar="FILE",
        help="what is known of rows, beside ratings: a table with a header and a line for each id; "
        "numbers, categories, labels between |; what a column holds may end its name: zip:category",
    )
    impute.add_argument(
        "--column_features", metavar="FILE", help="the same of columns, such as films"
    )
    impute.add_argument("--plot", metavar="FILE.png", help="draw the table, before and after")
    impute.add_argument(
        "--weights",
        default="general",
        metavar="PRIOR",
        help="learned prior: a name, or the workdir of a run of experiments.train or pretrain, or "
        "its .safetensors file (default: %(default)s)",
    )
    impute.add_argument(
        "--standardize",
        choices=["auto", "matrix", "columns", "rows"],
        default="auto",
        help="one unit for all cells, or one for each column or row; auto tries (default)",
    )
    impute.add_argument(
        "--missing",
        choices=["at_random", "by_value"],
        default="at_random",
        help="why cells are missing: for whatever else is observed (default), or for what they "
        "would say, which moves imputed values; the table itself cannot tell for sure",
    )
    impute.add_argument(
        "--layout", choices=["pairs", "dense"], help="of INPUT, where it is not found out right"
    )
    impute.add_argument(
        "--seed", type=int, default=0, help="which observed cells are held out (default: 0)"
    )
    impute.set_defaults(run=_impute)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; a user's mistake ends in one line on stderr.

    Args:
      arguments: of the command line; None for the process's.

    Returns:
      The exit code: 0, 1 after a mistake in files, 2 after one in arguments.
    """
    parser = _parser()
    flags = parser.parse_args(arguments)
    if flags.command is None:
        parser.print_help()
        return 2
    try:
        flags.run(flags)
        if arguments is None:
            # The process ends here; Python would first look through all objects, which took 0.5 s.
            gc.freeze()
    except (ValueError, FileNotFoundError, PermissionError) as error:
        print(f"metamf: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("metamf: interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
