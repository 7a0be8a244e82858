"""The only file that knows of devices: data parallelism, replication, and steps in flight.

Devices are those of all processes (`processes`), process by process. Where there are several, every
process calls the same functions in the same order, holds the shares of its own devices, and gets
the same results: what is computed depends on the number of devices at most, never on that of
processes.
"""

import collections
import concurrent.futures
import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from metamf_jax import processes
from metamf_jax.types import Array

AXIS = "devices"

# How `sharded` places an array: its leading axis over the devices, or all of it on each.
SPLIT = PartitionSpec(AXIS)
REPLICATED = PartitionSpec()

# Those that `use_devices` chose. (To a type checker `jax.Device` is a variable, no type.)
_devices = None


def use_devices(count: int) -> None:
    """Restricts everything here to ``count`` devices, as many of each process.

    On a CPU makes so many virtual ones.

    Raises:
      ValueError: the platform has fewer, or the processes cannot have equally many.
    """
    global _devices
    each, rest = divmod(count, processes.count())
    if rest or count < 1:
        raise ValueError(
            f"expected a number of devices that is a multiple of the {processes.count()} processes,"
            f" got {count}"
        )
    # Takes effect on the CPU alone, and only while no backend has been started.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", each)
    there = [[d for d in _all_devices() if d.process_index == p] for p in range(processes.count())]
    if min(map(len, there)) < each:
        raise ValueError(
            f"{count} devices were asked for, but there are {len(_all_devices())}: {_all_devices()}"
        )
    _devices = [d for own in there for d in own[:each]]


def use_cores() -> None:
    """On a CPU makes a device of each core that this process may run on, and uses them all.

    On other platforms, and where a backend with fewer devices was started before, nothing changes.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", cores)
    if on_cpu() and len(_all_devices()) >= cores:
        use_devices(cores)


def on_cpu() -> bool:
    """Whether the devices are a CPU's."""
    return jax.default_backend() == "cpu"


def _all_devices():
    if processes.count() == 1:
        return jax.local_devices()
    return sorted(jax.devices(), key=lambda d: (d.process_index, d.id))


def devices():
    """The list of the devices in use, process by process: all, or those of `use_devices`."""
    return _all_devices() if _devices is None else _devices


def _own(there) -> slice:
    """Where this process's devices stand in a list of devices, process by process."""
    mine = [i for i, d in enumerate(there) if d.process_index == processes.index()]
    return slice(mine[0], mine[-1] + 1) if mine else slice(0, 0)


def data_parallel(function: Callable) -> Callable:
    """Runs ``function(replicated, share) -> replicated result`` on every device.

    Args:
      function: written against the axis name `AXIS`; whatever it returns must be equal on all
        devices, which is what `sum_over_devices` makes of each device's share.

    Returns:
      A compiled function of a tree placed by `replicate` and of one cut by `split_batch`.
    """
    return jax.pmap(function, axis_name=AXIS, in_axes=(None, 0), out_axes=None, devices=devices())


def sum_over_devices(tree: Any) -> Any:
    """Sums each leaf over devices, in their order; inside `data_parallel` or `sharded`.

    The order of a plain `psum` depends on how the devices are spread over processes: with four
    devices, one process and two processes got sums that differed in their last bits. Here each
    device's share is brought to all (as a sum with zeros, which is exact), and added up there.
    """
    place, size = jax.lax.axis_index(AXIS), jax.lax.axis_size(AXIS)

    def ordered(x):
        table = jnp.zeros((size, *jnp.shape(x)), jnp.result_type(x)).at[place].set(x)
        return jax.lax.psum(table, AXIS).sum(axis=0)

    return jax.tree.map(ordered, tree)


def merge_over_devices(tree: Any) -> Any:
    """Sums leaves of which, at each place, one device alone holds anything but zero."""
    return jax.lax.psum(tree, AXIS)


def replicate(tree: Any) -> Any:
    """Places a copy on every device; without it the first call of a step traces twice."""
    return _place(Mesh(np.array(devices()), (AXIS,)), REPLICATED, tree)


def split_batch(batch: Any, empty: Any) -> Any:
    """Cuts a batch [B, ...] into one share for each of this process's devices.

    Args:
      batch: a tree of NumPy arrays with leading axis B, the same in every process.
      empty: a tree of the same structure; its scalars fill the places of missing members, chosen so
        that a filled member adds nothing to any sum.

    Returns:
      Arrays of [D, ceil(B / D), ...], D the number of devices; of them, this process's.
    """
    count = len(devices())

    def split(leaf, fill):
        missing = -leaf.shape[0] % count
        padding = np.full((missing, *leaf.shape[1:]), fill, leaf.dtype)
        shares = np.concatenate([leaf, padding]).reshape(count, -1, *leaf.shape[1:])
        return shares[_own(devices())]

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


def prefetch(draw: Callable[[int], Any], first: int, last: int) -> Iterator[Any]:
    """Yields ``draw(first) .. draw(last - 1)``, drawing one ahead in a thread."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(draw, first) if first < last else None
        for step in range(first, last):
            assert ahead is not None
            batch = ahead.result()
            ahead = pool.submit(draw, step + 1) if step + 1 < last else None
            yield batch


def make_mesh(num_devices: int | None = None) -> Mesh:
    """A line of devices.

    Args:
      num_devices: how many; None for all.

    Raises:
      ValueError: there are not as many, or this process would have none of them.
    """
    there = devices()
    if num_devices is None:
        num_devices = len(there)
    if not 1 <= num_devices <= len(there):
        raise ValueError(
            f"expected a number of devices from 1 to the {len(there)} there are, got {num_devices};"
            " on a CPU `use_devices` makes more"
        )
    if _own(there[:num_devices]) == slice(0, 0):
        raise ValueError(
            f"expected devices of every process, but process {processes.index()} has none of the"
            f" first {num_devices} of {len(there)}; take all of them"
        )
    return Mesh(np.array(there[:num_devices]), (AXIS,))


def own_share(mesh: Mesh, size: int) -> range:
    """Which part of a leading axis of `size`, split over the mesh, this process's devices hold."""
    own, each = _own(mesh.devices.flat), size // mesh.size
    return range(own.start * each, own.stop * each)


def split(mesh: Mesh, tree: Any) -> Any:
    """Puts arrays onto the mesh, the leading axis split over the devices.

    Every process gives whole arrays; for `split_own` each gives its `own_share` alone.
    """
    return _place(mesh, SPLIT, tree)


def split_own(mesh: Mesh, tree: Any) -> Any:
    """`split` of arrays of which this process has no more than its `own_share`."""
    sharding = NamedSharding(mesh, SPLIT)
    own = _own(mesh.devices.flat)
    whole = mesh.size / max(1, own.stop - own.start)

    def put(x):
        shape = (round(x.shape[0] * whole), *x.shape[1:])
        return jax.make_array_from_process_local_data(sharding, x, shape)

    return jax.tree.map(put, tree)


def _place(mesh: Mesh, spec: PartitionSpec, tree: Any) -> Any:
    """Puts arrays onto the mesh; those that span processes are there already."""
    sharding = NamedSharding(mesh, spec)
    if not _spans_processes(mesh):
        return jax.device_put(tree, sharding)

    def put(x):
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return x
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, tree)


def _spans_processes(mesh: Mesh) -> bool:
    return len({d.process_index for d in mesh.devices.flat}) > 1


def to_host(tree: Any) -> Any:
    """Whole NumPy arrays in every process, of arrays split over devices; all must call."""

    def fetch(x):
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            from jax.experimental import multihost_utils

            return np.asarray(multihost_utils.process_allgather(x, tiled=True))
        return np.asarray(x)

    return jax.tree.map(fetch, tree)


def sharded(
    mesh: Mesh, function: Callable, in_specs: Any, out_specs: Any, check_varying: bool = True
) -> Callable:
    """Runs the function on every device's share, compiled once per shape.

    Each call waits for the result. Without that, a queue of programs with collectives starves:
    on two cores and jax 0.10, loops over 2 and more fake devices hung.

    Args:
      mesh: the devices.
      function: sees the local share of every array; may use collectives over `AXIS`.
      in_specs: `SPLIT` or `REPLICATED` for each argument.
      out_specs: likewise for what it returns.
      check_varying: whether JAX checks that what is `REPLICATED` does not differ from device to
        device.
    """
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=check_varying
    )
    program = jax.jit(mapped)
    spans_processes = _spans_processes(mesh)

    def call(*arguments):
        if spans_processes:
            arguments = jax.tree.map(
                lambda spec, tree: _place(mesh, spec, tree),
                in_specs,
                arguments,
                is_leaf=lambda x: isinstance(x, PartitionSpec),
            )
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


def deal_out(x: Array) -> jax.Array:
    """Inside `sharded`: brings each device its part of the rows of all devices' slots.

    Args:
      x: [B, R, ...], this device's B slots.

    Returns:
      [D B, ceil(R / D), ...]: the slots of all D devices, in their order, of each the rows that are
      this device's part, with zeros beyond the R-th. `gather` of ``[ceil(R / D), ...]`` puts the
      parts together again.
    """
    size = jax.lax.axis_size(AXIS)
    slots, rows, *rest = x.shape
    part = -(-rows // size)
    x = jnp.pad(x, [(0, 0), (0, part * size - rows), *((0, 0) for _ in rest)])
    return jax.lax.all_to_all(x.reshape(slots, size, part, *rest), AXIS, 1, 0, tiled=True)[:, 0]


def device_index() -> jax.Array:
    """Inside `sharded`: the number of this device in the mesh."""
    return jax.lax.axis_index(AXIS)


def exchange(blocks: Any, rounds: Array, send: Array, receive: Array, num_devices: int) -> Any:
    """Inside `sharded`: sends blocks to other devices, as a plan in integers says.

    The plan is data, so that another one compiles nothing. All blocks are read before any is
    overwritten.

    Args:
      blocks: arrays of one type whose leading axis are this device's ``B`` slots.
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
            leaving = jax.tree.map(
                lambda old: jax.lax.dynamic_index_in_dim(old, send[hop - 1, j], keepdims=False),
                blocks,
            )
            # As one message: devices wait for each other at each.
            flat, apart = jax.flatten_util.ravel_pytree(leaving)
            arriving = apart(jax.lax.ppermute(flat, AXIS, pairs))
            return jax.tree.map(
                lambda new, block: new.at[receive[hop - 1, j]].set(block, mode="drop"),
                arrived,
                arriving,
            )

        arrived = jax.lax.fori_loop(0, rounds[hop - 1], one_round, arrived)
    return arrived
