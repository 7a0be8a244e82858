"""Predicts cells, or the best columns of rows, from factors that ``experiments.factorize`` left.

    python -m experiments.predict --factors=runs/ml1m --pairs=cells.csv --output=values.csv
    python -m experiments.predict --factors=runs/ml1m --top=10 --rows=users.txt \
        --exclude=ratings.csv --output=best.csv

The answer has a line for each cell: row, column, value, and in ``known`` whether row and column
stood in the training table: ``both``, only the ``row``, only the ``column``, or ``neither``. What
is not known is answered by the mean of the known ones. Factors may also be a LIBMF model in text;
``--libmf_output`` writes one.

Of the draws that ``--solver=gibbs`` left the value is the mean over draws; ``--std`` and
``--quantiles`` tell where the cell's value may lie, noise and all. ``--top_by=upper`` ranks columns
by the mean of the fitted value plus its standard deviation over draws, so that what is not yet
known well comes first; it is then a column of the answer.

    python -m experiments.predict --factors=runs/gibbs --pairs=cells.csv --std \
        --quantiles=0.05,0.95 --output=values.csv

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
from absl import flags

from experiments import common, shared_flags
from metamf_jax.data import libmf_text, tables
from metamf_jax.data.tables import write as write_tables
from metamf_jax.data.tables.entry_columns import read_entry_columns
from metamf_jax.factorization import prediction
from metamf_jax.factorization.factor_file import load_factors
from metamf_jax.posterior import draws_file, entry_effects, predictive
from metamf_jax.posterior.draws_file import NamedDraws
from metamf_jax.posterior.entry_effects import EntryFeatures
from metamf_jax.runs.files import write_text
from metamf_jax.types import Factors

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


class NamedFactors(NamedTuple):
    """Factors ``u`` [N, K] and ``v`` [M, K], with row ids [N] and column ids [M]."""

    factors: Factors
    row_ids: np.ndarray
    column_ids: np.ndarray


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


def _answers(
    model: NamedFactors | NamedDraws,
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
    found = predictive.predict_unknown(model.draws, model.scale, rows, columns, probabilities, at)
    extra = {"std": found.std} if details.std else {}
    extra |= {f"q{p}": q for p, q in zip(details.quantiles, found.quantiles, strict=True)}
    if details.probabilities:
        draws = predictive.with_unknown(model.draws, drawn=True)
        of_levels = predictive.level_probabilities(draws, draws.thresholds, rows, columns, at)
        extra |= {f"p{x:g}": p for x, p in zip(model.scale.levels, of_levels.T, strict=True)}
    return found.mean.astype("f"), {name: x.astype("f") for name, x in extra.items()}


def write_pairs(
    path: str,
    model: NamedFactors | NamedDraws,
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
    known = _KNOWN[(columns < 0) + 2 * (rows < 0)]
    write_tables.write_pairs(
        path, asked_rows, asked_columns, values, extra={**extra, "known": known}
    )
    some = {name: int((known == name).sum()) for name in _KNOWN[1:]}
    print(
        f"wrote {path}: {len(values)} cells; column unknown {some['row']}, row unknown"
        f" {some['column']}, both unknown {some['neither']}"
    )


def _top_columns(
    model: NamedFactors | NamedDraws,
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
    extended = predictive.with_unknown(model.draws)
    rows, shares = extended.rows[:, numbers], extended.row_shares[:, numbers]
    draws = model.draws._replace(rows=rows, row_shares=shares)
    return predictive.top_columns(draws, model.scale, everyone, count, left_out, upper)


def write_top(
    path: str,
    model: NamedFactors | NamedDraws,
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
    if isinstance(model, NamedDraws):
        upper = {"upper": values} if details.upper else {}
        values, extra = _answers(model, numbers[rows], columns, details, {})
        extra |= upper
    known = _KNOWN[2 * (numbers[rows] < 0)]
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
    if isinstance(model, NamedFactors) and details != Details():
        raise ValueError(
            f"{source} holds factors, which tell no spread: --std, --quantiles, --probabilities and"
            " --top_by=upper need the draws of --solver=gibbs"
        )
    if isinstance(model, NamedDraws) and details.probabilities and not model.scale.levels:
        raise ValueError(
            f"{source} holds draws of a Gaussian likelihood, which knows no levels: --probabilities"
            " needs those of --likelihood=ordinal"
        )
    if _LIBMF_OUTPUT.value is not None:
        if isinstance(model, NamedDraws):
            raise ValueError(f"{source} holds draws, but a LIBMF model is one pair of factors")
        write_libmf(_LIBMF_OUTPUT.value, *model, _LIBMF_NUMBERS.value)
    elif _PAIRS.value is not None:
        told = {}
        if isinstance(model, NamedDraws) and model.groups:
            names = tuple({group.feature for group in model.groups})
            told = read_entry_columns(_PAIRS.value, names, required=False)
        write_pairs(output, model, *tables.read_pairs(_PAIRS.value), details, told)
    elif _TOP.value is not None:
        write_top(
            output,
            model,
            _TOP.value,
            tables.read_ids(_ROWS.value) if _ROWS.value else None,
            tables.read_pairs(_EXCLUDE.value) if _EXCLUDE.value else None,
            details,
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
