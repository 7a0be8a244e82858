"""LIBMF's models there and back, and what is wrong with others."""

import gzip

import numpy as np
import pytest

from metamf_jax.data.libmf_text import read_libmf, write_libmf
from metamf_jax.types import Factors

# As mf-train writes it: six digits, a space at the end of each line.
MODEL = """f 0
m 3
n 2
k 2
b 3.52986
p0 T 0.768412 1.31002\x20
p1 F 0 0\x20
p2 T -0.1 2e-05\x20
q0 T 0.5 0.25\x20
q1 T 1 -1\x20
"""


def test_reads_what_mf_train_writes(tmp_path):
    for path, data in (("m.txt", MODEL.encode()), ("m.gz", gzip.compress(MODEL.encode()))):
        (tmp_path / path).write_bytes(data)
        factors, row_ids, column_ids = read_libmf(tmp_path / path)
        assert row_ids.tolist() == [0, 2]
        assert column_ids.tolist() == [0, 1]
        np.testing.assert_array_equal(factors.u, np.float32([[0.768412, 1.31002], [-0.1, 2e-05]]))
        np.testing.assert_array_equal(factors.v, np.float32([[0.5, 0.25], [1, -1]]))


def test_round_trip_keeps_every_bit_and_numbers_by_id(tmp_path):
    rng = np.random.default_rng(0)
    u = (rng.normal(size=(4, 3)) * 10.0 ** rng.integers(-30, 30, (4, 3))).astype("f")
    u[1, 1] = 1e-40  # Below the normal numbers, where C++ stops reading.
    factors = Factors(u, rng.normal(size=(2, 3)).astype("f"))
    path = tmp_path / "model.txt"
    write_libmf(path, factors, np.array([5, 0, 9, 2]), np.array([1, 0]))
    lines = path.read_text().split("\n")
    assert lines[:4] == ["f 0", "m 10", "n 2", "k 3"]
    mean = np.float64(u).mean(0) @ np.float64(factors.v).mean(0)
    np.testing.assert_allclose(float(lines[4].removeprefix("b ")), mean, rtol=1e-6)
    assert lines[6] == "p1 F 0 0 0"
    loaded, row_ids, column_ids = read_libmf(path)
    u[1, 1] = 0
    assert row_ids.tolist() == [0, 2, 5, 9]
    assert column_ids.tolist() == [0, 1]
    np.testing.assert_array_equal(loaded.u, u[[1, 3, 0, 2]])
    np.testing.assert_array_equal(loaded.v, factors.v[[1, 0]])
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.txt"]


@pytest.mark.parametrize(
    ("ids", "value", "message"),
    [
        (np.array(["a", "b"], object), 1, "the 2 rows have such ids as 'a'; number them in their"),
        (np.array([3, -1]), 1, "such ids as -1"),
        (np.array([3, 10**9]), 1, "such ids as 1000000000"),
        (np.array([3, 4]), np.nan, "expected finite factors of every row"),
    ],
)
def test_what_cannot_be_written(ids, value, message, tmp_path):
    factors = Factors(np.full((2, 1), value, "f"), np.ones((1, 1), "f"))
    with pytest.raises(ValueError, match=message):
        write_libmf(tmp_path / "model.txt", factors, ids, np.array([0]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("f 0\n", "g 0\n", "line 1: expected `f` and an integer of at least 0, got 'g 0'"),
        ("f 0\n", "f 3\n", "line 1: expected a function among 0, 1, 2, 5, .*, got 3"),
        ("m 3\n", "m 3.5\n", "line 2: expected `m` and an integer"),
        ("n 2\n", "n -2\n", "line 3: expected `n` and an integer"),
        ("k 2\n", "k 0\n", "line 4: expected a rank of at least 1"),
        ("b 3.52986", "b high", "line 5: expected `b` and a number, got 'b high'"),
        ("b 3.52986", "b 1 2", "line 5: expected `b` and a number"),
        ("p1 F 0 0", "p7 F 0 0", "line 7: expected `p1`, T or F, and 2 numbers, got 4 fields: 'p7"),
        ("p1 F 0 0", "p1 X 0 0", "line 7: expected `p1`, T or F"),
        ("0.5 0.25", "0.5", "line 9: expected `q0`, T or F, and 2 numbers, got 3 fields"),
        ("0.5 0.25", "0.5 0.25 1", "line 9: .* got 5 fields"),
        ("1 -1", "1 x", "line 10: expected finite numbers, got 'x'"),
        ("1 -1", "nan 1", "line 10: expected finite numbers, got 'nan'"),
        ("1 -1", "1e39 1", "line 10: expected finite numbers, got '1e39'"),
        ("q1 T 1 -1 \n", "", "line 9: the file ends here; expected `q1`, T or F"),
        ("q1 T 1 -1 \n", "q1 T 1 -1 \nq2 T 1 1\n", "line 11: .* no line more, got 'q2 T 1 1'"),
        (MODEL, "f 0\nm 3\n", "line 2: the file ends here; expected `n`"),
        (MODEL, "\n", "the file is empty"),
    ],
)
def test_bad_files_are_named_with_line(old, new, message, tmp_path):
    path = tmp_path / "model.txt"
    path.write_text(MODEL.replace(old, new))
    with pytest.raises(ValueError, match=f"model.txt(, |: ){message}"):
        read_libmf(path)


def test_a_model_without_a_seen_row(tmp_path):
    path = tmp_path / "model.txt"
    path.write_text("f 0\nm 1\nn 1\nk 1\nb 2\np0 F 0\nq0 T 1\n")
    with pytest.raises(ValueError, match=r"none of the lines p0 \.\. was seen in training"):
        read_libmf(path)
