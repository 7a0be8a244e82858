"""Sharded steps: what they exchange, and that a long loop of them does not starve."""

import jax
import jax.numpy as jnp
import numpy as np

from metamf_jax import parallel
from metamf_jax.parallel import REPLICATED, SPLIT

DEVICES, SLOTS = 8, 1


def test_400_sharded_steps_in_a_row_end():
    """More devices than cores: without waiting for each call, a loop of collectives hung."""
    mesh = parallel.make_mesh(DEVICES)

    def shift(blocks, rounds, send, receive):
        return parallel.exchange(blocks, rounds, send[0], receive[0], DEVICES) + 1

    step = parallel.sharded(mesh, shift, (SPLIT, REPLICATED, SPLIT, SPLIT), SPLIT)
    rounds = np.eye(1, DEVICES - 1, dtype=np.int32)[0]  # One block to the next device.
    plan = np.zeros((DEVICES, DEVICES - 1, SLOTS), np.int32)
    blocks = parallel.split(mesh, np.arange(DEVICES, dtype=np.float32)[:, None] * jnp.ones((1, 64)))
    for _ in range(400):
        blocks = step(blocks, rounds, plan, plan)
        assert blocks.is_ready()
    expected = np.roll(np.arange(DEVICES), 400 % DEVICES) + 400
    np.testing.assert_array_equal(np.asarray(blocks)[:, 0], expected)
    assert isinstance(blocks, jax.Array)
    assert len(blocks.sharding.device_set) == DEVICES
