"""A store on disk gives the bits of blocks in memory; damaged and foreign ones are refused."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import factorize
from metamf_jax.data import entry_streams, sources
from metamf_jax.factorization import block_store, blocks, dsgd, solver, visits
from metamf_jax.factorization.dsgd import DsgdConfig
from metamf_jax.factorization.objective import Objective, make_terms
from metamf_jax.factorization.step_size import StepSize
from metamf_jax.types import Entries

N, M, E, K = 60, 50, 2000, 3
CONFIG = DsgdConfig(2, 2)
MADE_FROM = {"dataset": "cells", "seed": 0}


def _matrix():
    rng = np.random.default_rng(0)
    rows, columns = np.divmod(rng.choice(N * M, E, replace=False), M)
    return Entries(rows.astype("i"), columns.astype("i"), rng.normal(size=E).astype("f"), (N, M))


def _chunks(entries, size=300):
    for begin in range(0, len(entries.values), size):
        part = slice(begin, begin + size)
        yield Entries(
            entries.rows[part], entries.columns[part], entries.values[part], entries.shape
        )


def _build(folder, entries, **more):
    rngs = visits.sides_rng(CONFIG), visits.block_rng(CONFIG, 0)
    block_store.build_store(folder, _chunks(entries), entries.shape, 2, K, *rngs, MADE_FROM, **more)
    return block_store.open_store(folder, MADE_FROM)


def test_factors_from_disk_are_those_from_memory_to_the_last_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "_CACHE_BYTES", 100)  # More than one sub-block.
    entries = _matrix()
    store = _build(tmp_path / "store", entries)
    assert store.offsets.shape[2] > 2
    objective = Objective("squared", "l2", 0.1)
    terms = make_terms(objective, entries)
    start = solver.initial_factors(objective, entries, terms, K, np.random.default_rng(2))
    reached = []
    for method in (
        dsgd.make_solver(objective, entries, CONFIG, width=K),
        dsgd.solve_blocks(objective, store, CONFIG, terms),
    ):
        trace = []
        # The 9th epoch shuffles the insides of the sub-blocks.
        factors, _ = solver.fit(
            method,
            start,
            StepSize("bold_driver", 0.1),
            10,
            lambda progress, method=method, trace=trace: trace.append(
                (progress.objective, method.squared_error(progress.state))
            ),
        )
        reached.append((trace, factors.u.tobytes(), factors.v.tobytes()))
    assert reached[0] == reached[1]
    assert len(set(reached[0][0])) == 11


def test_sums_sample_and_held_out_entries(tmp_path):
    entries = _matrix()
    names = np.array([f"u{n}" for n in range(N)], object), np.arange(M) * 7
    store = _build(tmp_path / "store", entries, ids=names, held_out=(0.2, np.random.default_rng(1)))
    kept = ~(np.random.default_rng(1).random(E) < 0.2)
    assert store.num_entries == kept.sum()
    np.testing.assert_array_equal(store.test.rows, entries.rows[~kept])
    np.testing.assert_array_equal(store.test.values, entries.values[~kept])
    np.testing.assert_array_equal(store.row_count, np.bincount(entries.rows[kept], minlength=N))
    assert store.mean == pytest.approx(entries.values[kept].mean(dtype=float))
    for found, given in zip(store.ids(), names, strict=True):
        np.testing.assert_array_equal(found, given)
    sample = store.sample(kept.sum())
    np.testing.assert_array_equal(np.sort(sample.values), np.sort(entries.values[kept]))
    assert 20 <= len(store.sample(20).values) < kept.sum() / 2
    with pytest.raises(ValueError, match="labels -1 and 1"):
        store.check_values(Objective("logistic"))
    with pytest.raises(ValueError, match="at least 0 under the loss 'gkl'"):
        store.check_values(Objective("gkl"))


def test_damaged_and_foreign_stores_are_refused(tmp_path):
    folder = tmp_path / "store"
    _build(folder, _matrix())
    with pytest.raises(ValueError, match="is there already"):
        _build(folder, _matrix())
    with pytest.raises(ValueError, match=r"seed: 0 there, 1 now\); delete it"):
        block_store.open_store(folder, {**MADE_FROM, "seed": 1})
    row_block = folder / "points-00001.npy"
    whole = row_block.read_bytes()
    for damaged, message in (
        (whole[:-4], rf"expected {len(whole)} bytes, got {len(whole) - 4}: the store is damaged"),
        (whole[:-4] + b"abcd", "its checksum differs"),
    ):
        row_block.write_bytes(damaged)
        with pytest.raises(ValueError, match=message):
            block_store.open_store(folder)
    # Who does not read that row block does not read it through.
    block_store.open_store(folder, own=range(1))
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 2', '"version": 9'))
    with pytest.raises(ValueError, match=r"of version 2, got .* of version 9"):
        block_store.open_store(folder)
    with pytest.raises(ValueError, match="is no block store"):
        block_store.open_store(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": np.full(E, np.nan, "f")}, "finite values, but entry 0 is nan"),
        ({"rows": np.full(E, N, "i")}, "cells inside a matrix of shape"),
        ({"rows": np.zeros(E, "i"), "columns": np.zeros(E, "i")}, "row 0, column 0 was given tw"),
    ],
)
def test_bad_entries_leave_nothing(change, message, tmp_path):
    entries = _matrix()
    arrays = {name: getattr(entries, name) for name in ("rows", "columns", "values")}
    with pytest.raises(ValueError, match=message):
        _build(tmp_path / "store", Entries(**{**arrays, **change}, shape=(N, M)))
    assert list(tmp_path.iterdir()) == []


def test_binary_builds_the_store_and_refuses_that_of_another_matrix(tmp_path):
    config = factorize.Config(
        dataset="synthetic:40x30x10",
        rank=2,
        epochs=1,
        blocks=2,
        backend="xla",
        step_size="bold_driver:0.1",
        block_store=str(tmp_path / "store"),
    )
    results = factorize.run(config, tmp_path / "a", num_devices=2)["results"]
    made = json.loads((tmp_path / "store" / "manifest.json").read_text())
    assert made["values"]["count"] + 40 == pytest.approx(400, abs=25)
    assert results["test_rmse"] > 0
    with pytest.raises(ValueError, match="dataset: 'synthetic:40x30x10' there"):
        factorize.run(dataclasses.replace(config, dataset="synthetic:40x30x9"), tmp_path / "c")


def test_streams():
    stream = entry_streams.open_stream("synthetic:50x40x7", seed=1)
    chunk = next(stream.chunks)
    cells = set(zip(chunk.rows.tolist(), chunk.columns.tolist(), strict=True))
    assert len(cells) == 350
    assert (np.bincount(chunk.rows) == 7).all()
    whole = sources.load("synthetic:50x40x7", seed=1).entries
    for name in ("rows", "columns", "values"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(chunk, name))
    with pytest.raises(ValueError, match="ROWSxCOLUMNSxCELLS_PER_ROW"):
        entry_streams.open_stream("synthetic:50x40")
    with pytest.raises(ValueError, match="1 to 4 cells in a row, got 7"):
        next(entry_streams.open_stream("synthetic:5x4x7").chunks)
