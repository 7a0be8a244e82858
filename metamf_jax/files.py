"""Files that are never left half written."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def written_aside(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a path beside ``path`` to write to, which takes its name once all went well.

    Raises:
      ValueError: there is no such folder.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}; make it first")
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a whole text file, aside and renamed."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def folder_written_aside(path: str | os.PathLike) -> Iterator[Path]:
    """Gives an empty folder beside ``path`` to fill, which takes its name once all went well.

    Raises:
      ValueError: there is something of that name already, or no folder to put it into.
    """
    path = Path(path)
    if path.exists():
        raise ValueError(f"{path} is there already; delete it, or give another name")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}; make it first")
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    # Of a process of the same number that was killed.
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        os.replace(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
