"""A factorization that several processes bring to its end gives the bytes of one."""

import pathlib
import sys

import numpy as np
import pytest

from experiments import factorize
from launch import local_hosts
from metamf_jax.runs.run_log import read_metrics


@pytest.mark.parametrize(("solver", "processes"), [("psgd", 2), ("dsgd", 4)])
def test_processes_give_the_bytes_of_one(tmp_path, monkeypatch, solver, processes):
    monkeypatch.chdir(pathlib.Path(__file__).parents[1])
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    table, several, one = (tmp_path / name for name in ("table.csv", "several", "one"))
    rng = np.random.default_rng(0)
    cells = sorted({(int(n), int(m)) for n, m in rng.integers(0, 20, (150, 2))})
    table.write_text("\n".join(f"u{n},i{m},{1 + (n * m) % 5}" for n, m in cells))
    config = factorize.Config(
        dataset=str(table),
        solver=solver,
        rank=2,
        regularization=None,
        epochs=3,
        blocks=4,
        step_size="bold_driver:0.05",
        backend="xla",
    )
    names = "solver", "rank", "epochs", "blocks", "step_size", "backend"
    command = [
        *(sys.executable, "-m", "experiments.factorize", f"--workdir={several}"),
        *("--preset=smoke", f"--input={table}", "--regularization=auto"),
        *(f"--{name}={getattr(config, name)}" for name in names),
    ]
    assert local_hosts.run(command, processes, 1, "first", 2) == 0
    factorize.run(config, one, num_devices=1)
    for name in ("objective", "train_rmse", "test_rmse"):
        assert [x[name] for x in read_metrics(one)] == [x[name] for x in read_metrics(several)]
    factors = [(folder / "factors.safetensors").read_bytes() for folder in (one, several)]
    assert factors[0] == factors[1]
    chosen = [(folder / "chosen.json").read_bytes() for folder in (one, several)]
    assert chosen[0] == chosen[1]
