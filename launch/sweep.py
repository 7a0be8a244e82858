"""Runs a sweep over one binary's flags, and takes it up again where it stopped.

    python -m launch.sweep --sweep=launch/sweeps/dsgd_scaling.py --workdir=runs/scaling --workers=4
    python -m launch.sweep --sweep=launch/sweeps/comparison.py --workdir=runs/comparison --slurm
    python -m launch.sweep --sweep=launch/sweeps/ablations.py --workdir=runs/ablations --dry_run

Points run on this machine, its cores and accelerators divided among ``--workers``; or as an array
of SLURM jobs, which go on after a preemption; ``--dry_run`` prints the commands, ``--index`` runs
one point only. The same command again runs what is missing, failed points only with
``--retry_failed``. A sweep that is terminated ends its points, each at its next checkpoint; with a
killed one they are killed too (on Linux), and go on from their last checkpoints.

Exit codes: 0, all points are done; 1, some failed, or a mistake; 75, terminated.
`launch.collect` makes tables and plots of what is done. `launch.points` explains sweep files.
"""

import collections
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from absl import app, flags

from launch import collect
from launch.children import POLL_SECONDS, TERMINATED, Share, divide, end_all, start
from launch.points import Point, Sweep, load_sweep, make_points
from launch.search import Study
from metamf_jax.runs.files import lock_folder, unlock_folder

_SWEEP = flags.DEFINE_string("sweep", None, "The sweep file.", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the whole sweep.", required=True)
_WORKERS = flags.DEFINE_integer(
    "workers",
    None,
    "Points that run at once. Default: one for each accelerator, or for two cores.",
    lower_bound=1,
)
_ACCELERATORS = flags.DEFINE_list(
    "accelerators",
    None,
    "Numbers of the accelerators to divide among the workers. Default: CUDA_VISIBLE_DEVICES, or "
    "all that nvidia-smi lists.",
)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Prints the commands and runs nothing.")
_INDEX = flags.DEFINE_integer("index", None, "Runs (or prints) only the point of this number.", 0)
_RETRY_FAILED = flags.DEFINE_bool("retry_failed", False, "Runs failed points again.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of a search's sampler.")
_SLURM = flags.DEFINE_bool("slurm", False, "Submits the points as an array of SLURM jobs.")
_SLURM_OPTIONS = flags.DEFINE_list(
    "slurm_options",
    [],
    "Parameters of submitit, as in partition=gpu,gpus_per_node=1,timeout_min=240.",
)
_GRACE = flags.DEFINE_float("grace", 60.0, "Seconds that terminated points have to end.")


def _cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _accelerators() -> list[str]:
    if _ACCELERATORS.value is not None:
        return _ACCELERATORS.value
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [number for number in visible.split(",") if number]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return [str(number) for number, _ in enumerate(listed.stdout.splitlines())]


class Listed:
    """The points of a list that are to run."""

    def __init__(self, points: Sequence[Point], retry_failed: bool):
        wanted = ("missing", "failed") if retry_failed else ("missing",)
        self.points = points
        self._waiting = collections.deque(p for p in points if p.state() in wanted)

    def next(self) -> Point | None:
        if not self._waiting:
            return None
        point = self._waiting.popleft()
        point.begin({"number": self.points.index(point)})
        return point

    def ended(self, point: Point) -> None:
        """Nothing depends on it."""


def run_here(
    source: Listed | Study,
    total: int,
    shares: Sequence[Share],
    say: Callable[[str], None],
    grace: float,
) -> bool:
    """Runs all points of a source; returns whether it came to the end or was terminated.

    A point whose binary is ended by SIGTERM by another hand counts as missing.
    """
    terminated: list[int] = []
    running: dict[int, tuple[Point, subprocess.Popen, float]] = {}

    def on_signal(number, frame):
        terminated.append(number)

    before = {n: signal.signal(n, on_signal) for n in (signal.SIGINT, signal.SIGTERM)}
    shown = 0.0
    try:
        while not terminated:
            for worker, share in enumerate(shares):
                if worker in running or terminated:
                    continue
                point = source.next()
                if point is None:
                    break
                running[worker] = (point, start(point, share), time.monotonic())
            if not running:
                return True
            for worker, (point, child, began) in list(running.items()):
                if child.poll() is None:
                    continue
                del running[worker]
                seconds = time.monotonic() - began
                if child.returncode == TERMINATED:
                    say(f"{point.name} was terminated; the same command resumes it")
                    continue
                state = point.ended(child.returncode)
                source.ended(point)
                say(f"{_count(source.points, total)}  {_told(point, state)} ({seconds:.1f} s)")
            if sys.stderr.isatty() and time.monotonic() > shown + 1:
                shown = time.monotonic()
                _show([(point, began) for point, _, began in running.values()])
            time.sleep(POLL_SECONDS)
    finally:
        if running:
            say(f"ending {len(running)} running points; they can be resumed")
        end_all([child for _, child, _ in running.values()], grace)
        for number, handler in before.items():
            signal.signal(number, handler)
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr)
    return False


def _count(points: Sequence[Point], total: int) -> str:
    states = collections.Counter(point.state() for point in points)
    return f"[{states['done']} done, {states['failed']} failed of {total}]"


def _told(point: Point, state: str) -> str:
    failure = point.failure()
    if state == "done" or failure is None:
        return f"{point.name} done"
    return f"{point.name} FAILED with code {failure['code']}: {failure['message']}"


def _show(running: Sequence[tuple[Point, float]]) -> None:
    """One line on the terminal, drawn over the last: where each running point stands."""
    # Imports JAX, which a sweep without a terminal need not load.
    from metamf_jax.runs.run_log import read_metrics

    parts = []
    for point, began in running:
        lines = read_metrics(point.workdir)
        step = f"step {lines[-1]['step']:g}, " if lines else ""
        parts.append(f"{point.name[:30]} ({step}{time.monotonic() - began:.0f} s)")
    width = shutil.get_terminal_size().columns - 1
    print(f"\r\x1b[K{'; '.join(parts)[:width]}", end="", file=sys.stderr, flush=True)


def _say(text: str) -> None:
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    print(text, flush=True)


def run_one(point: Point, number: int, grace: float) -> int:
    """Runs one point in the foreground; returns the exit code."""
    if point.state() == "done":
        print(f"{point.name} is done already")
        return 0
    point.begin({"number": number})
    child = start(point)

    def on_signal(signal_number, frame):
        # The binary checkpoints; `wait` below then returns.
        child.terminate()

    before = {n: signal.signal(n, on_signal) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = child.wait()
    finally:
        end_all([child], grace)
        for n, handler in before.items():
            signal.signal(n, handler)
    if code == TERMINATED:
        return TERMINATED
    state = point.ended(code)
    print(_told(point, state))
    return 0 if state == "done" else 1


def _report(source: Listed | Study, total: int) -> int:
    """Prints what became of the points; returns the exit code."""
    failed = [point for point in source.points if point.state() == "failed"]
    for point in failed:
        print(f"failed: {_told(point, 'failed')}\n  all it printed: {point.folder}/output.txt")
    print(_count(source.points, total))
    if failed:
        print("run failed points again with --retry_failed")
    return 1 if failed else 0


def run(sweep: Sweep, workdir: pathlib.Path) -> int:
    """Does what the flags ask for; returns the exit code."""
    points = make_points(sweep, workdir)
    if _DRY_RUN.value or _INDEX.value is not None:
        if sweep.search is not None:
            raise ValueError("a search draws its points one after the other: none to list yet")
        if _INDEX.value is not None and _INDEX.value >= len(points):
            raise ValueError(f"--index={_INDEX.value}: the sweep has points 0 to {len(points) - 1}")
        chosen = points if _INDEX.value is None else [points[_INDEX.value]]
        if _DRY_RUN.value:
            for point in chosen:
                print(shlex.join(point.command("python")))
            return 0
    workdir.mkdir(parents=True, exist_ok=True)
    collect.write_description(sweep, workdir)
    if _INDEX.value is not None:
        return run_one(points[_INDEX.value], _INDEX.value, _GRACE.value)
    if _SLURM.value:
        from launch import slurm_array

        if sweep.search is not None:
            raise ValueError(
                "a search needs each point's result for the next: run it without SLURM"
            )
        wanted = Listed(points, _RETRY_FAILED.value)
        return slurm_array.submit(wanted, workdir, _WORKERS.value, _SLURM_OPTIONS.value)
    lock_folder(workdir)
    shares = divide(_WORKERS.value, _cores(), _accelerators())
    if sweep.search is None:
        source, total = Listed(points, _RETRY_FAILED.value), len(points)
    else:
        source = Study(sweep, workdir, _SEED.value, _RETRY_FAILED.value)
        total = sweep.search.trials
    at_end = run_here(source, total, shares, _say, _GRACE.value)
    code = _report(source, total)
    if isinstance(source, Study):
        print(source.best())
    unlock_folder(workdir)
    if not at_end:
        return TERMINATED
    print(f"tables and plots: python -m launch.collect --workdir={workdir}")
    return code


def main(argv: Sequence[str]) -> None:
    try:
        if len(argv) > 1:
            raise ValueError(f"unexpected arguments {argv[1:]}")
        sys.exit(run(load_sweep(_SWEEP.value), pathlib.Path(_WORKDIR.value)))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    app.run(main)
