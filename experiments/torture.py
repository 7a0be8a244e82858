"""Kills runs at random moments and compares their ends with the undisturbed run's.

Claim: a run that is killed (SIGKILL), at whatever moment and how often, and started again with the
same flags ends with the same parameters, metrics and results, to the last bit.

    python -m experiments.torture --runs=50 --experiment=train
    python -m experiments.torture --runs=50 --experiment=factorize

Each run is killed once or twice, the first kills spread evenly over the duration of the undisturbed
run; the last line is ``50 of 50 runs ended bit-identical``, the exit code 1 if one did not. It
takes about 1.6 times as long as so many undisturbed runs.
"""

import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time

from absl import flags

from experiments import common
from metamf_jax.checkpoint import Checkpointer
from metamf_jax.run_log import read_metrics

# Small enough that most of a run is not arithmetic.
FLAGS = {
    "train": ("--preset=smoke", "--devices=2"),
    "factorize": (
        "--preset=smoke",
        "--devices=2",
        "--blocks=4",
        "--epochs=4",
        "--step_size=bold_driver:0.05",
    ),
}
_RUNS = flags.DEFINE_integer("runs", 50, "Runs to kill.", lower_bound=1)
_EXPERIMENT = flags.DEFINE_enum("experiment", "train", list(FLAGS), "The binary to kill.")

# Files and numbers that tell how long something took.
_TIMES = {"seconds", "epoch_seconds", "updates_per_second", "steps_per_second", "seconds_training"}


def difference(workdir: pathlib.Path, other: pathlib.Path) -> str | None:
    """What two finished runs differ in, times apart; None where they are bit-identical."""
    for pattern in ("*.safetensors", "plots/*"):
        names = [sorted(str(p.relative_to(d)) for p in d.glob(pattern)) for d in (workdir, other)]
        if names[0] != names[1]:
            return f"the files {pattern}: {names[0]}, {names[1]}"
    for path in workdir.glob("*.safetensors"):
        if path.read_bytes() != (other / path.name).read_bytes():
            return path.name
    # Text, since a NaN equals no NaN.
    metrics = [[json.dumps(_untimed(line)) for line in read_metrics(d)] for d in (workdir, other)]
    if metrics[0] != metrics[1]:
        return "metrics.jsonl"
    results = [
        json.dumps(_untimed(json.loads((d / "summary.json").read_text())["results"]))
        for d in (workdir, other)
    ]
    if results[0] != results[1]:
        return "summary.json"
    if _state(workdir) != _state(other):
        return "the newest checkpoint"
    return None


def _untimed(values: dict) -> dict:
    return {name: value for name, value in values.items() if name not in _TIMES}


def _state(workdir: pathlib.Path) -> dict[str, bytes]:
    """The bytes of the newest checkpoint's arrays, but for the last epoch's seconds."""
    checkpointer = Checkpointer(workdir)
    arrays = checkpointer.read(checkpointer.steps()[-1])
    return {name: array.tobytes() for name, array in arrays.items() if name != "seconds"}


def _start(experiment: str, workdir: pathlib.Path) -> subprocess.Popen:
    with (workdir.parent / f"{workdir.name}.txt").open("ab") as output:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", f"experiments.{experiment}"),
                *(*FLAGS[experiment], f"--workdir={workdir}"),
            ],
            stdout=output,
            stderr=output,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )


def _finish(experiment: str, workdir: pathlib.Path) -> float:
    begin = time.monotonic()
    code = _start(experiment, workdir).wait()
    if code:
        output = (workdir.parent / f"{workdir.name}.txt").read_text()
        raise ValueError(f"the run in {workdir} ended with code {code}: {output[-2000:]}")
    return time.monotonic() - begin


def _kill(experiment: str, workdir: pathlib.Path, after: float) -> str:
    """Starts a run and kills it after so many seconds; tells where it was."""
    run = _start(experiment, workdir)
    try:
        run.wait(after)
        return "after its end"
    except subprocess.TimeoutExpired:
        run.kill()
        run.wait()
    if not workdir.exists() or not (workdir / "config.json").exists():
        return "before it began"
    if (workdir / "summary.json").exists():
        return "at its end"
    lines = read_metrics(workdir)
    return f"after {lines[-1]['step']:g} steps" if lines else "before the first step"


def run(runs: int, experiment: str, seed: int, folder: pathlib.Path) -> int:
    """Returns the number of runs that ended bit-identical.

    Raises:
      ValueError: a run that was started again did not reach its end.
    """
    rng = random.Random(seed)
    undisturbed = folder / "undisturbed"
    _finish(experiment, undisturbed)
    # Once more, now that the compilation cache is filled.
    duration = _finish(experiment, folder / "again")
    found = difference(folder / "again", undisturbed)
    if found is not None:
        raise ValueError(f"two undisturbed runs differ in {found}")
    print(f"an undisturbed run of {experiment} takes {duration:.2f} s", flush=True)
    shutil.rmtree(folder / "again")
    identical = 0
    order = rng.sample(range(runs), runs)
    for number, place in enumerate(order, 1):
        workdir = folder / f"run-{number}"
        where = [_kill(experiment, workdir, (place + rng.random()) / runs * duration)]
        if rng.random() < 0.3:
            where.append(_kill(experiment, workdir, rng.random() * duration))
        _finish(experiment, workdir)
        found = difference(workdir, undisturbed)
        identical += found is None
        end = "bit-identical" if found is None else f"DIFFERS in {found}"
        print(f"run {number}: killed {', then '.join(where)}: {end}", flush=True)
        if found is None:
            shutil.rmtree(workdir)
            (folder / f"{workdir.name}.txt").unlink()
    print(f"{identical} of {runs} runs ended bit-identical")
    return identical


def main() -> None:
    given = common.WORKDIR.value
    folder = pathlib.Path(given or tempfile.mkdtemp(prefix="torture-"))
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; give a new folder as --workdir")
    identical = run(_RUNS.value, _EXPERIMENT.value, common.SEED.value, folder)
    if identical < _RUNS.value:
        raise ValueError(f"some runs ended otherwise; they are kept in {folder}")
    if given is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    common.run_main(main)
