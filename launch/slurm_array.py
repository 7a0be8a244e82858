"""A sweep as an array of SLURM jobs, through submitit.

A job that is preempted or runs out of time ends its point at the next checkpoint and is put into
the queue again; the point then goes on from there.
"""

import pathlib
import subprocess
from collections.abc import Sequence
from typing import Any

from launch import children
from launch.points import Point


class Job:
    """What one task of the array runs; submitit calls `checkpoint` before it is preempted."""

    def __init__(self, point: Point, grace: float = 60.0):
        self._point = point
        self._grace = grace
        self._child: subprocess.Popen | None = None

    def __call__(self) -> str:
        """Runs the point; returns what became of it.

        Raises:
          RuntimeError: it failed.
        """
        self._child = children.start(self._point)
        code = self._child.wait()
        if code == children.TERMINATED:
            return "missing"
        state = self._point.ended(code)
        if state == "failed":
            raise RuntimeError(f"{self._point.name} failed: {self._point.failure()}")
        return state

    def checkpoint(self) -> Any:
        """Ends the point and asks for another job that resumes it."""
        import submitit

        if self._child is not None:
            children.end_all([self._child], self._grace)
        return submitit.helpers.DelayedSubmission(Job(self._point, self._grace))


def submit(
    wanted: Any,
    workdir: pathlib.Path,
    at_once: int | None,
    options: Sequence[str],
    cluster: str = "slurm",
) -> int:
    """Submits the points that are wanted and prints their jobs; returns the exit code.

    Args:
      wanted: whose ``next()`` gives the points, then None.
      workdir: of the sweep; logs go to ``slurm/`` in it. All nodes must see it under this path.
      at_once: most jobs at a time; None for no bound.
      options: ``name=value``, parameters of ``submitit.AutoExecutor.update_parameters``.
      cluster: ``slurm``, or ``local`` for processes of this machine.

    Raises:
      ValueError: submitit or SLURM is missing, or an option cannot be read.
    """
    jobs = submit_jobs(wanted, workdir, at_once, options, cluster)
    for point, job in jobs:
        print(f"{job.job_id}: {point.name}")
    print(f"{len(jobs)} jobs submitted; the same command again submits what is missing then")
    return 0


def submit_jobs(wanted, workdir, at_once, options, cluster) -> list[tuple[Point, Any]]:
    """As `submit`; returns pairs of point and submitit's job."""
    try:
        import submitit
    except ImportError:
        raise ValueError(
            "--slurm needs submitit, which is not installed: pip install 'metamf_jax[sweeps]', or "
            "let an array of your own call --index=$SLURM_ARRAY_TASK_ID"
        ) from None
    parameters: dict[str, Any] = {"timeout_min": 240}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals:
            raise ValueError(f"--slurm_options: expected name=value, got {option!r}")
        parameters[name] = int(value) if value.isdigit() else value
    if at_once is not None and cluster == "slurm":
        parameters["slurm_array_parallelism"] = at_once
    points = []
    while (point := wanted.next()) is not None:
        points.append(point)
    if not points:
        return []
    try:
        executor = submitit.AutoExecutor(folder=workdir.absolute() / "slurm", cluster=cluster)
        executor.update_parameters(**parameters)
    except (RuntimeError, ValueError, TypeError, NameError) as error:
        raise ValueError(f"no jobs can be submitted: {error}") from error
    absolute = [Point(p.binary, p.flags, p.folder.absolute()) for p in points]
    with executor.batch():
        jobs = [executor.submit(Job(point)) for point in absolute]
    return list(zip(points, jobs, strict=True))
