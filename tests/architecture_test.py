"""Imports point down only: each layer may use itself and what stands below."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]

BASE = {
    "types",
    "sums",
    "kernels",
    "ridge",
    "bias_model",
    "parallel",
    "processes",
    "metrics",
    "runs",
}
# What the modules of a package may import from metamf_jax besides their own package.
ALLOWED = {
    "data": {"types", "runs"},
    "plotting": {"types"},
    "cli": BASE | {"data", "imputation", "plotting"},
    "meta_learning": BASE,
    "factorization": BASE,
    "posterior": BASE | {"factorization"},
    "imputation": BASE | {"meta_learning", "factorization", "posterior"},
    "baselines": BASE | {"meta_learning", "factorization", "posterior"},
}


def imported(path):
    """The dotted names that a module imports."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def modules(folder):
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", modules("metamf_jax"), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    own = path.relative_to(ROOT / "metamf_jax").parts[0].removesuffix(".py")
    for name in imported(path):
        top, *rest = name.split(".")
        assert top not in ("experiments", "launch", "tests"), name
        assert not name.startswith("absl.flags"), name
        assert name != "absl.flags", name
        if top == "metamf_jax" and rest and own != "__init__":
            allowed = ALLOWED.get(own, BASE) | {own}
            assert rest[0] in allowed, f"{own} must not import {name}"


@pytest.mark.parametrize("word", ["pmap(", "shard_map(", "Mesh(", "device_count("])
def test_only_parallel_knows_of_devices(word):
    users = [path.name for path in modules("metamf_jax") if word in path.read_text()]
    assert set(users) <= {"parallel.py"}


def test_every_module_is_looked_at():
    assert len(modules("metamf_jax")) > 30
