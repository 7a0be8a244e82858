"""What a run leaves in its workdir, and what it prints.

``config.json`` (the resolved configuration, with versions and git commit), ``metrics.jsonl`` (a
line a log step), TensorBoard events, ``summary.json`` (the result), ``plots/`` and
``checkpoints/``. A workdir that holds a run is resumed, or refused where the configuration differs
or where the run is still under way.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import subprocess
import sys
import time
from typing import Any

import tqdm

from metamf_jax import parallel, processes
from metamf_jax.runs import files, resources
from metamf_jax.runs.files import write_text

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


# The experiments' names in workdirs of earlier versions.
_FORMER_NAMES = {
    f"benchmark_{name}": f"benchmarks.{name}"
    for name in ("factorize", "imputer", "meta_step", "scale")
}


def plain(config: Any) -> Any:
    """A configuration as JSON would give it back: dictionaries, lists, strings and numbers."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = dataclasses.asdict(config)
    return json.loads(json.dumps(config))


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            difference
            for key in sorted(old.keys() | new.keys())
            for difference in _differences(
                old.get(key), new.get(key), f"{name}.{key}" if name else key
            )
        ]
    return [] if old == new else [f"{name}: {old!r} there, {new!r} now"]


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    versions.update((name, importlib.metadata.version(name)) for name in _PACKAGES)
    checkout = pathlib.Path(__file__).parents[1]
    try:
        versions["git_commit"] = subprocess.run(
            ["git", "-C", str(checkout), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        versions["git_commit"] = "not a git checkout"
    return versions


class _Events:
    """TensorBoard events, written at once.

    tensorboardX's own SummaryWriter writes in a thread, which a full disk ends: the program would
    then wait for it for ever.
    """

    def __init__(self, folder: pathlib.Path, first_step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2
        from tensorboardX.summary import scalar

        # Generated code: its names are not in the source.
        proto: Any = event_pb2
        self._event, self._scalar = proto.Event, scalar
        # Names count in seconds; with the process they differ even where a clock is set back.
        self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}")
        # TensorBoard forgets what an earlier run has from there on.
        start = proto.SessionLog(status=proto.SessionLog.START)
        self._writer.write_event(proto.Event(step=first_step, session_log=start))

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            # Of NaN and infinity TensorBoard draws nothing, and tensorboardX warns.
            if not math.isfinite(value):
                continue
            summary = self._scalar(name, value)
            self._writer.write_event(self._event(step=step, summary=summary, wall_time=time.time()))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def __del__(self):
        # A run that ended early; where the disk is full, that was told before.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self._writer.close()


class RunLog:
    """Writes a run's files and shows its progress.

    Args:
      workdir: made if missing.
      experiment: the binary's name, a module under ``experiments``.
      config: a dataclass; everything that changes the result.

    Raises:
      ValueError: the workdir holds a run of another configuration, named in the message; another
        process is at work there; or it cannot be written to.
    """

    def __init__(self, workdir: str | os.PathLike, experiment: str, config: Any):
        self.workdir = pathlib.Path(workdir)
        self.experiment = experiment
        self.config = plain(config)
        path = self.workdir / "config.json"
        if path.exists():
            held = read_config(self.workdir)
            there = {"experiment": held["experiment"], **held["config"]}
            differences = _differences(there, {"experiment": experiment, **self.config})
            if differences:
                raise ValueError(
                    f"{self.workdir} holds a run of another configuration "
                    f"({'; '.join(differences)}). Give another --workdir, or the same flags to "
                    "resume that run"
                )
        self._take_workdir()
        if not path.exists():
            held = {"experiment": experiment, "config": self.config, "versions": _versions()}
            write_text(path, json.dumps(held, indent=2) + "\n")
        self._metrics = self.workdir / "metrics.jsonl"
        self._events = None
        self._bar = None
        self._opened = self._started = time.monotonic()
        self._compiled = resources.compile_seconds()

    def _take_workdir(self) -> None:
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
            files.lock_folder(self.workdir)
        except OSError as error:
            raise ValueError(
                f"{self.workdir} cannot be written to ({error.strerror}); give another --workdir"
            ) from error
        files.remove_parts(self.workdir)

    def resume_at(self, step: int) -> None:
        """Forgets metrics logged after ``step`` (by a run cut between logging and checkpoint).

        Seconds go on from those that the run had taken by then.
        """
        kept = [line for line in read_metrics(self.workdir) if line["step"] <= step]
        write_text(self._metrics, "".join(json.dumps(line) + "\n" for line in kept))
        self._events = self._open_events(step + 1)
        self._started = self._opened - (kept[-1]["seconds"] if kept else 0.0)

    def _open_events(self, first_step: int) -> _Events | None:
        try:
            return _Events(self.workdir, first_step)
        except ModuleNotFoundError as error:
            self.print(f"{error}: no events for TensorBoard; metrics.jsonl holds the same numbers")
            return None

    def start_progress(self, total: int, first: int, unit: str) -> None:
        """Shows a bar on a terminal; elsewhere only the lines of `metrics`."""
        self._bar = tqdm.tqdm(
            total=total, initial=first, unit=unit, disable=not sys.stderr.isatty(), leave=False
        )

    def advance(self, steps: int = 1) -> None:
        """So many steps more on the bar."""
        if self._bar is not None:
            self._bar.update(steps)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Logs numbers under a step: a JSON line, TensorBoard events, a printed line."""
        line = {"step": step, "seconds": round(time.monotonic() - self._started, 3), **values}
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self._events is not None:
            self._events.write(step, values)
        shown = "  ".join(f"{name} {value:.5g}" for name, value in values.items())
        self.print(f"step {step}  {shown}")

    def print(self, text: str) -> None:
        """Prints a line without breaking the bar."""
        tqdm.tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()

    def plot_path(self, name: str) -> pathlib.Path:
        """Where the plot of that name goes."""
        folder = self.workdir / "plots"
        folder.mkdir(exist_ok=True)
        return folder / f"{name}.png"

    def finish(self, results: dict[str, Any]) -> dict[str, Any]:
        """Writes ``summary.json`` and returns what it holds; others may then use the workdir.

        Besides the results it tells ``seconds`` (of all the run's processes),
        ``compile_seconds`` and ``peak_memory_bytes`` (of this one; see `resources`).
        """
        if self._bar is not None:
            self._bar.close()
        if self._events is not None:
            self._events.close()
        summary = {
            "experiment": self.experiment,
            "config": self.config,
            "results": results,
            "seconds": round(time.monotonic() - self._started, 3),
            "compile_seconds": round(resources.compile_seconds() - self._compiled, 3),
            "peak_memory_bytes": resources.peak_memory_bytes(parallel.devices()),
            "devices": [device.device_kind for device in parallel.devices()],
        }
        write_text(self.workdir / "summary.json", json.dumps(summary, indent=2) + "\n")
        files.unlock_folder(self.workdir)
        return summary


class SilentRunLog(RunLog):
    """What the other processes have in place of the first one's log: no files, no output."""

    def __init__(self, workdir: str | os.PathLike, experiment: str, config: Any):
        self.workdir = pathlib.Path(workdir)
        self.experiment = experiment
        self.config = plain(config)

    def resume_at(self, step: int) -> None:
        """Nothing."""

    def start_progress(self, total: int, first: int, unit: str) -> None:
        """Nothing."""

    def advance(self, steps: int = 1) -> None:
        """Nothing."""

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Nothing."""

    def print(self, text: str) -> None:
        """Nothing."""

    def finish(self, results: dict[str, Any]) -> dict[str, Any]:
        """Returns the results as the first process does."""
        return {"experiment": self.experiment, "config": self.config, "results": results}


def open_run_log(workdir: str | os.PathLike, experiment: str, config: Any) -> RunLog:
    """The run's log, silent in all processes but the first. Arguments and errors of `RunLog`."""
    return (RunLog if processes.is_first() else SilentRunLog)(workdir, experiment, config)


def read_config(workdir: str | os.PathLike) -> dict[str, Any]:
    """What ``config.json`` of a workdir holds.

    Raises:
      ValueError: there is none, or it cannot be read.
    """
    path = pathlib.Path(workdir) / "config.json"
    if not path.exists():
        raise ValueError(f"{workdir} holds no run: {path} is missing")
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        experiment = str(held["experiment"])
        return {
            "experiment": _FORMER_NAMES.get(experiment, experiment),
            "config": dict(held["config"]),
        }
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not a run's configuration: {error}") from error


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, float]]:
    """The lines of ``metrics.jsonl``; a last line cut short by a kill is dropped.

    Raises:
      ValueError: another line is damaged; the message names it.
    """
    path = pathlib.Path(workdir) / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    return [_metrics_line(path, number, line) for number, line in enumerate(lines[:-1], 1)]


def _metrics_line(path: pathlib.Path, number: int, text: bytes) -> dict[str, float]:
    try:
        line = json.loads(text)
        if not isinstance(line, dict) or not {"step", "seconds"} <= line.keys():
            raise ValueError("expected a step and seconds")
        if not all(isinstance(value, int | float) for value in line.values()):
            raise ValueError("expected numbers")
        return line
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}, line {number}: no line of metrics ({error}); remove it to go on"
        ) from error
