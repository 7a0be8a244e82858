"""Keeps Python's garbage collector from what stays to the end of a process.

Of the hundred thousands of objects that imported modules and compiled programs are made of none is
garbage; to look through them again and again, and once more when the process ends, took 0.3 to
0.6 s of a command of 3 s.
"""

import atexit
import contextlib
import gc
from collections.abc import Iterator


def spare() -> None:
    """Never looks again at what there is by now, nor at anything when the process ends."""
    gc.freeze()
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)


@contextlib.contextmanager
def sparing() -> Iterator[None]:
    """`spare` of what its body makes, which is not looked at either: for imports."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
    spare()
