"""The factorization binary: results, files, resuming, every solver, mistakes."""

import dataclasses
import pathlib

import numpy as np
import pytest

from experiments import factorize, splits
from experiments.solving import choice, solve
from metamf_jax.data import sources, synthetic
from metamf_jax.factorization import pattern_prior, solver
from metamf_jax.factorization.factor_file import load_factors, save_factors
from metamf_jax.factorization.objective import Objective, make_terms
from metamf_jax.factorization.pattern_prior import PatternPrior
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
        # Started again, it ends where it stopped, also if it was killed just then.
        (tmp_path / "summary.json").unlink()
        again = factorize.run(config, tmp_path)["results"]
        assert (again["epochs"], again["objective"]) == (results["epochs"], results["objective"])

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


LEARNED = PatternPrior(((0.1, 0.0, 0.0), (0.2, 0.1, 0.0)), (0.5, 0.5), (0.5, 0.5))


@pytest.mark.usefixtures("small")
class TestPrior:
    @pytest.fixture
    def config(self, tmp_path):
        pattern_prior.save(tmp_path / "prior.json", LEARNED)
        return dataclasses.replace(
            CONFIG,
            biases=True,
            penalty="prior",
            prior=str(tmp_path / "prior.json"),
            regularization=2.0,
            blocks=1,
        )

    @pytest.mark.parametrize("solver", ["sgd", "dsgd", "lbfgs"])
    def test_every_solver_minimises_the_same(self, config, solver, tmp_path):
        reached = []
        for name, epochs in {"als": 40, solver: 400}.items():
            rule = {"step_size": "bold_driver:0.01", "evaluate_every": epochs, "epochs": epochs}
            solved = dataclasses.replace(config, solver=name, **rule)
            reached.append(factorize.run(solved, tmp_path / name)["results"]["objective"])
        assert reached[1] == pytest.approx(reached[0], rel=5e-3)

    def test_a_row_without_cells_is_what_the_prior_expects(self, config, tmp_path):
        config = dataclasses.replace(config, split="few_rows", solver="als", test_fraction=0.4)
        results = factorize.run(config, tmp_path / "run")["results"]
        assert "0" in results["test_rmse_by_row_count"]
        factors, _, _ = load_factors(tmp_path / "run" / "factors.safetensors")
        table = sources.load("synthetic", None, 0)
        split = splits.Split("synthetic", "few_rows", test_fraction=0.4)
        train, test = splits.split_entries(table, split)
        values = np.asarray(train.entries.values, np.float64)
        offsets = LEARNED.offsets(pattern_prior.pattern_of(train.entries), float(values.std()))
        row = np.setdiff1d(test.rows, train.entries.rows)[0]
        np.testing.assert_allclose(factors.u[row, -2], values.mean() + offsets[0][row], rtol=1e-5)
        np.testing.assert_array_equal(factors.u[row, :-2], 0)

    def test_its_strength_and_epochs_are_chosen(self, config, tmp_path):
        config = dataclasses.replace(config, regularization=None, epochs=None)
        results = factorize.run(config, tmp_path / "run")["results"]
        assert results["trials"][0]["regularization"] == results["regularization"]
        assert {trial["regularization"] for trial in results["trials"]} >= {0.5, 1.0, 2.0}

    @pytest.mark.parametrize(
        "changes", [{"penalty": "l2"}, {"biases": False}, {"loss": "absolute"}, {"prior": None}]
    )
    def test_where_it_has_no_meaning_it_is_refused(self, config, changes, tmp_path):
        with pytest.raises(ValueError, match="the penalty `prior` of the loss squared with biases"):
            factorize.run(dataclasses.replace(config, **changes), tmp_path / "run")

    def test_a_block_store_or_another_file_is_refused(self, config, tmp_path):
        stored = dataclasses.replace(config, block_store=str(tmp_path / "store"))
        with pytest.raises(ValueError, match="leave out it or --block_store"):
            factorize.run(stored, tmp_path / "run")
        (tmp_path / "prior.json").write_text("{}")
        with pytest.raises(ValueError, match=r"expected a prior of experiments\.learn_prior"):
            factorize.run(config, tmp_path / "run")


# Chosen from the data, on few rows and columns.
OPEN = factorize.Config(
    rank=4,
    biases=True,
    penalty="root_l2",
    init="positive",
    regularization=None,
    epochs=None,
    step_size=None,
    blocks=None,
    evaluate_every=10,
)


@pytest.mark.usefixtures("small")
class TestDefaults:
    def test_a_run_with_nothing_given_is_good_and_goes_on_as_it_began(self, tmp_path, monkeypatch):
        results = factorize.run(OPEN, tmp_path / "a")["results"]
        chosen = results["trials"][0]
        assert results["epochs"] == chosen["epochs"]
        assert results["regularization"] == chosen["regularization"] > 0
        plain = dataclasses.replace(OPEN, regularization=0.0, epochs=60, step_size="adagrad:0.1")
        overfitted = factorize.run(plain, tmp_path / "b")["results"]
        assert results["test_rmse"] < 0.97 * overfitted["test_rmse"]
        # What was chosen once is not chosen again.
        monkeypatch.setattr(choice.held_out_choice, "choose", None)
        again = factorize.run(OPEN, tmp_path / "a")["results"]
        assert {**again, "seconds_training": 0} == {**results, "seconds_training": 0}

    def test_devices_change_no_bit_of_what_is_chosen(self, tmp_path):
        config = dataclasses.replace(OPEN, blocks=4, backend="xla")
        told = []
        for devices in (1, 2, None):
            workdir = tmp_path / str(devices)
            results = factorize.run(config, workdir, num_devices=devices)["results"]
            written = [
                (workdir / name).read_bytes() for name in ("factors.safetensors", "chosen.json")
            ]
            told.append((results["test_rmse"], results["trials"], written))
        assert told[0] == told[1] == told[2]

    def test_labels_are_measured_as_labels(self, tmp_path, monkeypatch):
        world = sources.SOURCES["synthetic"]

        def labels(data_dir, seed):
            table = world(data_dir, seed)
            values = np.where(table.entries.values > 3.5, 1, -1).astype("f")
            return table._replace(entries=dataclasses.replace(table.entries, values=values))

        monkeypatch.setitem(sources.SOURCES, "synthetic", labels)
        config = dataclasses.replace(OPEN, loss="logistic", epochs=10)
        results = factorize.run(config, tmp_path)["results"]
        (line,) = read_metrics(tmp_path)
        for name in ("log_loss", "accuracy", "auc"):
            assert results[f"test_{name}"] == line[f"test_{name}"]
            assert f"train_{name}" in line
        assert results["best_test_log_loss"] == results["test_log_loss"] < np.log(2)
        assert results["test_auc"] > 0.6
        assert "test_rmse" not in results

    def test_checkpoints_come_by_time_and_at_the_end(self, tmp_path, monkeypatch):
        saved = []
        monkeypatch.setattr(
            solve.Checkpointer, "save", lambda self, step, state: saved.append(step)
        )
        for seconds in (1e9, 0):
            factorize.run(CONFIG, tmp_path / str(seconds), checkpoint_seconds=seconds)
        assert saved == [3, 1, 2, 3]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), (None, None, None, None, True, 64, None, 10)),
        (("--regularization=0.1",), ("weighted_l2", 0.1, None, None, True, 64, None, 10)),
        (
            ("--preset=best", "--regularization=auto"),
            ("root_l2", None, 24, None, True, 128, None, 10),
        ),
        (("--loss=nzl2", "--blocks=3"), ("weighted_l2", None, None, 3, True, 64, None, 10)),
        (("--solver=als", "--biases=false"), (None, None, None, None, False, 64, 1, 1)),
        (("--early_stopping=0.1",), (None, None, None, None, True, 64, None, 1)),
        (("--preset=smoke", "--devices=2"), ("weighted_l2", 0.05, 3, None, False, 4, 2, 1)),
        (("--loss=gkl",), ("root_l2", None, None, None, False, 64, None, 10)),
    ],
)
def test_what_is_not_given_is_left_to_the_data(flags, expected, monkeypatch, tmp_path):
    runs = []
    monkeypatch.setattr(factorize, "run", lambda *arguments: runs.append(arguments))
    launch(factorize, *flags, f"--workdir={tmp_path}")
    ((config, _, _, num_devices, _),) = runs
    assert expected == (
        config.penalty,
        config.regularization,
        config.epochs,
        config.blocks,
        config.biases,
        config.rank,
        num_devices,
        config.evaluate_every,
    )


def test_a_run_without_a_workdir_takes_one_that_holds_no_finished_run(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    taken = []
    monkeypatch.setattr(factorize, "run", lambda config, workdir, *rest: taken.append(workdir))
    launch(factorize, "--input=data/ratings.csv.gz")
    folder = tmp_path / "runs" / "factorize-ratings"
    folder.mkdir(parents=True)
    launch(factorize, "--input=data/ratings.csv.gz")
    (folder / "summary.json").touch()
    launch(factorize, "--input=data/ratings.csv.gz")
    assert taken == [f"runs/factorize-ratings{end}" for end in ("", "", "-2")]


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


@pytest.mark.parametrize("side", ["rows", "columns"])
def test_some_rows_or_columns_keep_few_cells(side):
    rows, columns = np.divmod(np.arange(600, dtype="i"), 20)
    values = np.arange(600, dtype="f")
    table = Table(Entries(rows, columns, values, (30, 20)), np.arange(30), np.arange(20))
    wanted = splits.Split("synthetic", f"few_{side}", test_fraction=0.5)
    train, test = splits.split_entries(table, wanted)
    assert sorted([*train.entries.values, *test.values]) == list(range(600))
    size = {"rows": 30, "columns": 20}[side]
    kept = np.bincount(getattr(train.entries, side), minlength=size)
    few = kept <= 5
    assert few.sum() == size // 2
    assert len(set(kept[few])) > 2
    assert set(kept[~few]) == {600 // size}
    assert few[getattr(test, side)].all()


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
