"""Files that are never left half written, and folders that one process has to itself."""

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

try:
    import fcntl
except ImportError:  # Windows has no such locks.
    fcntl = None

_Record = TypeVar("_Record")

LOCK = "lock"
# The file descriptors of the locks that this process holds, by the path of the folder.
_held: dict[str, int] = {}


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


def write_record(path: str | os.PathLike, record: Any) -> None:
    """Writes a dataclass as JSON, aside and renamed."""
    write_text(path, json.dumps(dataclasses.asdict(record), indent=1) + "\n")


def read_record(path: str | os.PathLike, kind: type[_Record], what: str) -> _Record:
    """Reads what `write_record` wrote of a dataclass of this kind, its lists as tuples.

    Raises:
      ValueError: there is no such file, or it does not hold ``what`` is expected.
    """
    try:
        held = json.loads(Path(path).read_text(encoding="utf-8"))
        return kind(**{name: _tuples(value) for name, value in held.items()})
    except (AttributeError, OSError, TypeError, ValueError) as error:
        raise ValueError(f"expected {what} in {path}: {error}") from error


def _tuples(value: Any) -> Any:
    return tuple(_tuples(x) for x in value) if isinstance(value, list) else value


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


def lock_folder(folder: str | os.PathLike) -> None:
    """Keeps other processes out of a folder, by a lock on the file ``lock`` in it.

    The lock ends with `unlock_folder` or with the process, whatever ends that; the file stays. A
    process may take a lock again that it has. File systems without locks are not guarded.

    Raises:
      ValueError: another process has it; the message tells which.
      OSError: the file cannot be written.
    """
    key = os.path.realpath(folder)
    descriptor = os.open(Path(folder) / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    if key in _held:
        if os.path.samestat(os.fstat(descriptor), os.fstat(_held[key])):
            os.close(descriptor)
            return
        # The folder was removed, and made again.
        unlock_folder(folder)
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 200).decode(errors="replace")
        os.close(descriptor)
        raise ValueError(
            f"{folder} is in use by {holder.strip() or 'another process'}; wait for its end, or "
            "give another --workdir"
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP):
            os.close(descriptor)
            raise
    _held[key] = descriptor
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())


def unlock_folder(folder: str | os.PathLike) -> None:
    """Lets others in again; does nothing where this process holds no lock."""
    descriptor = _held.pop(os.path.realpath(folder), None)
    if descriptor is not None:
        os.close(descriptor)


def remove_parts(folder: str | os.PathLike) -> None:
    """Removes what killed processes left of `written_aside`; the caller holds the folder's lock."""
    for part in Path(folder).glob(".*.part"):
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)
