"""The launcher ends all processes when one fails or it is itself ended, and says which."""

import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import pytest

from launch import local_hosts

ROOT = pathlib.Path(__file__).parents[1]

LAUNCH = [sys.executable, "-m", "launch.local_hosts"]

# Process 1 does as it is told, once the others, which start a child of their own and wait, have
# said so.
PROGRAM = """
import os, signal, subprocess, sys, time
if os.environ["METAMF_PROCESS_ID"] == "1":
    while len(os.listdir(sys.argv[2])) < 2:
        time.sleep(0.01)
    exec(sys.argv[1])
child = subprocess.Popen(["sleep", "60"])
print("pid", os.getpid(), flush=True)
print("pid", child.pid, flush=True)
open(f"{sys.argv[2]}/{os.getpid()}", "w").close()
child.wait()
"""


def _run(order, folder):
    command = [sys.executable, "-S", "-c", PROGRAM, order, str(folder)]
    return local_hosts.run(command, 3, 1, "all", 1)


def _pids(output):
    return [int(line.split()[-1]) for line in output.splitlines() if " pid " in f" {line}"]


def _is_running(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.parametrize(
    ("order", "code", "message"),
    [
        ("sys.exit(7)", 7, "process 1 of 3 exited with code 7"),
        ("os.kill(os.getpid(), 9)", 137, "process 1 of 3 was ended by signal 9 (SIGKILL)"),
    ],
)
def test_one_failure_ends_all(order, code, message, tmp_path, capsys):
    assert _run(order, tmp_path) == code
    output, errors = capsys.readouterr()
    assert errors == f"error: {message}; the others were ended\n"
    assert "[0] pid " in output
    pids = _pids(output)
    assert len(pids) == 4
    assert not any(map(_is_running, pids))


class Ended(NamedTuple):
    """A process that has ended."""

    returncode: int


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([0, 0], None),
        ([0, 1], "1 exited with code 1"),
        # JAX aborts the peers of one that dies, or they exit with an error.
        ([-6, -9], "1 was ended by signal 9 (SIGKILL)"),
        ([1, -6], "1 was ended by signal 6 (SIGABRT)"),
        ([-15, 75], "1 exited with code 75"),
    ],
)
def test_who_failed_first_of_several_at_once(codes, expected):
    failure = local_hosts._first_failure({str(n): Ended(code) for n, code in enumerate(codes)})
    assert (failure and str(failure)) == expected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_passed_on(number, tmp_path, capsys):
    told = f"signal.signal({int(number)}, lambda *_: sys.exit(print('told') or 5))"
    # Again and again: the launcher may not listen yet.
    asks = f"while True: os.kill({os.getpid()}, {int(number)}); time.sleep(0.5)"
    before = signal.signal(number, lambda *_: None)
    try:
        assert _run(f"{told}\n{asks}", tmp_path) in (5, 128 + number)
    finally:
        signal.signal(number, before)
    output, _ = capsys.readouterr()
    assert "[1] told\n" in output
    pids = _pids(output)
    assert len(pids) == 4
    assert not any(map(_is_running, pids))


def test_all_well_and_nothing_to_run(capsys):
    program = "import os; print(os.environ['METAMF_DEVICES_PER_PROCESS'])"
    assert local_hosts.run([sys.executable, "-S", "-c", program], 2, 3, "first", 1) == 0
    assert capsys.readouterr() == ("3\n", "")
    done = subprocess.run(LAUNCH, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "expected a command after --" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
def test_no_process_is_left_when_the_launcher_is_killed():
    launcher = subprocess.Popen(
        [
            *LAUNCH,
            "--",
            sys.executable,
            "-c",
            "import os, time; print('pid', os.getpid(), flush=True); time.sleep(10**6)",
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    pids = _pids(launcher.stdout.readline() + launcher.stdout.readline())
    assert len(pids) == 2
    launcher.kill()
    launcher.communicate()
    while any(map(_is_running, pids)):
        time.sleep(0.05)


def test_gloo_is_left_out_also_where_its_threads_write_at_once():
    ends = b" peer ranks. Expected number of connected peer ranks is : "
    lines = [
        b"3\n",
        b"[Gloo] Rank 1 is connected to 3" + ends + b"3\n",
        b"step 1\n",
        b"[Gloo] Rank [Gloo] Rank 11 is connected to 3 is connected to 3" + ends + ends + b"3\n",
        b"step 2\n",
        b"3\n",
        b"3\n",
    ]
    assert list(local_hosts.without_gloo(lines)) == [b"3\n", b"step 1\n", b"step 2\n", b"3\n"]
