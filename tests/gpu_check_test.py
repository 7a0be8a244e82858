"""The check of a GPU: each part is told, whatever becomes of it; with parts that are faked."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time
from unittest import mock

import numpy as np
import pytest

from experiments.benchmarks import accelerator
from launch import gpu_check
from launch.gpu_check import Check, Part, Ran, agreement, json_lines, run_part

ROOT = pathlib.Path(__file__).parents[1]

WAITS = """
import subprocess, sys, time
child = subprocess.Popen(["sleep", "60"])
print('{"what": "child", "pid": %d}' % child.pid, flush=True)
time.sleep(60)
"""


def _part(name, code, limit=30.0, findings=json_lines):
    return Part(name, ["-S", "-c", code], limit, findings)


def _is_running(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_parts_end_as_they_may_and_others_go_on(tmp_path):
    check = Check(tmp_path)
    check.report["device"] = {"kind": "NVIDIA H100 80GB"}
    started = time.monotonic()
    check.run(_part("waits", WAITS, limit=gpu_check._LEAST / 10))
    assert [p["ending"] for p in check.report["parts"]] == ["left out, no time"]
    for part in (
        _part("fails", 'print(\'{"what": 1, "ms": 2.5}\'); raise SystemExit(3)'),
        _part("cannot be read", "pass", findings=lambda ran: [{}["missing"]]),
        _part("is done", 'print(\'no JSON\'); print(\'{"what": "a|b", "agrees": true}\')'),
    ):
        check.run(part)
    assert time.monotonic() - started < 30
    written = json.loads((tmp_path / "nvidia_h100_80gb.json").read_text())
    assert written == json.loads(json.dumps(check.report))
    assert [(p["ending"], p["findings"]) for p in written["parts"][1:]] == [
        ("ended with code 3", [{"what": 1, "ms": 2.5}]),
        ("done; KeyError('missing')", []),
        ("done", [{"what": "a|b", "agrees": True}]),
    ]
    page = (tmp_path / "nvidia_h100_80gb.md").read_text()
    assert "| fails | ended with code 3 |" in page
    assert "| what | ms |\n| --- | --- |\n| 1 | 2.5 |" in page
    assert "a\\|b" in page
    assert "no JSON" in (tmp_path / "log.txt").read_text()


def test_a_part_is_stopped_with_its_children(tmp_path):
    started = time.monotonic()
    ran = run_part(_part("waits", WAITS), 1.0, tmp_path / "log.txt")
    assert ran.ending == "stopped after 1 s"
    assert ran.seconds < 10
    (found,) = json_lines(ran)
    # The kernel may take a moment for it.
    while _is_running(found["pid"]) and time.monotonic() < started + 30:
        time.sleep(0.01)
    assert not _is_running(found["pid"])


@pytest.mark.parametrize(
    ("ending", "finding", "well"),
    [
        ("done", {"agrees": True}, True),
        ("done", {"agrees": False}, False),
        ("done", {"failed": 1}, False),
        ("done", {"error": "no memory"}, False),
        ("stopped after 5 s", {}, False),
    ],
)
def test_what_is_well(tmp_path, ending, finding, well):
    check = Check(tmp_path)
    check.add("part", ending, 1.0, [finding])
    assert check.is_well == well


def test_agreement(tmp_path):
    theirs, ours = tmp_path / "theirs.npz", tmp_path / "ours.npz"
    ran = Ran('{"what": "gibbs", "error": "no memory"}\n{"what": "als"}', "done", 1.0)
    assert agreement(theirs, ours, ran) == [{"what": "gibbs", "error": "no memory"}]
    x = np.array([4.0, 0.0])
    names = ["als/0", "als/1", "rounded a/0", "nan/0", "shape/0", "zero/0"]
    np.savez(theirs, **dict(zip(names, [x, x, x, x, x, 0 * x], strict=True)))
    changed = [x + 0.001, x + 0.02, x + 0.02, x * np.nan, x[:1], 0 * x]
    np.savez(ours, **dict(zip(names, changed, strict=True)))
    rows = {row["what"]: row for row in agreement(theirs, ours, Ran("", "done", 1.0))}
    assert rows["als"]["difference"] == pytest.approx(0.005)
    assert {name: row["agrees"] for name, row in rows.items()} == {
        **{"als": False, "rounded a": True, "nan": False, "shape": False, "zero": True}
    }


def test_outcomes_of_tests():
    alone = (
        "tests/a_test.py::Some::test_x[a b] PASSED   [ 50%]\n"
        "tests/a_test.py::test_y FAILED   [100%]\n"
        "FAILED tests/a_test.py::test_y - AssertionError: x\n"
        "ERROR tests/b_test.py - ModuleNotFoundError\n"
    )
    several = (
        "tests/a_test.py::test_z \n"
        "[gw0] [ 50%] PASSED tests/a_test.py::test_z \n"
        "[gw1] [100%] SKIPPED tests/a_test.py::test_w\n"
    )
    (found,) = gpu_check.outcomes_of_tests(Ran(alone + several, "done", 1.0))
    assert (found["passed"], found["skipped"], found["failed"]) == (2, 1, 2)
    assert found["names"] == ["tests/a_test.py::test_y", "tests/b_test.py"]


def test_steps_are_read_off_what_runs_leave(tmp_path):
    ran = Ran("", "stopped after 5 s", 5.0)
    assert gpu_check.steps_of_pretraining(tmp_path, ran) == []
    assert gpu_check.steps_of_meta_training(tmp_path, ran) == []
    lines = [{"step": s, "seconds": 9 + s, "validation_mse": 0.5} for s in (10, 20)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (found,) = gpu_check.steps_of_pretraining(tmp_path, ran)
    assert (found["steps"], found["steps_per_second"]) == (20, 1.0)
    assert found["seconds_to_the_first_evaluation"] == 19
    results = {"steps": [{"batch": 16, "step_ms_min": 1.5}]}
    (tmp_path / "summary.json").write_text(json.dumps({"results": results}))
    (found,) = gpu_check.steps_of_meta_training(tmp_path, ran)
    assert found == {"what": "step of meta-training", "batch": 16, "step_ms_min": 1.5}


def test_parts_name_what_there_is(tmp_path):
    for small in (False, True):
        parts = gpu_check.make_parts(tmp_path, small, True)
        assert len({part.name for part in parts}) == len(parts)
        (tests,) = (part for part in parts if part.name == "tests")
        files = [word for word in tests.command if word.startswith("tests/")]
        assert files
        assert all((ROOT / file).exists() for file in files)
        assert tests.environment["JAX_PLATFORMS"] == "cuda"
    told = gpu_check.packages()
    assert {"jax", "numba", "pytest"} <= {*told["there"], *told["missing"]}


def test_a_cpu_is_refused_unless_small(tmp_path, capsys):
    assert gpu_check.main(["gpu_check"]) == 2
    assert "expected one argument" in capsys.readouterr().err
    with pytest.raises(ValueError, match="JAX finds no GPU but cpu"):
        gpu_check.run(tmp_path, small=False)
    report = json.loads((tmp_path / "cpu.json").read_text())
    assert report["device"]["platform"] == "cpu"
    assert report["parts"][0]["ending"] == "done"


def test_the_script_needs_a_python_with_jax(tmp_path):
    script, environment = ROOT / "launch" / "gpu_check.sh", {**os.environ, "PYTHON": "/nowhere"}
    command = ["bash", str(script), str(tmp_path)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 1
    assert "none of /nowhere has JAX" in ran.stderr
    environment["PYTHON"] = sys.executable
    ran = subprocess.run(command[:2], env=environment, capture_output=True, text=True)
    assert ran.returncode == 2
    assert "expected one argument" in ran.stderr


def test_findings_of_the_device(tmp_path, monkeypatch, capsys):
    fails = {"no memory": lambda config: 1 / 0}
    some = {"map, plain": accelerator.ANSWERS["map, plain"]}
    monkeypatch.setattr(accelerator, "ANSWERS", {**some, **fails})
    config = dataclasses.replace(accelerator.PRESETS["smoke"], abreast=(4,))
    found = accelerator.run(config, tmp_path / "run", tmp_path / "answers.npz")["findings"]
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == found
    by_measure = {name: [f for f in found if f["measure"] == name] for name in config.measures}
    solved, failed = by_measure["answers"]
    assert solved["same_bits_again"] is True
    assert failed["error"].startswith("ZeroDivisionError")
    assert all(f["flops_per_second"] > 0 for f in by_measure["speed"][1:])
    assert [f["what"] for f in by_measure["sweeps"]] == ["als", "gibbs"]
    assert all(f["ms"] > 0 for f in by_measure["sweeps"])
    assert [f["what"] for f in by_measure["updates"]] == ["dsgd", "blocks abreast"]
    assert all(f["updates_per_second"] > 0 for f in by_measure["updates"])
    (left_out,) = by_measure["kernel"]
    assert left_out["left_out"].startswith("the backend 'mosaic_gpu' needs an NVIDIA GPU")
    eight, many, *even = by_measure["bounds"]
    assert all(0 < f["share_at_work"] <= 1 for f in even)
    assert eight["from_memory"] == 32 * many["from_memory"] == (16 * 4 + 12) * 10**9 / 8
    assert eight["sent"] == many["sent"] == (4 * 4 + 12) * 10**5
    assert eight["held"] == (12 * 10**9 + (4 * 4 + 12) * (10**7 + 10**5)) / 8
    with np.load(tmp_path / "answers.npz") as answers:
        assert set(answers) == {f"map, plain/{number}" for number in range(4)}
    with pytest.raises(ValueError, match="expected measures among speed"):
        accelerator.run(dataclasses.replace(config, measures=("sped",)))


def test_a_backend_beside_xla():
    config = accelerator.PRESETS["smoke"]
    found = accelerator.difference_from_xla(config, "numba", True)
    assert found["agrees"]
    assert found["same_bits_again"]
    assert found["sub_blocks_abreast"] == 2
    with mock.patch.object(accelerator, "_ALLOWED", found["difference"] / 2):
        assert not accelerator.difference_from_xla(config, "numba", True)["agrees"]
