"""The simulation of intervals after imputation, as a user runs it."""

import json

import numpy as np
import pytest

from experiments import coverage
from tests.experiments_test import launch


def test_smoke_run(tmp_path):
    ended = launch(coverage, "--preset=smoke", f"--workdir={tmp_path}")
    assert ended.code == 0, ended.err
    results = json.loads((tmp_path / "summary.json").read_text())["results"]
    assert len(results) == len(coverage.MECHANISMS) * len(coverage.SHAPES)
    for found in results.values():
        assert found["held"].keys() == set(coverage.WAYS)
        assert np.isfinite(found["estimate"]).all()


def test_a_stopped_run_goes_on(tmp_path):
    config = coverage.Config(rows=(50,), tables=2, imputations=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coverage, "SHAPES", ("normal", "three levels"))
        patch.setattr(coverage, "_BLOCK", 1)
        whole = coverage.run(config, tmp_path / "whole")["results"]
        (tmp_path / "part").mkdir()
        lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines(keepends=True)
        assert len(lines) == 8
        (tmp_path / "part" / "metrics.jsonl").write_text("".join(lines[:5]))
        assert coverage.run(config, tmp_path / "part")["results"] == whole
    assert len(whole["mar, three levels, 50 rows"]["estimate"]) == 4
    held = whole["mcar, normal, 50 rows"]["held"]["pooled"]
    assert held == [
        (json.loads(lines[0])[f"held/pooled/{c}"] + json.loads(lines[4])[f"held/pooled/{c}"]) / 2
        for c in range(3)
    ]


def test_pooled_intervals_hold_the_truth_and_single_ones_do_not():
    """Few tables, so that only a gross fault shows; the full simulation is the binary's."""
    found = []
    for seed in range(15):
        table = coverage.simulate(np.random.default_rng(seed), 100, "mcar", "normal")
        found.append(coverage.analyse(table, "normal", 8, seed).held)
    pooled, one_draw, best = np.mean(found, axis=(0, 2))
    assert pooled > 0.85
    assert max(one_draw, best) < 0.85


def test_cells_go_missing_by_the_observed_column():
    table = coverage.simulate(np.random.default_rng(0), 4000, "mar", "two values")
    missing = np.isnan(table)
    assert not missing[:, 1].any()
    high = table[:, 1] > 0
    assert missing[high, 0].mean() > 2 * missing[~high, 0].mean()
    assert set(table[~missing[:, 2], 2]) == {0, 1}
