"""The figures of solvers as a user draws them."""

import csv

import numpy as np
import pytest

from experiments import solver_comparison
from metamf_jax.data import sources, synthetic
from metamf_jax.types import Entries
from tests.experiments_test import launch
from tests.plotting_test import assert_picture


def test_smoke_run_draws_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setitem(
        sources.SOURCES,
        "synthetic",
        lambda data_dir, seed: synthetic.synthetic_ratings(seed, 60, 40),
    )
    # The others are as quick to run, but take a second each to compile.
    monkeypatch.setattr(solver_comparison, "_TITLES", {"als": "ALS", "dsgd": "DSGD"})
    arguments = "--preset=smoke", f"--workdir={tmp_path}", "--figures=solvers"
    ended = launch(solver_comparison, *arguments)
    assert ended.code == 0, ended.err
    assert_picture(tmp_path / "plots" / "solvers.png")
    before = (tmp_path / "epochs.csv").read_text()
    with (tmp_path / "epochs.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * 3
    names = list(dict.fromkeys(line["curve"].split("-")[0] for line in lines))
    assert names == ["als", "dsgd"]
    for name in names:
        objective = [float(x["objective"]) for x in lines if x["curve"].startswith(f"{name}-")]
        assert objective[-1] < objective[0], name
    # Once more, but for one curve: only that is run again.
    (tmp_path / "curves" / "als-w1-k2-nzl2-x1-part1-e2.json").unlink()
    (tmp_path / "plots" / "solvers.png").unlink()
    ended = launch(solver_comparison, *arguments)
    assert ended.code == 0, ended.err
    assert_picture(tmp_path / "plots" / "solvers.png")
    assert ended.out.count(" epochs and ") == 1
    assert "als-w1-k2-nzl2-x1-part1-e2: objective " in ended.out
    assert len((tmp_path / "epochs.csv").read_text().split("\n")) == len(before.split("\n"))


def test_every_figure_is_drawn_from_its_curves(tmp_path, monkeypatch):
    def fit(curve, rule, train, test, config):
        size = len(train.values) * curve.copies * curve.share
        return [
            {
                "epoch": epoch,
                "seconds": epoch * (0.002 + 1e-6 * size / curve.workers),
                "objective": size / (1 + epoch / curve.rank),
                "test_rmse": 1 + 1 / (1 + epoch),
                "step_size": 0.1,
            }
            for epoch in range(curve.epochs + 1)
        ]

    monkeypatch.setattr(solver_comparison, "fit", fit)
    monkeypatch.setattr(
        solver_comparison, "sample_posterior", lambda curve, *data: fit(curve, None, *data)
    )
    monkeypatch.setattr(solver_comparison, "choose_step_size", lambda *arguments: None)
    config = solver_comparison.Config(epochs=3)
    results = solver_comparison.run(config, tmp_path)["results"]
    for figure in solver_comparison.FIGURES:
        assert_picture(tmp_path / "plots" / f"{figure}.png")
    for workers in ("1", "8"):
        np.testing.assert_allclose(results["scaling"]["overhead_ms"][workers], 2, rtol=1e-6)
    assert results["workers"]["dsgd_same_objective_on_any_workers"]
    np.testing.assert_allclose(results["losses"]["fallen_to"]["gkl"], 16 / 19)


@pytest.mark.parametrize("name", ["gibbs", "dsgld"])
def test_samplers_approach_the_test_entries(name):
    entries = synthetic.synthetic_ratings(0, 60, 40).entries
    curve = solver_comparison.Curve(name, 1, 2, "nzl2", epochs=12)
    lines = solver_comparison.sample_posterior(curve, entries, entries, solver_comparison.Config())
    assert [line["epoch"] for line in lines] == list(range(1, 13))
    assert lines[-1]["test_rmse"] < 0.9 * lines[0]["test_rmse"]


def test_copies_and_parts():
    entries = Entries(*map(np.int32, np.divmod(np.arange(40), 8)), np.arange(40, dtype="f"), (5, 8))
    twice = solver_comparison.copied(entries, 2, 1.0, 0)
    assert twice.shape == (10, 8)
    np.testing.assert_array_equal(twice.rows[40:], entries.rows + 5)
    np.testing.assert_array_equal(twice.values[40:], entries.values)
    part = solver_comparison.copied(entries, 1, 0.5, 0)
    assert 10 < len(part.values) < 30
    np.testing.assert_array_equal(8 * part.rows + part.columns, part.values)


def test_overhead_is_what_no_entries_would_take():
    sizes = [100, 200, 400]
    overhead, each = solver_comparison.fixed_overhead(sizes, [0.5 + 0.01 * n for n in sizes])
    np.testing.assert_allclose([overhead, each], [0.5, 0.01])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--workers=1,x",), "expected --workers as numbers such as 1,2,4"),
        (("--workers=99",), "99 devices were asked for"),
        (("--dataset=nonsense",), "unknown data set 'nonsense'"),
    ],
)
def test_mistakes(arguments, message, tmp_path):
    workdir = tmp_path / "run"
    ended = launch(solver_comparison, "--preset=smoke", f"--workdir={workdir}", *arguments)
    assert ended.code == 1
    assert ended.err.startswith("error: ")
    assert message in ended.err
    assert not workdir.exists()
