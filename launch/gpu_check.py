"""Finds out in one call, in under nine minutes, what a GPU makes of this project.

    bash launch/gpu_check.sh OUT
    bash launch/gpu_check.sh OUT --small    # on a CPU: that the check itself works

Told are: the device and the packages there; whether the methods give the CPU's answers, and the
same bits twice; times of steps of meta-training, of sweeps of ALS and of the sampler, of SGD
through XLA and through the kernel of `block_update.mosaic_gpu`, of pretraining; and which of the
tests that make sense on one GPU pass. Each part is a process of its own with a time limit of its
own, whatever becomes of the others. OUT receives DEVICE.json and DEVICE.md, written anew after each
part, and log.txt with what the parts printed.

Exit codes: 0, every part ended well and all answers agree; 1, else.
"""

import contextlib
import csv
import functools
import importlib.metadata
import importlib.util
import json
import math
import os
import pathlib
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags

from metamf_jax.runs.files import write_text

ROOT = pathlib.Path(__file__).parents[1]
_CHILD = pathlib.Path(__file__).with_name("child.py")

_SMALL = flags.DEFINE_bool("small", False, "Tiny sizes, and a CPU will do.")

# Seconds for all parts together.
TOTAL = 510.0
# Below that a part is not begun.
_LEAST = 10.0

# What beside an accelerator is left out without a package; without another nothing is imported.
_COSTS = {
    "numba": "the CPU's answers come through XLA alone",
    "tensorboardX": "runs write no events for TensorBoard",
    "matplotlib": "no plots",
    "pytest": "no tests",
    "pytest-xdist": "tests run one after the other",
    "hypothesis": "no property tests",
    "scikit-learn": "no scikit-learn estimator",
    **dict.fromkeys(("optuna", "submitit"), "no sweeps"),
    **dict.fromkeys(("pandas", "ruff", "basedpyright"), "nothing here"),
}

# Largest difference, in parts of the largest number, between two platforms' answers. The encoder's
# products have ten bits on a GPU.
_ALLOWED, _ALLOWED_ROUNDED = 1e-3, 5e-2

# Tests that make sense on one GPU: not those of kernels, of several devices, or of a CPU's choices.
_TESTS = (
    *("block_update", "ridge", "sums", "objective", "energy", "map_estimation", "adjoint"),
    *("meta_loss", "encoder", "row_conditional", "row_solver", "als", "gibbs"),
)
_LEFT_OUT = (
    *("numba", "kernel", "device", "choice_of_backend", "columns_are_never_read"),
    *("half_step_equals_dense_solves", "sweeps_and_data_in_turn", "intervals_of_held_out_cells"),
)

_DEVICE = """
import json, jax, jaxlib
device = jax.devices()[0]
try:
    import numba
    imports = numba.__version__
except Exception as error:
    imports = f"no: {type(error).__name__}: {error}"
print(json.dumps({
    "platform": device.platform, "kind": device.device_kind, "devices": len(jax.devices()),
    "jax": jax.__version__, "jaxlib": jaxlib.__version__,
    "runtime": getattr(device.client, "platform_version", "").splitlines()[:2],
    "memory_bytes": (device.memory_stats() or {}).get("bytes_limit"), "numba_imports": imports,
}))
"""


class Ran(NamedTuple):
    """What became of a part.

    Attributes:
      output: what it printed.
      ending: "done", or what went wrong.
      seconds: that it took.
    """

    output: str
    ending: str
    seconds: float


class Part(NamedTuple):
    """A process, and what to read off it.

    Attributes:
      name: its heading.
      command: arguments of Python.
      limit: seconds.
      findings: from what became of it.
      environment: what it has beside this process's.
    """

    name: str
    command: Sequence[str]
    limit: float
    findings: Callable[[Ran], list[dict[str, Any]]]
    environment: Mapping[str, str] = types.MappingProxyType({})


def run_part(part: Part, limit: float, log: pathlib.Path) -> Ran:
    """Runs it, for no longer than the limit, and ends its children; the log has its output, too."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "PYTHONUNBUFFERED": "1",
        # Parts may have children, which share the device with them.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        **part.environment,
    }
    start = time.monotonic()
    with log.open("a+b") as output:
        output.write(f"\n=== {part.name}\n".encode())
        output.flush()
        begin = output.tell()
        process = subprocess.Popen(
            [sys.executable, str(_CHILD), str(os.getpid()), "", sys.executable, *part.command],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
            ending = "done" if code == 0 else f"ended with code {code}"
        except subprocess.TimeoutExpired:
            ending = f"stopped after {limit:.0f} s"
        finally:
            _end(process)
        output.seek(begin)
        text = output.read().decode(errors="replace")
    return Ran(text, ending, time.monotonic() - start)


def _end(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):  # All of the group have ended.
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


# What is read off the parts.


def json_lines(ran: Ran) -> list[dict[str, Any]]:
    """The lines that are JSON."""
    found = []
    for line in ran.output.splitlines():
        if line.startswith("{") and line.endswith("}"):
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    return found


def steps_of_meta_training(workdir: pathlib.Path, ran: Ran) -> list[dict[str, Any]]:
    """From ``summary.json`` of `experiments.benchmarks.meta_step`."""
    del ran
    summary = workdir / "summary.json"
    if not summary.exists():
        return []
    results = json.loads(summary.read_text(encoding="utf-8"))["results"]
    return [
        {"what": "step of meta-training", "batch": step.pop("batch"), **step}
        for step in results["steps"]
    ]


def steps_of_pretraining(workdir: pathlib.Path, ran: Ran) -> list[dict[str, Any]]:
    """From ``metrics.jsonl``: from the first evaluation, before which all compiles, to the last."""
    del ran
    metrics = workdir / "metrics.jsonl"
    if not metrics.exists():
        return []
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    if not lines:
        return []
    first, last = lines[0], lines[-1]
    found = {"what": "pretraining", "steps": last["step"], "validation_mse": last["validation_mse"]}
    found["seconds_to_the_first_evaluation"] = first["seconds"]
    if last["seconds"] > first["seconds"]:
        taken = last["seconds"] - first["seconds"]
        found["steps_per_second"] = (last["step"] - first["step"]) / taken
    return [found]


_OUTCOME = r"(PASSED|FAILED|ERROR|SKIPPED)"
_TEST = re.compile(rf"tests/\S+?_test\.py(?:::.*?)?(?=\s+(?:{_OUTCOME}|-)|\s*$)")


def outcomes_of_tests(ran: Ran) -> list[dict[str, Any]]:
    """Numbers of tests by outcome, and the names of those that did not pass."""
    outcome = {}
    for line in ran.output.splitlines():
        told, name = re.search(rf"\b{_OUTCOME}\b", line), _TEST.search(line)
        if told and name:
            outcome[name[0].strip()] = told[1]
    bad = sorted(name for name, what in outcome.items() if what in ("FAILED", "ERROR"))
    counts = {what.lower(): list(outcome.values()).count(what) for what in ("PASSED", "SKIPPED")}
    return [{"what": "tests", **counts, "failed": len(bad), "names": bad}]


def agreement(reference: pathlib.Path, found: pathlib.Path, ran: Ran) -> list[dict[str, Any]]:
    """How far two files of answers of `experiments.benchmarks.accelerator` differ.

    Args:
      reference: .npz, arrays named PROBLEM/NUMBER.
      found: likewise.
      ran: what wrote the reference.
    """
    errors = [row for row in json_lines(ran) if "error" in row]
    if not reference.exists() or not found.exists():
        return errors
    largest: dict[str, float] = {}
    with np.load(reference) as theirs, np.load(found) as ours:
        for name in sorted(set(theirs) & set(ours)):
            problem = name.rpartition("/")[0]
            difference = _difference(theirs[name], ours[name])
            largest[problem] = max(largest.get(problem, 0.0), difference)
    rows = []
    for problem, difference in largest.items():
        allowed = _ALLOWED_ROUNDED if problem.startswith("rounded") else _ALLOWED
        rows.append(
            {
                "what": problem,
                "difference": difference,
                "allowed": allowed,
                "agrees": difference <= allowed,
            }
        )
    return rows + errors


def _difference(reference: np.ndarray, found: np.ndarray) -> float:
    if reference.shape != found.shape or not np.isfinite(found).all():
        return math.inf
    scale = max(float(np.abs(reference).max(initial=0)), 1e-30)
    return float(np.abs(reference - found).max(initial=0)) / scale


# The parts.


def device_part() -> Part:
    """Which comes first: the others depend on what it finds."""
    return Part("device", ["-c", _DEVICE], 90, json_lines)


def make_parts(scratch: pathlib.Path, small: bool, on_gpu: bool) -> list[Part]:
    """All other parts, the most telling first.

    Args:
      scratch: folder for their files.
      small: whether tiny sizes shall do.
      on_gpu: whether there is one, to run the tests on.
    """
    preset = "smoke" if small else "paper"

    def accelerator(name, limit, measure, *more, **environment):
        command = ["-m", "experiments.benchmarks.accelerator", f"--measure={measure}"]
        return Part(name, [*command, f"--preset={preset}", *more], limit, json_lines, environment)

    ours = scratch / "device.npz"

    def of_cpu(name, *more):
        """Its answers, to be compared with those of the device."""
        theirs = scratch / f"{len(more)}.npz"
        part = accelerator(name, 90, "answers", f"--output={theirs}", *more, JAX_PLATFORMS="cpu")
        return part._replace(findings=functools.partial(agreement, theirs, ours))

    def meta_step(batch):
        workdir = scratch / f"meta_step-{batch}"
        command = ["-m", "experiments.benchmarks.meta_step", f"--preset={preset}"]
        command += [f"--batch={batch}", "--memory_steps=", f"--repeats={2 if small else 20}"]
        command += [f"--workdir={workdir}", *(["--side=8"] if small else [])]
        read = functools.partial(steps_of_meta_training, workdir)
        return Part(f"meta-training, batch {batch}", command, 50, read)

    ordered = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true"}
    pretrained = scratch / "pretrain"
    pretraining = ["-m", "experiments.pretrain", f"--preset={preset}", f"--workdir={pretrained}"]
    pretraining += [f"--steps={4 if small else 1000}"]
    return [
        accelerator("answers of this device", 120, "answers", f"--output={ours}"),
        of_cpu("beside the CPU through XLA", "--nokernels"),
        accelerator("speed", 40, "speed"),
        accelerator("updates of SGD by a kernel", 70, "kernel"),
        *map(meta_step, (2,) if small else (16, 256, 4096)),
        accelerator("sweeps", 90, "sweeps"),
        accelerator("updates of SGD", 70, "updates"),
        of_cpu("beside the CPU's kernels"),
        accelerator("sweeps of the CPU", 60, "sweeps", JAX_PLATFORMS="cpu"),
        Part("pretraining", pretraining, 80, functools.partial(steps_of_pretraining, pretrained)),
        # Sums in a fixed order: whether the same bits could be promised there.
        *([accelerator("answers in a fixed order", 60, "answers", **ordered)] if on_gpu else []),
        tests_part(small, on_gpu),
    ]


def tests_part(small: bool, on_gpu: bool) -> Part:
    """Takes the time that is left."""
    command = ["-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider"]
    if importlib.util.find_spec("xdist") and not small:
        command += ["-n", str(min(4, os.cpu_count() or 1))]
    command += [f"tests/{name}_test.py" for name in (("ridge",) if small else _TESTS)]
    command += ["-k", " and ".join(f"not {word}" for word in _LEFT_OUT)]
    # Exact products, since the tests' tolerances are float32's.
    environment = {"JAX_PLATFORMS": "cuda", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    return Part("tests", command, TOTAL, outcomes_of_tests, environment if on_gpu else {})


# The report.


def packages() -> dict[str, dict[str, str]]:
    """Of those that ``pyproject.toml`` names: versions, and what the lack of the others costs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["cpu"], *extras["dev"]]
    names = [re.split(r"[<>=\[;~! ]", text)[0] for text in wanted]
    there, missing = {}, {}
    for name in names:
        if name == project["name"]:
            continue
        try:
            there[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing[name] = _COSTS.get(name, "what imports it fails")
    return {"there": there, "missing": missing}


def machine() -> dict[str, Any]:
    """What is told without JAX."""
    commit = _told("git", "-C", str(ROOT), "rev-parse", "HEAD")
    fields = "name,driver_version,memory.total"
    driver = _told("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader")
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "commit": commit.strip(),
        "nvidia_smi": next(iter(csv.reader(driver.splitlines())), []),
        "packages": packages(),
    }


def _told(*command: str) -> str:
    """What a program prints; nothing where it is missing, or fails."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def markdown(report: dict[str, Any]) -> str:
    """The report as a page: what the machine is, how the parts ended, a table for each part."""
    missing = report["machine"]["packages"]["missing"]
    lines = [f"# {report['device'].get('kind', 'no device')}", ""]
    facts = {**report["device"], **report["machine"]}
    facts["packages"] = ", ".join(f"{k} {v}" for k, v in facts["packages"]["there"].items())
    facts["missing"] = "; ".join(f"{k}: {v}" for k, v in missing.items()) or "nothing"
    lines += [f"- {name}: {_shown(value)}" for name, value in facts.items()]
    lines += [
        "",
        *_table([{k: p[k] for k in ("name", "ending", "seconds")} for p in report["parts"]]),
    ]
    for part in report["parts"]:
        if part["findings"]:
            lines += ["", f"## {part['name']}", "", *_table(part["findings"])]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for row in rows:
        lines.append("| " + " | ".join(_shown(row.get(name, "")) for name in columns) + " |")
    return lines


def _shown(value: Any) -> str:
    if isinstance(value, float):
        value = f"{value:.4g}"
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return str(value).replace("|", "\\|").replace("\n", " ")


class Check:
    """The report as it grows, and the time that is left."""

    def __init__(self, out: pathlib.Path, total: float = TOTAL):
        self._out, self._start, self._total = out, time.monotonic(), total
        out.mkdir(parents=True, exist_ok=True)
        self.log = out / "log.txt"
        self.log.write_bytes(b"")
        self.report: dict[str, Any] = {"machine": machine(), "device": {}, "parts": []}

    def run(self, part: Part) -> None:
        """Runs a part, if there is time, and takes down what it finds."""
        limit = min(part.limit, self._total - (time.monotonic() - self._start))
        if limit < _LEAST:
            self.add(part.name, "left out, no time", 0.0, [])
            return
        print(f"{part.name} ...", flush=True)
        ran = run_part(part, limit, self.log)
        try:
            findings = part.findings(ran)
        except (ValueError, KeyError, OSError) as error:
            ran, findings = ran._replace(ending=f"{ran.ending}; {error!r}"), []
        self.add(part.name, ran.ending, ran.seconds, findings)

    def add(self, name: str, ending: str, seconds: float, findings: list[dict[str, Any]]) -> None:
        """Takes a part down."""
        seconds = round(seconds, 1)
        part = {"name": name, "ending": ending, "seconds": seconds, "findings": findings}
        self.report["parts"].append(part)
        print(f"{name}: {ending}, {seconds} s", flush=True)
        self.write()

    def write(self) -> None:
        """Both files, as they stand."""
        kind = self.report["device"].get("kind", "no device")
        name = re.sub(r"[^a-z0-9]+", "_", kind.lower()).strip("_")
        write_text(self._out / f"{name}.json", json.dumps(self.report, indent=1) + "\n")
        write_text(self._out / f"{name}.md", markdown(self.report))

    @property
    def is_well(self) -> bool:
        """Whether all parts ended well and nothing in them went wrong."""
        parts = self.report["parts"]
        findings = [finding for part in parts for finding in part["findings"]]
        return all(part["ending"] == "done" for part in parts) and not any(
            "error" in finding or finding.get("failed") or not finding.get("agrees", True)
            for finding in findings
        )


def run(out: pathlib.Path, small: bool) -> bool:
    """Runs all parts; whether all went well.

    Raises:
      ValueError: JAX finds no GPU, and small sizes were not asked for.
    """
    check = Check(out)
    part = device_part()
    ran = run_part(part, part.limit, check.log)
    check.report["device"] = next(iter(json_lines(ran)), {})
    check.add(part.name, ran.ending, ran.seconds, [])
    found = check.report["device"].get("platform", "nothing")
    if found in ("cpu", "nothing") and not small:
        raise ValueError(
            f"JAX finds no GPU but {found} (see {check.log}); install metamf_jax[cuda], name a"
            " Python that has it (PYTHON=..), or give --small for a trial on a CPU"
        )
    with tempfile.TemporaryDirectory() as folder:
        scratch = pathlib.Path(folder)
        for part in make_parts(scratch, small, found == "gpu"):
            check.run(part)
    return check.is_well


def main(argv: Sequence[str]) -> int:
    if len(argv) != 2:
        print("error: expected one argument, the folder for the report", file=sys.stderr)
        return 2
    try:
        return 0 if run(pathlib.Path(argv[1]).absolute(), _SMALL.value) else 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    app.run(main)
