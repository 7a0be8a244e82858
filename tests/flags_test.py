"""A binary has the flags that it reads: none comes along with something that it imports."""

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
PROGRAM = """
import importlib, json, sys
from absl import flags
importlib.import_module(sys.argv[1])
print(json.dumps([m for m, f in flags.FLAGS.flags_by_module_dict().items() if f]))
"""


def test_binaries_are_found():
    assert {"experiments.train", "experiments.benchmarks.factorize"} <= set(BINARIES)


@pytest.mark.parametrize("binary", BINARIES)
def test_flags_are_a_binarys_own(binary):
    command = [sys.executable, "-c", PROGRAM, binary]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    modules = {name for name in json.loads(ran.stdout) if name.startswith("experiments")}
    assert modules <= {binary, "experiments.common"} | TAKES.get(binary, set())
