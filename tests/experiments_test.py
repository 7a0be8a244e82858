"""The binaries as a user runs them: through their ``main``, or as processes of their own."""

import contextlib
import csv
import io
import json
import pathlib
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest
import safetensors.numpy
from absl.testing import flagsaver

from experiments import common, factorize, figures, predict, presets, quickstart, train
from experiments.robustness import torture
from metamf_jax import cli, parallel, processes
from metamf_jax.runs import run_log

ROOT = pathlib.Path(__file__).parents[1]
BINARIES = {"train": train, "factorize": factorize}


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def launch(binary, *arguments):
    """Runs a binary in this process as ``python -m`` would: flags parsed, exit code and output."""
    out, err = io.StringIO(), io.StringIO()
    with (
        flagsaver.flagsaver(),
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", [binary.__name__, *map(str, arguments)])
        patch.setattr(parallel, "_devices", None)
        with pytest.raises(SystemExit) as end:
            common.run_main(binary.main)
    return Ended(end.value.code or 0, out.getvalue(), err.getvalue())


def start(name, workdir, *more):
    """Runs one of `BINARIES` with the flags that tests share."""
    return launch(BINARIES[name], *torture.FLAGS[name], f"--workdir={workdir}", *more)


@pytest.fixture
def trained(undisturbed):
    """Workdir and output of the one undisturbed training that all tests share."""
    return undisturbed("train")


def test_train_writes_its_result(trained):
    workdir, ended = trained
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary.keys() == {
        "experiment",
        "config",
        "results",
        "seconds",
        "compile_seconds",
        "peak_memory_bytes",
        "devices",
    }
    assert summary["experiment"] == "train"
    assert summary["config"]["preset"] == "smoke"
    assert len(summary["devices"]) == 2
    results = summary["results"]
    assert results.keys() >= {
        "test_mse",
        "test_mse_stderr",
        "mean_mse",
        "bias_mse",
        "mf_mse",
        "test_matrices",
        "support_per_matrix",
        "steps_per_second",
        "best_step",
        "steps",
        "baseline_settings",
    }
    # Standardised units: an error far from 1 is that of another matrix.
    assert 0.3 < results["test_mse"] < 2
    assert results["steps"] == 20
    for name in ("metamf", "mean", "bias", "mf"):
        assert f"\n{name} " in ended.out
    names = {path.name for path in workdir.iterdir()}
    assert names >= {"config.json", "metrics.jsonl", "model.safetensors", "checkpoints", "plots"}
    assert not [name for name in names if name.endswith(".part")]
    lines = run_log.read_metrics(workdir)
    assert [line["step"] for line in lines] == [5, 10, 15, 20]
    best = min(lines, key=lambda line: line["validation_mse"])
    assert results["best_step"] == best["step"]


def test_train_draws_its_plots(trained):
    plots = sorted((trained[0] / "plots").iterdir())
    assert [plot.name for plot in plots] == [
        "error_against_observations.png",
        "imputed_matrix.png",
        "learning_curve.png",
    ]
    for plot in plots:
        assert plot.read_bytes().startswith(b"\x89PNG")


def test_another_configuration_is_refused(trained):
    workdir, _ = trained
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    ended = start("train", workdir, "--seed=3")
    assert ended.code == 1
    assert ended.err.count("\n") == 1
    assert "holds a run of another configuration (seed: 0 there, 3 now)" in ended.err
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--workdir is needed"),
        (("--dataset=nonsense", "--workdir=x"), "unknown data set 'nonsense'; expected one of"),
        (("--dataset=gone.csv", "--workdir=x"), "gone.csv"),
        (("--dataset=ml100k", "--data_dir=nowhere", "--workdir=x"), "nowhere"),
        (("--workdir=x", "surplus"), "unexpected arguments ['surplus']"),
        (("--workdir=x", "--devices=99"), "99 devices were asked for"),
    ],
)
def test_mistakes_in_training_flags(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = launch(train, "--preset=smoke", *arguments)
    assert ended.code in (1, 2)
    assert ended.err.startswith("error: ")
    assert message in ended.err
    assert list(tmp_path.iterdir()) == []


PAIRS = "user,item,rating\nann,tea,4\nbob,tea,2\nann,jam,5\ncid,jam,1\nbob,egg,3\nann,egg,4.5\n"
MISSING = [("bob", "jam"), ("cid", "tea"), ("cid", "egg")]
DENSE = "user,tea,jam,egg\nann,4,5,4.5\nbob,2,,3\ncid,,1,\n"


def impute_text(weights, folder, text, *more):
    (folder / "in.csv").write_text(text)
    files = [str(folder / "in.csv"), f"--output={folder / 'out.csv'}"]
    return cli.main(["impute", *files, f"--weights={weights}", *more])


def table_of(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_what_train_leaves_imputes_pairs_dense_and_listed_pairs(trained, tmp_path):
    workdir, _ = trained
    assert impute_text(workdir, tmp_path, PAIRS) == 0
    lines = table_of(tmp_path / "out.csv")
    # One line for each missing cell.
    values = {(row, column): float(value) for row, column, value in lines[1:]}
    assert sorted(values) == sorted(MISSING)
    assert len(set(values.values())) == 3

    asked = [("cid", "egg"), ("ann", "tea"), ("bob", "jam")]
    (tmp_path / "pairs.csv").write_text("".join(f"{row},{column}\n" for row, column in asked))
    assert impute_text(workdir, tmp_path, PAIRS, f"--pairs={tmp_path / 'pairs.csv'}") == 0
    listed = table_of(tmp_path / "out.csv")
    assert [(row, column) for row, column, _ in listed[1:]] == asked
    for row, column, value in listed[1:]:
        if (row, column) in values:
            np.testing.assert_allclose(float(value), values[row, column], rtol=1e-5)

    assert impute_text(workdir / "model.safetensors", tmp_path, DENSE) == 0
    completed = table_of(tmp_path / "out.csv")
    assert [line[0] for line in completed] == ["user", "ann", "bob", "cid"]
    assert completed[0] == ["user", "tea", "jam", "egg"]
    dense = np.array([[float(x) for x in line[1:]] for line in completed[1:]])
    # Observed cells stay as they were; the others are those of the list.
    np.testing.assert_array_equal(dense[0], [4, 5, 4.5])
    np.testing.assert_array_equal(dense[[1, 1, 2], [0, 2, 1]], [2, 3, 1])
    expected = [values[pair] for pair in MISSING]
    # Two decimals more than the observed cells of the column have; the list goes by those of all.
    np.testing.assert_allclose(dense[[1, 2, 2], [1, 0, 2]], expected, rtol=0, atol=0.0051)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "out.csv", "pairs.csv"]


def another_architecture(workdir, folder):
    """A copy of the run's parameters with one shape changed."""
    path = workdir / "model.safetensors"
    arrays = safetensors.numpy.load_file(path)
    name = next(name for name in sorted(arrays) if arrays[name].ndim == 2)
    arrays[name] = np.concatenate([arrays[name], arrays[name]])
    with safetensors.safe_open(path, framework="numpy") as file:
        header = file.metadata()
    (folder / "run").mkdir()
    safetensors.numpy.save_file(arrays, folder / "run" / "model.safetensors", metadata=header)
    return folder / "run"


def test_weights_that_are_none(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for weights, message in (
        (another_architecture(trained[0], tmp_path), "holds another architecture"),
        (tmp_path, "model.safetensors does not exist"),
        ("nowhere", "or a .safetensors file of one, got 'nowhere'"),
    ):
        assert impute_text(weights, tmp_path, PAIRS) == 1
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
        assert not (tmp_path / "out.csv").exists()


def test_a_program_of_one_process_refuses_to_be_several(tmp_path, monkeypatch):
    """And only the first of them says so."""
    monkeypatch.setenv("METAMF_COORDINATOR", "127.0.0.1:1")
    monkeypatch.setenv("METAMF_NUM_PROCESSES", "2")
    told = []
    for index in range(2):
        monkeypatch.setenv("METAMF_PROCESS_ID", str(index))
        ended = launch(figures, "--preset=smoke", f"--workdir={tmp_path / 'run'}")
        assert ended.code == 1
        told.append((ended.out, ended.err))
    assert told[0][1].startswith("error: this program runs as one process, not as several")
    assert told[1] == ("", "")
    assert not (tmp_path / "run").exists()


def test_quickstart_prints_in_the_first_process_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "run", lambda *_: None)
    monkeypatch.setattr(processes, "is_first", lambda: False)
    smoke = presets.TRAIN["smoke"]
    config = train.Config(dataset="synthetic", preset="smoke", seed=0, split_seed=0, **smoke)
    quickstart.run(config, tmp_path, None)
    assert capsys.readouterr() == ("", "")


def test_a_needed_flag_is_named():
    ended = launch(predict, "--output=out.csv")
    assert ended.code == 1
    assert ended.err.startswith("error: --factors is needed: ")


def test_a_process_ends_with_one_line_and_no_traceback(tmp_path):
    command = [sys.executable, "-m", "experiments.predict", "--factors=nowhere", "--top=3"]
    ended = subprocess.run(
        [*command, f"--output={tmp_path / 'out.csv'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: nowhere")
    assert ended.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
