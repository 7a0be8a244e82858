"""Predicts cells, or the best columns of rows, from factors that ``experiments.factorize`` left.

    python -m experiments.predict --factors=runs/ml1m --pairs=cells.csv --output=values.csv
    python -m experiments.predict --factors=runs/ml1m --top=10 --rows=users.txt \
        --exclude=ratings.csv --output=best.csv

The answer has a line for each cell: row, column, value, and in ``known`` whether row and column
stood in the training table: ``both``, only the ``row``, only the ``column``, or ``neither``. What
is not known is answered by the mean of the known ones, or as draws expect it. Factors may also be
a LIBMF model in text; ``--libmf_output`` writes one.

Of the draws that ``--solver=gibbs`` left the value is the mean over draws; ``--std`` and
``--quantiles`` tell where the cell's value may lie, noise and all. ``--top_by=upper`` ranks columns
by the mean of the fitted value plus its standard deviation over draws, so that what is not yet
known well comes first; it is then a column of the answer.

    python -m experiments.predict --factors=runs/gibbs --pairs=cells.csv --std \
        --quantiles=0.05,0.95 --output=values.csv

Draws also answer for rows and columns that came later: by their ratings of (or by) known ones, and
by their lines in the tables of features that the factorization had.

    python -m experiments.predict --factors=runs/gibbs --fold_in=new_ratings.csv \
        --row_features=users.csv --top=10 --rows=new_users.txt --output=best.csv
Of ``--likelihood=ordinal`` the value is the expected one, quantiles are levels, and
``--probabilities`` adds a column for each level, such as ``p4``. Where the sampler had
``--entry_features``, cells may have the same columns, found by their names in the header; without
them the cells are answered without those effects.
"""

import csv
import io
import os
import pathlib
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import scipy.sparse
from absl import flags

from experiments import common, shared_flags
from metamf_jax.data import libmf_text, tables
from metamf_jax.data.tables import write as write_tables
from metamf_jax.data.tables.entry_columns import read_entry_columns
from metamf_jax.data.tables.features import read_features
from metamf_jax.factorization import prediction
from metamf_jax.factorization.factor_file import load_factors
from metamf_jax.posterior import draws_file, entry_effects, fold_in, predictive
from metamf_jax.posterior.chains import Draws
from metamf_jax.posterior.draws_file import NamedDraws
from metamf_jax.posterior.entry_effects import EntryFeatures, Group
from metamf_jax.posterior.fold_in import FurtherRows
from metamf_jax.posterior.given import of_further_rows
from metamf_jax.posterior.predictive import Scale
from metamf_jax.runs.files import write_text
from metamf_jax.types import Factors, FeatureTable, Table

_OUTPUT = shared_flags.output()
_PAIRS = shared_flags.pairs()
_FACTORS = flags.DEFINE_string(
    "factors",
    None,
    "Workdir of a factorization, its factors.safetensors or draws.safetensors, or a LIBMF model.",
)
_TOP = flags.DEFINE_integer(
    "top", None, "Writes so many columns with the largest values for each row.", lower_bound=1
)
_ROWS = flags.DEFINE_string("rows", None, "File of row ids, one a line, for --top. Default: all.")
_EXCLUDE = flags.DEFINE_string(
    "exclude", None, "Table whose cells --top leaves out, for instance the training ratings."
)
_TOP_BY = flags.DEFINE_enum(
    "top_by",
    "mean",
    ["mean", "upper"],
    "Of draws, what --top ranks by: the mean of the fitted value, or that plus its standard"
    " deviation over draws.",
)
_STD = flags.DEFINE_bool(
    "std", False, "Of draws: a column `std`, the standard deviation of a cell's value."
)
_QUANTILES = flags.DEFINE_list(
    "quantiles", [], "Of draws: probabilities, each a column such as `q0.05`, of a cell's value."
)
_FOLD_IN = flags.DEFINE_string(
    "fold_in",
    None,
    "Of draws: table of ratings of new rows, or of new columns by known rows, to answer by them.",
)
_ROW_FEATURES = shared_flags.row_features()
_COLUMN_FEATURES = shared_flags.column_features()
_PROBABILITIES = flags.DEFINE_bool(
    "probabilities", False, "Of ordinal draws: a column such as `p4` for each level's probability."
)
_LIBMF_OUTPUT = flags.DEFINE_string(
    "libmf_output", None, "File to write the factors to, as a model for LIBMF's mf-predict."
)
_LIBMF_NUMBERS = flags.DEFINE_enum(
    "libmf_numbers",
    "ids",
    ["ids", "order"],
    "LIBMF's numbers of rows and columns: their ids, or their order, listed in FILE.rows.csv and"
    " FILE.columns.csv.",
)

# Of row and column, -1 for unknown.
_KNOWN = np.array(["both", "row", "column", "neither"], object)
_NO_FEATURES = (
    "the draws were made without --{0}, so that they tell nothing of these features; leave it out,"
    " or factorize with it"
)


class NamedFactors(NamedTuple):
    """Factors ``u`` [N, K] and ``v`` [M, K], with row ids [N] and column ids [M]."""

    factors: Factors
    row_ids: np.ndarray
    column_ids: np.ndarray


class Told(NamedTuple):
    """What is told of rows and columns that stand in no draw.

    Attributes:
      row_features, column_features: tables of the features that the factorization had.
      ratings: of new rows, or of new columns by known rows.
    """

    row_features: FeatureTable | None = None
    column_features: FeatureTable | None = None
    ratings: Table | None = None


class FoldedDraws(NamedTuple):
    """Draws that answer for new rows and columns, too.

    Attributes:
      draws: of the known ones.
      further: rows and columns after them; the last of each is one of which nothing is told.
      scale: of the values.
      row_ids, column_ids: of the known ones, and then of the new ones of which something is told.
      groups: of the entries' effects.
    """

    draws: Draws
    further: tuple[FurtherRows, FurtherRows]
    scale: Scale
    row_ids: np.ndarray
    column_ids: np.ndarray
    groups: tuple[Group, ...] = ()


class Details(NamedTuple):
    """What draws are asked beside values.

    Attributes:
      std: whether the standard deviation is.
      quantiles: probabilities, as they were written.
      upper: whether the best columns are those with the largest upper bound.
      probabilities: whether those of levels are.
    """

    std: bool = False
    quantiles: tuple[str, ...] = ()
    upper: bool = False
    probabilities: bool = False


def read_model(path: str | os.PathLike) -> NamedFactors | NamedDraws:
    """Reads a workdir, a safetensors file or a LIBMF model.

    Raises:
      ValueError: there is no such file, or it holds something else.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        draws = path / "draws.safetensors"
        path = draws if draws.exists() else path / "factors.safetensors"
    if path.exists():
        with path.open("rb") as file:
            start = file.read(2)
        # A safetensors file starts with the length of its header in eight bytes.
        if start in (b"f ", b"\x1f\x8b"):
            return NamedFactors(*libmf_text.read_libmf(path))
        if draws_file.holds_draws(path):
            return draws_file.load_draws(path)
    return NamedFactors(*load_factors(path))


def fold(named: NamedDraws, told: Told) -> FoldedDraws:
    """Draws the factors of new rows and columns, given each draw of the known ones.

    Raises:
      ValueError: a table that fits the draws not, or ratings that tell of nobody new.
    """
    ids = named.row_ids, named.column_ids
    nowhere = np.zeros((2, 0), int)
    names, places, values = [np.zeros(0, object)] * 2, nowhere, np.zeros(0)
    if told.ratings is not None:
        entries, names = told.ratings.entries, [told.ratings.row_ids, told.ratings.column_ids]
        places = np.stack([np.asarray(entries.rows), np.asarray(entries.columns)])
        values = (np.asarray(entries.values, float) - named.scale.center) / named.scale.unit
    at = [tables.positions(name, known) for name, known in zip(names, ids, strict=True)]
    known = np.stack([of_side[place] for of_side, place in zip(at, places, strict=True)])
    used = (known >= 0).sum(axis=0) == 1
    if told.ratings is not None:
        print(f"{used.sum()} of {len(values)} ratings are of a new row or column, and fold it in")
        if not used.any():
            raise ValueError(
                "--fold_in has no rating of a new row by known columns, nor of a new column by"
                " known rows; what is known on both sides, or on none, needs a new factorization"
            )
    further, all_ids = [], []
    for side, table in enumerate((told.row_features, told.column_features)):
        mine = used & (known[side] < 0)
        new = names[side][np.unique(places[side][mine])]
        if table is not None:
            new = _joined(new, table.ids[tables.positions(table.ids, ids[side]) < 0])
        numbers = tables.positions(names[side], new)[places[side][mine]]
        rated = scipy.sparse.csr_array(
            (values[mine], (numbers, known[1 - side][mine])),
            shape=(len(new) + 1, len(ids[1 - side])),
        )
        recipe = named.recipes[side]
        of_table = np.zeros((len(new) + 1, len(recipe.given.centers)), np.float32)
        if table is not None:
            lines = tables.positions(new, table.ids)
            of_table[:-1] = of_further_rows(recipe.given, table, lines)
        further.append(fold_in.further_rows(named.draws, side, recipe, of_table, rated))
        all_ids.append(_joined(ids[side], new))
    return FoldedDraws(
        named.draws, (further[0], further[1]), named.scale, all_ids[0], all_ids[1], named.groups
    )


def _joined(ids: np.ndarray, more: np.ndarray) -> np.ndarray:
    """Of two lists of ids those of the first, and those of the second that it lacks."""
    more = more[tables.positions(more, ids) < 0]
    if not len(more):
        return ids
    if not len(ids):
        return more
    if ids.dtype == more.dtype == np.int64:
        return np.append(ids, more)
    joined = np.empty(len(ids) + len(more), object)
    joined[:] = [*map(str, ids.tolist()), *map(str, more.tolist())]
    return joined


def _num_known(model: NamedFactors | FoldedDraws) -> tuple[int, int]:
    """Rows and columns of the training table."""
    if isinstance(model, NamedFactors):
        return len(model.row_ids), len(model.column_ids)
    return model.draws.rows.shape[1], model.draws.columns.shape[1]


def _known(model: NamedFactors | FoldedDraws, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """In words, which of each cell's row and column stood in the training table."""
    num_rows, num_columns = _num_known(model)
    new_rows = (rows < 0) | (rows >= num_rows)
    return _KNOWN[((columns < 0) | (columns >= num_columns)) + 2 * new_rows]


def _answers(
    model: NamedFactors | FoldedDraws,
    rows: np.ndarray,
    columns: np.ndarray,
    details: Details,
    told: EntryFeatures,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Values [P] of cells, -1 for what is unknown, and further columns [P] by name."""
    if isinstance(model, NamedFactors):
        return prediction.predict(prediction.with_unknown(model.factors), rows, columns), {}
    probabilities = tuple(map(float, details.quantiles))
    at = entry_effects.places(model.groups, rows, columns, told).at if model.groups else None
    found = predictive.predict_further(
        model.draws, model.further, model.scale, rows, columns, probabilities, at
    )
    extra = {"std": found.std} if details.std else {}
    extra |= {f"q{p}": q for p, q in zip(details.quantiles, found.quantiles, strict=True)}
    if details.probabilities:
        draws = predictive.with_further(model.draws, model.further, drawn=True)
        of_levels = predictive.level_probabilities(draws, draws.thresholds, rows, columns, at)
        extra |= {f"p{x:g}": p for x, p in zip(model.scale.levels, of_levels.T, strict=True)}
    return found.mean.astype("f"), {name: x.astype("f") for name, x in extra.items()}


def write_pairs(
    path: str,
    model: NamedFactors | FoldedDraws,
    asked_rows: np.ndarray,
    asked_columns: np.ndarray,
    details: Details,
    told: EntryFeatures = MappingProxyType({}),
) -> None:
    """Answers the cells asked for, in their order.

    Args:
      path: the file to write.
      model: what answers.
      asked_rows: [P] ids.
      asked_columns: [P] ids.
      details: of draws.
      told: features of the cells.
    """
    rows = tables.positions(asked_rows, model.row_ids)
    columns = tables.positions(asked_columns, model.column_ids)
    values, extra = _answers(model, rows, columns, details, told)
    known = _known(model, rows, columns)
    write_tables.write_pairs(
        path, asked_rows, asked_columns, values, extra={**extra, "known": known}
    )
    some = {name: int((known == name).sum()) for name in _KNOWN[1:]}
    print(
        f"wrote {path}: {len(values)} cells; column unknown {some['row']}, row unknown"
        f" {some['column']}, both unknown {some['neither']}"
    )


def _top_columns(
    model: NamedFactors | FoldedDraws,
    numbers: np.ndarray,
    count: int,
    left_out: tuple[np.ndarray, np.ndarray],
    upper: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """`prediction.top_columns` of rows, -1 for an unknown one; those of `left_out` are places."""
    everyone = np.arange(len(numbers))
    if isinstance(model, NamedFactors):
        u = prediction.with_unknown(model.factors).u[numbers]
        factors = Factors(u, model.factors.v)
        return prediction.top_columns(factors, everyone, count, left_out)
    draws = predictive.with_further(model.draws, model.further, drawn=upper)
    # The last column is the one of which nothing is told.
    draws = draws._replace(
        rows=draws.rows[:, numbers],
        row_shares=draws.row_shares[:, numbers],
        columns=draws.columns[:, :-1],
        column_shares=draws.column_shares[:, :-1],
    )
    return predictive.top_columns(draws, model.scale, everyone, count, left_out, upper)


def write_top(
    path: str,
    model: NamedFactors | FoldedDraws,
    count: int,
    asked_rows: np.ndarray | None,
    excluded: tuple[np.ndarray, np.ndarray] | None,
    details: Details,
) -> None:
    """Writes the columns with the largest values for each row, the largest first.

    Args:
      path: the file to write.
      model: what answers.
      count: columns a row; fewer where fewer are left.
      asked_rows: [R] ids; None for all. An unknown row is answered like the mean of the known ones.
      excluded: ids of the rows [X] and columns [X] of cells to leave out.
      details: of draws.
    """
    asked = model.row_ids if asked_rows is None else asked_rows
    # Every row asked for gets a number of its own, so that unknown ones leave out cells too.
    numbers = tables.positions(asked, model.row_ids)
    left_out = np.zeros((2, 0), int)
    if excluded is not None:
        of_columns = tables.positions(excluded[1], model.column_ids)
        left_out = np.stack([tables.positions(excluded[0], asked), of_columns])
        left_out = left_out[:, (left_out >= 0).all(axis=0)]
    columns, values = _top_columns(model, numbers, count, (left_out[0], left_out[1]), details.upper)
    kept = np.isfinite(values)
    rows, columns = np.nonzero(kept)[0], columns[kept]
    values, extra = values[kept], {}
    if isinstance(model, FoldedDraws):
        upper = {"upper": values} if details.upper else {}
        values, extra = _answers(model, numbers[rows], columns, details, {})
        extra |= upper
    known = _known(model, numbers[rows], columns)
    write_tables.write_pairs(
        path, asked[rows], model.column_ids[columns], values, extra={**extra, "known": known}
    )
    print(
        f"wrote {path}: {kept.sum()} cells of {len(asked)} rows, {(numbers < 0).sum()} of them"
        " unknown"
    )


def write_libmf(
    path: str, factors: Factors, row_ids: np.ndarray, column_ids: np.ndarray, numbers: str = "ids"
) -> None:
    """Writes a LIBMF model; under ``numbers="order"`` with the two lists of ids beside it."""
    if numbers == "order":
        for kind, ids in (("rows", row_ids), ("columns", column_ids)):
            text = io.StringIO()
            lines = csv.writer(text, lineterminator="\n")
            lines.writerows([("number", "id"), *enumerate(ids.tolist())])
            write_text(f"{path}.{kind}.csv", text.getvalue())
        row_ids, column_ids = np.arange(len(row_ids)), np.arange(len(column_ids))
    libmf_text.write_libmf(path, factors, row_ids, column_ids)
    print(f"wrote {path}")


def main() -> None:
    source = common.needed(_FACTORS)
    wanted = [flag for flag in (_PAIRS, _TOP, _LIBMF_OUTPUT) if flag.value is not None]
    if len(wanted) != 1:
        raise ValueError(
            "expected one of --pairs=FILE, --top=N and --libmf_output=FILE, got"
            f" {', '.join(f'--{flag.name}' for flag in wanted) or 'none of them'}"
        )
    if _TOP.value is None and (_ROWS.value or _EXCLUDE.value):
        raise ValueError("--rows and --exclude go with --top=N")
    output = common.needed(_OUTPUT) if _LIBMF_OUTPUT.value is None else ""
    details = _details()
    model = read_model(source)
    told = [flag.name for flag in (_FOLD_IN, _ROW_FEATURES, _COLUMN_FEATURES) if flag.value]
    if isinstance(model, NamedFactors) and (details != Details() or told):
        raise ValueError(
            f"{source} holds factors, which tell no spread and of no new rows: --std, --quantiles,"
            " --probabilities, --top_by=upper, --fold_in and tables of features need the draws of"
            " --solver=gibbs"
        )
    if isinstance(model, NamedDraws) and details.probabilities and not model.scale.levels:
        raise ValueError(
            f"{source} holds draws of a Gaussian likelihood, which knows no levels: --probabilities"
            " needs those of --likelihood=ordinal"
        )
    if isinstance(model, NamedDraws) and model.scale.levels and _FOLD_IN.value:
        raise ValueError(
            f"{source} holds draws of --likelihood=ordinal, into which no ratings are folded:"
            " leave out --fold_in, or factorize with a Gaussian likelihood"
        )
    if _LIBMF_OUTPUT.value is not None:
        if isinstance(model, NamedDraws):
            raise ValueError(f"{source} holds draws, but a LIBMF model is one pair of factors")
        write_libmf(_LIBMF_OUTPUT.value, *model, _LIBMF_NUMBERS.value)
        return
    if isinstance(model, NamedDraws):
        model = fold(model, _told(model))
    if _PAIRS.value is not None:
        of_cells: EntryFeatures = {}
        if isinstance(model, FoldedDraws) and model.groups:
            names = tuple({group.feature for group in model.groups})
            of_cells = read_entry_columns(_PAIRS.value, names, required=False)
        write_pairs(output, model, *tables.read_pairs(_PAIRS.value), details, of_cells)
    elif _TOP.value is not None:
        write_top(
            output,
            model,
            _TOP.value,
            tables.read_ids(_ROWS.value) if _ROWS.value else None,
            tables.read_pairs(_EXCLUDE.value) if _EXCLUDE.value else None,
            details,
        )


def _told(named: NamedDraws) -> Told:
    """The tables that the flags name.

    Raises:
      ValueError: one cannot be read, or is of features that the factorization had not.
    """
    if _ROW_FEATURES.value and not named.recipes[0].given.codings:
        raise ValueError(_NO_FEATURES.format(_ROW_FEATURES.name))
    if _COLUMN_FEATURES.value and not named.recipes[1].given.codings:
        raise ValueError(_NO_FEATURES.format(_COLUMN_FEATURES.name))
    return Told(
        read_features(_ROW_FEATURES.value, "row") if _ROW_FEATURES.value else None,
        read_features(_COLUMN_FEATURES.value, "column") if _COLUMN_FEATURES.value else None,
        tables.read_table(_FOLD_IN.value) if _FOLD_IN.value else None,
    )


def _details() -> Details:
    """What the flags ask.

    Raises:
      ValueError: a quantile is no probability, or --top_by stands without --top.
    """
    for text in _QUANTILES.value:
        try:
            sound = 0 < float(text) < 1
        except ValueError:
            sound = False
        if not sound:
            raise ValueError(f"expected --quantiles between 0 and 1, got {text!r}")
    if _TOP_BY.present and _TOP.value is None:
        raise ValueError("--top_by goes with --top=N")
    upper = _TOP_BY.value == "upper"
    return Details(_STD.value, tuple(_QUANTILES.value), upper, _PROBABILITIES.value)


if __name__ == "__main__":
    common.run_main(main)
