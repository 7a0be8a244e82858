"""Damaged and hostile files give contents or a ValueError that names them, in bounded memory."""

import io
import os
import pickle
import random
import tempfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.robustness import fuzz
from metamf_jax.data import tables
from tests import fuzz_workers
from tests.experiments_test import launch

# It takes long for each file.
SLOW = ("prior",)
_seeds = {}


def outcome_of(name, data):
    with tempfile.TemporaryDirectory() as folder:
        return fuzz.check(name, data, Path(folder))


def seeds_of(name):
    if name not in _seeds:
        _seeds[name] = fuzz.READERS[name].seeds()
    return _seeds[name]


@pytest.mark.parametrize("name", fuzz.READERS)
def test_valid_files_are_read(name):
    outcomes = [outcome_of(name, data) for data in seeds_of(name)]
    assert "read" in {outcome.kind for outcome in outcomes}
    assert {outcome.kind for outcome in outcomes} <= {"read", "refused"}


@pytest.mark.parametrize("name", fuzz.READERS)
def test_mutated_files(name):
    seeds = seeds_of(name)

    @settings(max_examples=3 if name in SLOW else 40, deadline=None, derandomize=True)
    @given(st.integers(0, 10**9))
    def mutated(number):
        outcome = outcome_of(name, fuzz.make_input(name, number, 1, seeds))
        assert outcome.kind in ("read", "refused"), outcome

    mutated()


@pytest.mark.parametrize("name", [name for name in fuzz.READERS if name not in SLOW])
def test_any_bytes(name):
    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(st.one_of(st.binary(max_size=60), st.text(max_size=40).map(str.encode)))
    def any_bytes(data):
        assert outcome_of(name, data).kind in ("read", "refused")

    any_bytes()


def test_mutations_are_the_same_in_every_process_and_differ():
    seeds = seeds_of("csv")
    inputs = [fuzz.make_input("csv", number, 0, seeds) for number in range(50)]
    assert inputs == [fuzz.make_input("csv", number, 0, seeds) for number in range(50)]
    assert len(set(inputs)) > 40
    assert fuzz.mutate(random.Random(0), b"", [b"a"]) == fuzz.mutate(random.Random(0), b"", [b"a"])


def npz_claiming(shape):
    """A sparse matrix of that shape with one entry; its arrays claim what they hold."""
    buffer = io.BytesIO()
    np.savez(buffer, format="coo", shape=shape, row=[0], col=[0], data=[1.0])
    return buffer.getvalue()


def npy_claiming(count):
    """An archive in which an array's header claims so many numbers."""
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({count},), }}".ljust(117) + "\n"
    member = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + b"\0" * 8
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.npy", member)
    return buffer.getvalue()


def safetensors_claiming(count):
    header = b'{"u":{"dtype":"F32","shape":[%d,2],"data_offsets":[0,%d]}}' % (count, 8 * count)
    return len(header).to_bytes(8, "little") + header


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("mtx", b"%%MatrixMarket matrix coordinate real general\n1000000000 1000000000 1\n1 1 1\n"),
        ("mtx", b"%%MatrixMarket matrix coordinate real general\n2 2 1000000000000\n1 1 1\n"),
        ("npz", npz_claiming([10**9, 10**9])),
        ("npz", npy_claiming(10**12)),
        ("factors", safetensors_claiming(10**12)),
        ("params", safetensors_claiming(10**12)),
        ("factors", (10**15).to_bytes(8, "little") + b"{}"),
    ],
)
def test_claims_allocate_nothing(name, data):
    tracemalloc.start()
    try:
        assert outcome_of(name, data).kind == "refused"
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


class Hostile:
    """Makes a folder when unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("name", [name for name in fuzz.READERS if name not in SLOW])
def test_nothing_is_unpickled(name, tmp_path):
    made = tmp_path / "made"
    hostile = np.array([Hostile(made)], object)
    archive = io.BytesIO()
    np.savez(archive, allow_pickle=True, format="coo", data=hostile, row=hostile, col=[0])
    single = io.BytesIO()
    np.save(single, hostile, allow_pickle=True)
    for data in (pickle.dumps(Hostile(made)), archive.getvalue(), single.getvalue()):
        outcome = outcome_of(name, data)
        # To the reader of metrics one line that does not end is none yet.
        cut = name == "metrics" and b"\n" not in data
        assert outcome.kind == ("read" if cut else "refused")
    assert not made.exists()
    pickle.loads(pickle.dumps(Hostile(made)))
    assert made.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"\n" * 60 + b"a,b,1\n", None),
        ("x.csv", b"\x1f", "holds no observed cell"),
        (
            "x.csv",
            b"row,column,value,time\na,b,1," + b"9" * 400,
            "line 2: expected a time in whole",
        ),
    ],
)
def test_what_the_fuzzer_found(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    if message is None:
        assert tables.read_table(tmp_path / name).entries.shape == (1, 1)
        return
    with pytest.raises(ValueError, match=message):
        tables.read_table(tmp_path / name)


def test_the_binary(tmp_path):
    ended = launch(fuzz, "--inputs=20", "--readers=csv,mtx", f"--workdir={tmp_path}")
    assert ended.code == 0, ended.err
    assert ended.out.splitlines()[-1] == "40 inputs: 0 crashes, 0 hangs, 0 wrong exceptions"
    ended = launch(fuzz, "--readers=nonsense")
    assert ended.code == 1
    assert "unknown readers ['nonsense']" in ended.err


def test_crashes_and_hangs_are_counted_and_kept(tmp_path):
    counts, megabytes = fuzz.run_reader("csv", 4, 0, 1.0, tmp_path, fuzz_workers.misbehave)
    assert counts == {"crash": 1, "hang": 1}
    assert megabytes == 7.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["csv-0", "csv-1"]


@pytest.mark.parametrize("error", [MemoryError(), FileNotFoundError("x"), ValueError("no file")])
def test_other_exceptions_are_wrong(error, monkeypatch):
    def read(path, folder):
        raise error

    reader = fuzz.READERS["csv"]._replace(read=read)
    monkeypatch.setattr(fuzz, "READERS", {"csv": reader})
    assert outcome_of("csv", b"").kind not in ("read", "refused")
