"""Run states through orbax, and the learned parameters as one safetensors file."""

import json
import os
import pathlib
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from metamf_jax import parallel, processes
from metamf_jax.files import written_aside


class Checkpointer:
    """Keeps the newest two states of a run under ``workdir/checkpoints``.

    Orbax writes aside and renames, in the background: whatever moment a run is killed at, the
    newest complete state is found. Of several processes the first alone reads and writes; the
    others give it their shares of a state, and take what it read.
    """

    def __init__(self, workdir: str | os.PathLike):
        self._manager = None
        if not processes.is_first():
            return
        # Orbax takes a second and a half to import, which programs that only impute need not pay.
        import orbax.checkpoint as ocp

        self._ocp = ocp
        alone = {}
        if processes.count() > 1:
            # Or orbax would wait for the others at every step. It then does not make the folder.
            alone["multiprocessing_options"] = ocp.options.MultiprocessingOptions(
                primary_host=0, active_processes={0}, barrier_sync_key_prefix="first"
            )
        folder = pathlib.Path(workdir).resolve() / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(
            folder,
            options=ocp.CheckpointManagerOptions(max_to_keep=2, create=not alone, **alone),
        )

    def save(self, step: int, state: Any) -> None:
        """Starts writing a state (a tree of arrays); of several processes all must call."""
        arrays = parallel.to_host(state)
        if self._manager is not None:
            self._manager.save(step, args=self._ocp.args.StandardSave(arrays))

    def restore(self, like: Any) -> Any | None:
        """The newest state, or None where there is none.

        Args:
          like: a state of the same structure, shapes and types.

        Raises:
          ValueError: the stored state has another structure.
        """
        like = parallel.to_host(like)
        return processes.from_first(None if self._manager is None else self._read(like))

    def _read(self, like: Any) -> Any | None:
        assert self._manager is not None
        step = self._manager.latest_step()
        if step is None:
            return None
        try:
            state = self._manager.restore(step, args=self._ocp.args.StandardRestore(like))
            # Orbax itself gives arrays of the stored shape, whatever was asked for.
            named, _ = _names_and_leaves(like)
            for (name, expected), got in zip(named.items(), jax.tree.leaves(state), strict=True):
                if expected.shape != got.shape:
                    raise ValueError(f"{name} has shape {got.shape}, expected {expected.shape}")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"checkpoint {step} under {self._manager.directory} does not fit this run: {error}"
            ) from error
        return state

    def close(self) -> None:
        """Waits until what was saved is on disk."""
        if self._manager is not None:
            self._manager.wait_until_finished()
            self._manager.close()


def _names_and_leaves(tree: Any) -> tuple[dict[str, Any], Any]:
    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in paths}, structure


def save_params(path: str | os.PathLike, params: Any, metadata: dict[str, Any]) -> None:
    """Writes a tree of arrays as safetensors, aside and renamed.

    Args:
      path: the file.
      params: the tree.
      metadata: stored as JSON in the file's header.
    """
    named, _ = _names_and_leaves(params)
    # Scalars and transposed views must be made contiguous for the format.
    arrays = {name: np.array(leaf, order="C") for name, leaf in named.items()}
    with written_aside(path) as aside:
        safetensors.numpy.save_file(arrays, aside, metadata={"metamf_jax": json.dumps(metadata)})


def read_params_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """The metadata of a file written by `save_params`.

    Raises:
      ValueError: no such file, or not one of these.
    """
    if not pathlib.Path(path).exists():
        raise ValueError(f"{path} does not exist: expected the parameters of a meta-training run")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return json.loads((file.metadata() or {})["metamf_jax"])
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} does not hold parameters of this package: {error!r}") from error


def load_params(path: str | os.PathLike, like: Any) -> Any:
    """Reads a tree written by `save_params`.

    Args:
      path: the file.
      like: a tree of arrays or shapes with the expected names and shapes.

    Raises:
      ValueError: the file holds another architecture; the message names the first difference.
    """
    named, structure = _names_and_leaves(like)
    try:
        arrays = safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path} does not hold parameters of this package: {error!r}") from error
    for name in sorted(named.keys() | arrays.keys()):
        expected = tuple(named[name].shape) if name in named else None
        got = arrays[name].shape if name in arrays else None
        if expected != got:
            raise ValueError(
                f"{path} holds another architecture: {name} has shape {got} there, and "
                f"{expected} in the configured model"
            )
    return jax.tree.unflatten(structure, [arrays[name] for name in named])
