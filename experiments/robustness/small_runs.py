"""Small runs to disturb, and what two finished runs differ in."""

import json
import pathlib

from metamf_jax.runs.checkpoint import Checkpointer
from metamf_jax.runs.run_log import read_metrics

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

# Files and numbers that tell how long something took.
_TIMES = {
    "seconds",
    "epoch_seconds",
    "sweep_seconds",
    "updates_per_second",
    "steps_per_second",
    "seconds_training",
}


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
    timed = "progress/seconds"
    return {name: array.tobytes() for name, array in arrays.items() if name != timed}
