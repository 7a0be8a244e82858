"""Compiled programs on disk: found again by another process, kernels by name, damaged or not."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from metamf_jax.runs import compilation_cache

ROOT = pathlib.Path(__file__).parents[1]

# A program with a compiled kernel, which each process has at another address.
_PROGRAM = """
import jax, numpy as np, pathlib, sys
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
from metamf_jax.runs import compilation_cache
from metamf_jax.kernels.ffi import NumbaKernel
compilation_cache.use()

def twice(x, out):
    for n in range(x.shape[0]):
        out[n] = 2 * x[n]

kernel = NumbaKernel(twice, arguments=("float32[:]",), results=("float32[:]",))
f = jax.jit(lambda x: jax.numpy.sin(kernel(x, shapes=[x.shape])[0]))

def show():
    got = np.asarray(f(np.arange(5, dtype="f")))
    print(got.tobytes().hex(), hits.count("/jax/compilation_cache/cache_hits") > 0)

show()
kernel._register()
print(kernel._handler.address)
if len(sys.argv) > 1:
    for entry in pathlib.Path(sys.argv[1]).glob("*-cache"):
        entry.write_bytes(entry.read_bytes()[: entry.stat().st_size // 2])
    jax.clear_caches()
    hits.clear()
    show()
"""


def run(folder, *damage):
    (folder / "program.py").write_text(_PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")}
    del environment[compilation_cache.VARIABLE]
    ran = subprocess.run(
        [sys.executable, str(folder / "program.py"), *damage],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.split(), ran.stderr


def test_programs_with_kernels_are_found_again_by_another_process(tmp_path):
    (first, hit, address), _ = run(tmp_path)
    assert hit == "False"
    (entries,) = (tmp_path / "cache" / "metamf_jax").iterdir()
    assert list(entries.glob("*-cache"))
    (second, hit, other_address, third, hit_of_damaged), told = run(tmp_path, entries)
    assert (second, hit) == (first, "True")
    # Otherwise this would show nothing.
    assert address != other_address
    assert (third, hit_of_damaged) == (first, "False")
    assert "Error reading persistent compilation cache entry" in told


@pytest.fixture
def unset(monkeypatch):
    """JAX as it is before the cache is turned on; afterwards as it was."""
    changed = {}
    folder = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setattr(compilation_cache.jax.config, "update", changed.__setitem__)
    monkeypatch.setattr(compilation_cache.LRUCache, "put", compilation_cache._put)
    yield changed
    monkeypatch.undo()
    jax.config.update("jax_compilation_cache_dir", folder)


def test_where_it_goes(unset, tmp_path, monkeypatch):
    monkeypatch.delenv(compilation_cache.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    folder = compilation_cache.use()
    assert folder.parent == tmp_path / "xdg" / "metamf_jax"
    assert unset["jax_compilation_cache_dir"] == str(folder)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert compilation_cache.use().parent == tmp_path / "home" / ".cache" / "metamf_jax"
    monkeypatch.setenv(compilation_cache.VARIABLE, str(tmp_path / "told"))
    assert compilation_cache.use().parent == tmp_path / "told"
    assert compilation_cache.use(tmp_path / "flag").parent == tmp_path / "flag"
    unset.clear()
    assert compilation_cache.use("off") is None
    (tmp_path / "file").write_text("")
    assert compilation_cache.use(tmp_path / "file") is None
    assert not unset


def test_it_does_not_grow_without_end(unset, tmp_path, monkeypatch):
    folder = compilation_cache.use(tmp_path)
    for number in range(5):
        (folder / f"{number}-cache").write_bytes(bytes(100))
        os.utime(folder / f"{number}-cache", (number, number))
    of_xla = folder / "xla_gpu_per_fusion_autotune_cache_dir"
    of_xla.mkdir()
    monkeypatch.setattr(compilation_cache, "MOST_BYTES", 250)
    compilation_cache.use(tmp_path)
    left = sorted(path.name for path in folder.iterdir())
    assert left == ["3-cache", "4-cache", of_xla.name]


def test_jax_has_what_is_replaced(tmp_path):
    jax_has = f"jax {jax.__version__} has no"
    assert compilation_cache.LRUCache is not None, (
        f"{jax_has} jax._src.lru_cache.LRUCache.put or _CACHE_SUFFIX any more: until "
        "compilation_cache finds its successor, a kill may leave half an entry, never replaced"
    )
    cache = compilation_cache.LRUCache(str(tmp_path), max_size=-1)
    for name in ("path", "eviction_enabled"):
        assert hasattr(cache, name), f"{jax_has} LRUCache.{name}, which _put_aside reads"


def test_entries_are_written_aside(unset, tmp_path):
    cache = compilation_cache.LRUCache(str(tmp_path), max_size=-1)
    compilation_cache.use(tmp_path / "elsewhere")
    cache.put("key", b"program")
    cache.put("key", b"another")
    assert cache.get("key") == b"program"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["key-cache"]


def test_the_cache_serves_where_jax_has_moved_what_is_replaced(unset, tmp_path, monkeypatch):
    cache = compilation_cache.LRUCache(str(tmp_path), max_size=-1)
    monkeypatch.setattr(compilation_cache, "LRUCache", None)
    assert compilation_cache.use(tmp_path / "elsewhere") is not None
    cache.put("key", b"program")
    assert cache.get("key") == b"program"
