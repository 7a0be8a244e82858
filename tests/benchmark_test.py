"""The benchmarks, run as a user runs them."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest

from experiments import factorize as factorize_binary
from experiments import imputation_tasks
from experiments.benchmarks import (
    cold_start,
    factorize,
    imputer,
    langevin,
    meta_step,
    posterior,
    tables,
)
from metamf_jax.meta_learning.encoder import EncoderConfig
from metamf_jax.meta_learning.map_estimation import MapConfig
from metamf_jax.meta_learning.meta_loss import ModelConfig
from tests.compilation import FAST_FLAGS
from tests.experiments_test import launch


def _run(module, *flags):
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{module}", "--preset=smoke", *flags],
        env={**os.environ, "XLA_FLAGS": FAST_FLAGS},
        capture_output=True,
        text=True,
        check=False,
    )


def test_imputer_goes_on_where_it_was_stopped(tmp_path):
    config = dataclasses.replace(imputer.PRESETS["smoke"], methods=("mean", "knn"))
    whole = imputer.run(config, tmp_path / "whole")["results"]
    assert len(whole["tasks"]) == 2
    for task in whole["tasks"].values():
        assert set(task["rmse"]) == {"metamf", "mean", "knn"}
        assert task["rmse"]["metamf"] < task["rmse"]["mean"]
        assert task["more_than_ours"] == pytest.approx(
            task["rmse"][task["best_other"]] ** 2 - task["rmse"]["metamf"] ** 2
        )
    (tmp_path / "half").mkdir()
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "half" / "metrics.jsonl").write_text(lines[0])
    again = imputer.run(config, tmp_path / "half")["results"]
    for name, task in whole["tasks"].items():
        assert task["rmse"] == again["tasks"][name]["rmse"]
    with pytest.raises(ValueError, match=r"unknown methods \['knm'\]; there are mean, bias"):
        imputer.run(dataclasses.replace(config, methods=("knm",)), tmp_path / "wrong")


def test_imputer_says_what_each_part_is_worth(tmp_path):
    config = dataclasses.replace(
        imputer.PRESETS["smoke"], ablation=True, tasks=("iris, 50% random",)
    )
    (task,) = imputer.run(config, tmp_path)["results"]["tasks"].values()
    parts = [
        "no draws",
        "no learned hyperprior",
        "no learned share",
        "no pattern",
        "no encoder of ratings",
        "no learned prior",
        "no learned part",
        "no posterior",
        "no rows alike",
        "effects alone",
    ]
    assert list(task["rmse"]) == ["metamf", *parts]
    # A narrow table of three species: the rows say most, effects alone little.
    assert task["more"]["effects alone"] > task["more"]["no rows alike"] > 0.05
    assert len(set(task["rmse"].values())) == 5


def test_imputer_runs_the_tasks_asked_for():
    config = imputer.PRESETS["smoke"]
    asked = dataclasses.replace(config, tasks=("iris, 50% high",))
    assert [task.name for task in imputer.tasks(asked, None)] == ["iris, 50% high values"]
    assert len(list(imputer.tasks(config, None))) == 2


def _peer(code):
    return "--peer=" + shlex.join([sys.executable, "-c", code])


def test_meta_step(tmp_path):
    ran = _run(
        "benchmarks.meta_step",
        *("--side=8", "--batch=4", "--devices=2", "--repeats=2", "--memory_steps=2"),
        *(_peer("print('seen'); print('peer: 5.25 ms a step')"), "--rounds=1"),
        f"--workdir={tmp_path}",
    )
    assert ran.returncode == 0, ran.stderr
    last = re.fullmatch(r"([\d.]+) ms a step", ran.stdout.splitlines()[-1])
    results = json.loads((tmp_path / "summary.json").read_text())["results"]
    assert last is not None
    assert float(last[1]) == round(results["steps"][0]["step_ms_median"], 2)
    assert [step["batch"] for step in results["steps"]] == [4]
    for step in results["steps"]:
        assert 0 < step["step_ms_min"] <= step["step_ms_median"]
        assert 0 < step["gflop"] < step["dense_gflop"]
    assert results["comparison"]["peer_ms"] == [5.25]
    assert results["comparison"]["ours_ms"][0] > 0
    assert set(results["temporary_bytes"]) == {"unroll", "checkpoint", "implicit"}
    assert all(sizes[0] > 0 for sizes in results["temporary_bytes"].values())


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (_peer("print('fast')"), "expected '... ms' in the last line"),
        (_peer("raise SystemExit(3)"), "ended with code 3"),
        ("--peer=/nowhere/peer", "cannot be run"),
        ("--batch=many", "--batch takes numbers from 1"),
    ],
)
def test_mistakes_are_named(flag, message):
    ended = launch(meta_step, "--preset=smoke", flag)
    assert ended.code == 1
    assert message in ended.err
    assert "Traceback" not in ended.err


def test_operations_of_the_smallest_model():
    model = ModelConfig(EncoderConfig(channels=1, layers=1, rank=1), MapConfig(steps=1))
    # Forward: layer 8 + 4, heads 8, step 6 + 10, query 2; backward: 16 + 4, 16, 14 + 20, 4.
    assert meta_step.step_flops(model, 1, 1, 1, 1) == 38 + 74


def test_scale(tmp_path):
    ran = _run(
        "benchmarks.scale",
        *(
            "--num_rows=60",
            "--num_columns=40",
            "--cells=800",
            "--timed_runs=1",
            f"--workdir={tmp_path}",
        ),
    )
    assert ran.returncode == 0, ran.stderr
    parts = json.loads((tmp_path / "summary.json").read_text())["results"]["parts"]
    cells = [part["cells"] for part in parts]
    assert cells == [cells[2] // 4, cells[2] // 2, cells[2]]
    assert 600 < cells[2] < 1000
    assert all(part["adapt_ms"] > 0 and part["ridge_sweep_ms"] > 0 for part in parts)
    assert parts[0]["temporary_bytes"] < parts[2]["temporary_bytes"]


def test_factorize(tmp_path):
    # A program that tells what LIBMF tells, and takes half a second an epoch.
    libmf = tmp_path / "mf-train"
    libmf.write_text(
        "#!/bin/sh\nsleep $(($4 / 2)).5\n"
        "echo 'iter      tr_rmse      va_rmse          obj'\n"
        'for i in 0 1 2; do echo "   $i       0.9000       0.8$((7 - 2 * i))00   1.5e+06"; done\n'
    )
    libmf.chmod(0o755)
    table = tmp_path / "table.csv"
    table.write_text("".join(f"{n},{m},{1 + n * m % 5}\n" for n in range(30) for m in range(20)))
    ran = _run(
        "benchmarks.factorize",
        *("--rounds=1", "--ranks=4", "--sgd_epochs=1,3", "--als_epochs=1,2", "--devices=2"),
        *(f"--libmf={libmf}", "--methods=defaults,adagrad,libmf", f"--dataset={table}"),
        f"--workdir={tmp_path / 'run'}",
    )
    assert ran.returncode == 0, ran.stderr
    results = json.loads((tmp_path / "run" / "summary.json").read_text())["results"]
    defaults, ours, theirs = results["rows"]
    for row in (defaults, ours):
        assert all(seconds > 0 for times in row["process_seconds"] for seconds in times)
    few, many = (min(times) for times in theirs["process_seconds"])
    assert theirs["seconds"] == (many - few) / 2
    assert theirs["epochs_to_target"] == 3  # 0.87, 0.85, 0.83
    assert theirs["times_libmf"] == 1
    assert results["bytes_per_second"] > 1e8


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--methods=libmf", "LIBMF needs --libmf"),
        ("--sgd_epochs=5,5", "--sgd_epochs takes two rising numbers"),
        ("--ranks=0", "--ranks takes numbers from 1"),
    ],
)
def test_mistakes_of_the_factorization_benchmark(flag, message):
    ended = launch(factorize, flag)
    assert ended.code == 1
    assert message in ended.err


def test_langevin_beside_solvers(tmp_path, monkeypatch):
    ran = []

    def in_this_process(given):
        ran.append(given)
        return launch(factorize_binary, *given).code

    monkeypatch.setattr(langevin, "factorize", in_this_process)
    methods = ("dsgd", "dsgld-from-dsgd")
    lengths = 40, 9, 2, 2, 20
    config = langevin.Config("synthetic:300x60x40", 0.1, methods, lengths, 1, 0, 2, 9)
    results = langevin.run(config, tmp_path / "run")["results"]
    assert len(ran) == 2
    floor = results["least_error"]
    assert 0.5 < floor < 0.6
    errors = {name: found["test_rmse"] for name, found in results["methods"].items()}
    assert all(floor < error < 1 for error in errors.values()), errors
    assert errors["dsgld-from-dsgd"] < errors["dsgd"]
    of_dsgd, of_langevin = (results["curves"][langevin.METHODS[m].title] for m in methods)
    assert of_langevin["seconds"][0] > of_dsgd["seconds"][-1]
    # What is done is not done again.
    (tmp_path / "run" / "dsgld-from-dsgd" / "summary.json").unlink()
    langevin.run(config, tmp_path / "run")
    assert len(ran) == 3
    for wrong, message in (
        (("dsgld-from-dsgd",), "starts from dsgd: add it to --methods"),
        (("sgdl",), r"unknown methods \['sgdl'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            langevin.run(dataclasses.replace(config, methods=wrong), tmp_path / "wrong")


def test_posterior_beside_the_imputer(tmp_path):
    config = posterior.Config("synthetic", "smoke", ("gibbs", "imputer"), (), 2, 0.1, 1, None)
    results = posterior.run(config, tmp_path)
    assert [len(rows) for rows in results["rows"].values()] == [2, 2]
    for name, rows in results["rows"].items():
        assert results["means"][name] == pytest.approx(np.mean([row["rmse"] for row in rows]))
        assert all(0 < row["cover"] <= 1 for row in rows)
    assert results["sweep"]["sweep"] > 0
    assert json.loads((tmp_path / "summary.json").read_text())["results"]["rows"]
    with pytest.raises(ValueError, match="unknown methods"):
        posterior.run(dataclasses.replace(config, methods=("gibs",)))


@pytest.fixture
def folder_of_tables(tmp_path):
    """A table of each set: a factor in all columns, a tenth of their variance noise."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(60, 1)) + 0.3 * rng.normal(size=(60, 5))
    values *= 10.0 ** np.arange(5)
    for name in tables.SETS:
        (tmp_path / "tables" / name).mkdir(parents=True)
    text = "a,b,c,d,e,word\n" + "".join(
        ",".join(map(str, row)) + f",{'xyz'[n % 3]}\n" for n, row in enumerate(values)
    )
    (tmp_path / "tables" / "mixed" / "one.two.csv").write_text(text)
    np.savetxt(tmp_path / "tables" / "grape" / "yacht.txt.gz", values)
    missing = rng.random(values.shape) < 0.3
    answers = {"true": values, "missing": missing, "oracle": values[missing]}
    np.savez(tmp_path / "tables" / "missbench" / "some_table-mar.npz", **answers)
    return tmp_path


def test_tables(folder_of_tables, tmp_path, monkeypatch):
    # The other package is one that answers zero.
    code = """
import sys, numpy
numpy.save(sys.argv[2], numpy.zeros(numpy.load(sys.argv[1]).shape))
print("7.0")
"""
    monkeypatch.setattr(tables, "PEERS", {"zero": code})
    methods = (tables.OURS, "mean", "forest", "zero", tables.OF_TYPES)
    config = dataclasses.replace(
        tables.PRESETS["smoke"], methods=methods, kinds=("mcar",), peers_python=sys.executable
    )
    whole = tables.run(config, tmp_path / "whole", folder_of_tables)["results"]
    groups = ["mixed, mcar", "grape, yacht", "missbench, mar, real"]
    assert list(whole) == groups
    of_words = whole["mixed, mcar"]["methods"]
    assert of_words["metamf"]["log_score"] < of_words["mean"]["log_score"] + 0.3
    assert all(0 < of["wrong"] <= 1 for of in of_words.values())
    assert 0 < of_words[tables.OF_TYPES]["log_score"] < -np.log(tables._LEAST_CHANCE)
    assert "log_score" not in of_words["forest"]
    for summary in whole.values():
        assert set(methods[:4]) <= set(summary["methods"])
        assert summary["methods"]["metamf"]["ratio"] < 0.6
        assert summary["methods"]["mean"]["ratio"] == 1
        assert summary["methods"]["zero"]["seconds"] == [7, 7]
        assert 0.7 < summary["coverage"] <= 1
        assert summary["tasks"] == sum(of["wins"] for of in summary["methods"].values()) == 1
        assert min(of["worst"] for of in summary["methods"].values()) == 1
    assert whole["mixed, mcar"] != whole["grape, yacht"]
    assert whole["grape, yacht"]["methods"]["published GRAPE"]["mean"] == 0.151
    assert whole["missbench, mar, real"]["methods"]["published oracle"]["wins"] == 1
    (tmp_path / "part").mkdir()
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "part" / "metrics.jsonl").write_text("".join(lines[:2]))
    again = tables.run(config, tmp_path / "part", folder_of_tables)["results"]
    for group in groups:
        assert again[group]["coverage"] == whole[group]["coverage"]


def test_errors_by_columns_leave_out_constant_ones():
    values = np.array([[1, 4.0, 0], [2, 4 + 1e-12, 1], [3, 5, 2], [5, 9, 3]])
    missing = np.array([[1, 1, 0], [1, 1, 1], [0, 0, 0], [0, 0, 0]], bool)
    train, test = imputation_tasks.remove(values, missing)
    units = imputation_tasks.deviations(values)
    task = imputation_tasks.Task("four rows", "given", train, test, units)
    # The first column's missing values are 0.5 from their mean.
    assert tables.by_columns(test.values + 0.25, task) == 0.5


def test_mistakes_of_tables(folder_of_tables, tmp_path):
    config = tables.PRESETS["smoke"]

    def message(**changes):
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            tables.run(dataclasses.replace(config, **changes), tmp_path / "run", folder_of_tables)
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        return str(error.value)

    assert "got hyperimpute; hyperimpute and miceforest need --peers_python" in message(
        methods=("hyperimpute",)
    )
    assert "expected sets among numeric, mixed" in message(sets=("numbers",))
    (folder_of_tables / "tables" / "grape" / "yacht.txt.gz").unlink()
    assert "holds no file that ends in .txt or .txt.gz" in message(sets=("grape",))
    (folder_of_tables / "tables" / "mixed" / "one.two.csv").write_text("a,b\n1,2\n,3\n")
    assert "expected columns without gaps" in message(sets=("mixed",))


def test_cold_start(tmp_path):
    rng = np.random.default_rng(0)
    cells = np.argwhere(rng.random((40, 30)) < 0.4)
    effects = rng.normal(size=40)[cells[:, 0]] + rng.normal(size=30)[cells[:, 1]]
    lines = [f"{n},{m},{x:.2f}" for (n, m), x in zip(cells, effects, strict=True)]
    (tmp_path / "ratings.csv").write_text("\n".join(["user,item,rating", *lines]))
    dataset = str(tmp_path / "ratings.csv")
    config = cold_start.Config(dataset, ("noise",), None, None, 1, 2)
    means = cold_start.run(config, tmp_path / "run")["means"]
    assert list(means) == ["column means", "noise"]
    assert all(set(of_method) == set(cold_start.PARTS) for of_method in means.values())
    assert means["noise"]["cells"] < 0.8 * means["column means"]["cells"]
    with pytest.raises(ValueError, match=r"unknown methods \['lies'\]"):
        cold_start.run(dataclasses.replace(config, methods=("features", "lies")))
