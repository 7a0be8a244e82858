"""What a sweep consists of: points, their folders, and what became of each.

A sweep file is Python that sets ``SWEEP``; the points are in its list, or drawn by optuna:

    from launch.points import Sweep, grid

    SWEEP = Sweep("experiments.factorize", grid(solver=["sgd", "dsgd"], rank=[8, 16, 32]))

Every point has a folder of its own, named after its flags, so that a sweep file can be extended and
started again: ``run/`` is the ``--workdir`` of its binary, ``output.txt`` what that printed,
``point.json`` its flags, and ``failure.json``, if it failed, how.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import re
import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from metamf_jax.runs.files import write_text

State = Literal["done", "failed", "missing"]


@dataclasses.dataclass(frozen=True)
class Search:
    """A space for optuna to search.

    Attributes:
      suggest: ``suggest(trial)`` gives the flags of a point, drawn by the methods of
        ``optuna.Trial``.
      objective: where its number is in ``summary.json``, as in ``results.test_mse``.
      trials: how many points to run.
      direction: ``minimize`` or ``maximize``.
    """

    suggest: Callable[[Any], Mapping[str, Any]]
    objective: str
    trials: int
    direction: Literal["minimize", "maximize"] = "minimize"


@dataclasses.dataclass(frozen=True)
class Plot:
    """A curve for each value of ``by`` (or one) of ``y`` against ``x``; names as in the table."""

    x: str
    y: str
    by: str | None = None
    log_x: bool = False


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Settings of one binary's flags.

    Attributes:
      binary: the module that ``python -m`` runs.
      points: the flags of each point: strings, numbers, booleans, lists (for flags that take lists,
        joined by commas) or tuples (for flags that are given several times).
      search: instead of points.
      title: of the page that `launch.collect` makes.
      metrics: results to show, as in ``results.test_mse``; empty for all numbers.
      plots: what that page draws.
    """

    binary: str
    points: Sequence[Mapping[str, Any]] = ()
    search: Search | None = None
    title: str = ""
    metrics: Sequence[str] = ()
    plots: Sequence[Plot] = ()

    def __post_init__(self):
        if bool(self.points) == (self.search is not None):
            raise ValueError("a sweep has either points or a search")


def grid(**values: Sequence[Any]) -> list[dict[str, Any]]:
    """Every combination of the values of each flag."""
    return [
        dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())
    ]


@dataclasses.dataclass(frozen=True)
class Point:
    """One setting of the flags.

    Attributes:
      binary: the module.
      flags: name to value.
      folder: where all that belongs to it goes.
    """

    binary: str
    flags: Mapping[str, Any]
    folder: pathlib.Path

    @property
    def name(self) -> str:
        """The folder's name: the flags, and a digest of binary and flags."""
        return self.folder.name

    @property
    def workdir(self) -> pathlib.Path:
        """The workdir of its binary."""
        return self.folder / "run"

    def command(self, python: str = sys.executable) -> list[str]:
        """What to run."""
        arguments = []
        for name, value in self.flags.items():
            if isinstance(value, bool):
                arguments.append(f"--{name}" if value else f"--no{name}")
            elif isinstance(value, tuple):
                arguments += [f"--{name}={each}" for each in value]
            elif isinstance(value, list):
                arguments.append(f"--{name}={','.join(map(str, value))}")
            elif value is not None:
                arguments.append(f"--{name}={value}")
        return [python, "-m", self.binary, *arguments, f"--workdir={self.workdir}"]

    def summary(self) -> dict[str, Any] | None:
        """What its ``summary.json`` holds; None where there is none."""
        path = self.workdir / "summary.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def failure(self) -> dict[str, Any] | None:
        """How it failed: ``code`` and ``message``; None if it did not."""
        path = self.folder / "failure.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def state(self) -> State:
        """What became of it. A point that was interrupted is missing."""
        if (self.workdir / "summary.json").exists():
            return "done"
        return "failed" if (self.folder / "failure.json").exists() else "missing"

    def begin(self, more: Mapping[str, Any] | None = None) -> None:
        """Makes its folder and forgets an earlier failure."""
        self.folder.mkdir(parents=True, exist_ok=True)
        told = {"binary": self.binary, "flags": dict(self.flags), **(more or {})}
        write_text(self.folder / "point.json", json.dumps(told, indent=2) + "\n")
        (self.folder / "failure.json").unlink(missing_ok=True)

    def ended(self, code: int) -> State:
        """Records a failure, if it is one, and returns what became of the point."""
        if code == 0 and self.state() == "done":
            return "done"
        output = self.folder / "output.txt"
        text = output.read_text(encoding="utf-8", errors="replace") if output.exists() else ""
        lines = text.strip().splitlines()
        message = lines[-1] if lines else "it printed nothing"
        if code == 0:
            message = f"it ended well and wrote no {self.workdir / 'summary.json'}"
        failure = {"code": code, "message": message}
        write_text(self.folder / "failure.json", json.dumps(failure, indent=2) + "\n")
        return "failed"


def make_point(binary: str, flags: Mapping[str, Any], workdir: pathlib.Path) -> Point:
    """The point of these flags in a sweep's workdir."""
    text = json.dumps([binary, dict(sorted(flags.items()))])
    words = "-".join(f"{name}={value}" for name, value in flags.items())
    words = re.sub(r"[^A-Za-z0-9.=_+-]+", "_", words)[:80]
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return Point(binary, flags, workdir / "points" / f"{words}-{digest}")


def make_points(sweep: Sweep, workdir: pathlib.Path) -> list[Point]:
    """The points of a sweep that lists them.

    Raises:
      ValueError: two have the same flags.
    """
    points = [make_point(sweep.binary, flags, workdir) for flags in sweep.points]
    for number, point in enumerate(points):
        first = points.index(point)
        if first != number:
            raise ValueError(f"points {first} and {number} of the sweep are the same: {point.name}")
    return points


def load_sweep(path: str | os.PathLike) -> Sweep:
    """Runs a sweep file.

    Raises:
      ValueError: there is no such file, or it sets no ``SWEEP``.
    """
    if not pathlib.Path(path).is_file():
        raise ValueError(f"{path}: no such sweep file; launch/sweeps/ holds those that come along")
    sweep = runpy.run_path(os.fspath(path)).get("SWEEP")
    if not isinstance(sweep, Sweep):
        raise ValueError(
            f"{path}: expected it to set SWEEP to a launch.points.Sweep, got {sweep!r}"
        )
    return sweep


def value_at(tree: Any, path: str) -> Any:
    """The value under a dotted path of nested dictionaries; None where there is none."""
    for part in path.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree
