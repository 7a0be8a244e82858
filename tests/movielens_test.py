"""MovieLens in its formats: miniatures always, the real sets where METAMF_DATA_DIR has them."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from metamf_jax.data import data_dir, movielens, sources
from metamf_jax.data.tables import text as text_tables


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.delenv(data_dir.VARIABLE, raising=False)
    return tmp_path


def write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


MINI_100K = "196\t242\t3\t881250949\n186\t302\t3\t891717742\n196\t302\t1\t878887116\n"
MINI_1M = "1::1193::5::978300760\n1::661::3::978302109\n2::1193::4::978298413\n"
MINI_SMALL = "userId,movieId,rating,timestamp\r\n1,31,2.5,1260759144\r\n2,10,4.0,835355493\r\n"


def test_100k(folder):
    write(folder / "ml-100k" / "u.data", MINI_100K)
    for where in (folder, folder / "ml-100k"):
        table = movielens.ml100k(where)
        np.testing.assert_array_equal(table.row_ids, [196, 186])
        np.testing.assert_array_equal(table.column_ids, [242, 302])
        np.testing.assert_array_equal(table.entries.rows, [0, 1, 0])
        np.testing.assert_array_equal(table.entries.columns, [0, 1, 1])
        np.testing.assert_array_equal(table.entries.values, [3, 3, 1])
        np.testing.assert_array_equal(table.times, [881250949, 891717742, 878887116])


def test_splits_share_their_ids(folder):
    write(folder / "ml-100k" / "u3.base", "5\t7\t3\t1\n1\t9\t4\t2\n")
    write(folder / "ml-100k" / "u3.test", "5\t2\t1\t3\n")
    base, test = movielens.ml100k_split("u3", folder)
    for part in (base, test):
        np.testing.assert_array_equal(part.row_ids, [1, 5])
        np.testing.assert_array_equal(part.column_ids, [2, 7, 9])
        assert part.entries.shape == (2, 3)
    np.testing.assert_array_equal(base.entries.rows, [1, 0])
    np.testing.assert_array_equal(base.entries.columns, [1, 2])
    np.testing.assert_array_equal(test.entries.columns, [0])
    np.testing.assert_array_equal(test.times, [3])
    with pytest.raises(ValueError, match="unknown split 'u9'; expected one of u1, u2"):
        movielens.ml100k_split("u9", folder)


@pytest.mark.parametrize("name", ["ratings.dat", "ratings.dat.gz"])
def test_1m(folder, name):
    content = MINI_1M.encode()
    write(folder / "ml-1m" / name, gzip.compress(content) if name.endswith("gz") else content)
    table = movielens.ml1m(folder)
    assert table.entries.shape == (2, 2)
    np.testing.assert_array_equal(table.column_ids, [1193, 661])
    np.testing.assert_array_equal(table.entries.values, [5, 3, 4])
    np.testing.assert_array_equal(table.times, [978300760, 978302109, 978298413])


def test_latest_small(folder, monkeypatch):
    write(folder / "ml-latest-small" / "ratings.csv", MINI_SMALL)
    monkeypatch.setenv(data_dir.VARIABLE, str(folder))
    for table in (movielens.latest_small(), sources.load("latest_small")):
        np.testing.assert_array_equal(table.row_ids, [1, 2])
        np.testing.assert_array_equal(table.entries.values, [2.5, 4])


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("ml100k", "ml-100k/u.data", MINI_100K + "1\t2\n", r"u.data, line 4: expected 4 columns"),
        ("ml1m", "ml-1m/ratings.dat", MINI_1M + "1::1193::5::0\n", r"ratings.dat, line 4: row '1'"),
        (
            "latest_small",
            "ml-latest-small/ratings.csv",
            MINI_SMALL + "3,x",
            r"line 4: expected 4 c",
        ),
    ],
)
def test_damaged_files_are_named_with_the_line(folder, name, file, content, message):
    write(folder / file, content)
    with pytest.raises(ValueError, match=message):
        sources.load(name, folder)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("ml100k", "ml-100k/u.data"),
        ("ml1m", "ml-1m/ratings.dat"),
        ("ml1m", "ml-1m/ratings.dat.gz"),
        ("latest_small", "ml-latest-small/ratings.csv"),
    ],
)
def test_absent_files_are_named_with_the_remedy(folder, name, file):
    with pytest.raises(FileNotFoundError) as caught:
        sources.load(name, folder)
    message = str(caught.value)
    assert str(folder / file) in message
    assert "METAMF_DATA_DIR" in message
    assert f"python -m metamf_jax.data.download {name}" in message
    with pytest.raises(
        FileNotFoundError, match=r"no folder with data sets is known.*METAMF_DATA_DI"
    ):
        sources.load(name)


# ------------------------------------------------------------------------------ the real data sets


def real(file: str) -> Path | None:
    root = os.environ.get("METAMF_DATA_DIR")
    return root if root and (Path(root) / file).exists() else None


COUNTS = {
    "ml100k": ((943, 1682), 100_000, 3.5299, [6110, 11370, 27145, 34174, 21201]),
    "ml1m": ((6040, 3706), 1_000_209, 3.5816, [56174, 107557, 261197, 348971, 226310]),
}


def check_counts(name, table):
    shape, num, mean, levels = COUNTS[name]
    values = table.entries.values
    assert table.entries.shape == shape
    assert len(values) == num
    assert abs(values.mean(dtype=np.float64) - mean) < 5e-5
    assert np.bincount(values.astype(int))[1:].tolist() == levels


if real("ml-100k/u.data"):

    def test_real_100k():
        table = movielens.ml100k()
        check_counts("ml100k", table)
        every = set(zip(table.entries.rows.tolist(), table.entries.columns.tolist(), strict=True))
        cells = set()
        for split in movielens.SPLITS_100K:
            base, test = movielens.ml100k_split(split)
            sizes = (80_000, 20_000) if split[1] in "12345" else (90_570, 9_430)
            assert (len(base.entries.values), len(test.entries.values)) == sizes
            if split[1] in "12345":
                ids = zip(
                    test.row_ids[test.entries.rows].tolist(),
                    test.column_ids[test.entries.columns].tolist(),
                    strict=True,
                )
                cells.update(ids)
        assert len(cells) == len(every) == 100_000  # The five tests partition the whole.


if real("ml-1m"):

    def test_real_1m(monkeypatch):
        # Line by line it takes many times as long: it must never come to that.
        monkeypatch.delattr(text_tables, "_strictly")
        check_counts("ml1m", movielens.ml1m())


if real("ml-latest-small"):

    def test_real_latest_small():
        table = movielens.latest_small()
        editions = {100_004: (671, 9066), 100_836: (610, 9724)}
        assert table.entries.shape == editions[len(table.entries.values)]
        assert set(np.unique(table.entries.values)) == set(np.arange(1, 11) / 2)
