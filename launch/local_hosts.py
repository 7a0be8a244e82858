"""Runs one program as several processes on this machine, as it would run on several hosts.

    python -m launch.local_hosts --processes=4 --devices_per_process=2 -- \\
        python -m experiments.factorize --solver=dsgd --workdir=runs/factorize

Each process learns of the others through the environment (`metamf_jax.processes`). When one of them
fails, the others are ended and this program exits with its code; an interrupt is passed on to all.
Processes that were terminated and left their state on disk (exit code 75) do so together, whether
all of them were asked to or one: this program then exits with 75 too.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, NamedTuple

from absl import app, flags

from launch.children import POLL_SECONDS, TERMINATED

# On Linux, has the kernel kill a child when the launcher is killed in a way that nobody can catch.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
os.execvp(sys.argv[1], sys.argv[1:])
"""
# A message of Gloo, which ends in a line feed, and the words that it is written in.
_GLOO_BEGINNING = b"[Gloo] Rank "
_GLOO_REST = re.compile(
    rb"(?:\d+| is connected to | peer ranks\. |Expected number of connected peer ranks is : |\s)*"
)
# An interrupted run may first write a checkpoint.
_INTERRUPT_GRACE_SECONDS = 60.0


class Failure(NamedTuple):
    """The child that failed first."""

    name: str
    returncode: int

    def __str__(self) -> str:
        if self.returncode < 0:
            number = -self.returncode
            return f"{self.name} was ended by signal {number} ({signal.Signals(number).name})"
        return f"{self.name} exited with code {self.returncode}"


def watch(children: Mapping[str, subprocess.Popen], grace: float) -> Failure | None:
    """Waits for all children; when one fails, ends the others.

    SIGINT and SIGTERM that come in the meantime are passed on; then the children have a minute.

    Args:
      children: by name; each the leader of a process group of its own (``start_new_session``).
      grace: seconds between asking the others to end and killing them.

    Returns:
      What failed first, or None where all ended well. No child is left running, whatever happens.
    """
    asked: list[int] = []
    deadline = None

    def pass_on(number, frame):
        asked.append(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    failure, interrupted = None, False
    try:
        while running := [child for child in children.values() if child.poll() is None]:
            while asked:
                _signal_groups(running, asked.pop())
                interrupted = True
                deadline = deadline or time.monotonic() + _INTERRUPT_GRACE_SECONDS
            failure = failure or _first_failure(children)
            if failure is not None and deadline is None:
                if failure.returncode != TERMINATED:
                    _signal_groups(running, signal.SIGTERM)
                deadline = time.monotonic() + grace
            if deadline is not None and time.monotonic() > deadline:
                break
            time.sleep(POLL_SECONDS)
    finally:
        # Grandchildren too: the group outlives its leader.
        _signal_groups(children.values(), signal.SIGKILL)
        for child in children.values():
            child.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
    # What an interrupted process ends with is told by all of them, not by the first.
    return _first_failure(children) if interrupted else failure or _first_failure(children)


def _signal_groups(children, number: int) -> None:
    for child in children:
        try:
            os.killpg(child.pid, number)
        except ProcessLookupError:
            continue  # All of the group have ended.


def _first_failure(children: Mapping[str, subprocess.Popen]) -> Failure | None:
    failed = [Failure(name, c.returncode) for name, c in children.items() if c.returncode]

    def late(failure: Failure) -> int:
        """Who was brought down by whom, where several ended between two looks."""
        if failure.returncode == TERMINATED:  # Ended those that were doing nothing.
            return 0
        # A dead peer's signal came first: JAX aborts the others, or they exit with an error.
        return 3 if failure.returncode > 0 else 2 if failure.returncode == -signal.SIGABRT else 1

    return min(failed, key=late, default=None)


def start(
    command: list[str], processes: int, devices: int, output: int | IO[bytes] = subprocess.PIPE
) -> dict[str, subprocess.Popen]:
    """Starts the processes, each with so many devices; their output goes to pipes or a file."""
    # Free now; whoever takes it in between makes the first process fail with a clear message.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    if sys.platform == "linux":
        command = [sys.executable, "-S", "-c", _DIE_WITH_PARENT, *command]
    children = {}
    for index in range(processes):
        environment = {
            **os.environ,
            "METAMF_COORDINATOR": f"127.0.0.1:{port}",
            "METAMF_NUM_PROCESSES": str(processes),
            "METAMF_PROCESS_ID": str(index),
            "METAMF_DEVICES_PER_PROCESS": str(devices),
        }
        children[f"process {index} of {processes}"] = subprocess.Popen(
            command,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return children


def without_gloo(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Leaves out what Gloo tells of every connection it makes; it cannot be told not to.

    Where it makes several at once, in threads, its words and numbers come mixed: a line may hold
    the beginnings of two messages, and a later one nothing but the number that ends one of them.
    """
    begun = 0
    for line in lines:
        beginnings = line.count(_GLOO_BEGINNING)
        if beginnings or (begun and _GLOO_REST.fullmatch(line)):
            begun += beginnings - 1
        else:
            yield line


def _show(pipe: IO[bytes], prefix: str | None) -> None:
    with pipe:
        for line in without_gloo(pipe):
            if prefix is not None:
                sys.stdout.write(prefix + line.decode(errors="replace"))
                sys.stdout.flush()


def run(command: list[str], processes: int, devices: int, output: str, grace: float) -> int:
    """Runs the command as several processes; returns the exit code."""
    children = start(command, processes, devices)
    threads = []
    for index, child in enumerate(children.values()):
        prefix = f"[{index}] " if output == "all" else "" if index == 0 else None
        threads.append(threading.Thread(target=_show, args=(child.stdout, prefix), daemon=True))
        threads[-1].start()
    failure = watch(children, grace)
    for thread in threads:
        thread.join()
    if failure is None:
        return 0
    if failure.returncode == TERMINATED:
        print("terminated; the same command goes on", file=sys.stderr)
    else:
        print(f"error: {failure}; the others were ended", file=sys.stderr)
    return failure.returncode if failure.returncode > 0 else 128 - failure.returncode


def main(argv: list[str]) -> None:
    command = argv[1:]
    if not command:
        print(
            "error: expected a command after --, as in: python -m launch.local_hosts --processes=2"
            " -- python -m experiments.factorize --workdir=DIR",
            file=sys.stderr,
        )
        sys.exit(2)
    given = flags.FLAGS
    sys.exit(run(command, given.processes, given.devices_per_process, given.show, given.grace))


if __name__ == "__main__":
    flags.DEFINE_integer("processes", 2, "Number of processes.", lower_bound=1)
    flags.DEFINE_integer(
        "devices_per_process", 1, "Virtual devices of each process, on a CPU.", lower_bound=1
    )
    flags.DEFINE_enum(
        "show",
        "all",
        ["all", "first"],
        "Whose output to show: of all, each line numbered, or of 0.",
    )
    flags.DEFINE_float(
        "grace", 5.0, "Seconds between asking a process to end and killing it.", lower_bound=0
    )
    app.run(main)
