"""Numba's cache on disk, made to notice edits of what a function's module imports. Imports Numba.

Numba looks at the file of a function alone: one whose helpers or constants lie in another module
would be loaded as it was compiled before that module was edited.
"""

import functools
import hashlib
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any

import numba
from numba.core import caching

# Of modules one a line, as the linter wants it.
_IMPORT = re.compile(
    r"^[ \t]*(?:from|import)[ \t]+(?P<module>[\w.]+)"
    r"(?:[ \t]+import[ \t]*(?P<names>\([^)]*\)|[^\n]*))?",
    re.MULTILINE,
)


def compiled(function: Callable, signature: Any, **options: Any) -> Callable:
    """Compiles a module-level function for one signature, or loads it as it was compiled before.

    Args:
      function: for Numba.
      signature: Numba types, or a signature with them.
      **options: of ``numba.njit``, without ``cache``.
    """
    dispatcher: Any = numba.njit(**options)(function)
    dispatcher._cache = _Cache(function)
    dispatcher.compile(signature)
    dispatcher.disable_compile()
    return dispatcher


class _Cache(caching.FunctionCache):
    """Numba's own, with the sources in its key."""

    def _index_key(self, sig, codegen):
        return (*super()._index_key(sig, codegen), sources_digest(self._py_func.__module__))


def sources_digest(name: str) -> str:
    """A digest of a module's source and those of all it imports from its package or this one."""
    packages = {name.partition(".")[0], __name__.partition(".")[0]}
    files, waiting = set(), [name]
    while waiting:
        module = sys.modules.get(waiting.pop())
        # What is imported from a module need not be one.
        file = getattr(module, "__file__", None)
        if module is None or not file or file in files:
            continue
        files.add(file)
        waiting += [m for m in _imports(file) if m.partition(".")[0] in packages]
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(_source(file))
    return digest.hexdigest()


def _source(file: str) -> bytes:
    path = pathlib.Path(file)
    return path.read_bytes() if path.suffix == ".py" else b""


@functools.cache
def _imports(file: str) -> frozenset[str]:
    """The modules that a file names in its imports, and what might be modules.

    Found by their words: to parse files took longer than to load what was compiled. What only looks
    like an import, in a docstring, does no harm.
    """
    found = set()
    for match in _IMPORT.finditer(_source(file).decode()):
        module, names = match["module"], re.findall(r"\w+", match["names"] or "")
        found |= {module, *(f"{module}.{name}" for name in names)}
    return frozenset(found)
