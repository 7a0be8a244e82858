"""The launcher ends all processes when one fails or it is itself ended, and says which."""

import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]

LAUNCH = [sys.executable, "-m", "launch.local_hosts"]

# Process 1 does as it is told; the others start a child of their own and wait.
PROGRAM = """
import os, signal, subprocess, sys
print("I am", os.environ["METAMF_PROCESS_ID"], flush=True)
if os.environ["METAMF_PROCESS_ID"] == "1":
    exec(sys.argv[1])
child = subprocess.Popen(["sleep", "60"])
print("pid", os.getpid(), flush=True)
print("pid", child.pid, flush=True)
child.wait()
"""


def _launch(order, *flags):
    return subprocess.Popen(
        [
            *LAUNCH,
            "--processes=3",
            "--grace=1",
            *flags,
            "--",
            sys.executable,
            "-c",
            PROGRAM,
            order,
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


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
def test_one_failure_ends_all(order, code, message):
    launcher = _launch(f"import time; time.sleep(1); {order}")
    output, errors = launcher.communicate(timeout=50)
    assert launcher.returncode == code
    assert errors == f"error: {message}; the others were ended\n"
    assert "[0] I am 0\n" in output
    assert not any(map(_is_running, _pids(output)))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_passed_on(number):
    told = f"signal.signal({int(number)}, lambda *_: sys.exit(print('told') or 5))"
    launcher = _launch(f"{told}; print('listening', flush=True); signal.pause()")
    lines = [launcher.stdout.readline() for _ in range(8)]
    assert "[1] listening\n" in lines
    launcher.send_signal(number)
    output, _ = launcher.communicate(timeout=50)
    assert launcher.returncode in (5, 128 + number)
    assert "[1] told\n" in output
    pids = _pids("".join(lines))
    assert len(pids) == 4
    assert not any(map(_is_running, pids))


def test_all_well_and_nothing_to_run():
    done = subprocess.run(
        [
            *LAUNCH,
            "--show=first",
            "--",
            sys.executable,
            "-c",
            "import os; print(os.environ['METAMF_DEVICES_PER_PROCESS'])",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")
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
            "import os, time; print('pid', os.getpid(), flush=True); time.sleep(60)",
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    pids = _pids(launcher.stdout.readline() + launcher.stdout.readline())
    assert len(pids) == 2
    launcher.kill()
    launcher.communicate()
    deadline = time.monotonic() + 20
    while any(map(_is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_is_running, pids))
