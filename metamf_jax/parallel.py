"""The only file that knows of devices: data parallelism, replication, and steps in flight."""

import collections
import contextlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "devices"

_devices: list[jax.Device] | None = None


def use_devices(count: int) -> None:
    """Restricts everything here to ``count`` devices; on a CPU makes so many virtual ones.

    Raises:
      ValueError: the platform has fewer.
    """
    global _devices
    # Takes effect on the CPU alone, and only while no backend has been started.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count)
    there = jax.local_devices()
    if len(there) < count:
        raise ValueError(f"{count} devices were asked for, but there are {len(there)}: {there}")
    _devices = there[:count]


def devices() -> list[jax.Device]:
    """The local devices in use: all, or those that `use_devices` chose."""
    return jax.local_devices() if _devices is None else _devices


def data_parallel(function: Callable) -> Callable:
    """Runs ``function(replicated, share) -> replicated result`` on every local device.

    Args:
      function: written against the axis name `AXIS`; whatever it returns must be equal on all
        devices, which is what `sum_over_devices` makes of each device's share.

    Returns:
      A compiled function of a tree placed by `replicate` and of one cut by `split_batch`.
    """
    return jax.pmap(function, axis_name=AXIS, in_axes=(None, 0), out_axes=None, devices=devices())


def sum_over_devices(tree: Any) -> Any:
    """Sums each leaf over devices; only inside a function given to `data_parallel`."""
    return jax.lax.psum(tree, AXIS)


def replicate(tree: Any) -> Any:
    """Places a copy on every local device; without it the first call of a step traces twice."""
    mesh = Mesh(np.array(devices()), (AXIS,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def split_batch(batch: Any, empty: Any) -> Any:
    """Cuts a batch [B, ...] into one share a device, [D, ceil(B / D), ...].

    Args:
      batch: a tree of NumPy arrays with leading axis B.
      empty: a tree of the same structure; its scalars fill the places of missing members, chosen so
        that a filled member adds nothing to any sum.
    """
    count = len(devices())

    def split(leaf, fill):
        missing = -leaf.shape[0] % count
        padding = np.full((missing, *leaf.shape[1:]), fill, leaf.dtype)
        return np.concatenate([leaf, padding]).reshape(count, -1, *leaf.shape[1:])

    return jax.tree.map(split, batch, empty)


class StepsInFlight:
    """Bounds how many dispatched steps wait for execution.

    An unbounded queue of collectives deadlocks when there are more fake CPU devices than cores
    (jax 0.10), and it would hide how far a run has come.
    """

    def __init__(self, limit: int = 4):
        self._limit = limit
        self._pending = collections.deque()

    def add(self, result: Any) -> None:
        """Takes a step's result and waits for the one ``limit`` steps before."""
        self._pending.append(result)
        if len(self._pending) > self._limit:
            jax.block_until_ready(self._pending.popleft())
