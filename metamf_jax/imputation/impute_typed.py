"""``metamf impute --types``: tables of typed columns, and a report on them."""

import gzip
import json
import pathlib
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from metamf_jax.imputation import frames, mixed, report
from metamf_jax.imputation.mixed import MixedConfig
from metamf_jax.runs import files

_NULLS = ["", "NA", "N/A", "NaN", "nan", "na", "n/a", "null", "?"]
# Draws that a report shows, where none are written.
_SHOWN = 5


def impute(
    path: str,
    outputs: Sequence[str],
    types: str,
    seed: int,
    several: bool,
    report_path: str | None,
) -> list[str]:
    """Completes a file, and writes it, or draws of it, and a report.

    Args:
      path: a .csv, .tsv or .parquet file, text also in .gz; its columns have names.
      outputs: files to write: one, or those of several imputations.
      types: ``auto``, or a JSON file of types by column.
      seed: of the draws.
      several: whether imputations are asked for, or the single best answers.
      report_path: of the page, if one is asked for.

    Returns:
      What was done, in lines.

    Raises:
      ValueError: a file that cannot be read, of another kind, or with columns of another type.
    """
    table = read(path)
    described = frames.describe(table, _declared(types))
    values = frames.encode(table, described)
    fitted = mixed.fit(values, described, MixedConfig(seed=seed))
    told = [f"{path}: {len(values)} rows, " + ", ".join(f"{c.name} ({c.type})" for c in described)]
    drawn = mixed.impute(fitted, values, len(outputs) if several else _SHOWN)
    completed = drawn if several else [mixed.answer(fitted, values).values]
    for output, each in zip(outputs, completed, strict=True):
        write(output, frames.decode(table, described, each))
    told.append(f"wrote {outputs[0]}" + (f" to {outputs[-1]}" if len(outputs) > 1 else ""))
    if report_path is not None:
        checks = report.check(values, described, seed)
        name = pathlib.Path(path).name
        files.write_text(report_path, report.page(name, table, described, drawn, checks))
        told.append(f"wrote {report_path}")
    return told


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


def _declared(types: str) -> Mapping[str, str] | None:
    if types == "auto":
        return None
    try:
        found = json.loads(pathlib.Path(types).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{types}: not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f'{types}: expected an object such as {{"age": "integer"}}')
    return found
