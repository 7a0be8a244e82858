"""Texts read piece by piece give the entries, ids and mistakes of those read whole."""

import gzip

import numpy as np
import pytest

from experiments import factorize
from metamf_jax.data import entry_streams, tables
from metamf_jax.data.tables import stream as table_streams

_LINES = [f"u{n % 7},i{n % 5},{n / 2}" for n in range(30)]
_QUOTED = ["row,column,value", *(f'"u\n{n % 7}",{n},"{n}"' for n in range(30))]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(table_streams, "_PIECE", 50)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plain.csv", "\n".join(_LINES)),
        ("header.csv", "user,item,rating\n" + "\n\n".join(_LINES) + "\n"),
        ("order.csv", "rating,time,item,user\n" + "\n".join(f"{n},8,{n},{n}" for n in range(30))),
        ("quoted.csv", "\n".join(_QUOTED) + "\n"),
        ("crlf.tsv", "\r\n".join(line.replace(",", "\t") for line in _LINES)),
        ("ids.libmf", "".join(f"{n} 0{n} 1\n" if n > 20 else f"{n} {n} 1\n" for n in range(30))),
        ("ratings.dat", "".join(f"{n}::{n}::3::9\n" for n in range(30))),
        ("packed.csv.gz", "\n".join(_LINES)),
    ],
)
def test_pieces_are_the_whole(name, text, tmp_path):
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    table, stream = tables.read_table(path), table_streams.open_pairs(path)
    assert stream is not None
    chunks = list(stream.chunks())
    assert len(chunks) > 3
    assert stream.shape == table.entries.shape
    for part in ("rows", "columns", "values"):
        got = np.concatenate([getattr(chunk, part) for chunk in chunks])
        np.testing.assert_array_equal(got, getattr(table.entries, part))
    for got, expected in ((stream.row_ids, table.row_ids), (stream.column_ids, table.column_ids)):
        assert got.dtype == expected.dtype
        assert got.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        (20, "u1,i1,x"),
        (25, "u1,i1"),
        (28, "u1,,3"),
        (30, 'u1,"i1,3'),
        (17, "u1,i\0,3"),
        (22, "u1,i\udcff,3"),
    ],
)
def test_mistakes_are_those_of_the_whole(line, wrong, tmp_path):
    path = tmp_path / "table.csv"
    lines = [*_LINES[: line - 1], wrong, *_LINES[line:]]
    path.write_bytes("\n".join(lines).encode(errors="surrogateescape"))
    messages = []
    for read in (tables.read_table, table_streams.open_pairs):
        with pytest.raises(ValueError, match=r"table\.csv, line") as caught:
            read(path)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_a_gzip_file_that_was_cut(tmp_path):
    path = tmp_path / "table.csv.gz"
    random = np.random.default_rng(0).integers(0, 10**9, 60)
    path.write_bytes(gzip.compress("\n".join(f"{n},{n},{n}" for n in random).encode())[:-30])
    with pytest.raises(ValueError, match=r"table.csv.gz, line \d+: the gzip data are cut short"):
        table_streams.open_pairs(path)


def test_other_files_are_read_whole(tmp_path):
    path = tmp_path / "dense.csv"
    path.write_text("1,,3\n4,5,\n" * 20)
    assert table_streams.open_pairs(path) is None
    stream = entry_streams.open_stream(path)
    assert (stream.shape, stream.given_twice) == ((40, 3), None)


def test_an_entry_given_twice_is_named_by_its_lines(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("user,item,rating\n" + "\n".join([*_LINES, "u3,i2,1"]))
    config = factorize.Config(
        dataset=str(path), rank=1, epochs=1, test_fraction=0, block_store=str(tmp_path / "store")
    )
    with pytest.raises(
        ValueError, match=r"table\.csv, line 32: row 'u3', column 'i2' was given on line 19"
    ):
        factorize.run(config, tmp_path / "run")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["table.csv"]
