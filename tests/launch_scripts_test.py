"""The shell scripts parse, and would run what they say."""

import os
import pathlib
import shlex
import subprocess
import sys

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


# What SLURM does with a script and with a step, on this machine: the script runs as a copy from
# elsewhere; the step's tasks are started at once, and when one fails the others are killed.
_SBATCH = """#!/usr/bin/env bash
set -eu
[[ "$1" == --nodes=2 ]] || exit 3
cp "$2" "$SPOOL/slurm_script"
env SLURM_SUBMIT_DIR="$PWD" SLURM_JOB_ID=7 SLURM_CPUS_PER_TASK=2 bash "$SPOOL/slurm_script" "${@:3}"
"""
_SRUN = """#!/usr/bin/env bash
[[ "$1 $2" == "--kill-on-bad-exit=1 --cpus-per-task=2" ]] || exit 3
shift 3  # The Python of the checkout; this one has no .venv.
export SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NODELIST=$(hostname),other SLURM_STEP_TASKS_PER_NODE=2
for task in 0 1; do
  SLURM_PROCID=$task SLURM_LOCALID=$task "$PYTHON" "$@" > "$SPOOL/task$task.txt" 2>&1 &
done
for task in 0 1; do
  wait -n || { code=$?; kill -KILL $(jobs -p); wait; exit $code; }
done
"""


def test_slurm_runs_a_process_a_host(tmp_path):
    for name, script in (("sbatch", _SBATCH), ("srun", _SRUN)):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    flags = ["--preset=smoke", "--epochs=1", "--blocks=2", "--backend=xla"]
    flags += ["--step_size=constant:0.05", f"--workdir={tmp_path / 'a run'}"]

    def submit(*arguments):
        command = ["sbatch", "--nodes=2", "launch/slurm/several_hosts.sh", *arguments]
        environment = {**os.environ, "SPOOL": str(tmp_path), "PYTHON": sys.executable}
        environment |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "JAX_PLATFORMS": "cpu"}
        environment |= {"JAX_NUM_CPU_DEVICES": "1"}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    done = submit("factorize", *flags)
    told = (tmp_path / "task0.txt").read_text()
    assert done.returncode == 0, done.stderr + told
    assert told.startswith("2 processes, found by SLURM; when one is lost the others end")
    assert (tmp_path / "a run" / "summary.json").exists()
    # A mistake ends the job with its code.
    done = submit("factorize", *flags, "--rank=5")
    assert done.returncode == 1
    assert "rank: 4 there, 5 now" in (tmp_path / "task0.txt").read_text()


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
