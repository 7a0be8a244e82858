"""What the cache on disk notices."""

import importlib
import sys

import numba
import pytest

from metamf_jax.kernels import disk_cache

_MODULES = {
    "helper": "import numba\nFACTOR = 2\n@numba.njit\ndef scaled(x):\n    return FACTOR * x\n",
    "between": "from edited.helper import scaled\n",
    "function": "from edited import between\nscaled = between.scaled\n"
    "def add(x):\n    return scaled(x) + 1\n",
    "unrelated": "",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes modules into a package and gives what it is then, compiled: (function, module)."""
    folder = tmp_path / "edited"
    folder.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def compiled(**sources):
        for name, source in sources.items():
            (folder / f"{name}.py").write_text(source, encoding="utf-8")
        for name in [name for name in sys.modules if name.partition(".")[0] == "edited"]:
            del sys.modules[name]
        importlib.invalidate_caches()
        disk_cache._imports.cache_clear()
        module = importlib.import_module("edited.function")
        importlib.import_module("edited.unrelated")
        return disk_cache.compiled(module.add, (numba.int64,), nogil=True)

    yield compiled
    for name in [name for name in sys.modules if name.partition(".")[0] == "edited"]:
        del sys.modules[name]


def _loaded(function):
    return sum(function.stats.cache_hits.values()) == 1


def test_edits_of_what_is_imported_compile_anew(package):
    first = package(__init__="", **_MODULES)
    assert (first(5), _loaded(first)) == (11, False)
    again = package(unrelated="FACTOR = 3\n")
    assert (again(5), _loaded(again)) == (11, True)
    edited = package(helper=_MODULES["helper"].replace("FACTOR = 2", "FACTOR = 3"))
    assert (edited(5), _loaded(edited)) == (16, False)
    back = package(helper=_MODULES["helper"])
    assert (back(5), _loaded(back)) == (11, True)
    with pytest.raises(TypeError, match="No matching definition"):
        edited("five")
