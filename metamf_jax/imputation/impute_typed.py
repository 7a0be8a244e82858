"""``metamf impute --types``: tables of typed columns, and a report on them."""

import gzip
import pathlib
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from metamf_jax.imputation import declared, fit_file, frames, mixed, report
from metamf_jax.imputation.columns import Column
from metamf_jax.imputation.fit_file import NamedCompletion
from metamf_jax.imputation.mixed import Mixed, MixedConfig
from metamf_jax.runs import files

_NULLS = ["", "NA", "N/A", "NaN", "nan", "na", "n/a", "null", "?"]
# Draws that a report shows, where none are written.
_SHOWN = 5


def impute(
    path: str,
    outputs: Sequence[str],
    *,
    types: str,
    seed: int,
    several: bool,
    report_path: str | None = None,
    save: str | None = None,
    fitted: str | None = None,
) -> list[str]:
    """Completes a file, and writes it, or draws of it, and a report.

    Args:
      path: a .csv, .tsv or .parquet file, text also in .gz; its columns have names.
      outputs: files to write: one, or those of several imputations.
      types: ``auto``, or a JSON file of types by column (`metamf_jax.imputation.declared`).
      seed: of the draws.
      several: whether imputations are asked for, or the single best answers.
      report_path: of the page, if one is asked for.
      save: a file to write the fit to, if one is asked for.
      fitted: a file of a fit that answers instead of one of this file.

    Returns:
      What was done, in lines.

    Raises:
      ValueError: a file that cannot be read, of another kind, or with columns of another type.
    """
    table = read(path)
    known = {} if types == "auto" else declared.read(types)
    if fitted is None:
        described = frames.describe(table, known)
        model = mixed.fit(frames.encode(table, described), described, MixedConfig(seed=seed))
        told = f"{path}: {table.num_rows} rows, "
        told += ", ".join(f"{c.name} ({c.type})" for c in described)
    else:
        model = _fitted(fitted)
        told = f"{path}: {table.num_rows} rows, answered by {fitted}, fitted to {len(model.values)}"
    given = with_columns(path, table, model.columns)
    values = frames.encode(given, model.columns)
    drawn = mixed.impute(model, values, len(outputs) if several else _SHOWN)
    completed = drawn if several else [mixed.answer(model, values).values]
    for output, each in zip(outputs, completed, strict=True):
        write(output, frames.decode(given, model.columns, each).select(table.column_names))
    lines = [told, f"wrote {outputs[0]}" + (f" to {outputs[-1]}" if len(outputs) > 1 else "")]
    if save is not None:
        options = {"types": known or "auto", "random_state": seed}
        fit_file.save(save, NamedCompletion(model, None, None, options))
        lines.append(f"wrote the fit to {save}")
    if report_path is not None:
        checks = report.check(values, model.columns, seed, model if fitted else None)
        name = pathlib.Path(path).name
        by = pathlib.Path(fitted).name if fitted else None
        page = report.page(name, given, model.columns, drawn, checks, by)
        files.write_text(report_path, page)
        lines.append(f"wrote {report_path}")
    return lines


def with_columns(path: str, table: pa.Table, described: Sequence[Column]) -> pa.Table:
    """The table with the columns that were fitted, in their order; those that it lacks are empty.

    Raises:
      ValueError: it has a column that was not fitted.
    """
    names = [column.name for column in described]
    unknown = [name for name in table.column_names if name not in names]
    if unknown:
        raise ValueError(
            f"{path} has column {unknown[0]!r}, which was not fitted; {len(unknown)} columns are "
            "such. Remove them, or fit anew with --save"
        )
    for name in names:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(table.num_rows))
    return table.select(names)


def _fitted(path: str) -> Mixed:
    found = fit_file.load(path).completion
    if not isinstance(found, Mixed):
        raise ValueError(f"{path} is a fit of a matrix of numbers: leave --types and --report out")
    return found


def read(path: str) -> pa.Table:
    """A table from a file.

    Raises:
      ValueError: it cannot be read.
      FileNotFoundError: there is none.
    """
    kind = _kind(path)
    try:
        if kind == "parquet":
            return pyarrow.parquet.read_table(path)
        convert = pyarrow.csv.ConvertOptions(null_values=_NULLS, strings_can_be_null=True)
        parse = pyarrow.csv.ParseOptions(delimiter="\t" if kind == "tsv" else ",")
        return pyarrow.csv.read_csv(path, parse_options=parse, convert_options=convert)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: {error}") from error


def write(path: str, table: pa.Table) -> None:
    """Writes a table, aside and renamed."""
    kind = _kind(path)
    with files.written_aside(path) as aside:
        if kind == "parquet":
            pyarrow.parquet.write_table(table, aside)
            return
        options = pyarrow.csv.WriteOptions(
            delimiter="\t" if kind == "tsv" else ",", quoting_style="needed"
        )
        text = pa.BufferOutputStream()
        pyarrow.csv.write_csv(table, text, options)
        whole = text.getvalue().to_pybytes()
        aside.write_bytes(gzip.compress(whole, 6, mtime=0) if path.endswith(".gz") else whole)


def _kind(path: str) -> str:
    kind = pathlib.Path(path.removesuffix(".gz")).suffix.removeprefix(".")
    if kind not in ("csv", "tsv", "parquet"):
        raise ValueError(f"{path}: tables of typed columns are .csv, .tsv or .parquet files")
    return kind
