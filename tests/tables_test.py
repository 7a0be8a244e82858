"""Every format of a user's table is read alike, and every mistake is named with its line."""

import gzip
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import scipy.io
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from metamf_jax.data import sources, tables
from metamf_jax.data.tables import format as table_format
from metamf_jax.data.tables import text as text_tables
from metamf_jax.data.tables import write as write_tables
from metamf_jax.runs import files

# u1,b = 3 ; u2,a = 1.5 ; u1,a = -2
CELLS = {("u1", "b"): 3.0, ("u2", "a"): 1.5, ("u1", "a"): -2.0}


def cells_of(table):
    """{(row id, column id): value} of a table."""
    entries = table.entries
    assert entries.shape == (len(table.row_ids), len(table.column_ids))
    assert entries.rows.dtype == entries.columns.dtype == np.int32
    assert entries.values.dtype == np.float32
    row_ids, column_ids = table.row_ids.tolist(), table.column_ids.tolist()
    return {
        (row_ids[n], column_ids[m]): float(x)
        for n, m, x in zip(entries.rows, entries.columns, entries.values, strict=True)
    }


def written(folder: Path, name: str, content: str | bytes, compressed: bool = False) -> Path:
    content = content.encode() if isinstance(content, str) else content
    path = folder / (name + ".gz" * compressed)
    path.write_bytes(gzip.compress(content) if compressed else content)
    return path


PAIRS = {
    "plain.csv": "u1,b,3\nu2,a,1.5\nu1,a,-2\n",
    "no_last_newline.csv": "u1,b,3\nu2,a,1.5\nu1,a,-2",
    "windows.csv": "row,column,value\r\nu1,b,3\r\nu2,a,1.5\r\nu1,a,-2\r\n",
    "old_mac.csv": "u1,b,3\ru2,a,1.5\ru1,a,-2\r",
    "blank_lines.csv": "\nrow,column,value\nu1,b,3\n\nu2,a,1.5\nu1,a,-2\n\n",
    "bom.csv": "\ufeffuserId,movieId,rating\nu1,b,3\nu2,a,1.5\nu1,a,-2\n",
    "any_order.csv": "Rating,Movie_ID,comment,user\n3,b,x,u1\n1.5,a,,u2\n-2,a,z,u1\n",
    "unknown_names.csv": "person who,thing,how much\nu1,b,3\nu2,a,1.5\nu1,a,-2\n",
    "one_unknown_name.csv": "rating,thing,user\n3,b,u1\n1.5,a,u2\n-2,a,u1\n",
    "semicolons.csv": "user;item;score\nu1;b;3\nu2;a;1.5\nu1;a;-2\n",
    "quoted.csv": '"u1","b","3"\n"u2","a","1.5"\n"u1","a","-2"\n',
    "odd_numbers.csv": "u1,b,+3\nu2,a,1.5e0\nu1,a, -2. \n",
    "tabs.tsv": "u1\tb\t3\nu2\ta\t1.5\nu1\ta\t-2\n",
    "tabs.data": "u1\tb\t3\nu2\ta\t1.5\nu1\ta\t-2\n",
    "spaces.libmf": "u1 b 3\nu2 a 1.5\nu1 a -2\n",
    "ragged_spaces.txt": "  u1   b 3\nu2\ta\t1.5 \nu1 a -2\n",
    "colons.dat": "u1::b::3\nu2::a::1.5\nu1::a::-2\n",
}


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", PAIRS)
def test_pairs_in_text(tmp_path, name, compressed):
    path = written(tmp_path, name, PAIRS[name], compressed)
    table = tables.read_table(path)
    assert cells_of(table) == CELLS
    assert list(cells_of(table)) == list(CELLS)  # The order of the file.
    assert table.times is None
    found = tables.detect(path)
    assert not found.dense
    assert found.gzip == compressed


@pytest.mark.parametrize("name", PAIRS)
def test_the_strict_pass_gives_what_the_bulk_gives(tmp_path, name, monkeypatch):
    path = written(tmp_path, name, PAIRS[name])
    bulk = tables.read_table(path)
    monkeypatch.setattr(text_tables, "arrow_columns", lambda *_: None)
    strict = tables.read_table(path)
    for got, expected in zip(
        strict.entries.__dict__.values(), bulk.entries.__dict__.values(), strict=True
    ):
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(strict.row_ids, bulk.row_ids)
    np.testing.assert_array_equal(strict.column_ids, bulk.column_ids)


def test_the_bulk_is_used_for_plain_files(tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("the strict pass ran")

    monkeypatch.setattr(text_tables, "_strictly", refuse)
    for name in ("plain.csv", "windows.csv", "tabs.tsv", "ragged_spaces.txt", "colons.dat"):
        assert cells_of(tables.read_table(written(tmp_path, name, PAIRS[name]))) == CELLS
    tables.read_table(written(tmp_path, "dense.csv", "row/column,a,b\nu1,-2,3\nu2,1.5,NaN\n"))


@pytest.mark.parametrize(
    ("content", "times"),
    [
        ("u1,b,3,1000\nu2,a,1.5,2000\n", [1000, 2000]),
        ("time,row,column,value\n1000,u1,b,3\n2000.0,u2,a,1.5\n", [1000, 2000]),
        (
            "user,item,rating,time\nu1,b,3,1970-01-01 00:16:40\nu2,a,1.5,1970-01-01 00:33:20\n",
            [1000, 2000],
        ),
        ("user,item,rating,date\nu1,b,3,1970-01-02\nu2,a,1.5,1970-01-03\n", [86400, 172800]),
        (
            "user,item,rating,date\nu1,b,3,1970-01-02T01:00:00+01:00\nu2,a,1.5,1970-01-03Z\n",
            None,
        ),
        ("u1,b,3,fine\nu2,a,1.5,poor\n", "absent"),
    ],
)
def test_times(tmp_path, content, times):
    path = written(tmp_path, "timed.csv", content)
    if times is None:
        with pytest.raises(ValueError, match=r"timed.csv, line 3: expected a time.*'1970-01-03Z'"):
            tables.read_table(path)
    elif times == "absent":
        assert tables.read_table(path).times is None
    else:
        table = tables.read_table(path)
        assert table.times.dtype == np.int64
        np.testing.assert_array_equal(table.times, times)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["1", "30", "-2"], [1, 30, -2]),
        (["007", "7"], ["007", "7"]),
        (["1", "x"], ["1", "x"]),
        (["1", "+2"], ["1", "+2"]),
        (["1", "-0"], ["1", "-0"]),
        (["1", " 2"], ["1", " 2"]),
        (["1", "9223372036854775807"], [1, 9223372036854775807]),
        (["1", "9223372036854775808"], ["1", "9223372036854775808"]),
        (["NA", "nan", "NaN"], ["NA", "nan", "NaN"]),
        (["1.0", "2"], ["1.0", "2"]),
    ],
)
def test_ids_come_back_as_given(tmp_path, ids, expected):
    path = written(tmp_path, "ids.csv", "".join(f"{name},c{name},1\n" for name in ids))
    row_ids = tables.read_table(path).row_ids
    assert row_ids.tolist() == expected
    assert row_ids.dtype == (np.int64 if isinstance(expected[0], int) else object)


DENSE = {
    "both_names.csv": "row/column,a,b\nu1,-2,3\nu2,1.5,\n",
    "pandas.csv": ",a,b\nu1,-2,3\nu2,1.5,\n",
    "tokens.csv": ",a,b\nu1,-2,3\nu2,1.5,NA\n",
    "question.csv": "name,a,b\nu1,-2,3\nu2,1.5,?\n",
    "spaced.csv": "name,a,b\nu1, -2, 3\nu2, 1.5, nan\n",
    "quoted.csv": '"id","a","b"\n"u1","-2","3"\n"u2","1.5",""\n',
    "tabs.tsv": "user\ta\tb\nu1\t-2\t3\nu2\t1.5\t\n",
}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", DENSE)
def test_dense_with_names(tmp_path, name, strict, monkeypatch):
    if strict:
        monkeypatch.setattr(text_tables, "arrow_columns", lambda *_: None)
    path = written(tmp_path, name, DENSE[name])
    assert cells_of(tables.read_table(path)) == CELLS
    found = tables.detect(path)
    assert found.dense
    assert found.row_names
    assert found.header[1:] == ("a", "b")


@pytest.mark.parametrize("strict", [False, True])
def test_dense_without_names_keeps_empty_rows_and_columns(tmp_path, strict, monkeypatch):
    if strict:
        monkeypatch.setattr(text_tables, "arrow_columns", lambda *_: None)
    path = written(tmp_path, "bare.csv", "1,,,4,5\n,,,,\n6,7,,9,10\n")
    table = tables.read_table(path)
    assert table.entries.shape == (3, 5)
    np.testing.assert_array_equal(table.row_ids, [0, 1, 2])
    np.testing.assert_array_equal(table.entries.values, [1, 4, 5, 6, 7, 9, 10])
    np.testing.assert_array_equal(table.entries.columns, [0, 3, 4, 0, 1, 3, 4])
    found = tables.detect(path)
    assert (found.dense, found.header, found.row_names) == (True, None, False)


def test_a_column_alone_may_have_blank_lines(tmp_path):
    table = tables.read_table(written(tmp_path, "one.csv", "1\n\n3\n"))
    assert table.entries.shape == (3, 1)
    np.testing.assert_array_equal(table.entries.rows, [0, 2])


def test_a_dense_file_is_read_and_written_without_pandas(tmp_path):
    """Which pyarrow's conversions import where it is installed, at a third of a second a start."""
    (tmp_path / "in.csv").write_text("a,b\n1,\n,2.5\n")
    program = f"""
import sys
from metamf_jax.data import tables
from metamf_jax.data.tables import write as write_tables
entries = tables.read_table({str(tmp_path / "in.csv")!r}).entries
print(entries.values.tolist(), "pandas" in sys.modules)
import numpy as np
values = np.array([[1, np.nan], [np.nan, 2.5]])
write_tables.write_dense(
    {str(tmp_path / "out.csv")!r}, values, np.arange(2), np.array(["a", "b"])
)
print("pandas" in sys.modules)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.stdout == "[1.0, 2.5] False\nFalse\n", ran.stderr
    assert (tmp_path / "out.csv").read_text() == "row/column,a,b\n0,1,\n1,,2.5\n"


def test_dense_separated_by_spaces(tmp_path):
    values = np.array([[1, np.nan], [2.5, 3], [np.nan, 4]])
    np.savetxt(tmp_path / "saved.txt", values)
    table = tables.read_table(tmp_path / "saved.txt")
    np.testing.assert_array_equal(table.entries.values, [1, 2.5, 3, 4])
    assert table.entries.shape == (3, 2)


def test_numbered_header_of_pandas(tmp_path):
    table = tables.read_table(written(tmp_path, "frame.csv", ",0,1,2,3\n0,1,,3,4\n1,5,6,7,\n"))
    np.testing.assert_array_equal(table.column_ids, [0, 1, 2, 3])
    np.testing.assert_array_equal(table.entries.values, [1, 3, 4, 5, 6, 7])


def test_overrides_win(tmp_path):
    path = written(tmp_path, "three.csv", "1,2,3\n4,5,6\n")
    assert cells_of(tables.read_table(path)) == {(1, 2): 3, (4, 5): 6}
    assert tables.read_table(path, layout="dense").entries.shape == (2, 3)
    assert tables.read_table(path, layout="dense", header=True).column_ids.tolist() == [1, 2, 3]
    named = tables.read_table(path, layout="dense", row_names=True)
    assert cells_of(named) == {(1, 0): 2, (1, 1): 3, (4, 0): 5, (4, 1): 6}
    assert tables.read_table(path, header=True).entries.shape == (1, 1)
    path = written(tmp_path, "tabs.csv", "u1\tb\t3\n")
    assert cells_of(tables.read_table(path, format="tsv")) == {("u1", "b"): 3}
    with pytest.raises(ValueError, match="unknown format 'xml'; expected one of csv, tsv"):
        tables.read_table(path, format="xml")
    with pytest.raises(ValueError, match="unknown layout 'wide'; expected one of pairs, dense"):
        tables.read_table(path, layout="wide")


def test_what_was_found_can_be_shown(tmp_path):
    path = written(tmp_path, "any.csv", PAIRS["any_order.csv"])
    assert str(tables.detect(path)) == (
        "csv; a line for each cell; row=user; column=Movie_ID; value=Rating"
    )
    path = written(tmp_path, "dense.tsv", DENSE["tabs.tsv"])
    assert str(tables.detect(path)) == (
        "tsv; a dense matrix with blanks; with a header; row names in the first column"
    )


PARQUET = {
    "rating": pa.array([3, 1.5, -2], pa.float32()),
    "movieId": pa.array(["b", "a", "a"]).dictionary_encode(),
    "userId": pa.array([7, 8, 7], pa.int32()),
    "timestamp": pa.array([1000, 2000, 3000], pa.timestamp("s")).cast(pa.timestamp("ns")),
}


def in_parquet(folder: Path, **changed) -> Path:
    path = folder / "cells.parquet"
    pyarrow.parquet.write_table(pa.table(PARQUET | changed), path)
    return path


def test_parquet(tmp_path):
    table = tables.read_table(in_parquet(tmp_path))
    assert cells_of(table) == {(7, "b"): 3, (8, "a"): 1.5, (7, "a"): -2}
    np.testing.assert_array_equal(table.times, [1000, 2000, 3000])
    large = pa.array([3, 2**60 + 1, -2], pa.int64())
    assert cells_of(tables.read_table(in_parquet(tmp_path, rating=large)))[8, "a"] == 2.0**60


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rating": [3.0, None, -2]}, r"cells.parquet, row 2: expected a finite number"),
        (
            {"userId": [7, 7, 8], "movieId": ["b", "b", "a"]},
            r"row 2: row 7, column 'b' was given by row 1 already",
        ),
        ({"userId": [7, None, 8]}, r"row 2: column 'userId' holds no id"),
        ({"rating": ["good", "bad", "bad"]}, r"expected numbers in column 'rating', got string"),
    ],
)
def test_bad_parquet(tmp_path, changed, message):
    with pytest.raises(ValueError, match=message):
        tables.read_table(in_parquet(tmp_path, **changed))


def test_damaged_parquet(tmp_path):
    path = in_parquet(tmp_path)
    path.write_bytes(path.read_bytes()[:-20] + b"PAR1")
    with pytest.raises(ValueError, match=r"cells.parquet: expected a Parquet file.*write it again"):
        tables.read_table(path)


def test_dense_parquet(tmp_path):
    path = tmp_path / "dense.parquet"
    values = np.array([[-2, 3], [1.5, np.nan]])
    write_tables.write_dense(path, values, np.array(["u1", "u2"], object), np.array(["a", "b"]))
    assert cells_of(tables.read_table(path)) == CELLS
    assert tables.detect(path).dense


def sparse_cells():
    return scipy.sparse.coo_array(([3.0, 1.5, -2.0], ([0, 2, 0], [1, 0, 0])), shape=(4, 3))


@pytest.mark.parametrize("kind", ["coo", "csr", "csc"])
def test_scipy_npz(tmp_path, kind):
    path = tmp_path / "cells.npz"
    scipy.sparse.save_npz(path, sparse_cells().asformat(kind))
    table = tables.read_table(path)
    assert table.entries.shape == (4, 3)
    assert cells_of(table) == {(0, 1): 3, (2, 0): 1.5, (0, 0): -2}


@pytest.mark.parametrize("compressed", [False, True])
def test_matrix_market(tmp_path, compressed):
    target = io.BytesIO()
    scipy.io.mmwrite(target, sparse_cells(), comment="of\nratings")
    table = tables.read_table(written(tmp_path, "cells.mtx", target.getvalue(), compressed))
    assert table.entries.shape == (4, 3)
    np.testing.assert_array_equal(table.row_ids, [1, 2, 3, 4])
    assert cells_of(table) == {(1, 2): 3, (3, 1): 1.5, (1, 1): -2}


def test_symmetric_matrix_market(tmp_path):
    content = "%%MatrixMarket matrix coordinate integer symmetric\n2 2 2\n1 1 5\n2 1 7\n"
    table = tables.read_table(written(tmp_path, "s.mtx", content))
    assert cells_of(table) == {(1, 1): 5, (2, 1): 7, (1, 2): 7}


MM = "%%MatrixMarket matrix coordinate real general\n"
BAD_TEXT = [
    ("columns.csv", "a,b,1\nc,d\n", r"line 2: expected 3 columns as in the first line, got 2; add"),
    (
        "columns.tsv",
        "a\tb\t1\nc\td\t2\t3\n",
        r"line 2: expected 3 columns .*, got 4; add or remove",
    ),
    ("columns.dat", "a::b::1\nc::d\n", r"line 2: expected 3 columns"),
    ("two.csv", "a,b\nc,d\n", r"line 2: expected a finite number, got 'd'"),
    ("word.csv", "a,b,1\nc,d,good\n", r"line 2: expected a finite number, got 'good'; correct it"),
    ("word1.csv", "a,b,good\na,d,2\n", r"line 1: expected a finite number, got 'good'"),
    ("word1d.csv", "1,good,3,4,5\n1,2,3,4,5\n", r"line 1: expected a finite number, got 'good'"),
    ("comma.csv", "a;b;1,5\nc;d;2\n", r"line 1: expected a finite number, got '1,5'"),
    ("nan.csv", "a,b,1\n\nc,d,NaN\n", r"line 3: expected a finite number, got 'NaN'"),
    (
        "blank.csv",
        "a,b,1\nc,d,\n",
        r"line 2: expected a finite number, got a blank; correct it, or",
    ),
    ("inf.csv", "a,b,1\nc,d,-inf\n", r"line 2: expected a finite number, got '-inf'"),
    ("inf1.csv", "a,b,inf\nc,d,1\n", r"line 1: expected a finite number, got 'inf'"),
    ("hex.csv", "a,b,1\nc,d,0x10\n", r"line 2: expected a finite number, got '0x10'"),
    ("control.csv", "a,b,1\nc,d,\x1f9\nc,d,2\n", r"line 3: row 'c', column 'd'"),
    ("underscore.csv", "a,b,1\nc,d,1_0\n", r"line 2: expected a finite number, got '1_0'"),
    ("huge.csv", "a,b,1\nc,d,1e39\n", r"line 2: .*single precision, got 1e39; rescale"),
    ("id.csv", "a,b,1\n,d,2\n", r"line 2: expected the id of a row, got a blank; name the row"),
    ("id2.csv", "a,b,1\nc,,2\n", r"line 2: expected the id of a column"),
    (
        "time.csv",
        "row,column,value,time\na,b,1,1\nc,d,2,late\n",
        r"line 3: expected a time.*'late'",
    ),
    (
        "twice.csv",
        "row,column,value\na,b,1\nc,d,2\na,b,1\n",
        r"line 4: row 'a', column 'b' was given on line 2 already; keep one of them$",
    ),
    ("maybe_dense.csv", "1,2,3\n1,2,4\n", r"line 2: row '1', column '2'.*, or say layout=dense"),
    (
        "newlines.csv",
        'row,column,value\n"a\nb",c,1\nd,e,bad\n',
        r"line 4: expected a finite number, got 'bad'",
    ),
    ("quote.csv", 'a,b,1\n"c,d,2\ne,f,3\n', r"line 2: cannot split the line .*mend its quotes"),
    ("dense_word.csv", ",a,b\nu1,1,\nu2,x,2\n", r"line 3: expected a finite number, got 'x'"),
    ("dense_inf.csv", ",a,b\nu1,1,\nu2,inf,2\n", r"line 3: expected a finite number, got 'inf'"),
    ("dense_columns.csv", ",a,b\nu1,1,\nu2,1\n", r"line 3: expected 3 columns"),
    ("dense_row.csv", ",a,b\nu1,1,\nu1,1,2\n", r"line 3: row 'u1' was given on line 2 already"),
    ("dense_column.csv", ",a,a\nu1,1,\nu2,1,2\n", r"line 1: .*'a' in columns 2 and 3; name every"),
    (
        "dense_empty.csv",
        ",a,b\nu1,,\nu2,NA,?\n",
        r"dense_empty.csv: the file holds no observed cell",
    ),
    ("header.csv", "row,column,value\n", r"header.csv: the file holds no observed cell"),
    ("empty.csv", "", r"empty.csv: the file is empty; expected"),
    ("white.csv", " \n\n", r"white.csv: the file is empty"),
    ("empty.csv.gz", gzip.compress(b""), r"empty.csv.gz: the file is empty"),
    (
        "names.csv",
        "rating,thing,what,user\n1,a,b,c\n",
        r"line 1: cannot tell which column holds the c",
    ),
    (
        "latin.csv",
        b"a,b,1\ncaf\xe9,d,2\n",
        r"line 2: expected UTF-8 text, got the byte 0xe9; .*iconv",
    ),
    ("latin.txt", b"a b 1\ncaf\xe9 d 2\n", r"line 2: expected UTF-8 text"),
    ("zero.csv", b"a,b,1\nc\0,d,2\n", r"line 2: expected text, got a zero byte; save the table"),
    ("mark.csv", "\ufeff\n", r"mark.csv: the file is empty"),
    ("names.csv", "a\nb\n1\n", r"line 2: expected a finite number, got 'b'"),
    ("utf16.csv", "a,b,1\n".encode("utf-16"), r"line 1: expected UTF-8 text, got UTF-16; save"),
    (
        "cut.csv.gz",
        gzip.compress(b"".join(b"%d,%d,3\n" % (n, n * n) for n in range(9999)))[:5000],
        r"cut.csv.gz, line \d{3,4}: the gzip data are cut short or damaged here.*again",
    ),
    (
        "book.csv",
        b"PK\x03\x04rest",
        r"book.csv: expected csv, got a zip archive \(an Excel workbook",
    ),
    ("array.npy", b"\x93NUMPY\x01\x00", r"array.npy: expected a table, got a binary file; save"),
    ("not.parquet", "a,b,1\n", r"line 1: expected parquet by the file's extension, got b'a,b,1"),
    (
        "pattern.mtx",
        "%%MatrixMarket matrix coordinate pattern general\n1 1 1\n1 1\n",
        r"line 1: exp",
    ),
    ("array.mtx", "%%MatrixMarket matrix array real general\n1 1\n1\n", r"line 1: .*mmwrite"),
    (
        "skew.mtx",
        MM.replace("general", "skew-symmetric") + "1 1 1\n1 1 1\n",
        r"line 1: .*as general",
    ),
    ("sizes.mtx", MM + "%\n3 3\n1 1 1\n", r"line 3: expected the sizes .* got '3 3'"),
    ("no_sizes.mtx", MM + "% only", r"line 2: expected sizes, got the end"),
    ("count.mtx", MM + "3 3 2\n1 1 1\n", r"line 2: expected 2 entries as the header claims, got 1"),
    ("row.mtx", MM + "%\n3 3 2\n1 1 1\n\n4 1 1\n", r"line 6: expected a row from 1 to 3, got 4"),
    ("column.mtx", MM + "3 3 2\n1 1 1\n2 0 1\n", r"line 4: expected a column from 1 to 3, got 0"),
    ("word.mtx", MM + "3 3 2\n1 1 1\n2 x 1\n", r"line 4: expected a column from 1 to 3, got x"),
    ("value.mtx", MM + "3 3 2\n1 1 1\n2 2 nan\n", r"line 4: expected a finite number, got 'nan'"),
    ("twice.mtx", MM + "3 3 2\n2 1 1\n2 1 5\n", r"line 4: row '2', column '1' .* line 3 already"),
    (
        "absurd.mtx",
        MM + "999999999999 3 1\n1 1 1\n",
        r"line 2: the header claims 999999999999 rows and 3 columns.*correct the header",
    ),
    (
        "absurd_entries.mtx",
        MM + "3 3 99999999999\n1 1 1\n",
        r"line 2: expected 99999999999 entries",
    ),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_TEXT, ids=[b[0] for b in BAD_TEXT])
def test_bad_input_is_named_with_file_line_and_remedy(tmp_path, name, content, message):
    path = written(tmp_path, name, content)
    with pytest.raises(ValueError, match=message) as caught:
        tables.read_table(path)
    assert str(path) in str(caught.value)
    assert ";" in str(caught.value)  # The remedy.


def test_doubles_come_back_where_they_are_asked_for(tmp_path):
    texts = ["81.2", "123456789", "1e200", "-0.1"]
    long = written(tmp_path, "long.csv", "".join(f"u{n},i,{x}\n" for n, x in enumerate(texts)))
    dense = written(tmp_path, "dense.csv", "a,b,c,d,e\n" + ",".join([*texts, ""]) + "\n")
    market = written(
        tmp_path, "m.mtx", MM + "4 1 4\n" + "".join(f"{n} 1 {x}\n" for n, x in enumerate(texts, 1))
    )
    sparse, columns = tmp_path / "s.npz", tmp_path / "p.parquet"
    scipy.sparse.save_npz(sparse, scipy.sparse.coo_array(np.array([texts], float)))
    pyarrow.parquet.write_table(
        pa.table({f"c{n}": [float(x)] for n, x in enumerate([*texts, "nan"])}), columns
    )
    for path in (long, dense, market, sparse, columns):
        table = tables.read_table(path, dtype=np.float64)
        assert table.entries.values.dtype == np.float64
        assert table.entries.values.tolist() == [float(x) for x in texts]
        with pytest.raises(ValueError, match="single precision"):
            tables.read_table(path)
    path = written(tmp_path, "huge.csv", "a,b,1\na,c,1e400\n")
    with pytest.raises(ValueError, match=r"line 2: .*double precision, got 1e400; rescale"):
        tables.read_table(path, dtype=np.float64)


def test_true_and_false_are_one_and_zero(tmp_path):
    path = written(tmp_path, "b.csv", "True,x,y,z,w\nTrue,1,2,3,1\n,2,3,4,1\nFALSE,3,4,5,1\n")
    table = tables.read_table(path)
    assert tables.detect(path).header
    np.testing.assert_array_equal(table.entries.values[table.entries.columns == 0], [1, 0])
    path = written(tmp_path, "three.csv", "id,yes,z\n1,True,\n2,,4\n3,false,6\n")
    assert tables.detect(path).dense
    path = tmp_path / "b.parquet"
    columns = {"yes": [True, None, False], "x": [1, 2, None], "y": [3, 3, 4], "z": [1, 1, 1]}
    pyarrow.parquet.write_table(pa.table(columns | {"w": [1, 1, 1]}), path)
    assert not tables.detect(path).row_names
    assert tables.read_table(path).entries.values[:5].tolist() == [1, 1, 3, 1, 1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "mixed.csv",
            "a,b,c,d,e\n1,True,3,4,5\n1,0,3,4,5\n",
            r"line 3: column 'b' mixes numbers with True or False: got '0'; write 1 for True and",
        ),
        (
            "bare.csv",
            "1,2,3,4,5\n1,true,3,4,5\n",
            r"line 2: column 2 mixes numbers with True or False: got 'true'; write 1 for True and",
        ),
        (
            "pairs.csv",
            "user,item,rating\na,b,1\na,c,True\n",
            r"line 3: expected a finite number, got 'True'; write 1 for True and 0 for False",
        ),
        (
            "words.csv",
            "id,age,city,x,y\n1,30,Rome,1,2\n2,,Oslo,1,2\n",
            r"line 2: expected a finite number, got 'Rome' in column 'city'; .*the column out",
        ),
        (
            "names.csv",
            "city,age,x,y,z\nRome,1,2,3,4\nRome,1,2,3,4\n",
            r"line 3: row 'Rome' was given on line 2 already; .*leave the column out",
        ),
    ],
)
def test_words_are_refused_by_the_name_of_their_column(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        tables.read_table(written(tmp_path, name, content))


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"none.csv: no such file; give the path of a table"
    ):
        tables.read_table(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="expected a file, got a folder; give the path of a file"):
        tables.read_table(tmp_path)


def npz_member(array=None, header=None, data=b""):
    """Bytes of a .npy member: of an array, or with a header that may lie."""
    target = io.BytesIO()
    if header is None:
        np.lib.format.write_array(target, array, allow_pickle=True)
        return target.getvalue()
    np.lib.format.write_array_header_1_0(target, header)
    return target.getvalue() + data


GOOD_NPZ = {
    "format": np.array(b"coo"),
    "shape": np.array([2, 2]),
    "data": np.array([1.0, 2.0]),
    "row": np.array([0, 1]),
    "col": np.array([0, 1]),
}
HUGE = {"descr": "<f8", "fortran_order": False, "shape": (10**12,)}
CSR = {"format": np.array(b"csr"), "indices": np.array([0, 1])}
BAD_NPZ = {
    "pickle": ({"data": np.array([{}, {}], object)}, "data.npy holds pickled objects"),
    "absurd_array": ({"data": npz_member(header=HUGE)}, "claims 8000000000000 bytes and holds 0"),
    "absurd_shape": ({"shape": np.array([10**12, 2])}, "the header claims 1000000000000 rows"),
    "negative_shape": ({"shape": np.array([-1, 2])}, "the header claims -1 rows"),
    "format": ({"format": np.array(b"bsr")}, "in coo, csr or csc format, got 'bsr'"),
    "lacking": ({"row": None}, "got none named row; write it by scipy.sparse.save_npz"),
    "outside": ({"row": np.array([0, 2])}, "entry 2 lies in row 2 of 2"),
    "infinite": ({"data": np.array([1.0, np.inf])}, "entry 2: expected a finite number"),
    "complex": ({"data": np.array([1j, 2])}, "expected a list of real numbers as data"),
    "lengths": ({"col": np.array([0])}, "expected 2 rows and columns, got 2, 1"),
    "twice": ({"row": np.array([0, 0]), "col": np.array([1, 1])}, "entry 2: row 0, column 1 was"),
    "empty": ({name: np.array([], int) for name in ("data", "row", "col")}, "no observed cell"),
    "indptr_falls": ({**CSR, "indptr": np.array([0, 5, 2])}, "expected indptr to rise"),
    "indptr_short": ({**CSR, "indptr": np.array([0, 2])}, "expected indptr to rise"),
    "indptr_claims": ({**CSR, "indptr": np.array([0, 1, 9])}, "expected 9 indices"),
    "not_npy": ({"data": b"junk"}, "one that cannot be read"),
}


@pytest.mark.parametrize("case", BAD_NPZ)
def test_bad_npz(tmp_path, case):
    changed, message = BAD_NPZ[case]
    path = tmp_path / "bad.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in {**GOOD_NPZ, **changed}.items():
            if array is not None:
                member = array if isinstance(array, bytes) else npz_member(array)
                archive.writestr(f"{name}.npy", member)
    with pytest.raises(ValueError, match=message) as caught:
        tables.read_table(path)
    assert str(path) in str(caught.value)


def test_cut_npz(tmp_path):
    path = tmp_path / "cut.npz"
    scipy.sparse.save_npz(path, sparse_cells())
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"cut.npz: expected a file of scipy.sparse.save_npz"):
        tables.read_table(path)


# ------------------------------------------------------------------------------------------ writing

IDS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=6
)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def canonical(names: list[str]) -> list:
    """Text cannot tell integers from strings that all look like integers."""
    return text_tables.typed_ids(list(dict.fromkeys(names))).tolist()


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.tuples(IDS, IDS), FLOATS, min_size=1, max_size=6), st.data())
def test_pairs_round_trip(tmp_path_factory, cells, data):
    name = data.draw(st.sampled_from(["p.csv", "p.tsv.gz", "p.parquet"]))
    path = tmp_path_factory.mktemp("round") / name
    rows, columns = (np.array(ids, object) for ids in zip(*cells, strict=True))
    values = np.array(list(cells.values()), np.float32)
    times = np.arange(len(values)) * 10**9
    write_tables.write_pairs(path, rows, columns, values, times=times, extra={"sd": values})
    table = tables.read_table(path)
    np.testing.assert_array_equal(table.entries.values, values)
    np.testing.assert_array_equal(table.times, times)
    unique = [list(dict.fromkeys(ids.tolist())) for ids in (rows, columns)]
    if name != "p.parquet":
        unique = [canonical(ids) for ids in unique]
    assert table.row_ids.tolist() == unique[0]
    assert table.column_ids.tolist() == unique[1]
    listed = tables.read_pairs(path)
    np.testing.assert_array_equal(listed[0], table.row_ids[table.entries.rows])
    np.testing.assert_array_equal(listed[1], table.column_ids[table.entries.columns])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(IDS, min_size=1, max_size=4, unique=True),
    st.lists(IDS, min_size=1, max_size=5, unique=True),
    st.data(),
)
def test_dense_round_trip(tmp_path_factory, rows, columns, data):
    path = tmp_path_factory.mktemp("round") / data.draw(st.sampled_from(["d.csv", "d.tsv.gz"]))
    values = np.array(
        [[data.draw(st.one_of(st.just(np.nan), FLOATS)) for _ in columns] for _ in rows],
        np.float32,
    )
    values[0, 0] = 1
    write_tables.write_dense(path, values, np.array(rows, object), np.array(columns, object))
    table = tables.read_table(path)
    assert tables.detect(path).dense
    assert table.row_ids.tolist() == canonical(rows)
    assert table.column_ids.tolist() == canonical(columns)
    back = np.full(table.entries.shape, np.nan, np.float32)
    back[table.entries.rows, table.entries.columns] = table.entries.values
    np.testing.assert_array_equal(back, values)


@pytest.mark.parametrize("name", [*DENSE, "bare.csv", "semicolons.csv", "spaces.txt"])
def test_a_dense_file_is_answered_in_its_own_layout(tmp_path, name):
    bare = {"bare.csv": ",1\n2,\n", "semicolons.csv": "name;a;b\nu1;1;\nu2;;2\n"}
    content = {**DENSE, **bare, "spaces.txt": "1 NaN\n2 3\n"}[name]
    path = written(tmp_path, name, content)
    found, table = tables.detect(path), tables.read_table(path)
    full = np.array([[1.5, 2], [3, 4]], np.float32)
    answer = tmp_path / f"filled-{name}"
    write_tables.write_dense(answer, full, table.row_ids, table.column_ids, like=found)
    again = tables.detect(answer, layout="dense")
    assert again == found
    filled = tables.read_table(answer, layout="dense")
    np.testing.assert_array_equal(filled.entries.values, full.ravel())
    assert filled.row_ids.tolist() == table.row_ids.tolist()
    assert filled.column_ids.tolist() == table.column_ids.tolist()


def test_libmf_round_trip(tmp_path):
    path = tmp_path / "p.libmf"
    write_tables.write_pairs(path, np.array([0, 5]), np.array([1, 0]), np.array([1.5, 2]))
    assert path.read_text() == "0 1 1.5\n5 0 2\n"
    assert cells_of(tables.read_table(path)) == {(0, 1): 1.5, (5, 0): 2}


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path):
    one = np.array([1])
    cases = [
        (tmp_path / "p.xls", one, one, r"p.xls: cannot tell the format.*\.csv"),
        (tmp_path / "p.csv", np.array([""], object), one, "the id '' of row 0 cannot be written"),
        (tmp_path / "p.libmf", np.array(["a b"], object), one, "'a b' of row 0 .* without spaces"),
        (tmp_path / "p.csv", one, np.array([np.nan]), "expected finite values, got nan in entry 0"),
        (tmp_path / "none" / "p.csv", one, one, "there is no folder .*; make it first"),
    ]
    for path, ids, values, message in cases:
        with pytest.raises(ValueError, match=message):
            write_tables.write_pairs(path, ids, one, values)
    with pytest.raises(ValueError, match=r"expected \[1, 1\] values, got \(2, 1\)"):
        write_tables.write_dense(tmp_path / "d.csv", np.ones((2, 1)), one, one)
    with pytest.raises(ValueError, match="row 0, column 0"):
        write_tables.write_dense(tmp_path / "d.csv", np.array([[np.inf]]), one, one)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = written(tmp_path, "p.csv", "old")

    def broken():
        with files.written_aside(path) as aside:
            aside.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["p.csv"]


# ------------------------------------------------------------------------- pairs to be predicted


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", "u1,b\nu2,a\nu1,b\n"),
        ("p.csv", "item,user\nb,u1\na,u2\nb,u1\n"),
        ("p.tsv", "u1\tb\t3\nu2\ta\t4\nu1\tb\t3\n"),
        ("p.txt", "u1 b\nu2 a\nu1 b\n"),
    ],
)
def test_read_pairs(tmp_path, name, content, monkeypatch):
    path = written(tmp_path, name, content)
    for _ in range(2):
        rows, columns = tables.read_pairs(path)
        assert rows.tolist() == ["u1", "u2", "u1"]
        assert columns.tolist() == ["b", "a", "b"]
        monkeypatch.setattr(text_tables, "arrow_columns", lambda *_: None)


def test_bad_pairs(tmp_path):
    cases = [
        ("a\n", r"line 1: expected two or more columns \(row, column\), got 1"),
        ("a,b\nc\n", r"line 2: expected 2 columns"),
        ("a,b\nc,\n", r"line 2: expected the id of a column, got a blank"),
        ("row,column\n", r"expected at least one cell, got none"),
    ]
    for content, message in cases:
        with pytest.raises(ValueError, match=message):
            tables.read_pairs(written(tmp_path, "bad.csv", content))
    with pytest.raises(ValueError, match=r"expected a list of cells as csv.*got mtx"):
        tables.read_pairs(written(tmp_path, "bad.mtx", MM + "1 1 1\n1 1 1\n"))


def test_positions():
    known = np.array([30, 10, 20])
    np.testing.assert_array_equal(tables.positions(np.array([10, 7, 30]), known), [1, -1, 0])
    strings = np.array(["10", "010"], object)
    np.testing.assert_array_equal(tables.positions(strings, known), [1, -1])
    assert tables.positions(known, strings).tolist() == [-1, 0, -1]


# ------------------------------------------------------------------------------ names of sources


def test_load_takes_names_and_paths(tmp_path):
    path = written(tmp_path, "plain.csv", PAIRS["plain.csv"])
    assert cells_of(sources.load(path)) == CELLS
    assert cells_of(sources.load(str(path))) == CELLS
    with pytest.raises(
        ValueError,
        match="unknown data set 'ml10m'; expected one of synthetic, ml100k, ml1m, latest_small",
    ):
        sources.load("ml10m")
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        sources.load(tmp_path / "none.csv")
    first, again, other = (sources.load("synthetic", seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.entries.values, again.entries.values)
    assert len(first.entries.values) != len(other.entries.values)


def test_words_for_a_missing_cell():
    assert all(map(table_format.is_missing, (*table_format.MISSING, "nan", " na ", "N/a")))
    assert not any(map(table_format.is_missing, ("0", "-", "none", "inf")))


TOKENS = [*"123ab", "", "NA", "nan", "inf", "3.5", " 1", "1 ", "007", "user", "item", "1e39", "+1"]
TOKENS += ['"', '"a"', '"x,y"', '"a\nb"', "\r", "::", "é", "\0", "row/column", "1_0", "\ufeff"]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(TOKENS), min_size=1, max_size=5), min_size=1, max_size=5),
    st.sampled_from([",", "\t", ";", " ", "::"]),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["f.csv", "f.tsv", "f.txt"]),
)
def test_any_text_is_read_alike_by_both_passes_or_refused(
    tmp_path_factory, records, delimiter, end, name
):
    text = end.join(delimiter.join(record) for record in records)
    path = written(tmp_path_factory.mktemp("any"), name, text)
    answers = []
    for strict in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            if strict:
                patch.setattr(text_tables, "arrow_columns", lambda *_: None)
            try:
                answers.append(cells_of(tables.read_table(path)))
            except ValueError as error:
                answers.append((type(error), str(error)))
    assert answers[0] == answers[1]
    if isinstance(answers[0], tuple):
        assert answers[0][0] is ValueError
        assert str(path) in answers[0][1]
