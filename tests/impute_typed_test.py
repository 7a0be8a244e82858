"""The command on tables of typed columns, and its report."""

import gzip
import html.parser
import json

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from metamf_jax import MetaMFImputer, cli
from metamf_jax.imputation import impute_typed


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    age = rng.integers(18, 90, 90)
    lost = rng.random((5, 90)) < 0.2
    town = np.where(age > 50, "Ulm & Söflingen", "<Bonn>")
    return pa.table(
        {
            "age": pa.array(age, mask=lost[0]),
            "income": pa.array(np.round(30.0 * age + 200 * rng.normal(size=90), 2), mask=lost[1]),
            "town": pa.array(town, mask=lost[2]),
            "grade": pa.array(np.array(["low", "middle", "high"])[age // 30 - 0], mask=lost[3]),
            "day": pa.array(np.datetime64("2026-01-01") + age, mask=lost[4]),
        }
    )


@pytest.fixture
def survey(table, tmp_path):
    path = tmp_path / "survey.csv"
    pyarrow.csv.write_csv(table, path)
    return str(path)


class Page(html.parser.HTMLParser):
    """Counts tags, and sees that all that are opened are closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open = {}, []
        self.feed(text)
        assert self.open in ([], ["html"]), self.open

    def handle_starttag(self, tag, attrs):
        self.tags[tag] = self.tags.get(tag, 0) + 1
        if tag not in ("meta", "p"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags[tag] = self.tags.get(tag, 0) + 1

    def handle_endtag(self, tag):
        if tag != "p":
            assert self.open.pop() == tag


def test_imputations_and_a_report(table, survey, tmp_path, capsys):
    types, report = tmp_path / "types.json", tmp_path / "report.html"
    types.write_text(json.dumps({"age": "numeric"}))
    arguments = ["--types", str(types), "--imputations", "2", "--report", str(report)]
    assert cli.main(["impute", survey, "--output", str(tmp_path / "drawn.csv.gz"), *arguments]) == 0
    told = capsys.readouterr().out
    assert "age (numeric), income (numeric), town (binary), grade (nominal), day (numeric)" in told
    for n in (1, 2):
        drawn = impute_typed.read(str(tmp_path / f"drawn-{n}.csv.gz"))
        assert drawn.column_names == table.column_names
        assert not any(column.null_count for column in drawn.columns)
        for before, after in zip(table.columns, drawn.columns, strict=True):
            kept = np.asarray(before.is_valid())
            assert np.array(after.to_pylist())[kept].tolist() == before.drop_null().to_pylist()
    text = report.read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags["figure"] == 5
    assert page.tags["tr"] == 6 + 1 + text.count('<tr><td class="number">')
    assert text.count("aria-label") == 5 + 2
    assert "&lt;Bonn&gt;" in text or "&lt;Bo" in text
    assert "http" not in text


def test_a_fit_is_saved_and_answers_another_file(table, survey, tmp_path, capsys):
    types, fit = tmp_path / "types.json", str(tmp_path / "fit.safetensors")
    types.write_text(
        json.dumps(
            {
                "age": {"type": "integer", "low": 18, "high": 90},
                "grade": {"type": "ordinal", "levels": ["low", "middle", "high"]},
            }
        )
    )
    filled = tmp_path / "filled.csv"
    saved = ["--types", str(types), "--save", fit]
    assert cli.main(["impute", survey, "--output", str(filled), *saved]) == 0
    assert f"wrote the fit to {fit}" in capsys.readouterr().out
    again, report = tmp_path / "again.csv", tmp_path / "again.html"
    by_fit = ["--fitted", fit, "--report", str(report)]
    assert cli.main(["impute", survey, "--output", str(again), *by_fit]) == 0
    assert again.read_bytes() == filled.read_bytes()
    assert "Answered by fit.safetensors" in report.read_text(encoding="utf-8")
    told = capsys.readouterr().out
    assert f"answered by {fit}, fitted to 90" in told
    # Fewer columns, in another order.
    part = tmp_path / "part.csv"
    pyarrow.csv.write_csv(table.select(["town", "age"]).slice(0, 20), part)
    arguments = ["impute", str(part), "--output", str(tmp_path / "part_filled.csv")]
    assert cli.main([*arguments, "--fitted", fit]) == 0
    found = impute_typed.read(str(tmp_path / "part_filled.csv"))
    assert found.column_names == ["town", "age"]
    assert not any(column.null_count for column in found.columns)
    for more, message in (
        (["--std"], "is a fit of typed columns, which excludes --std"),
        (["--types", "auto"], "--fitted has its own"),
        (["--save", fit], "give one of them"),
    ):
        assert cli.main([*arguments, "--fitted", fit, *more]) == 1
        assert message in capsys.readouterr().err
    pyarrow.csv.write_csv(table.append_column("size", table["age"]), part)
    assert cli.main([*arguments, "--fitted", fit]) == 1
    assert "part.csv has column 'size', which was not fitted" in capsys.readouterr().err


def test_one_table_and_other_formats(table, tmp_path):
    source, output = tmp_path / "survey.parquet", tmp_path / "filled.tsv"
    pyarrow.parquet.write_table(table, source)
    arguments = ["impute", str(source), "--types", "auto", "--output"]
    assert cli.main([*arguments, str(output)]) == 0
    filled = impute_typed.read(str(output))
    assert filled.shape == table.shape
    assert cli.main([*arguments, str(tmp_path / "filled.parquet")]) == 0
    assert pyarrow.parquet.read_table(tmp_path / "filled.parquet").schema == table.schema


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--types", "auto", "--std"], "--types and --report exclude --std"),
        (["--types", "auto", "--imputations", "0"], "1 to 100 imputations, got 0"),
        (["--types", "gone.json"], "gone.json"),
        (["--types", "list.json"], "expected an object such as"),
        (["--types", "broken.json"], "broken.json: not JSON"),
        (["--types", "unknown.json"], "types are given for 'size'"),
        (["--types", "bounds.json"], "is below the declared low 30"),
    ],
)
def test_mistakes(survey, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "bounds.json").write_text('{"age": {"low": 30}}')
    (tmp_path / "unknown.json").write_text('{"size": "numeric"}')
    assert cli.main(["impute", survey, "--output", "filled.csv", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "filled.csv").exists()


def test_files_of_other_kinds(survey, tmp_path, capsys):
    arguments = ["impute", survey, "--types", "auto", "--output", str(tmp_path / "filled.xlsx")]
    assert cli.main(arguments) == 1
    assert ".csv, .tsv or .parquet" in capsys.readouterr().err
    broken = tmp_path / "broken.csv.gz"
    broken.write_bytes(gzip.compress(b"a,b\n1,2\n3\n"))
    assert cli.main(["impute", str(broken), "--types", "auto", "--output", "x.csv"]) == 1
    assert "broken.csv.gz" in capsys.readouterr().err


def test_a_fit_with_bounds_is_not_for_the_command(tmp_path, capsys):
    X = np.random.default_rng(0).random((12, 3))
    X[2, 1] = np.nan
    np.savetxt(tmp_path / "x.csv", X, delimiter=",", header="a,b,c", comments="")
    MetaMFImputer(bounds=(0, 1)).fit(X).save(tmp_path / "fit.safetensors")
    arguments = ["--output", str(tmp_path / "y.csv"), "--fitted", str(tmp_path / "fit.safetensors")]
    assert cli.main(["impute", str(tmp_path / "x.csv"), *arguments]) == 1
    assert "has declared bounds, which this command does not keep" in capsys.readouterr().err
