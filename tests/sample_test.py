"""The factorization binary when it samples: results, files, resuming, machines, mistakes."""

import dataclasses
import json
import pathlib
import shutil
import sys
import types
from typing import Any

import jax
import numpy as np
import pytest

from experiments import factorize
from experiments.sampling import sample
from launch import local_hosts
from metamf_jax.factorization import factor_file
from metamf_jax.imputation import prior
from metamf_jax.posterior import draws_file, learned_hyperprior
from metamf_jax.runs import resources
from metamf_jax.runs.checkpoint import Checkpointer
from metamf_jax.runs.run_log import read_metrics
from tests.experiments_test import launch

SMALL: dict[str, Any] = {"rank": 2, "draws": 8, "burn_in": 2, "chains": 2, "pattern_features": 2}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table of 20 rows and 20 columns."""
    path = tmp_path_factory.mktemp("sampled") / "table.csv"
    rng = np.random.default_rng(0)
    cells = sorted({(int(n), int(m)) for n, m in rng.integers(0, 20, (200, 2))})
    path.write_text("\n".join(f"u{n},i{m},{1 + (n * m) % 5}" for n, m in cells))
    return path


@pytest.fixture(scope="module")
def whole(table, tmp_path_factory):
    """The configuration and the workdir of one undisturbed run."""
    config = sample.Config(dataset=str(table), **SMALL)
    workdir = tmp_path_factory.mktemp("whole") / "run"
    sample.run(config, workdir)
    return config, workdir


def test_result(whole):
    config, workdir = whole
    results = json.loads((workdir / "summary.json").read_text())["results"]
    lines = read_metrics(workdir)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["draws"] for line in lines] == [0, 0, 2, 4, 6, 8]
    assert "test_rmse" not in lines[1]
    assert results["test_rmse"] == lines[-1]["test_rmse"] < 3
    assert results["test_log_score"] > 0
    for name in ("alpha", "norm", "predictions"):
        assert np.isfinite(results[f"r_hat_{name}"])
        assert 0 < results[f"effective_size_{name}"] <= config.draws
    named = draws_file.load_draws(workdir / "draws.safetensors")
    assert named.draws.rows.shape == (8, 20, 3)
    assert (named.scale.low, named.scale.high) == (1, 5)
    assert set(named.row_ids) == {f"u{n}" for n in range(20)}
    assert not (workdir / "draws").exists()


def test_a_learned_hyperprior_is_sampled_under(whole, tmp_path):
    weights = str(prior.FOLDER / "ratings.json")
    learned = learned_hyperprior.load(weights)
    config = dataclasses.replace(whole[0], prior=weights)
    assert config.model.learned == learned
    assert (config.model.row_noise, config.model.column_noise) == learned.shares
    results = sample.run(config, tmp_path / "run")["results"]
    assert results["test_rmse"] < 3
    with pytest.raises(ValueError, match="expected a learned hyperprior"):
        sample.run(dataclasses.replace(config, prior="none.json"), tmp_path / "none")


def test_a_learned_hyperprior_goes_with_all_else_that_is_sampled(whole, tmp_path):
    weights = str(prior.FOLDER / "ratings.json")
    config = dataclasses.replace(whole[0], prior=weights, row_noise=0.0)
    learned = learned_hyperprior.load(weights)
    assert (config.model.row_noise, config.model.column_noise) == (0.0, learned.shares[1])
    by_langevin = dataclasses.replace(config, solver="dsgld")
    assert by_langevin.model.noise == learned.noise
    levels = dataclasses.replace(config, likelihood="ordinal")
    wishart = levels.model.sides[0].wishart
    # Where the noise's deviation is the unit, effects are larger by what it was before.
    variance = wishart.inverse_scale[-1] / wishart.degrees
    np.testing.assert_allclose(variance, learned.effects[0] * learned.noise[0] / learned.noise[1])
    for name, each in {"levels": levels, "langevin": by_langevin}.items():
        assert sample.run(each, tmp_path / name)["results"]["test_rmse"] < 3


def test_errors_are_told_by_counts(whole):
    results = json.loads((whole[1] / "summary.json").read_text())["results"]
    parts = results["test_rmse_by_row_count"]
    cells = sum(part["cells"] for part in parts.values())
    squares = sum(part["cells"] * part["rmse"] ** 2 for part in parts.values())
    np.testing.assert_allclose((squares / cells) ** 0.5, results["test_rmse"], rtol=1e-6)


class Killed(Exception):
    """In place of a signal that nobody can catch."""


@pytest.mark.parametrize("sweep", [3, 6])
def test_killed_it_goes_on_to_the_same_bytes(whole, sweep, tmp_path, monkeypatch):
    config, workdir = whole
    config = dataclasses.replace(config, evaluate_every=4)
    kept = sample._kept

    def killed_after(job, progress, answers):
        kept(job, progress, answers)
        if progress.sweep == sweep:
            raise Killed
        return kept(job, progress, answers)

    monkeypatch.setattr(sample, "_kept", killed_after)
    with pytest.raises(Killed):
        sample.run(config, tmp_path)
    assert Checkpointer(tmp_path).steps() == ([] if sweep < 4 else [4])
    monkeypatch.undo()
    sample.run(config, tmp_path, num_devices=2)
    both = [(folder / "draws.safetensors").read_bytes() for folder in (workdir, tmp_path)]
    assert both[0] == both[1]
    of_whole, of_resumed = (read_metrics(folder)[-1] for folder in (workdir, tmp_path))
    assert of_resumed["test_rmse"] == of_whole["test_rmse"]
    # A run that is done has nothing to do.
    sample.run(config, tmp_path)
    assert (tmp_path / "draws.safetensors").read_bytes() == both[0]


def kill_at(sweep, monkeypatch):
    """Lets a run end before it keeps the draws of a sweep."""
    kept = sample._kept

    def killed(job, progress, answers):
        if progress.sweep == sweep:
            raise Killed
        return kept(job, progress, answers)

    monkeypatch.setattr(sample, "_kept", killed)


LANGEVIN: dict[str, Any] = {"blocks": 4, "thin": 2, "draws": 4, "step_size": "decay:1:0.1"}


@pytest.fixture(scope="module")
def stored(whole, tmp_path_factory):
    """Configuration and workdir of one undisturbed run of Langevin dynamics from a store."""
    folder = tmp_path_factory.mktemp("stored")
    store = {"block_store": str(folder / "store"), "pattern_features": None}
    config = dataclasses.replace(whole[0], solver="dsgld", **LANGEVIN, **store)
    results = sample.run(config, folder / "run", num_devices=2)["results"]
    assert (results["draws"], results["sweeps"]) == (4, 6)
    assert results["test_rmse"] < 3
    assert 0 < results["test_coverage_90"] <= 1
    return config, folder / "run"


def test_langevin_killed_goes_on_to_the_same_bytes(stored, tmp_path, monkeypatch):
    config, workdir = stored
    kill_at(6, monkeypatch)
    with pytest.raises(Killed):
        sample.run(dataclasses.replace(config, evaluate_every=3), tmp_path, num_devices=4)
    assert Checkpointer(tmp_path).steps() == [3]
    monkeypatch.undo()
    sample.run(dataclasses.replace(config, evaluate_every=3), tmp_path)
    both = [(folder / "draws.safetensors").read_bytes() for folder in (workdir, tmp_path)]
    assert both[0] == both[1]


def test_a_store_holds_the_matrix_that_memory_does(table, tmp_path):
    # Levels 1 to 5, whose sums are exact; the cells are told by number alone of features.
    config = sample.Config(
        dataset=str(table), solver="dsgld", **{**SMALL, **LANGEVIN, "pattern_features": 0}
    )
    config = dataclasses.replace(config, test_fraction=0.0)
    sample.run(config, tmp_path / "memory")
    stored = dataclasses.replace(config, block_store=str(tmp_path / "store"))
    sample.run(stored, tmp_path / "stored")
    named = [
        draws_file.load_draws(tmp_path / name / "draws.safetensors")
        for name in ("memory", "stored")
    ]
    for one, other in zip(*(jax.tree.leaves(x.draws) for x in named), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
    assert named[0].scale[:4] == pytest.approx(named[1].scale[:4])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"solver": "gibbs"}, "samples from memory: leave --block_store out"),
        ({"split": "time"}, "a random split, got split 'time'"),
        ({"pattern_features": 4}, "expected --pattern_features=0, got 4"),
    ],
)
def test_what_a_store_has_not_is_refused(changes, message, stored, tmp_path):
    with pytest.raises(ValueError, match=message):
        sample.run(dataclasses.replace(stored[0], **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_chains_start_from_a_fit(stored, tmp_path):
    config, _ = stored
    fitted = factorize.Config(
        dataset=config.dataset,
        rank=1,
        biases=True,
        epochs=30,
        step_size="adagrad:0.1",
        blocks=config.blocks,
    )
    factorize.run(fitted, tmp_path / "fit")
    path = tmp_path / "fit" / "factors.safetensors"
    factors, *ids = factor_file.load_factors(path)
    # The table's ids in memory are in the store's order.
    started = dataclasses.replace(config, start=str(path), draws=2, burn_in=0, thin=1)
    both = [
        sample.run(c, tmp_path / f"{c.start is None}")["results"]
        for c in (started, dataclasses.replace(started, start=None))
    ]
    assert both[0]["test_rmse"] < both[1]["test_rmse"]
    factor_file.save_factors(path, factors, *[x[::-1] for x in ids])
    with pytest.raises(ValueError, match="of the 20 rows of this matrix in their order"):
        sample.run(started, tmp_path / "again")
    with pytest.raises(ValueError, match="leave out it or --likelihood=ordinal"):
        sample.run(
            dataclasses.replace(
                config, solver="gibbs", block_store=None, start="x", likelihood="ordinal"
            ),
            tmp_path / "again",
        )


def test_levels_are_sampled_and_go_on_to_the_same_bytes(whole, tmp_path, monkeypatch):
    config = dataclasses.replace(whole[0], likelihood="ordinal", evaluate_every=2)
    undisturbed, cut = tmp_path / "undisturbed", tmp_path / "cut"
    results = sample.run(config, undisturbed)["results"]
    kill_at(5, monkeypatch)
    with pytest.raises(Killed):
        sample.run(config, cut)
    monkeypatch.undo()
    sample.run(config, cut, num_devices=2)
    both = [(folder / "draws.safetensors").read_bytes() for folder in (undisturbed, cut)]
    assert both[0] == both[1]
    named = draws_file.load_draws(undisturbed / "draws.safetensors")
    assert named.scale.levels == (1, 2, 3, 4, 5)
    assert named.draws.thresholds.shape == (8, 4)
    assert (np.diff(named.draws.thresholds, axis=1) > 0).all()
    assert 0 < results["test_log_score"] < 3 * np.log(5)
    broken = named._replace(scale=named.scale._replace(levels=(1.0, 2.0)))
    draws_file.save_draws(tmp_path / "broken", broken)
    with pytest.raises(ValueError, match="a level more than thresholds"):
        draws_file.load_draws(tmp_path / "broken")


@pytest.fixture(scope="module")
def dated(tmp_path_factory):
    """A table with a time and a place of each entry, which move the values."""
    path = tmp_path_factory.mktemp("dated") / "table.csv"
    rng = np.random.default_rng(1)
    cells = sorted({(int(n), int(m)) for n, m in rng.integers(0, 20, (300, 2))})
    lines = ["user,item,rating,time,place"]
    for n, m in cells:
        time, place = int(rng.integers(0, 1000)), rng.choice(["home", "work"])
        value = 3 + 0.1 * rng.normal() + (place == "home") - 2 * (time > 500)
        lines.append(f"u{n},i{m},{value:.3f},{time},{place}")
    path.write_text("\n".join(lines))
    return path


def test_effects_of_the_entries_lower_the_error(dated, tmp_path):
    plain = sample.Config(dataset=str(dated), **{**SMALL, "draws": 20, "burn_in": 10})
    config = dataclasses.replace(plain, entry_features=("time", "place"))
    without = sample.run(plain, tmp_path / "without")["results"]
    with_effects = sample.run(config, tmp_path / "with")["results"]
    assert with_effects["test_rmse"] < 0.5 * without["test_rmse"]
    assert with_effects["test_log_score"] is None
    named = draws_file.load_draws(tmp_path / "with" / "draws.safetensors")
    sides = [("time", "all"), ("time", "row"), ("time", "row"), ("time", "column")]
    sides += [("place", side) for side in ("all", "row", "column")]
    assert [(group.feature, group.side) for group in named.groups] == sides
    assert named.groups[4].cuts.tolist() == ["home", "work"]
    draws_file.save_draws(tmp_path / "again", named)
    path = tmp_path / "with" / "draws.safetensors"
    assert (tmp_path / "again").read_bytes() == path.read_bytes()
    cut = named._replace(groups=named.groups[:-1] + named.groups[:1])
    draws_file.save_draws(tmp_path / "cut", cut)
    with pytest.raises(ValueError, match="expected the keys of"):
        draws_file.load_draws(tmp_path / "cut")
    # On two devices, with a table of test entries of its own.
    apart = dataclasses.replace(config, test_input=str(dated))
    results = [
        sample.run(apart, tmp_path / f"on{devices}", num_devices=devices)["results"]
        for devices in (1, 2)
    ]
    assert results[0] == results[1]


def test_columns_that_entries_do_not_have_are_refused(dated, tmp_path):
    config = sample.Config(dataset=str(dated), **SMALL, entry_features=("weather",))
    with pytest.raises(ValueError, match="expected a column named 'weather'"):
        sample.run(config, tmp_path / "run")
    config = dataclasses.replace(config, dataset="synthetic")
    with pytest.raises(ValueError, match="synthetic has no column 'weather'"):
        sample.run(config, tmp_path / "run")


def test_too_many_levels_are_refused(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("\n".join(f"u{n},i0,{n / 7}" for n in range(30)))
    config = sample.Config(dataset=str(path), **SMALL, likelihood="ordinal")
    with pytest.raises(ValueError, match=r"2 to 20 distinct values, got 2. .* gaussian"):
        sample.run(config, tmp_path / "run")


@pytest.mark.parametrize("devices", [2, 4])
def test_the_bytes_do_not_depend_on_the_number_of_devices(whole, devices, tmp_path):
    config, workdir = whole
    sample.run(config, tmp_path, num_devices=devices)
    both = [(folder / "draws.safetensors").read_bytes() for folder in (workdir, tmp_path)]
    assert both[0] == both[1]


@pytest.mark.parametrize("solver", ["gibbs", "dsgld"])
def test_two_processes_give_the_bytes_of_one(solver, whole, stored, table, tmp_path, monkeypatch):
    monkeypatch.chdir(pathlib.Path(__file__).parents[1])
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    config, workdir = whole
    run, settings = tmp_path / "run", SMALL
    if solver == "dsgld":
        config, workdir = stored
        settings = {**SMALL, **LANGEVIN, "block_store": config.block_store, "pattern_features": 0}
    command = [
        *(sys.executable, "-m", "experiments.factorize", f"--solver={solver}", f"--workdir={run}"),
        *(f"--input={table}", *(f"--{name}={value}" for name, value in settings.items())),
    ]
    assert local_hosts.run(command, 2, 1, "first", 2) == 0
    both = [(folder / "draws.safetensors").read_bytes() for folder in (workdir, run)]
    assert both[0] == both[1]


def test_draws_file_round_trip_and_refusal(whole, tmp_path):
    path = whole[1] / "draws.safetensors"
    named = draws_file.load_draws(path)
    draws_file.save_draws(tmp_path / "again", named)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()
    broken = named._replace(draws=named.draws._replace(alpha=named.draws.alpha[1:]))
    draws_file.save_draws(tmp_path / "broken", broken)
    with pytest.raises(ValueError, match="alpha has shape"):
        draws_file.load_draws(tmp_path / "broken")
    (tmp_path / "foreign").write_text("no")
    assert not draws_file.holds_draws(tmp_path / "foreign")
    with pytest.raises(ValueError, match="does not hold draws"):
        draws_file.load_draws(tmp_path / "foreign")
    with pytest.raises(ValueError, match="does not exist"):
        draws_file.load_draws(tmp_path / "gone")
    size = sum(x.nbytes for x in jax.tree.leaves(named.draws[:4]))
    assert size == draws_file.size_in_bytes((20, 20), 2, 8)


def test_draws_without_room_are_refused_before_the_start(whole, tmp_path, monkeypatch):
    config, _ = whole
    monkeypatch.setattr(resources, "available_memory_bytes", lambda: 100)
    with pytest.raises(
        ValueError, match=r"8 draws of 20 rows and 20 columns at rank 2 need .* fewer"
    ):
        sample.run(config, tmp_path / "run")
    monkeypatch.undo()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=0))
    with pytest.raises(ValueError, match=r"GB on the disk of .* take fewer --draws"):
        sample.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_chains_on_a_store_need_room_too(stored, tmp_path, monkeypatch):
    config, _ = stored
    draws = draws_file.size_in_bytes((20, 20), config.rank, config.draws)
    monkeypatch.setattr(resources, "available_memory_bytes", lambda: draws + 1000)
    with pytest.raises(ValueError, match=r"GB of memory beside .* GB for the chains, of which"):
        sample.run(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--loss=gkl",), "serves the loss squared (Gaussian noise), got 'gkl'"),
        (("--loss=logistic",), "solvers that serve it: sgd, psgd, dsgd, lbfgs"),
        (("--penalty=l2",), "--solver=gibbs does not read --penalty"),
        (("--step_size=constant:1", "--epochs=3"), "does not read --epochs, --step_size"),
        (("--block_store=blocks",), "does not read --block_store"),
        (("--draws=7",), "a multiple of the 2 chains, got 7"),
        (("--solver=als",), "the solvers gibbs and dsgld alone read --burn_in"),
    ],
)
def test_mistakes_end_in_one_line(flags, message, table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ("--solver=gibbs", "--burn_in=1", f"--input={table}", "--workdir=run")
    ended = launch(factorize, *given, *flags)
    assert ended.code == 1
    assert ended.err.startswith("error: ")
    assert message in ended.err
    assert ended.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_presets(monkeypatch, tmp_path):
    configs = []
    monkeypatch.setattr(sample, "run", lambda config, *arguments: configs.append(config))
    for more in ((), ("--preset=best",), ("--preset=best", "--rank=8", "--chains=1")):
        launch(factorize, "--solver=gibbs", f"--workdir={tmp_path}", *more)
    launch(factorize, "--solver=dsgld", f"--workdir={tmp_path}", "--step_size=constant:0.5")
    default, best, changed, of_dsgld = configs
    assert (of_dsgld.burn_in, of_dsgld.thin, of_dsgld.blocks) == (120, 3, 8)
    assert (of_dsgld.model.step, of_dsgld.model.decay) == (0.5, 0)
    assert (default.rank, default.draws, default.chains, default.pattern_features) == (
        *(32, 100, 2),
        None,
    )
    assert (best.rank, best.draws, best.chains, best.pattern_features) == (48, 200, 4, 512)
    assert (changed.rank, changed.chains, changed.draws) == (8, 1, 200)
