"""Several processes give the bytes of one; one that dies ends all, and the run goes on later."""

import os
import pathlib
import signal
import sys
import threading
import time

import numpy as np
import pytest

from experiments import factorize
from launch import local_hosts
from metamf_jax import parallel
from metamf_jax.run_log import read_metrics
from tests import training_program

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def checkout(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")


def test_killed_factorization_goes_on_to_the_bytes_of_one_process(tmp_path):
    rng = np.random.default_rng(0)
    cells = sorted({(int(n), int(m)) for n, m in rng.integers(0, 20, (150, 2))})
    table, two, one = (tmp_path / name for name in ("table.csv", "two", "one"))
    table.write_text("\n".join(f"u{n},i{m},{1 + (n * m) % 5}" for n, m in cells))
    config = factorize.Config(
        dataset=str(table),
        rank=2,
        epochs=30,
        blocks=4,
        step_size="bold_driver:0.05",
        backend="xla",
    )
    command = [sys.executable, "-m", "experiments.factorize", f"--workdir={two}"]
    command.append(f"--input={table}")
    for name in ("rank", "epochs", "blocks", "step_size", "backend"):
        command.append(f"--{name}={getattr(config, name)}")
    children = local_hosts.start(command, 2, 2)
    victim = children["process 1 of 2"]
    killed = []

    def kill_in_mid_run():
        while len(read_metrics(two)) < 3 and victim.poll() is None:
            time.sleep(0.01)
        killed.append(time.monotonic())
        os.kill(victim.pid, signal.SIGKILL)

    threading.Thread(target=kill_in_mid_run).start()
    failure = local_hosts.watch(children, grace=2)
    assert time.monotonic() - killed[0] < 8
    assert str(failure) == "process 1 of 2 was ended by signal 9 (SIGKILL)"
    assert all(child.returncode for child in children.values())
    for child in children.values():
        child.stdout.close()
    assert not (two / "summary.json").exists()

    # What two processes began, one may end; what it took over is as if it had done it itself.
    taken_over = read_metrics(two)
    factorize.run(config, two, num_devices=1)
    factorize.run(config, one, num_devices=1)
    assert 3 <= len(taken_over) < 30
    assert [line["step"] for line in read_metrics(two)] == list(range(1, 31))
    for name in ("objective", "train_rmse", "test_rmse"):
        assert [x[name] for x in read_metrics(two)] == [x[name] for x in read_metrics(one)]
    factors = [(folder / "factors.safetensors").read_bytes() for folder in (one, two)]
    assert factors[0] == factors[1]


def test_training_over_two_processes_gives_the_bytes_of_one(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "_devices", None)
    parallel.use_devices(4)
    one, two = tmp_path / "one", tmp_path / "two"
    training_program.meta_train(str(one), 6)
    # What one process began, two end.
    training_program.meta_train(str(two), 2)
    begun = (two / "model.safetensors").read_bytes()
    command = [sys.executable, "-m", "tests.training_program", str(two), "6"]
    assert local_hosts.run(command, 2, 2, "first", 2) == 0
    assert (two / "model.safetensors").read_bytes() != begun
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
