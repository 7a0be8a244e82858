"""The factorization binary: results, files, resuming, every solver, mistakes."""

import dataclasses
import pathlib

import numpy as np
import pytest

from experiments import factorize, splits
from metamf_jax.data import sources, synthetic
from metamf_jax.factorization import solver
from metamf_jax.factorization.factor_file import load_factors, save_factors
from metamf_jax.factorization.objective import Objective, make_terms
from metamf_jax.runs.run_log import read_metrics
from metamf_jax.types import Entries, Factors, Table
from tests.experiments_test import launch


@pytest.fixture
def small(monkeypatch):
    """Makes the synthetic world small."""
    monkeypatch.setitem(
        sources.SOURCES,
        "synthetic",
        lambda data_dir, seed: synthetic.synthetic_ratings(seed, 60, 40),
    )


CONFIG = factorize.Config(rank=2, epochs=3, blocks=2, step_size="bold_driver:0.05")


@pytest.mark.usefixtures("small")
class TestFactorize:
    def test_resumed_run_equals_uninterrupted_one(self, tmp_path):
        whole = factorize.run(CONFIG, tmp_path / "whole", num_devices=2)["results"]
        # A killed run: the same configuration, ended early.
        cut = dataclasses.replace(CONFIG, epochs=2)
        factorize.run(cut, tmp_path / "cut", num_devices=1)
        config = tmp_path / "cut" / "config.json"
        config.write_text(config.read_text().replace('"epochs": 2', '"epochs": 3'))
        resumed = factorize.run(CONFIG, tmp_path / "cut", num_devices=1)["results"]
        for name in ("objective", "train_rmse", "test_rmse", "best_test_rmse", "epochs"):
            assert resumed[name] == whole[name], name
        lines = read_metrics(tmp_path / "cut")
        assert [line["step"] for line in lines] == [1, 2, 3]
        assert lines[-1]["objective"] < lines[0]["objective"]
        factors, row_ids, column_ids = load_factors(tmp_path / "cut" / "factors.safetensors")
        others, _, _ = load_factors(tmp_path / "whole" / "factors.safetensors")
        np.testing.assert_array_equal(factors.u, others.u)
        assert factors.u.shape == (60, 3)  # The mean is a column of its own.
        np.testing.assert_array_equal(row_ids, np.arange(60))
        np.testing.assert_array_equal(column_ids, np.arange(40))

    def test_als_by_conjugate_gradients_ends_where_the_exact_one_does(self, tmp_path):
        reached = []
        for als_solver in (None, "cg:6"):
            config = dataclasses.replace(CONFIG, solver="als", epochs=6, als_solver=als_solver)
            reached.append(factorize.run(config, tmp_path / str(als_solver))["results"])
        exact, by_gradients = reached
        assert by_gradients["objective"] != exact["objective"]
        np.testing.assert_allclose(by_gradients["objective"], exact["objective"], rtol=1e-3)

    @pytest.mark.parametrize("solver", ["als", "lbfgs", "psgd"])
    def test_solvers(self, solver, tmp_path):
        config = dataclasses.replace(CONFIG, solver=solver, biases=True)
        results = factorize.run(config, tmp_path)["results"]
        lines = read_metrics(tmp_path)
        assert lines[-1]["objective"] < lines[0]["objective"]
        assert results["epochs"] == 3
        assert 0.4 < results["test_rmse"] < 1.5

    def test_step_size_is_chosen_and_the_run_stops_early(self, tmp_path):
        config = dataclasses.replace(
            CONFIG, step_size="bold_driver:auto", epochs=40, early_stopping=0.02
        )
        results = factorize.run(config, tmp_path)["results"]
        assert 1 < results["epochs"] < 40

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"solver": "als", "loss": "gkl"}, "solvers that serve it: sgd, psgd, dsgd"),
            ({"loss": "logistic"}, "labels -1 and 1"),
            ({"blocks": 50}, "a number of blocks from 1 to 40"),
            ({"split": "time"}, "has no times to split by"),
            ({"split": "official"}, "only ml100k has official splits"),
            ({"init": "uniform:x"}, "an init as NAME"),
            ({"als_solver": "cg:0"}, r"an ALS solver as cholesky or cg\[:STEPS\], got 'cg:0'"),
            ({"als_solver": "lu"}, "an ALS solver as cholesky"),
            ({"als_solver": "cg", "backend": "numba"}, "run through the backend 'xla' alone"),
            ({"step_size": "constant:1e6"}, "the steps diverged at step size 1e"),
        ],
    )
    def test_mistakes_leave_no_summary(self, changes, message, tmp_path):
        with pytest.raises(ValueError, match=message):
            factorize.run(dataclasses.replace(CONFIG, **changes), tmp_path)
        assert not (tmp_path / "summary.json").exists()
        assert not (tmp_path / "factors.safetensors").exists()

    def test_bold_driver_recovers_from_a_step_that_diverges(self, tmp_path, capfd):
        config = dataclasses.replace(CONFIG, step_size="bold_driver:1e6", epochs=30)
        results = factorize.run(config, tmp_path)["results"]
        lines = read_metrics(tmp_path)
        assert not np.isfinite(lines[0]["objective"])
        assert np.isfinite([results["objective"], results["test_rmse"]]).all()
        assert lines[-1]["step_size"] < 1
        assert capfd.readouterr().err == ""

    def test_test_cells_of_another_file(self, tmp_path):
        train, test = tmp_path / "train.csv", tmp_path / "test.csv"
        rng = np.random.default_rng(0)
        cells = sorted({(int(n), int(m)) for n, m in rng.integers(0, 9, (60, 2))})
        train.write_text("\n".join(f"u{n},i{m},{1 + (n + m) % 5}" for n, m in cells))
        test.write_text("u0,i0,3\nnobody,i1,4\n")
        config = dataclasses.replace(CONFIG, dataset=str(train), test_input=str(test))
        factorize.run(config, tmp_path / "run")
        factors, row_ids, _ = load_factors(tmp_path / "run" / "factors.safetensors")
        assert row_ids.tolist()[-1] == "nobody"
        # Never seen in training: the prior mean, and with it the mean of all values.
        mean = np.mean([1 + (n + m) % 5 for n, m in cells])
        np.testing.assert_allclose(factors.u[-1], [0, 0, mean], rtol=1e-6)


def test_what_was_tuned_for_a_data_set_is_a_file_of_flags(monkeypatch, tmp_path):
    configs = []
    monkeypatch.setattr(factorize, "run", lambda config, *arguments: configs.append(config))
    root = pathlib.Path(__file__).parents[1] / "experiments" / "flagfiles"
    for arguments in (
        (f"--flagfile={root / 'factorize_ml100k.txt'}", "--fold=u2"),
        ("--preset=best", "--dataset=ml100k"),
    ):
        launch(factorize, *arguments, f"--workdir={tmp_path}")
    tuned, best = configs
    assert (tuned.dataset, tuned.rank, tuned.regularization) == ("ml100k", 64, 0.8)
    assert (tuned.init, tuned.fold, tuned.epochs) == ("positive:0.131", "u2", 24)
    assert (best.dataset, best.rank, best.regularization) == ("ml100k", 128, 0.95)


CELLS = "user,item,rating\n" + "".join(f"u{n},i{n % 3},{1 + n % 5}\n" for n in range(12))


@pytest.mark.parametrize(
    ("old", "new", "flags", "message"),
    [
        ("u7,i1,3", "u7,i1,nan", (), "in.csv, line 9: expected a finite number, got 'nan'"),
        ("u7,i1,3", "u7,i1,-3", ("--loss=gkl",), "under the loss 'gkl', but entry 7 of 12 is -3.0"),
        ("u7,i1,3", "u7,i1,-3", ("--loss=gkl",), "at row 'u7', column 'i1'"),
        ("", "", ("--loss=logistic",), "expected labels -1 and 1 under the loss 'logistic'"),
        ("", "", ("--loss=gkl", "--solver=als"), "solvers that serve it: sgd, psgd, dsgd"),
        ("", "", ("--loss=absolute", "--solver=lbfgs"), "the solver 'lbfgs' serves the losses"),
        ("", "", ("--loss=l2", "--penalty=none"), "leave the penalty out"),
        ("", "", ("--blocks=4",), "a number of blocks from 1 to 3, the smaller side of a matrix"),
        ("", "", ("--blocks=3", "--devices=2"), "a multiple of the 2 devices, got 3"),
        ("", "", ("--regularization=-1",), "a finite regularization of at least 0, got -1"),
        ("", "", ("--workdir=in.csv",), "in.csv cannot be written to (File exists)"),
        ("", "", ("--workdir=in.csv/run",), "in.csv/run cannot be written to (Not a directory)"),
    ],
)
def test_mistakes_end_in_one_line(old, new, flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.csv").write_text(CELLS.replace(old, new) if old else CELLS)
    ended = launch(
        factorize,
        *("--input=in.csv", "--test_fraction=0", "--preset=smoke", "--step_size=constant:0.1"),
        *("--workdir=run", *flags),
    )
    assert ended.code == 1
    assert ended.err.startswith("error: ")
    assert message in ended.err
    assert ended.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


@pytest.mark.parametrize("split", ["random", "time"])
def test_cells_are_parted(split):
    values = np.arange(20, dtype="f")
    rows, columns = np.divmod(np.arange(20, dtype="i"), 5)
    times = np.random.default_rng(0).permutation(20)
    table = Table(Entries(rows, columns, values, (4, 5)), np.arange(4), np.arange(5), times)
    wanted = splits.Split("synthetic", split, test_fraction=0.25)
    train, test = splits.split_entries(table, wanted)
    both = [*train.entries.values, *test.values]
    assert sorted(both) == list(range(20))
    assert len(test.values) == 5
    if split == "time":
        assert times[test.values.astype(int)].min() == 15


def test_factor_file_round_trip_and_refusal(tmp_path):
    factors = Factors(np.ones((2, 3), "f"), np.zeros((1, 3), "f"))
    names = np.array(["a\nb", "ü"], object)
    save_factors(tmp_path / "x.safetensors", factors, names, np.array([7]))
    loaded, row_ids, column_ids = load_factors(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(loaded.u, factors.u)
    assert row_ids.tolist() == names.tolist()
    assert column_ids.tolist() == [7]
    (tmp_path / "y").write_text("no")
    with pytest.raises(ValueError, match="does not hold factors"):
        load_factors(tmp_path / "y")
    with pytest.raises(ValueError, match="does not exist"):
        load_factors(tmp_path / "z")


def test_positive_start():
    rows, columns = (x.astype("i") for x in np.nonzero(np.ones((4, 5))))
    entries = Entries(rows, columns, np.ones(20, "f"), (4, 5))
    objective = Objective("squared", "l2", 0.1)
    terms = make_terms(objective, entries)
    rng = np.random.default_rng(0)
    start = solver.initial_factors(objective, entries, terms, 3, rng, "positive", 0.5)
    for factor in start:
        assert 0 < factor.min() < 0.25 < factor.max() < 0.5
