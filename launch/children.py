"""The processes that run a sweep's points: each has a share of the machine, none is left behind."""

import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from launch.points import Point

# As of the binaries: ended by SIGTERM, to be resumed.
TERMINATED = 75
POLL_SECONDS = 0.05

_CHILD = pathlib.Path(__file__).with_name("child.py")


class Share(NamedTuple):
    """What of the machine a worker has.

    Attributes:
      cores: numbers of its cores.
      accelerators: numbers of its accelerators; empty on a machine without.
    """

    cores: tuple[int, ...]
    accelerators: tuple[str, ...]


def divide(workers: int | None, cores: Sequence[int], accelerators: Sequence[str]) -> list[Share]:
    """Divides cores and accelerators among workers, as evenly as their numbers allow.

    Args:
      workers: None for one for each accelerator, or for two cores.
      cores: their numbers; where there are fewer than workers, workers share a core.
      accelerators: their numbers.

    Raises:
      ValueError: there are accelerators, but fewer than workers: a process takes all the memory of
        each that it sees.
    """
    count = workers or len(accelerators) or max(1, len(cores) // 2)
    if accelerators and count > len(accelerators):
        raise ValueError(
            f"{count} workers cannot share {len(accelerators)} accelerators; give at most "
            f"--workers={len(accelerators)}"
        )

    def part(things, number):
        first, last = (number * len(things) // count, (number + 1) * len(things) // count)
        return tuple(things[first:last])

    return [
        Share(
            part(cores, number) or (cores[number % len(cores)],),
            part(accelerators, number),
        )
        for number in range(count)
    ]


def start(point: Point, share: Share | None = None) -> subprocess.Popen:
    """Starts a point's binary in a process group of its own, which this process' death ends."""
    environment = dict(os.environ)
    if share is not None and share.accelerators:
        for variable in ("CUDA_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS"):
            environment[variable] = ",".join(share.accelerators)
    cores = "" if share is None else ",".join(map(str, share.cores))
    with (point.folder / "output.txt").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, str(_CHILD), str(os.getpid()), cores, *point.command()],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def end_all(children: Sequence[subprocess.Popen], grace: float) -> None:
    """Terminates process groups, and kills those that are left after so many seconds."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + grace
        for child in children:
            if child.poll() is None:
                os.killpg(child.pid, number)
        while time.monotonic() < deadline and any(c.poll() is None for c in children):
            time.sleep(POLL_SECONDS)
