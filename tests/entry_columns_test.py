"""Further columns of tables, by name: numbers, dates and words."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from metamf_jax.data.tables.entry_columns import read_entry_columns

TEXT = """user,item,rating,timestamp,device,age
u,a,3,1970-01-02,phone,30
u,b,4,1970-01-01T00:01:00Z,,
v,a,5,1970-01-01 00:00:10,desk,41.5
"""


@pytest.fixture(params=["csv", "parquet"])
def table(request, tmp_path):
    path = tmp_path / f"table.{request.param}"
    if request.param == "csv":
        path.write_text(TEXT)
    else:
        names, *lines = (line.split(",") for line in TEXT.splitlines())
        columns = {name: list(x) for name, *x in zip(names, *lines, strict=True)}
        columns["age"] = [30, None, 41.5]
        pyarrow.parquet.write_table(pa.table(columns), path)
    return path


def test_columns_are_numbers_dates_or_words(table):
    found = read_entry_columns(table, ("time", "device", "age"))
    np.testing.assert_array_equal(found["time"], [86400, 60, 10])
    assert found["device"].tolist() == ["phone", "", "desk"]
    assert found["device"].dtype == object
    np.testing.assert_array_equal(found["age"], [30, np.nan, 41.5])


def test_columns_that_are_not_there(table):
    with pytest.raises(
        ValueError, match=r"line 1: expected a column named 'place', got user, item"
    ):
        read_entry_columns(table, ("place",))
    assert list(read_entry_columns(table, ("place", "age"), required=False)) == ["age"]
