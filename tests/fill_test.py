"""What was observed comes back to the last digit; what is imputed has hardly more digits."""

import csv
import decimal
import gzip
import io
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metamf_jax import cli
from metamf_jax.data import tables
from metamf_jax.data.tables import digits, fill
from metamf_jax.data.tables import format as table_format

LONG = "0." + "3" * 3000


def filled(path, output, value):
    found, table = tables.detect(path), tables.read_table(path, dtype=np.float64)
    fill.write_filled(output, path, found, table, np.full(table.entries.shape, value))
    return output.read_bytes()


@pytest.mark.parametrize(
    ("name", "text", "answer"),
    [
        ("plain.csv", "a,b,c,d,e\n007.50,1e3,,+4,81.2\n2,3,5,?,\n", [b"1.23", b"1.23", b"1.235"]),
        ("long.csv", f"a,b,c,d,e\n{LONG},1,2,3,4\n,1,2,3,4\n", [b"1.23456"]),
        ("quoted.csv", '"a,1","b\n2",c\r\n"x","1",""\r\n\r\n" y",NA,"2"', [b"1.23", b'"1.23"']),
        ("spaces.txt", "  1   NaN 3 4\n2 3 4  NaN \n", [b"1.23", b"1.23"]),
        ("semicolons.csv", "name;a;b\r\nu1;1; nan\r\nu2;;2\r\n", [b"1.23", b" 1.23"]),
        ("one.csv", "1.5\n\n2.5\n", [b"1.235"]),
        ("words.csv", "id,b,c,d,e\nx,TRUE,1,2,3\ny,,1,2,3\nz,FALSE,1,2,3\n", [b"TRUE"]),
        ("large.csv", f"a,b,c,d,e\n{10**20},1,2,3,4\n{10**21},1,2,3,4\n,1,2,3,4\n", [b"1"]),
    ],
)
def test_only_blanks_change(tmp_path, name, text, answer):
    path, output = tmp_path / name, tmp_path / f"out-{name}"
    path.write_bytes(text.encode())
    got = filled(path, output, 1.23456)
    assert got != text.encode()
    dialect = {"delimiter": ";"} if name.startswith("semi") else {}
    assert tables.detect(output, layout="dense").header == tables.detect(path).header
    rest = got
    for part in answer:
        assert part in rest, got
    if name == "spaces.txt":
        assert got == b"  1   1.23 3 4\n2 3 4  1.23 \n"
    elif name == "one.csv":
        assert got == b"1.5\n1.235\n2.5\n"
    else:
        before, after = (
            list(csv.reader(io.StringIO(t, newline=""), **dialect)) for t in (text, got.decode())
        )
        assert [len(x) for x in before] == [len(x) for x in after]
        for old, new in zip(before, after, strict=True):
            for x, y in zip(old, new, strict=True):
                assert x == y or x.strip().lower() in ("", "na", "nan", "?")
    assert got.count(b"\r\n") == text.encode().count(b"\r\n")


def test_gzip_goes_by_the_name_of_the_output(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("a,b,c,d,e\n1,2,3,4,\n1,2,3,4,5\n")
    packed = filled(path, tmp_path / "out.csv.gz", 4.0)
    assert gzip.decompress(packed) == b"a,b,c,d,e\n1,2,3,4,4\n1,2,3,4,5\n"


def test_parquet_keeps_its_types(tmp_path):
    path, output = tmp_path / "in.parquet", tmp_path / "out.parquet"
    schema = pa.schema(
        {
            "name": pa.string(),
            "i": pa.uint8(),
            "big": pa.int64(),
            "f": pa.float32(),
            "d": pa.float64(),
            "b": pa.bool_(),
            "m": pa.decimal128(9, 2),
        },
        metadata={"of": "mine"},
    )
    columns = {
        "name": ["x", "y", "z"],
        "i": [1, None, 255],
        "big": [2**60 + 1, 5, None],
        "f": [81.2, None, 1.5],
        "d": [123456789.125, float("nan"), None],
        "b": [True, None, False],
        "m": [decimal.Decimal("1.00"), None, decimal.Decimal("2.00")],
    }
    pyarrow.parquet.write_table(pa.table(columns, schema=schema), path)
    filled(path, output, 300.123456)
    table = pyarrow.parquet.read_table(output)
    assert table.schema.equals(schema, check_metadata=True)
    got = table.to_pydict()
    assert got["i"] == [1, 255, 255]
    assert got["big"] == [2**60 + 1, 5, 300]
    assert got["f"] == [np.float32(81.2), np.float32(300.123), 1.5]
    assert got["d"] == [123456789.125, 300.12346, 300.12346]
    assert got["b"] == [True, True, False]
    assert [float(x) for x in got["m"]] == [1, 300.12, 2]
    text = filled(path, tmp_path / "out.csv", 0.2).decode().splitlines()
    assert text[0] == "name,i,big,f,d,b,m"
    assert text[1] == f"x,1,{2**60 + 1},81.2,123456789.125,True,1.00"
    assert text[2] == "y,0,5,0.2,0.2,False,0.20"


@pytest.mark.parametrize(
    ("observed", "decimals"),
    [([1, 5, 3], 2), ([100, 200, 300], 0), ([81.2, 3], 3), ([5e8, 1.4e9], 0), ([7], 2)],
)
def test_the_rule(observed, decimals):
    assert digits.of_observed(np.array(observed, float)).decimals == decimals
    assert digits.of_observed(np.array(observed, float), whole=True).decimals == 0
    assert digits.of_observed(np.array(observed, np.float32)).decimals == decimals


@settings(max_examples=200, deadline=None)
@given(st.floats(-1e300, 1e300), st.integers(0, 14))
def test_texts_have_no_more_decimals_and_no_exponent(value, decimals):
    (text,) = digits.texts(digits.rounded(np.array([value]), digits.Digits(decimals)))
    assert "e" not in text
    assert len(text.partition(".")[2]) <= decimals
    assert not text.startswith("-0") or float(text) != 0
    assert float(text) == pytest.approx(value, abs=0.5001 * 10**-decimals, rel=1e-15)


def test_numbers_with_an_exponent_are_answered_by_such(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("a,b,c,d,e\n1e200,1,2,3,4\n2.5E200,1,2,3,4\n,1,2,3,4\n")
    assert filled(path, tmp_path / "out.csv", 1.23456789e200).endswith(b"\n1.235e+200,1,2,3,4\n")


def test_a_file_that_changed_is_refused(tmp_path):
    path, output = tmp_path / "in.csv", tmp_path / "out.csv"
    for changed in ("1,2,3,4,5\n6,7,8,9,0\n", "1,2,3,4,\n"):
        path.write_text("1,2,3,4,\n6,7,8,9,0\n")
        found, table = tables.detect(path), tables.read_table(path, dtype=np.float64)
        path.write_text(changed)
        with pytest.raises(ValueError, match=r"in\.csv: the file changed while it was read"):
            fill.write_filled(output, path, found, table, np.ones(table.entries.shape))
        assert not output.exists()


def test_from_a_table_to_its_answer(tmp_path):
    rng = np.random.default_rng(0)
    path, output = tmp_path / "in.csv", tmp_path / "out.csv"
    lines = ["id,population,share,count,stars,open"]
    for n in range(40):
        x = rng.normal()
        cells = [
            f"{5e8 + 9e8 / (1 + np.exp(-x)):.0f}",
            f"{81.2 + 3 * x + rng.normal():.1f}",
            f"{100 + 40 * x + rng.normal():.0f}",
            f"{np.clip(np.round(3 + x), 1, 5):.0f}",
            str(bool(x + rng.normal() > 0)),
        ]
        if n % 4:
            cells[n % 5] = ""
        lines.append(",".join([f"person-{123456789 + n}", *cells]))
    path.write_text("\n".join(lines) + "\n")
    assert cli.main(["impute", str(path), f"--output={output}", "--std"]) == 0
    decimals = [0, 3, 0, 2]
    count = 0
    for old, new in zip(lines, output.read_text().splitlines(), strict=True):
        for n, (x, y) in enumerate(zip(old.split(","), new.split(","), strict=True)):
            if x:
                assert x == y
                continue
            count += 1
            if n == 5:
                assert y in ("True", "False")
            else:
                assert np.isfinite(float(y))
                assert "e" not in y
                assert len(y.partition(".")[2]) <= decimals[n - 1]
    assert count == 30
    with (tmp_path / "out.std.csv").open() as file:
        for record in list(csv.reader(file))[1:]:
            for text in record[1:]:
                assert len(text.replace(".", "").lstrip("0").rstrip("0")) <= 4


def test_pairs_are_rounded_as_one_column(tmp_path):
    path, output = tmp_path / "in.csv", tmp_path / "out.csv"
    for scale, pattern in ((1, r"-?\d+(\.\d{1,2})?"), (1000, r"-?\d+")):
        lines = [f"u{n},i{m},{scale * (1 + n * m % 5)}" for n in range(9) for m in range(6)]
        path.write_text(
            "user,item,rating\n" + "\n".join(x for n, x in enumerate(lines) if n % 5) + "\n"
        )
        assert cli.main(["impute", str(path), f"--output={output}"]) == 0
        rows = [line.split(",") for line in output.read_text().splitlines()[1:]]
        assert len(rows) == 11
        for row in rows:
            assert re.fullmatch(pattern, row[2])


TOKENS = ["1", "2.5", "1e3", "007", "", "NA", " nan ", '""', '"3"', '" ?"', "True", '"x,y"', "u"]
TOKENS += ['"a\nb"', '"a""b"', " ", "é"]


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 6).flatmap(
        lambda width: st.lists(
            st.lists(st.sampled_from(TOKENS), min_size=width, max_size=width),
            min_size=1,
            max_size=5,
        )
    ),
    st.sampled_from([",", "\t", ";", " "]),
    st.sampled_from(["\n", "\r\n", "\r", "\n\n"]),
)
def test_any_matrix_that_is_read_is_filled(tmp_path_factory, records, delimiter, end):
    folder = tmp_path_factory.mktemp("any")
    path, output = folder / "in.csv", folder / "out.csv"
    if delimiter == " ":
        path = folder / "in.txt"
    path.write_bytes((end.join(delimiter.join(record) for record in records) + end).encode())
    try:
        found = tables.detect(path, layout="dense")
        table = tables.read_table(path, layout="dense", dtype=np.float64)
    except ValueError:
        return
    fill.write_filled(output, path, found, table, np.full(table.entries.shape, 1.25))
    before, after = (list(fill._records(fill.load(x, found.format), found)) for x in (path, output))
    assert len(before) == len(after)
    filled = 0
    for (raw, old), (raw_after, new) in zip(before, after, strict=True):
        if old is None or new is None:
            assert raw == raw_after
            continue
        for x, y in zip(old, new, strict=True):
            if x != y:
                filled += 1
                assert table_format.is_missing(x)
                assert y.strip() in ("1", "1.25", "True")
    rows, columns = table.entries.shape
    assert filled == rows * columns - len(table.entries.values)
