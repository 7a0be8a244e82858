"""Jester in its CSV layout: a miniature always, the real set where METAMF_DATA_DIR has it."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from metamf_jax.data import data_dir, jester, sources


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.delenv(data_dir.VARIABLE, raising=False)
    (tmp_path / "jester").mkdir()
    return tmp_path


def line(ratings: dict[int, float], count: int | None = None) -> str:
    """A line of the file: ratings by number of joke."""
    cells = [str(ratings.get(joke, 99)) for joke in range(1, 101)]
    return ",".join([str(len(ratings) if count is None else count), *cells]) + "\n"


GOOD = line({1: -7.82, 100: 10.0}) + line({}) + line({2: 0.0, 7: 99 / 10})


@pytest.mark.parametrize("part", [1, 2])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_miniature(folder, part, compressed):
    path = folder / "jester" / (f"jester-data-{part}.csv" + ".gz" * compressed)
    path.write_bytes(gzip.compress(GOOD.encode()) if compressed else GOOD.encode())
    for where in (folder, folder / "jester"):
        table = jester.jester(where, part)
        assert table.entries.shape == (3, 100)
        np.testing.assert_array_equal(table.row_ids, [1, 2, 3])
        np.testing.assert_array_equal(table.column_ids, np.arange(1, 101))
        np.testing.assert_array_equal(table.entries.rows, [0, 0, 2, 2])
        np.testing.assert_array_equal(table.entries.columns, [0, 99, 1, 6])
        np.testing.assert_array_equal(table.entries.values, np.float32([-7.82, 10, 0, 9.9]))
        assert table.times is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD + line({1: 10.5}), r"line 4: got a rating outside -10..10; expected the number of"),
        (GOOD + line({1: 1.0}, count=2), r"line 4: got 1 ratings where 2 are told; expected"),
        (GOOD + "1,2\n", r"line 4: expected 101 columns as in the first line, got 2"),
        (GOOD + line({1: 1.0}).replace("99", "", 1), r"line 4: got a blank; expected the number"),
        (GOOD.replace("-7.82", "funny"), r"line 1: expected a finite number, got 'funny'"),
        ("1,2,3\n", r"line 1: got 3 columns; expected the number of jokes rated"),
    ],
)
def test_a_broken_layout_is_named_with_its_line(folder, content, message):
    (folder / "jester" / "jester-data-1.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        jester.jester(folder)


def test_absent_files_are_named_with_the_remedy(folder):
    with pytest.raises(FileNotFoundError) as caught:
        sources.load("jester", folder)
    message = str(caught.value)
    assert str(folder / "jester" / "jester-data-1.csv.gz") in message
    assert "METAMF_DATA_DIR" in message
    assert "jester-data-1.xls" in message
    with pytest.raises(ValueError, match="expected part 1, 2 or 3, got 4"):
        jester.jester(folder, 4)


ROOT = os.environ.get("METAMF_DATA_DIR")

if ROOT and (Path(ROOT) / "jester" / "jester-data-1.csv.gz").exists():

    def test_the_real_set():
        table = jester.jester()
        values = table.entries.values
        assert table.entries.shape == (24_983, 100)
        assert len(values) == 1_810_455
        assert (values.min(), values.max()) == (np.float32(-9.95), 10)
        assert abs(values.mean(dtype=np.float64) - 0.8798) < 5e-5
        assert np.bincount(table.entries.rows).min() == 36
