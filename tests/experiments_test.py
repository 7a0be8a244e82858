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

from experiments import common, factorize, impute, train
from experiments.robustness import torture
from metamf_jax import parallel
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


def impute_text(trained, folder, text, *more):
    (folder / "in.csv").write_text(text)
    return launch(
        impute,
        f"--checkpoint={trained[0]}",
        f"--input={folder / 'in.csv'}",
        f"--output={folder / 'out.csv'}",
        *more,
    )


def table_of(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_impute_pairs_dense_and_listed_pairs(trained, tmp_path):
    ended = impute_text(trained, tmp_path, PAIRS)
    assert ended.code == 0, ended.err
    assert "3 rows, 3 columns, 6 observed cells (66.67%)" in ended.out
    lines = table_of(tmp_path / "out.csv")
    # One line for each missing cell.
    values = {(row, column): float(value) for row, column, value in lines[1:]}
    assert sorted(values) == sorted(MISSING)
    assert all(np.isfinite(value) for value in values.values())
    assert len(set(values.values())) == 3

    asked = [("cid", "egg"), ("ann", "tea"), ("bob", "jam")]
    (tmp_path / "pairs.csv").write_text("".join(f"{row},{column}\n" for row, column in asked))
    ended = impute_text(trained, tmp_path, PAIRS, f"--pairs={tmp_path / 'pairs.csv'}")
    assert ended.code == 0, ended.err
    listed = table_of(tmp_path / "out.csv")
    assert [(row, column) for row, column, _ in listed[1:]] == asked
    for row, column, value in listed[1:]:
        if (row, column) in values:
            np.testing.assert_allclose(float(value), values[row, column], rtol=1e-5)

    ended = impute_text(trained, tmp_path, DENSE)
    assert ended.code == 0, ended.err
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


def test_values_out_of_the_trained_range_are_on_their_own_scale(trained, tmp_path):
    far = PAIRS.replace(",4\n", ",4000\n").replace(",1\n", ",1000\n").replace(",5\n", ",5000\n")
    ended = impute_text(trained, tmp_path, far)
    assert ended.code == 0, ended.err
    assert "standardised on their own scale" in ended.out
    assert len(table_of(tmp_path / "out.csv")) == 4


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
    return f"--checkpoint={folder / 'run'}"


@pytest.mark.parametrize(
    ("text", "more", "message"),
    [
        (PAIRS, ["--checkpoint=nowhere"], "or a .safetensors file of one, got 'nowhere'"),
        (PAIRS, another_architecture, "holds another architecture"),
        (PAIRS, ["--input=gone.csv"], "gone.csv"),
        (PAIRS.replace("3", "three"), [], "in.csv, line 6: "),
        ("", [], "in.csv"),
        (PAIRS, ["--output=out.xyz"], "out.xyz"),
        (PAIRS, ["--pairs=unknown.csv"], "--pairs asks for row 'dan' (its cell 2)"),
        (PAIRS, ["--pairs=gone.csv"], "gone.csv"),
        ("a,x,70\nb,y,70\n", [], "values equal 70.0"),
    ],
)
def test_mistakes_in_imputation(trained, text, more, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "unknown.csv").write_text("ann,tea\ndan,tea\nann,soap\n")
    more = [more(trained[0], tmp_path)] if callable(more) else more
    ended = impute_text(trained, tmp_path, text, *more)
    assert ended.code == 1
    assert ended.err.startswith("error: ")
    assert message in ended.err
    assert ended.err.count("\n") == 1
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("out")]


def test_a_needed_flag_is_named():
    ended = launch(impute, "--input=in.csv")
    assert ended.code == 1
    assert ended.err.startswith("error: --checkpoint is needed: Workdir of a run")


def test_a_process_ends_with_one_line_and_no_traceback(tmp_path):
    command = [sys.executable, "-m", "experiments.impute", "--checkpoint=nowhere", "--input=x.csv"]
    ended = subprocess.run(
        [*command, f"--output={tmp_path / 'out.csv'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: expected weights by name")
    assert ended.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
