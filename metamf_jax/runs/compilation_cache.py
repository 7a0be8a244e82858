"""Compiled programs kept on disk, so that the next process need not compile them again.

Programs that call compiled kernels (`kernels.ffi`) hold these by name and find them again, since a
kernel is registered while the program is traced, before the cache is asked. A damaged entry is not
used: JAX warns and compiles.
"""

import hashlib
import os
import pathlib
import platform

import jax
import jaxlib.version

from metamf_jax.runs.files import written_aside

try:
    # Not JAX's public interface: where a later one has moved it, entries are written in place.
    from jax._src.lru_cache import _CACHE_SUFFIX, LRUCache

    _put = LRUCache.put
except (ImportError, AttributeError):
    LRUCache = None

VARIABLE = "METAMF_COMPILATION_CACHE"
OFF = "off"
# The oldest entries beyond it are removed at the start of a process.
MOST_BYTES = 2 * 1024**3


def use(folder: str | os.PathLike | None = None) -> pathlib.Path | None:
    """Turns the cache on, unless it is switched off or JAX has been given a folder already.

    Args:
      folder: where; ``off`` for no cache; None for what the variable METAMF_COMPILATION_CACHE
        tells likewise, and without it ``metamf_jax`` in $XDG_CACHE_HOME or ``~/.cache``.

    Returns:
      The folder in use, one for each kind of processor and version of JAX inside the given one;
      None if the cache is off or the folder cannot be made.
    """
    folder = os.fspath(folder or os.environ.get(VARIABLE) or _default())
    if folder == OFF or jax.config.values["jax_compilation_cache_dir"]:
        return None
    path = pathlib.Path(folder).absolute() / _platform()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        # A home that cannot be written to is no reason not to run.
        return None
    _prune(path)
    if LRUCache is not None:
        setattr(LRUCache, "put", _put_aside)  # noqa: B010
    jax.config.update("jax_compilation_cache_dir", str(path))
    # Most programs here compile in less than JAX's second, but there are dozens in a run.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return path


def _put_aside(cache, key: str, value: bytes) -> None:
    """In the place of JAX's own method, which writes in place (jax 0.10 to 0.12).

    A kill would leave half an entry, which JAX never replaces, and a process that reads while
    another writes would find half of one.
    """
    entry = pathlib.Path(os.fspath(cache.path)) / f"{key}{_CACHE_SUFFIX}"
    if cache.eviction_enabled:
        _put(cache, key, value)
    elif not entry.exists():
        with written_aside(entry) as aside:
            aside.write_bytes(value)


def _default() -> pathlib.Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (pathlib.Path(root) if root else pathlib.Path.home() / ".cache") / "metamf_jax"


def _platform() -> str:
    """XLA's programs for a CPU use its instruction set, which JAX's own keys leave out.

    A home may be shared by machines of several kinds.
    """
    told = [platform.machine(), platform.processor()]
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        told += sorted({x for x in lines if x.split(":")[0].strip() in ("flags", "Features")})
    digest = hashlib.sha256("\n".join(told).encode()).hexdigest()[:12]
    return f"jaxlib-{jaxlib.version.__version__}-{platform.machine()}-{digest}"


def _prune(path: pathlib.Path) -> None:
    entries = []
    for entry in path.iterdir():
        try:
            stat = entry.stat()
        except FileNotFoundError:  # Another process was faster.
            continue
        # On a GPU XLA keeps a folder of its own among them.
        if entry.is_file():
            entries.append((stat.st_mtime, stat.st_size, entry))
    excess = sum(size for _, size, _ in entries) - MOST_BYTES
    for _, size, entry in sorted(entries):
        if excess <= 0:
            break
        entry.unlink(missing_ok=True)
        excess -= size
