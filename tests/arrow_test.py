"""Columns of pyarrow from and to NumPy."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from metamf_jax.data.tables import arrow


@pytest.mark.parametrize("dtype", ["i4", "i8", "f4", "f8"])
def test_numbers_come_back(dtype):
    values = np.array([3, -1, 0, 7], dtype)
    column = arrow.from_numpy(values)
    assert column.type == pa.from_numpy_dtype(values.dtype)
    pieces = pa.chunked_array([column.slice(0, 1), column.slice(1, 0), column.slice(1)])
    for given in (column, pieces):
        found = arrow.to_numpy(given)
        np.testing.assert_array_equal(found, values)
        assert found.dtype == values.dtype


def test_strings_and_strided_numbers_are_as_pyarrow_has_them():
    words = np.array(["a", "", "ö ß", "long" * 9], object)
    assert arrow.from_numpy(words).equals(pa.array(words))
    assert arrow.from_numpy(words[:0]).equals(pa.array([], pa.string()))
    strided = np.arange(12.0).reshape(4, 3)[:, 1]
    assert arrow.from_numpy(strided).to_pylist() == [1, 4, 7, 10]


def test_nulls_are_nan_or_refused():
    column = pa.chunked_array([[1.5, None], [None, 2.0], [3.0]], pa.float64())
    np.testing.assert_array_equal(arrow.to_numpy(column), [1.5, np.nan, np.nan, 2, 3])
    np.testing.assert_array_equal(arrow.to_numpy(column[1:4]), [np.nan, np.nan, 2])
    assert len(arrow.to_numpy(pa.chunked_array([], pa.int64()))) == 0
    with pytest.raises(TypeError, match="int64 with 1 nulls"):
        arrow.to_numpy(pa.array([1, None], pa.int64()))


def test_tables_are_read_and_written_without_pandas(tmp_path):
    (tmp_path / "in.csv").write_text("user,item,rating\na,x,1\nb,y,2.5\n")
    code = """
import sys
from metamf_jax.data import tables
from metamf_jax.data.tables import write
table = tables.read_table("in.csv")
entries = table.entries
write.write_pairs(
    "out.csv", table.row_ids[entries.rows], table.column_ids[entries.columns], entries.values
)
assert "pandas" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert (tmp_path / "out.csv").read_text().splitlines()[1:] == ['"a","x",1', '"b","y",2.5']
