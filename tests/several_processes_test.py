"""Several processes give the bytes of one; one that dies ends all, and the run goes on later."""

import pathlib
import shutil
import signal
import sys

import numpy as np
import pytest

from experiments import common, factorize
from experiments.robustness import torture
from launch import local_hosts
from metamf_jax import parallel
from metamf_jax.runs.checkpoint import Checkpointer
from metamf_jax.runs.run_log import read_metrics
from tests import training_program

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def checkout(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")


def test_factorization_ended_twice_goes_on_to_the_bytes_of_one_process(tmp_path, capfd):
    rng = np.random.default_rng(0)
    cells = sorted({(int(n), int(m)) for n, m in rng.integers(0, 20, (150, 2))})
    table, one, two, three = (tmp_path / name for name in ("table.csv", "one", "two", "three"))
    table.write_text("\n".join(f"u{n},i{m},{1 + (n * m) % 5}" for n, m in cells))
    config = factorize.Config(
        dataset=str(table),
        rank=2,
        epochs=9,
        blocks=4,
        step_size="bold_driver:0.05",
        backend="xla",
    )
    flags = [f"--workdir={two}", f"--input={table}", "--preset=smoke"]
    for name in ("rank", "epochs", "blocks", "step_size", "backend"):
        flags.append(f"--{name}={getattr(config, name)}")

    def run_two(step, number):
        """Process 1 receives the signal at that step."""
        told = ["factorize", str(step), str(int(number)), "1"]
        command = [sys.executable, "-m", "tests.signalled_program", *told, *flags]
        return local_hosts.run(command, 2, 2, "first", 2)

    # One is asked to leave: both do, after the same checkpoint.
    assert run_two(3, signal.SIGTERM) == common.TERMINATED
    told = capfd.readouterr()
    assert told.out.count("terminated; the same flags resume the run") == 1
    assert told.err == "terminated; the same command goes on\n"
    assert [line["step"] for line in read_metrics(two)] == [1, 2, 3]
    assert Checkpointer(two).steps()[-1] == 3

    assert run_two(6, signal.SIGKILL) == 128 + signal.SIGKILL
    told = capfd.readouterr()
    assert told.err == (
        "error: process 1 of 2 was ended by signal 9 (SIGKILL); the others were ended\n"
    )
    assert "step 4 " in told.out
    assert "step 3 " not in told.out
    assert not (two / "summary.json").exists()

    assert Checkpointer(two).steps()[-1] in (5, 6)
    shutil.copytree(two, three)
    assert run_two(99, signal.SIGTERM) == 0
    factorize.run(config, one, num_devices=4)
    assert torture.difference(two, one) is None
    # What two processes began, one may end, on fewer devices: blocks of V may then lie elsewhere.
    factorize.run(config, three, num_devices=1)
    assert [line["step"] for line in read_metrics(three)] == list(range(1, 10))
    for name in ("objective", "train_rmse", "test_rmse"):
        assert [x[name] for x in read_metrics(three)] == [x[name] for x in read_metrics(one)]
    factors = [(folder / "factors.safetensors").read_bytes() for folder in (one, three)]
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
