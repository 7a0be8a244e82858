"""A binary has the flags that it reads: none comes along with something that it imports."""

import functools
import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
BINARIES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "experiments").rglob("*.py")
    if "common.run_main(" in path.read_text()
)
# Whose configuration is another's, every flag of it.
TAKES = {"experiments.quickstart": {"experiments.train"}}
# What takes long to import, and has no flags, is imported once: each binary goes on from there in a
# process of its own.
PROGRAM = """
import importlib, json, os, sys
from absl import flags
import scipy.stats, matplotlib.figure, pyarrow.parquet
import metamf_jax.baselines, metamf_jax.factorization.solvers, metamf_jax.imputation.estimator
assert not [m for m in flags.FLAGS.flags_by_module_dict() if m.startswith("metamf_jax")]
for binary in sys.argv[1:]:
    if os.fork() == 0:
        importlib.import_module(binary)
        modules = [m for m, f in flags.FLAGS.flags_by_module_dict().items() if f]
        print(json.dumps([binary, modules]), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""


def test_binaries_are_found():
    assert {"experiments.train", "experiments.benchmarks.factorize"} <= set(BINARIES)


@functools.cache
def modules_with_flags():
    """Of every binary."""
    command = [sys.executable, "-c", PROGRAM, *BINARIES]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return dict(json.loads(line) for line in ran.stdout.splitlines())


@pytest.mark.parametrize("binary", BINARIES)
def test_flags_are_a_binarys_own(binary):
    modules = {name for name in modules_with_flags()[binary] if name.startswith("experiments")}
    own = {binary} | TAKES.get(binary, set())
    assert modules <= own | {"experiments.common"}
    assert modules & own
