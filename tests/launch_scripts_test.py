"""The shell scripts parse, and would run what they say."""

import os
import pathlib
import shlex
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = [ROOT / ".ci" / "run", *sorted((ROOT / "launch").rglob("*.sh"))]


def _run(script, *arguments, **environment):
    return subprocess.run(
        ["bash", str(ROOT / "launch" / script), *arguments],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_syntax(script):
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_slurm_would_run_a_process_a_host():
    done = _run(
        "slurm/several_hosts.sh", "factorize", "--workdir=a b", DRY_RUN="1", SLURM_CPUS_PER_TASK="4"
    )
    assert shlex.split(done.stdout) == [
        *("srun", "--kill-on-bad-exit=1", "--cpus-per-task=4"),
        *(".venv/bin/python", "-m", "experiments.factorize", "--workdir=a b"),
    ]


def test_tpu_pod_would_run_on_all_workers():
    done = _run(
        "tpu_pod/several_hosts.sh", "train", "--workdir=a b", DRY_RUN="1", TPU_NAME="t", ZONE="z"
    )
    *command, remote = shlex.split(done.stdout)
    assert command == shlex.split("gcloud compute tpus tpu-vm ssh t --zone=z --worker=all")
    assert shlex.split(remote.removeprefix("--command=")) == [
        *("cd", "metamf_jax", "&&", "env", "METAMF_CLUSTER=tpu_pod"),
        *(".venv/bin/python", "-m", "experiments.train", "--workdir=a b"),
    ]


@pytest.mark.parametrize("platform", ["slurm", "tpu_pod"])
def test_mistakes(platform):
    done = _run(f"{platform}/several_hosts.sh", "quickstart", DRY_RUN="1")
    assert done.returncode == 2
    assert "expected train or factorize as the first argument, got 'quickstart'" in done.stderr


def test_tpu_pod_needs_a_name():
    done = _run("tpu_pod/several_hosts.sh", "train", DRY_RUN="1")
    assert done.returncode != 0
    assert "set TPU_NAME" in done.stderr
