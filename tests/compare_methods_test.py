"""The comparison and the figures as a user runs them, with parameters as they start."""

import csv
import json

import jax
import numpy as np
import pytest

from experiments import common, compare_methods, figures, presets, protocol, whole_matrix
from metamf_jax.baselines import make_method
from metamf_jax.data import sources
from tests.experiments_test import launch

METHODS = ("metamf", "mean", "knn", "eml", "finetune")


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    # Other tests start processes, which must compile as this one does.
    monkeypatch.setattr(common, "compile_fast", lambda: None)


@pytest.fixture
def untrained(monkeypatch):
    """Meta-training would compile for a minute; `training_test` has it. Counts its calls."""
    calls = []

    def start(method, split, config, seed, draw=None):
        calls.append(seed)
        batch = (draw or (lambda step: split.source.draw_batch(step, config.batch)))(0)
        assert batch.support.rows.ndim == 2
        return protocol.Trained(method.init(jax.random.key(seed)), 1, 1, 0.5)

    monkeypatch.setattr(protocol, "meta_train", start)
    return calls


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def compare(folder, *more, methods=METHODS):
    return launch(
        compare_methods,
        "--preset=smoke",
        f"--methods={','.join(methods)}",
        f"--workdir={folder}",
        *more,
    )


def test_compares_resumes_and_extends(untrained, tmp_path):
    ended = compare(tmp_path, "--splits=1")
    assert ended.code == 0, ended.err
    # finetune takes the parameters of eml.
    assert untrained == [0, 0]
    assert len(table(tmp_path / "results.csv")) == len(METHODS)
    # As if the run had been cut before the last result was renamed.
    (tmp_path / "results" / "knn-0.json").unlink()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").iterdir()}

    ended = compare(tmp_path, "--splits=3")
    assert ended.code == 0, ended.err
    assert untrained == [0, 0, 1, 1, 2, 2]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    rows = table(tmp_path / "results.csv")
    assert [(row["method"], row["split"]) for row in rows] == [
        (name, str(split)) for name in METHODS for split in range(3)
    ]
    scores = {"test_mse", "validation_mse", "adapt_seconds", "train_seconds"}
    assert rows[0].keys() == {"method", "split"} | scores
    assert all(float(row["validation_mse"]) > 0 for row in rows)
    errors = {
        name: np.array([float(row["test_mse"]) for row in rows if row["method"] == name])
        for name in METHODS
    }
    results = json.loads((tmp_path / "summary.json").read_text())["results"]["table"]
    differences = errors["mean"] - errors["metamf"]
    assert results["mean"]["mse"][0] == pytest.approx(errors["mean"].mean())
    assert results["mean"]["difference"][0] == pytest.approx(differences.mean())
    deviation = np.sqrt((1 / 3 + 2 / 7) * differences.var(ddof=1))
    assert results["mean"]["difference"][1] == pytest.approx(deviation)
    # Student's t, 2 degrees of freedom, 97.5%.
    assert results["mean"]["half_width"] == pytest.approx(4.3027 * deviation, rel=1e-4)
    text = (tmp_path / "results.md").read_text()
    assert text in ended.out
    for name in METHODS:
        line = next(line for line in text.split("\n") if line.startswith(f"| {name} "))
        assert f"{errors[name].mean():.4f} +- " in line
        starred = abs(errors[name].mean() - errors["metamf"].mean()) > results[name]["half_width"]
        assert ("*" in line) == starred
    assert (tmp_path / "plots" / "comparison.png").read_bytes().startswith(b"\x89PNG")

    refused = compare(tmp_path, "--splits=3", "--max_steps=77")
    assert refused.code == 1
    assert "training.max_steps" in refused.err


def test_a_method_that_diverges_does_not_cost_the_others(untrained, monkeypatch, tmp_path):
    start = protocol.meta_train

    def diverges(method, *args):
        if method is make_method("eml", presets.COMPARE["smoke"]["model"]):
            raise FloatingPointError("the meta-loss became nan")
        return start(method, *args)

    monkeypatch.setattr(protocol, "meta_train", diverges)
    alone = compare(tmp_path / "alone", "--splits=1", methods=("eml",))
    assert alone.code == 1
    assert "no results at all\nsplit 0  eml: the meta-loss became nan" in alone.err
    ended = compare(tmp_path, "--splits=2", methods=("eml", "mean"))
    assert ended.code == 1
    assert ended.err.splitlines()[1:] == [
        f"split {split}  eml: the meta-loss became nan" for split in range(2)
    ]
    rows = table(tmp_path / "results.csv")
    assert [(row["method"], row["split"]) for row in rows] == [("mean", "0"), ("mean", "1")]

    monkeypatch.setattr(protocol, "meta_train", start)
    assert compare(tmp_path, "--splits=2", methods=("eml", "mean")).code == 0
    assert len(table(tmp_path / "results.csv")) == 4


def test_a_mean_of_two_methods_takes_their_parameters(untrained, tmp_path):
    (tmp_path / "params").mkdir()
    sizes: dict = dict(presets.COMPARE["smoke"])
    config = protocol.ProtocolConfig(dataset="synthetic", preset="smoke", seed=0, **sizes)
    split = protocol.draw_split(sources.load("synthetic", None, 0).entries, config, 0, 0)
    arguments = split, 5, config.model, config.training, tmp_path
    both, how = compare_methods.trained("metamf_bayes", *arguments)
    assert how["seconds"] == 2 * 0.5
    for name, params in both.items():
        alone, _ = compare_methods.trained(name, *arguments)
        jax.tree.map(np.testing.assert_array_equal, params, alone)
    assert both.keys() == {"metamf", "bayes_learned"}
    # Each of the two once.
    assert untrained == [5, 5]


def test_meta_trains_on_other_sets(monkeypatch, tmp_path):
    """On shares of those; what learns nothing from other matrices is tuned on the set's own."""
    seen = {}

    def start(method, teaching, config, seed, draw=None):
        seen["drawn"] = teaching.source.draw_batch(0, 4)
        return protocol.Trained(method.init(jax.random.key(seed)), 1, 1, 0.5)

    def tune(method, validation, params):
        seen["alone" if params is None else "taught"] = len(validation.query.rows)
        return method.grid[0]

    monkeypatch.setattr(protocol, "meta_train", start)
    monkeypatch.setattr(compare_methods.tuning, "tune", tune)
    other = tmp_path / "other.csv"
    cells = [f"{n},{m},{(n * m) % 7}" for n in range(90) for m in range(80) if (n + m) % 2]
    other.write_text("\n".join(cells))
    folder, more = tmp_path / "run", ("--splits=1", f"--meta_train={other},synthetic")
    ended = compare(folder, *more, methods=("metamf", "mean"))
    assert ended.code == 0, ended.err
    matrices = presets.COMPARE["smoke"]["scored_matrices"]
    assert seen["alone"] == matrices
    assert seen["taught"] == 2 * matrices
    sizes: dict = dict(presets.COMPARE["smoke"])
    config = protocol.ProtocolConfig(dataset="synthetic", preset="smoke", seed=0, **sizes)
    own = protocol.draw_split(sources.load("synthetic", None, 0).entries, config, 0, 0)
    # The second half of the batch.
    expected = own.source.draw_batch(0, 2).query.values
    got = np.asarray(seen["drawn"].query.values)[2:]
    np.testing.assert_array_equal(got[got != 0], expected[expected != 0])

    refused = compare(folder, "--splits=1", methods=("metamf",))
    assert refused.code == 1
    assert "meta_train" in refused.err


def test_a_wrong_method_is_named(tmp_path):
    ended = compare(tmp_path / "new", methods=("mean", "magic"))
    assert ended.code == 1
    assert ended.err.startswith("error: unknown method 'magic'; there are metamf, mean, bayes,")
    assert not (tmp_path / "new").exists()


def test_every_figure_has_numbers_and_a_picture(untrained, tmp_path, monkeypatch):
    # Scoring is tested above; here each method and shape would compile.
    monkeypatch.setattr(
        figures.tuning,
        "episode_errors",
        lambda method, part, *_: part.query.values.var(axis=1) + (method.init is None),
    )
    arguments = (
        *("--preset=smoke", "--transfer_datasets=synthetic", f"--workdir={tmp_path}"),
        *("--methods=metamf,mean", "--sides=12", "--sides=14"),
    )
    ended = launch(figures, *arguments)
    assert ended.code == 0, ended.err
    sizes = presets.FIGURES["smoke"]
    expected = {
        "support_fraction": ("support_fraction", 2 * len(sizes["fractions"])),
        "side": ("side", 2 * 2),
        "training_matrices": ("training_matrices", 2 * len(sizes["matrices"])),
        "inner_steps": ("inner_steps", 2 * len(sizes["steps"])),
        "transfer": ("trained_on", 2),
        "factors": ("prior_x", None),
        "precisions": ("median", None),
    }
    assert expected.keys() == figures.FIGURES.keys()
    for name, (column, count) in expected.items():
        rows = table(tmp_path / f"{name}.csv")
        assert column in rows[0]
        assert len(rows) == (count or len(rows)) > 1
        assert (tmp_path / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    rows = table(tmp_path / "support_fraction.csv")
    for row in rows:
        more = {"metamf": 0, "mean": 1}[row["method"]]
        assert float(row["minus_metamf"]) == pytest.approx(more)
        assert float(row["minus_metamf_error"]) == pytest.approx(0, abs=1e-6)
    # Nothing is computed again.
    untrained.clear()
    again = launch(figures, *arguments, "--figures=side,factors")
    assert again.code == 0, again.err
    assert untrained == []
    assert "unknown figure 'x'; there are support_fraction, side" in (
        launch(figures, *arguments, "--figures=x").err
    )
    assert "expected metamf as the first method to draw, got 'mean'" in (
        launch(figures, *arguments, "--methods=mean").err
    )


@pytest.mark.parametrize("method", ["eml", "autorec_item"])
def test_a_whole_matrix(method, tmp_path):
    rng = np.random.default_rng(0)
    cells = [
        f"{n},{m},{n + m + noise:.3f}"
        for n in range(20)
        for m in range(15)
        if (noise := rng.normal(0, 0.1)) < 0.1
    ]
    (tmp_path / "table.csv").write_text("\n".join(cells))
    arguments = ("--preset=smoke", f"--method={method}", f"--dataset={tmp_path / 'table.csv'}")
    ended = launch(whole_matrix, *arguments, f"--workdir={tmp_path / 'run'}")
    assert ended.code == 0, ended.err
    results = json.loads((tmp_path / "run" / "summary.json").read_text())["results"]
    # Two steps learn little: about what a constant misses them by, in the units of the table.
    assert 0.5 * 7.2 < results["test_rmse"] < 2 * 7.2
    assert results["best_step"] == 2
