"""The only file that knows of devices: data parallelism, replication, and steps in flight."""

import collections
import contextlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from metamf_jax.types import Array

AXIS = "devices"

# How `sharded` places an array: its leading axis over the devices, or all of it on each.
SPLIT = PartitionSpec(AXIS)
REPLICATED = PartitionSpec()

# Those that `use_devices` chose. (To a type checker `jax.Device` is a variable, no type.)
_devices = None


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


def devices():
    """The list of the local devices in use: all, or those that `use_devices` chose."""
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


def make_mesh(num_devices: int | None = None) -> Mesh:
    """A line of devices.

    Args:
      num_devices: how many; None for all.

    Raises:
      ValueError: there are not as many.
    """
    there = devices()
    if num_devices is None:
        num_devices = len(there)
    if not 1 <= num_devices <= len(there):
        raise ValueError(
            f"expected a number of devices from 1 to the {len(there)} there are, got {num_devices};"
            " on a CPU `use_devices` makes more"
        )
    return Mesh(np.array(there[:num_devices]), (AXIS,))


def split(mesh: Mesh, tree: Any) -> Any:
    """Puts arrays onto the mesh, the leading axis split over the devices."""
    return jax.device_put(tree, NamedSharding(mesh, SPLIT))


def sharded(
    mesh: Mesh,
    function: Callable,
    in_specs: Any,
    out_specs: Any,
    check_varying: bool = True,
) -> Callable:
    """Runs the function on every device's share, compiled once per shape.

    Each call waits for the result. Without that, a queue of programs with collectives starves:
    on two cores and jax 0.10, loops over 2 and more fake devices hung.

    Args:
      mesh: the devices.
      function: sees the local share of every array; may use collectives over `AXIS`.
      in_specs: `SPLIT` or `REPLICATED` for each argument.
      out_specs: likewise for what it returns.
      check_varying: whether JAX follows which arrays differ between devices.
    """
    program = jax.jit(
        jax.shard_map(
            function,
            mesh=mesh,
            in_specs=in_specs,
            out_specs=out_specs,
            check_vma=check_varying,
        )
    )

    def call(*arguments):
        return jax.block_until_ready(program(*arguments))

    call.__wrapped__ = program
    return call


def as_varying(tree: Any) -> Any:
    """Inside `sharded`: declares that arrays differ from device to device.

    The results of a foreign function come without that mark.
    """

    def mark(x):
        return (
            x
            if AXIS in jax.typeof(x).manual_axis_type.varying
            else jax.lax.pcast(x, AXIS, to="varying")
        )

    return jax.tree.map(mark, tree)


def gather(x: Array) -> jax.Array:
    """Inside `sharded`: every device's `x`, one after the other along the leading axis."""
    return jax.lax.all_gather(x, AXIS, axis=0, tiled=True)


def device_index() -> jax.Array:
    """Inside `sharded`: the number of this device in the mesh."""
    return jax.lax.axis_index(AXIS)


def exchange(blocks: Any, rounds: Array, send: Array, receive: Array, num_devices: int) -> Any:
    """Inside `sharded`: sends blocks to other devices, as a plan in integers says.

    The plan is data, so that another one compiles nothing. All blocks are read before any is
    overwritten.

    Args:
      blocks: arrays whose leading axis are this device's ``B`` slots.
      rounds: [D - 1] int32, the same on every device: how many blocks move on by 1 .. D - 1
        devices, the largest number over the devices.
      send: [D - 1, B] int32: ``send[h - 1, j]`` is the slot whose block leaves in round j.
      receive: [D - 1, B] int32: the slot where the block that arrives then goes, or B for none.
      num_devices: D.

    Returns:
      The blocks after the exchange.
    """
    arrived = blocks
    for hop in range(1, num_devices):
        pairs = [(d, (d + hop) % num_devices) for d in range(num_devices)]

        def one_round(j, arrived, hop=hop, pairs=pairs):
            def move(old, new):
                leaving = jax.lax.dynamic_index_in_dim(old, send[hop - 1, j], keepdims=False)
                arriving = jax.lax.ppermute(leaving, AXIS, pairs)
                return new.at[receive[hop - 1, j]].set(arriving, mode="drop")

            return jax.tree.map(move, blocks, arrived)

        arrived = jax.lax.fori_loop(0, rounds[hop - 1], one_round, arrived)
    return arrived
