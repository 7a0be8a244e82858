"""Everything that knows of devices: meshes, sharded programs, and blocks that travel."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from metamf_jax.types import Array

# The name of the one axis of every mesh.
DEVICE_AXIS = "device"

# Leading axis over the devices; everything on every device.
SPLIT = PartitionSpec(DEVICE_AXIS)
REPLICATED = PartitionSpec()


def make_mesh(num_devices: int | None = None) -> Mesh:
    """A line of devices.

    Args:
      num_devices: how many; None for all.

    Raises:
      ValueError: there are not as many.
    """
    devices = jax.devices()
    if num_devices is None:
        num_devices = len(devices)
    if not 1 <= num_devices <= len(devices):
        raise ValueError(
            f"expected a number of devices from 1 to the {len(devices)} there are, got"
            f" {num_devices}; on a CPU more can be made with jax_num_cpu_devices"
        )
    return Mesh(devices[:num_devices], (DEVICE_AXIS,))


def split(mesh: Mesh, tree: Any) -> Any:
    """Puts arrays onto the mesh, the leading axis split over the devices."""
    return jax.device_put(tree, NamedSharding(mesh, SPLIT))


def sharded(mesh: Mesh, function: Callable, in_specs: Any, out_specs: Any) -> Callable:
    """Runs the function on every device's share, compiled once per shape.

    Each call waits for the result. Without that, a queue of programs with collectives starves:
    on two cores and jax 0.10, loops over 2 and more fake devices hung.

    Args:
      mesh: the devices.
      function: sees the local share of every array; may use collectives over `DEVICE_AXIS`.
      in_specs: `SPLIT` or `REPLICATED` for each argument.
      out_specs: likewise for what it returns.
    """
    program = jax.jit(jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs))

    def call(*arguments):
        return jax.block_until_ready(program(*arguments))

    call.program = program
    return call


def sum_over_devices(x: Array) -> jax.Array:
    """Inside `sharded`: the sum of every device's `x`, on every device."""
    return jax.lax.psum(x, DEVICE_AXIS)


def device_index() -> jax.Array:
    """Inside `sharded`: the number of this device in the mesh."""
    return jax.lax.axis_index(DEVICE_AXIS)


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
                arriving = jax.lax.ppermute(leaving, DEVICE_AXIS, pairs)
                return new.at[receive[hop - 1, j]].set(arriving, mode="drop")

            return jax.tree.map(move, blocks, arrived)

        arrived = jax.lax.fori_loop(0, rounds[hop - 1], one_round, arrived)
    return jax.tree.map(jnp.asarray, arrived)
