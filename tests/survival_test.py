"""Runs that are terminated, killed, or meet a full disk, damaged files, a second run, a wild clock.

Each is held to the undisturbed run, bit for bit.
"""

import contextlib
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from experiments import common, factorize, train
from experiments.robustness import torture
from metamf_jax.runs import files, run_log
from metamf_jax.runs.checkpoint import Checkpointer
from metamf_jax.runs.run_log import RunLog
from tests.experiments_test import BINARIES, start

ROOT = pathlib.Path(__file__).parents[1]
# Two steps of a run that are followed by others, and the one of the checkpoint before.
STEPS = {"train": (10, 15), "factorize": (2, 3)}
EARLIER = {"train": 5, "factorize": 1}


@contextlib.contextmanager
def at_step(step, act):
    """Calls ``act`` where a run logs that step, before its checkpoint."""
    logged = RunLog.metrics

    def metrics(log, at, values):
        logged(log, at, values)
        if at == step:
            act()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "metrics", metrics)
        yield


@contextlib.contextmanager
def full_disk_at(step):
    most = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():
        # As a full disk does, it fails every writer, those in C++ too.
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, most[1]))

    try:
        with at_step(step, fill):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, most)


@pytest.mark.parametrize("name", list(BINARIES))
def test_a_run_with_bad_luck_ends_alike(name, undisturbed, tmp_path, monkeypatch):
    expected, whole = undisturbed(name)
    # The clock jumps by up to a year, each time that it is read.
    rng, real = random.Random(0), time.time
    monkeypatch.setattr(time, "time", lambda: real() + rng.uniform(-4e7, 4e7))
    first, second = STEPS[name]
    earlier = EARLIER[name]

    command = [sys.executable, "-m", "tests.signalled_program", name, str(first), "9", "0"]
    command += [*torture.FLAGS[name], f"--workdir={tmp_path}"]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "summary.json").exists()
    assert [line["step"] for line in run_log.read_metrics(tmp_path)] == [earlier, first]
    # What a kill in the middle of writing leaves.
    (tmp_path / ".factors.safetensors.1.part").write_bytes(b"half")
    # The lock file is there, the lock is not.
    assert (tmp_path / files.LOCK).exists()

    with at_step(first, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        ended = start(name, tmp_path)
    assert f"step {first} " in ended.out
    assert f"step {earlier} " not in ended.out
    assert not list(tmp_path.glob(".*.part"))
    assert ended.code == common.TERMINATED == 75
    assert ended.err == "terminated; the same flags resume the run\n"
    assert Checkpointer(tmp_path).steps()[-1] == first
    assert not (tmp_path / "summary.json").exists()

    with full_disk_at(second):
        ended = start(name, tmp_path)
    assert ended.code == 1
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert f"step {first} " not in ended.out
    assert not (tmp_path / "summary.json").exists()
    assert Checkpointer(tmp_path).steps()[-1] == first

    newest = tmp_path / "checkpoints" / f"{first}.safetensors"
    newest.write_bytes(flipped(newest.read_bytes(), random.Random(0)))
    ended = start(name, tmp_path)
    assert ended.code == 0, ended.err
    assert f"checkpoint {first} cannot be read (" in ended.out
    assert f"going on from checkpoint {earlier}" in ended.out
    assert torture.difference(tmp_path, expected) is None
    if name == "train":
        # The table of results is the same too.
        assert ended.out.split("\n\n")[1] == whole.out.split("\n\n")[1]
    seconds = [line["seconds"] for line in run_log.read_metrics(tmp_path)]
    assert seconds == sorted(seconds)
    assert seconds[0] >= 0
    # Far below the jumps of the clock, a year, and above any run.
    assert seconds[-1] < 1e6


def test_a_run_that_is_asked_to_end_writes_a_checkpoint_before_it_is_due(tmp_path):
    with at_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        ended = start("factorize", tmp_path, "--checkpoint_seconds=1000")
    assert ended.code == common.TERMINATED
    assert Checkpointer(tmp_path).steps() == [2]
    ended = start("factorize", tmp_path, "--checkpoint_seconds=1000")
    assert ended.code == 0
    assert Checkpointer(tmp_path).steps() == [2, 4]


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        ("summary.json", b'"seconds": ', b'"seconds": 1', None),
        ("summary.json", b'"test_rmse": ', b'"test_rmse": 1', "summary.json"),
        ("metrics.jsonl", b'"step": 2', b'"step": 7', "metrics.jsonl"),
        ("factors.safetensors", b"F32", b"I32", "factors.safetensors"),
        ("checkpoints/4.safetensors", None, None, "the newest checkpoint"),
    ],
)
def test_what_runs_differ_in_is_seen(file, old, new, expected, undisturbed, tmp_path):
    workdir, _ = undisturbed("factorize")
    other = tmp_path / "other"
    shutil.copytree(workdir, other)
    if old is None:
        shutil.copy(other / "checkpoints" / "3.safetensors", other / file)
    else:
        content = (other / file).read_bytes()
        assert old in content
        (other / file).write_bytes(content.replace(old, new, 1))
    assert torture.difference(other, workdir) == expected


def test_a_second_sigterm_does_not_wait():
    def twice():
        with common.until_checkpoint():
            common._on_sigterm(signal.SIGTERM, None)
            common._on_sigterm(signal.SIGTERM, None)

    with pytest.raises(SystemExit) as end:
        twice()
    assert end.value.code == common.TERMINATED
    common._Termination.asked = False


def test_a_workdir_that_cannot_be_written_to():
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        was_root = os.geteuid() == 0
        if was_root:
            os.seteuid(65534)
        try:
            for workdir in (folder, f"{folder}/new"):
                with pytest.raises(ValueError, match=rf"^{workdir} cannot be written to \(Perm"):
                    RunLog(workdir, "train", factorize.Config())
        finally:
            if was_root:
                os.seteuid(0)
            os.chmod(folder, 0o755)


def flipped(data, rng):
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


def test_every_damage_is_found(tmp_path):
    state = {"a": train.np.arange(50.0), "b": train.np.int32(3)}
    checkpointer = Checkpointer(tmp_path)
    for step in (1, 2):
        checkpointer.save(step, {**state, "b": train.np.int32(step)})
    path = tmp_path / "checkpoints" / "2.safetensors"
    whole = path.read_bytes()
    rng = random.Random(0)
    for number in range(300):
        path.write_bytes(whole[:number] if number < 100 else flipped(whole, rng))
        said = []
        got = Checkpointer(tmp_path, said.append).restore(state)
        # A flipped bit may lie in a blank of the header.
        assert int(got["b"]) == 2 - len(said)
        assert got["a"].tobytes() == state["a"].tobytes()
    with pytest.raises(ValueError, match=r"checkpoint 1 under .*; nor is there an earlier one"):
        Checkpointer(tmp_path).restore({"other": train.np.arange(3)})
    for step in checkpointer.steps():
        os.truncate(tmp_path / "checkpoints" / f"{step}.safetensors", 9)
    with pytest.raises(ValueError, match=r"checkpoint \d under .*; nor is there an earlier one"):
        Checkpointer(tmp_path).restore(state)


_HOLDER = """
import sys
from metamf_jax.runs import files
files.lock_folder(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_run_is_refused_until_the_first_is_gone(tmp_path):
    command = [sys.executable, "-c", _HOLDER, str(tmp_path)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        ended = start("factorize", tmp_path)
        assert ended.code == 1
        assert f"{tmp_path} is in use by process {holder.pid} on " in ended.err
        assert [path.name for path in tmp_path.iterdir()] == [files.LOCK]
        holder.kill()
        holder.wait()
    files.lock_folder(tmp_path)
    # The same process may go on with its own folder, and a folder made anew is another one.
    files.lock_folder(tmp_path)
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    files.lock_folder(tmp_path)
    files.unlock_folder(tmp_path)
