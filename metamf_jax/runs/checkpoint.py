"""Run states and learned parameters, each as one safetensors file."""

import contextlib
import json
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from metamf_jax import parallel, processes
from metamf_jax.runs.files import remove_parts, written_aside

_KEPT = 2


class Checkpointer:
    """Keeps the newest two states of a run as ``workdir/checkpoints/STEP.safetensors``.

    A state is written aside and renamed: whatever moment a run is killed at, the newest complete
    one is found. Each carries a checksum, so that one which a failing disk damaged is passed over.
    Of several processes the first alone reads and writes; the others give it their shares of a
    state, and take what it read.

    Why not Orbax, which came first: it measures its waits in the time of day, so that its saves
    failed with a TimeoutError when the clock jumped, and on a full disk the threads that it writes
    with stayed behind. What it is made for, states that many hosts write at once, is not needed
    here: every state fits into the first process's memory. `tests.survival_test` has both cases.

    Args:
      workdir: the run's folder.
      say: is told, in one line, which damaged state was passed over.
    """

    def __init__(self, workdir: str | os.PathLike, say: Callable[[str], None] = print):
        self._folder = pathlib.Path(workdir) / "checkpoints"
        self._say = say

    def save(self, step: int, state: Any) -> None:
        """Writes a state (a tree of arrays); of several processes all must call.

        Raises:
          OSError: it cannot be written.
        """
        arrays = _contiguous(parallel.to_host(state))
        if not processes.is_first():
            return
        header = {"metamf_jax": "state", "checksum": str(_checksum(arrays))}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            remove_parts(self._folder)
            write_arrays(self._path(step), arrays, header)
            for old in self.steps()[:-_KEPT]:
                self._path(old).unlink()
        except OSError as error:
            raise OSError(
                f"no checkpoint can be written under {self._folder} ({error}); when that is mended,"
                " the same flags resume the run"
            ) from error

    def restore(self, like: Any) -> Any | None:
        """The newest state that can be read, or None where there is none at all.

        States that are newer and damaged are removed, since the run will write them again.

        Args:
          like: a state of the same structure, shapes and types.

        Raises:
          ValueError: no stored state can be read, or they have another structure.
        """
        like = parallel.to_host(like)
        state = self._read_newest(like) if processes.is_first() else None
        if processes.count() == 1:
            return state
        data = b"" if state is None else safetensors.numpy.save(_contiguous(state))
        data = processes.bytes_from_first(data)
        return self._fit(safetensors.numpy.load(data), like) if data else None

    def _read_newest(self, like: Any) -> Any | None:
        failures: dict[int, ValueError] = {}
        for step in reversed(self.steps()):
            try:
                state = self._fit(self.read(step), like)
            except ValueError as error:
                failures[step] = error
                continue
            for damaged, error in failures.items():
                self._say(
                    f"checkpoint {damaged} cannot be read ({error}); "
                    f"going on from checkpoint {step}"
                )
                self._path(damaged).unlink()
            return state
        if failures:
            step, error = next(iter(failures.items()))
            raise ValueError(
                f"checkpoint {step} under {self._folder} does not fit this run, or is damaged: "
                f"{error}; nor is there an earlier one. Give another --workdir, or remove that "
                "folder to start anew"
            ) from error
        return None

    def steps(self) -> list[int]:
        """The steps of which there are states, rising."""
        found = self._folder.glob("*.safetensors") if self._folder.is_dir() else ()
        return sorted(int(path.stem) for path in found if path.stem.isdecimal())

    def read(self, step: int) -> dict[str, np.ndarray]:
        """The arrays of a state by name.

        Raises:
          ValueError: it is damaged.
        """
        path = self._path(step)
        with refusing_foreign(path, "a state of a run"):
            arrays = safetensors.numpy.load_file(path)
            with safetensors.safe_open(path, framework="numpy") as file:
                written = (file.metadata() or {})["checksum"]
            if written != str(_checksum(arrays)):
                raise ValueError("its checksum differs from what was written")
        return arrays

    def _fit(self, arrays: dict[str, np.ndarray], like: Any) -> Any:
        expected, structure = _names_and_leaves(jax.tree.map(np.asarray, like))
        for name in sorted(arrays.keys() | expected.keys()):
            shapes = [tree[name].shape if name in tree else None for tree in (arrays, expected)]
            if shapes[0] != shapes[1]:
                raise ValueError(f"{name} has shape {shapes[0]}, expected {shapes[1]}")
        leaves = [np.asarray(arrays[name], array.dtype) for name, array in expected.items()]
        return jax.tree.unflatten(structure, leaves)

    def _path(self, step: int) -> pathlib.Path:
        return self._folder / f"{step}.safetensors"


def _checksum(arrays: dict[str, np.ndarray]) -> int:
    """CRC-32 of all arrays, with their names, types and shapes."""
    checksum = 0
    for name, array in sorted(arrays.items()):
        checksum = zlib.crc32(f"{name} {array.dtype}{array.shape}".encode(), checksum)
        # reshape: an array of rank 0 gives no view of other size.
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        checksum = zlib.crc32(data, checksum)
    return checksum


def _names_and_leaves(tree: Any) -> tuple[dict[str, Any], Any]:
    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in paths}, structure


def _contiguous(tree: Any) -> dict[str, np.ndarray]:
    """The leaves by name; scalars and transposed views in the order that the format needs."""
    named, _ = _names_and_leaves(tree)
    return {name: np.array(leaf, order="C") for name, leaf in named.items()}


def write_arrays(
    path: str | os.PathLike, arrays: dict[str, np.ndarray], header: dict[str, str]
) -> None:
    """Writes contiguous arrays as safetensors, aside and renamed.

    Raises:
      ValueError: there is no such folder.
      OSError: the file cannot be written.
    """
    with written_aside(path) as aside:
        try:
            safetensors.numpy.save_file(arrays, aside, metadata=header)
        except safetensors.SafetensorError as error:
            # So it tells of a full disk.
            raise OSError(f"{path} cannot be written ({error})") from error


def save_params(path: str | os.PathLike, params: Any, metadata: dict[str, Any]) -> None:
    """Writes a tree of arrays as safetensors, aside and renamed.

    Args:
      path: the file.
      params: the tree.
      metadata: stored as JSON in the file's header.
    """
    write_arrays(path, _contiguous(params), {"metamf_jax": json.dumps(metadata)})


def read_params_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """The metadata of a file written by `save_params`.

    Raises:
      ValueError: no such file, or not one of these.
    """
    if not pathlib.Path(path).exists():
        raise ValueError(f"{path} does not exist: expected the parameters of a meta-training run")
    with refusing_foreign(path), safetensors.safe_open(path, framework="numpy") as file:
        return dict(json.loads((file.metadata() or {})["metamf_jax"]))


def read_params(path: str | os.PathLike) -> dict[str, Any]:
    """The arrays that `save_params` wrote, in dictionaries by the parts of their names.

    Raises:
      ValueError: the file does not hold such.
    """
    with refusing_foreign(path):
        arrays = safetensors.numpy.load_file(path)
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *parents, own = name.split("/")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[own] = array
    return tree


def load_params(path: str | os.PathLike, like: Any) -> Any:
    """Reads a tree written by `save_params`.

    Args:
      path: the file.
      like: a tree of arrays or shapes with the expected names, shapes and dtypes.

    Raises:
      ValueError: the file holds another architecture, or numbers that are not finite; the message
        names the first difference.
    """
    named, structure = _names_and_leaves(like)
    with refusing_foreign(path):
        arrays = safetensors.numpy.load_file(path)
    for name in sorted(named.keys() | arrays.keys()):
        expected, got = _described(named.get(name)), _described(arrays.get(name))
        if expected != got:
            raise ValueError(
                f"{path} holds another architecture: {name} has {got} there, and "
                f"{expected} in the configured model"
            )
        if not np.isfinite(arrays[name]).all():
            raise ValueError(f"{path}: {name} holds numbers that are not finite; train again")
    return jax.tree.unflatten(structure, [arrays[name] for name in named])


def _described(array: Any) -> str:
    return "no values" if array is None else f"shape {tuple(array.shape)} of {array.dtype}"


@contextlib.contextmanager
def refusing_foreign(
    path: str | os.PathLike, what: str = "parameters of this package"
) -> Iterator[None]:
    """Turns what reading a damaged or foreign file raises into a ValueError.

    Args:
      path: named in the message.
      what: the file was expected to hold.
    """
    try:
        yield
    except (
        safetensors.SafetensorError,
        OSError,
        KeyError,
        TypeError,
        ValueError,
        RecursionError,
    ) as error:
        raise ValueError(f"{path} does not hold {what}: {error!r}") from error
