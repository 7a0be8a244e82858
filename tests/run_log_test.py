"""What a run leaves in its workdir, and which workdirs it takes up again."""

import dataclasses
import json
import sys

import pytest

from metamf_jax.runs import run_log
from metamf_jax.runs.run_log import RunLog


@dataclasses.dataclass(frozen=True)
class Inner:
    rank: int = 3
    sides: tuple[int, int] = (5, 6)


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = "x"
    inner: Inner = dataclasses.field(default_factory=Inner)


def test_config_and_versions_are_written(tmp_path):
    RunLog(tmp_path / "deep" / "run", "train", Config())
    held = json.loads((tmp_path / "deep" / "run" / "config.json").read_text())
    assert held["experiment"] == "train"
    assert held["config"] == {"name": "x", "inner": {"rank": 3, "sides": [5, 6]}}
    assert {"python", "jax", "flax", "optax", "numpy", "git_commit"} <= held["versions"].keys()
    assert run_log.read_config(tmp_path / "deep" / "run")["config"] == held["config"]


def test_the_same_configuration_is_taken_up_again(tmp_path):
    RunLog(tmp_path, "train", Config())
    before = (tmp_path / "config.json").read_bytes()
    RunLog(tmp_path, "train", Config())
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_workdir_of_an_earlier_name_is_taken_up_again(tmp_path):
    RunLog(tmp_path, "benchmark_scale", Config())
    RunLog(tmp_path, "benchmarks.scale", Config())
    with pytest.raises(ValueError, match=r"experiment: 'benchmarks.scale' there"):
        RunLog(tmp_path, "benchmarks.imputer", Config())


@pytest.mark.parametrize(
    ("experiment", "config", "difference"),
    [
        ("train", Config(name="y"), r"\(name: 'x' there, 'y' now\)"),
        ("train", Config(inner=Inner(rank=4)), r"\(inner.rank: 3 there, 4 now\)"),
        (
            "train",
            Config("z", Inner(sides=(5, 7))),
            r"\(inner.sides: \[5, 6\] there, \[5, 7\] now; name: 'x' there, 'z' now\)",
        ),
        ("denoise", Config(), r"\(experiment: 'train' there, 'denoise' now\)"),
    ],
)
def test_another_configuration_is_refused_by_name(tmp_path, experiment, config, difference):
    RunLog(tmp_path, "train", Config())
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ValueError, match=difference + r"\. Give another --workdir"):
        RunLog(tmp_path, experiment, config)
    assert (tmp_path / "config.json").read_bytes() == before


def test_metrics(tmp_path, capsys):
    log = RunLog(tmp_path, "train", Config())
    log.resume_at(0)
    log.metrics(5, {"loss": 0.25})
    log.metrics(10, {"loss": 0.125})
    lines = run_log.read_metrics(tmp_path)
    assert [(line["step"], line["loss"]) for line in lines] == [(5, 0.25), (10, 0.125)]
    assert 0 <= lines[0]["seconds"] <= lines[1]["seconds"]
    assert capsys.readouterr().out.splitlines() == ["step 5  loss 0.25", "step 10  loss 0.125"]
    log.finish({})
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1


def test_a_resumed_run_forgets_what_came_after_its_checkpoint(tmp_path):
    log = RunLog(tmp_path, "train", Config())
    log.resume_at(0)
    for step in (5, 10, 15):
        log.metrics(step, {"loss": 1.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    # The run had taken an hour by step 10, and was killed in the middle of a line.
    lines[1]["seconds"], lines[2]["seconds"] = 3600.0, 5000.0
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 20, "sec'
    (tmp_path / "metrics.jsonl").write_text(text)
    assert [line["step"] for line in run_log.read_metrics(tmp_path)] == [5, 10, 15]
    log = RunLog(tmp_path, "train", Config())
    log.resume_at(10)
    log.metrics(15, {"loss": 2.0})
    lines = run_log.read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [5, 10, 15]
    assert lines[2]["loss"] == 2.0
    # From an hour on, and not from what was logged after the checkpoint.
    assert 3600 <= lines[2]["seconds"] < 5000


def test_no_metrics_yet(tmp_path):
    assert run_log.read_metrics(tmp_path) == []


def test_summary(tmp_path):
    log = RunLog(tmp_path, "train", Config())
    log.start_progress(10, 0, "step")
    log.advance()
    summary = log.finish({"test_mse": 0.5})
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert summary.keys() == {
        "experiment",
        "config",
        "results",
        "seconds",
        "compile_seconds",
        "peak_memory_bytes",
        "devices",
    }
    assert summary["results"] == {"test_mse": 0.5}
    assert summary["devices"] == ["cpu"] * 8
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "lock",
        "summary.json",
    }


def test_plot_path(tmp_path):
    log = RunLog(tmp_path, "train", Config())
    assert log.plot_path("curve") == tmp_path / "plots" / "curve.png"
    assert (tmp_path / "plots").is_dir()


def test_workdirs_without_a_run(tmp_path):
    with pytest.raises(ValueError, match=r"holds no run: .*config.json is missing"):
        run_log.read_config(tmp_path)
    for content in ("{", "[]", '{"experiment": "train"}'):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ValueError, match=r"config.json is not a run's configuration"):
            run_log.read_config(tmp_path)


def test_a_run_without_tensorboard(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboardX.event_file_writer", None)
    log = RunLog(tmp_path, "train", Config())
    log.resume_at(0)
    log.metrics(1, {"loss": 0.5})
    log.finish({})
    assert [line["loss"] for line in run_log.read_metrics(tmp_path)] == [0.5]
    assert "no events for TensorBoard" in capsys.readouterr().out
    assert not (tmp_path / "events").exists()
