"""Sweeps that are killed, fail in part, are retried, searched, submitted; and their tables."""

import csv
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from launch import children, collect, points, slurm_array
from launch.points import Search, Sweep
from launch.search import Study

ROOT = pathlib.Path(__file__).parents[1]
# Finishes by itself in a moment; value 13 fails unless told that it is mended.
BINARY = """
import argparse, json, os, pathlib, sys, time

parser = argparse.ArgumentParser()
parser.add_argument("--value", type=int)
parser.add_argument("--kind", default="a")
parser.add_argument("--workdir", type=pathlib.Path)
flags = parser.parse_args()
flags.workdir.mkdir(exist_ok=True)
with (flags.workdir / "started").open("a") as file:
    file.write(f"{os.getpid()}\\n")
time.sleep(float(os.environ.get("TINY_SECONDS", "0.1")))
if flags.value == 13 and "TINY_MENDED" not in os.environ:
    sys.exit("error: 13 is not to be had")
results = {"square": flags.value**2, "deep": {"pair": [1.5, 0.5]}, "kind": flags.kind}
(flags.workdir / "part").write_text(json.dumps({"results": results, "seconds": 0.1}))
os.replace(flags.workdir / "part", flags.workdir / "summary.json")
"""
SWEEP_FILE = """
from launch.points import Plot, Sweep, grid

SWEEP = Sweep(
    "tiny_binary",
    grid(value=list(range(2, 14)), kind=["a", "b"]),
    title="Squares <of> numbers",
    metrics=["results.square", "results.*.pair.0"],
    plots=[Plot("value", "results.square", by="kind"), Plot("kind", "results.square")],
)
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A folder with the binary and the sweep file, on the path of all processes started here."""
    (tmp_path / "tiny_binary.py").write_text(BINARY)
    (tmp_path / "squares.py").write_text(SWEEP_FILE)
    path = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    return tmp_path


def command(tiny, *more):
    sweep = [sys.executable, "-m", "launch.sweep", f"--sweep={tiny / 'squares.py'}"]
    return [*sweep, f"--workdir={tiny / 'out'}", *more]


def run_sweep(tiny, *more, **environment):
    return subprocess.run(
        command(tiny, *more),
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def started(tiny):
    """How often each point was started, by name."""
    return {
        path.parents[1].name: path.read_text().split()
        for path in (tiny / "out" / "points").glob("*/run/started")
    }


def alive(pid):
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(condition):
    while not condition():
        time.sleep(0.01)


def done(tiny):
    return list((tiny / "out" / "points").glob("*/run/summary.json"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_ended_sweep_leaves_nothing_running_and_loses_nothing(tiny, number):
    with subprocess.Popen(
        command(tiny, "--workers=3"),
        env={**os.environ, "TINY_SECONDS": "0.3"},
        stdout=subprocess.PIPE,
        text=True,
    ) as sweep:
        wait_for(lambda: len(done(tiny)) >= 6)
        before = {path.parents[1].name for path in done(tiny)}
        sweep.send_signal(number)
        code = sweep.wait(60)
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else children.TERMINATED)
    wait_for(lambda: not any(alive(pid) for pids in started(tiny).values() for pid in pids))
    assert len(done(tiny)) < 24
    if number == signal.SIGTERM:
        return

    ended = run_sweep(tiny, "--workers=3")
    assert ended.returncode == 1
    assert "[22 done, 2 failed of 24]" in ended.stdout
    assert ended.stdout.count("failed: value=13-kind=") == 2
    assert "FAILED with code 1: error: 13 is not to be had" in ended.stdout
    assert all(len(started(tiny)[name]) == 1 for name in before)
    # Nothing is left to do, and failed points are not run again by themselves.
    counts = {name: len(pids) for name, pids in started(tiny).items()}
    again = run_sweep(tiny)
    assert again.returncode == 1
    assert {name: len(pids) for name, pids in started(tiny).items()} == counts
    mended = run_sweep(tiny, "--retry_failed", TINY_MENDED="1")
    assert mended.returncode == 0, mended.stdout
    assert "[24 done, 0 failed of 24]" in mended.stdout
    assert sum(len(pids) for pids in started(tiny).values()) == sum(counts.values()) + 2


def test_commands_are_printed_and_one_point_is_run(tiny):
    ended = run_sweep(tiny, "--dry_run")
    lines = ended.stdout.splitlines()
    assert len(lines) == 24
    assert lines[3].startswith("python -m tiny_binary --value=3 --kind=b --workdir=")
    assert not (tiny / "out").exists()
    assert run_sweep(tiny, "--dry_run", "--index=3").stdout.splitlines() == lines[3:4]
    assert run_sweep(tiny, "--index=3").returncode == 0
    assert len(done(tiny)) == 1
    ended = run_sweep(tiny, "--index=24")
    assert ended.returncode == 1
    assert ended.stderr == "error: --index=24: the sweep has points 0 to 23\n"


def test_flags_as_arguments(tmp_path):
    flags = {"a": True, "b": False, "c": ["x", "y"], "d": ("x=1", "x=2"), "e": None, "f": 0.5}
    point = points.make_point("m", flags, tmp_path)
    assert point.command("p") == [
        *("p", "-m", "m", "--a", "--nob", "--c=x,y", "--d=x=1", "--d=x=2", "--f=0.5"),
        f"--workdir={point.workdir}",
    ]
    assert points.make_point("m", {**flags, "f": 1}, tmp_path).name != point.name


@pytest.mark.parametrize(
    ("workers", "cores", "accelerators", "expected"),
    [
        (None, 4, [], [((0, 1), ()), ((2, 3), ())]),
        (3, 2, [], [((0,), ()), ((0,), ()), ((1,), ())]),
        (None, 5, ["0", "7"], [((0, 1), ("0",)), ((2, 3, 4), ("7",))]),
        (1, 2, ["4", "5"], [((0, 1), ("4", "5"))]),
    ],
)
def test_the_machine_is_divided(workers, cores, accelerators, expected):
    assert [tuple(s) for s in children.divide(workers, range(cores), accelerators)] == expected


def test_more_workers_than_accelerators_are_refused():
    with pytest.raises(ValueError, match=r"3 workers cannot share 2 accelerators; .*--workers=2"):
        children.divide(3, range(8), ["0", "1"])


@pytest.mark.parametrize("name", ["comparison", "ablations", "dsgd_scaling", "presets"])
def test_the_sweeps_that_come_along_have_flags_that_exist(name):
    from experiments import factorize, train  # noqa: F401  They define the flags.

    sweep = points.load_sweep(ROOT / "launch" / "sweeps" / f"{name}.py")
    settings = list(sweep.points)
    if sweep.search is not None:
        import optuna

        settings = [dict(sweep.search.suggest(optuna.create_study().ask()))]
    else:
        points.make_points(sweep, pathlib.Path("x"))
    if sweep.binary == "experiments.compare_methods":
        return
    from absl import flags
    from absl.testing import flagsaver

    from experiments import presets

    for setting in settings:
        with flagsaver.flagsaver():
            for flag, value in setting.items():
                flags.FLAGS[flag].parse(list(value) if isinstance(value, tuple) else str(value))
        presets.overridden(presets.TRAIN["paper"], setting.get("override", ()))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.inner.steps", "an override as NAME=VALUE"),
        ("modell.inner.steps=3", "no 'modell' among model, episodes"),
        ("model.inner.step=3", "no 'step' among steps, step_form"),
        ("model.inner.steps=many", "expected a value like 10, got 'many'"),
        ("model.inner.steps.x=3", "no 'x' among no more"),
        ("model.inner.step_form=fast", "step_form must be one of"),
        ("episodes.rows=[3]", r"expected a value like \(30, 30\), got \[3\]"),
    ],
)
def test_overrides_that_make_no_sense(override, message):
    from experiments import presets

    with pytest.raises(ValueError, match=message):
        presets.overridden(presets.TRAIN["paper"], [override])


def test_overrides():
    from experiments import presets

    changed = presets.overridden(
        presets.TRAIN["paper"],
        ["episodes.rows=[3,9]", "training.learning_rate=1", "model.encoder.effects=true"],
    )
    assert changed["episodes"].rows == (3, 9)
    assert changed["training"].learning_rate == 1.0
    assert changed["model"].encoder.effects
    assert presets.TRAIN["paper"]["episodes"].rows == (30, 30)


def finish(study, sweep):
    """Runs a search's points, one after the other, here; returns their values."""
    values = []
    while (point := study.next()) is not None:
        values.append(point.flags["value"])
        if point.flags["value"] == 13:
            point.ended(1)
        else:
            point.workdir.mkdir(exist_ok=True)
            results = {"square": (point.flags["value"] - 5) ** 2}
            (point.workdir / "summary.json").write_text(json.dumps({"results": results}))
            assert point.ended(0) == "done"
        study.ended(point)
    return values


def searched(trials):
    search = Search(
        lambda trial: {"value": trial.suggest_int("value", 0, 40)}, "results.square", trials
    )
    return Sweep("tiny_binary", search=search)


def test_a_search_goes_on_where_it_stopped(tmp_path):
    first = finish(Study(searched(8), tmp_path, 0, False), searched(8))
    assert len(set(first)) == 8
    # Killed while a point ran: it comes first when the search is taken up again.
    study = Study(searched(9), tmp_path, 0, False)
    interrupted = study.next()
    sweep = searched(20)
    study = Study(sweep, tmp_path, 0, False)
    assert len(study.points) == 8
    values = finish(study, sweep)
    assert values[0] == interrupted.flags["value"]
    assert len({*first, *values}) == 20
    best = min({*first, *values} - {13}, key=lambda value: (value - 5) ** 2)
    assert study.best() == f"best results.square: {(best - 5) ** 2} at {{'value': {best}}}"
    assert Study(sweep, tmp_path, 0, False).next() is None


@pytest.mark.parametrize("module", ["optuna", "submitit"])
def test_missing_extras_are_named(module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    use = {
        "optuna": lambda: Study(searched(3), tmp_path, 0, False),
        "submitit": lambda: slurm_array.submit(None, tmp_path, None, []),
    }
    with pytest.raises(ValueError, match=rf"{module}, which is not installed: pip install 'metamf"):
        use[module]()


def test_slurm_jobs_run_here_by_submitit(tiny):
    sweep = points.load_sweep(tiny / "squares.py")
    chosen = [points.make_points(sweep, tiny / "out")[n] for n in (0, 22)]

    class Wanted:
        def next(self):
            if not chosen:
                return None
            point = chosen.pop(0)
            point.begin()
            return point

    jobs = slurm_array.submit_jobs(Wanted(), tiny / "out", None, ["timeout_min=1"], "local")
    assert jobs[0][1].result() == "done"
    assert "13 is not to be had" in str(jobs[1][1].exception())
    assert [point.state() for point, _ in jobs] == ["done", "failed"]
    with pytest.raises(ValueError, match="--slurm_options: expected name=value, got 'x'"):
        slurm_array.submit_jobs(Wanted(), tiny / "out", None, ["x"], "local")


def test_a_preempted_slurm_job_is_submitted_again(tiny, monkeypatch):
    monkeypatch.setenv("TINY_SECONDS", "60")
    point = points.make_point("tiny_binary", {"value": 2}, tiny / "out")
    point.begin()
    job = slurm_array.Job(point, grace=5)
    job._child = children.start(point)
    again = job.checkpoint()
    assert job._child.returncode == -signal.SIGTERM
    assert again.function._point == point
    assert point.state() == "missing"


def test_tables_and_page(tiny):
    out = tiny / "out"
    sweep = points.load_sweep(tiny / "squares.py")
    out.mkdir()
    collect.write_description(sweep, out)
    for number, point in enumerate(points.make_points(sweep, out)):
        point.begin({"number": number})
        if number == 20:
            continue
        point.workdir.mkdir()
        value = point.flags["value"]
        if value == 13:
            (point.folder / "output.txt").write_text("error: a|b <c>\n")
            point.ended(3)
            continue
        results = {"square": value**2, "a": {"pair": [value / 7, 0]}, "words": "x"}
        summary = {"results": results, "seconds": 1.25, "peak_memory_bytes": 10**8}
        (point.workdir / "summary.json").write_text(json.dumps(summary))
    rows = collect.collect(out)
    assert len(rows) == 24
    with (out / "results.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["state"] for row in table].count("done") == 21
    assert table[4]["results.square"] == "16"
    assert table[22]["failure"] == "code 3: error: a|b <c>"
    text = (out / "results.md").read_text()
    assert "| value | kind | square | *.pair.0 |" in text
    assert "| 4 | a | 16 | 0.57143 |" in text
    assert "Not done: 3 of 24 points." in text
    page = (out / "results.html").read_text()
    assert page.count("<svg") == 2
    assert "Squares &lt;of&gt; numbers" in page
    assert "error: a|b &lt;c&gt;" in page
    assert "<th>peak_<wbr>memory_<wbr>bytes</th>" in page
    assert 'data-value="100000000">1e+08</td>' in page
    assert page.count("<tr>") == 22
    # It needs no other file.
    assert not re.search(r"src=|href=.http|<link|@import", page)
    collect.collect(out)
    assert (out / "results.html").read_text() == page
    # The table sorts by exact values, and shows rounded ones.
    assert f'data-value="{4 / 7}"' in page


def test_pages_of_no_sweep(tmp_path):
    with pytest.raises(ValueError, match="holds no sweep"):
        collect.collect(tmp_path)


def test_sweep_files_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="no such sweep file"):
        points.load_sweep(tmp_path / "x.py")
    (tmp_path / "x.py").write_text("SWEEP = 3")
    with pytest.raises(ValueError, match="expected it to set SWEEP"):
        points.load_sweep(tmp_path / "x.py")
    with pytest.raises(ValueError, match="points 0 and 2 of the sweep are the same"):
        points.make_points(Sweep("m", [{"a": 1}, {"a": 2}, {"a": 1}]), tmp_path)
    with pytest.raises(ValueError, match="either points or a search"):
        Sweep("m")
