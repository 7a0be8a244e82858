"""A plan of moves, followed by hand, brings every column block where the schedule wants it."""

import numpy as np
import pytest

from metamf_jax.factorization import strata
from metamf_jax.factorization.travel import plan_travel

P = 8


@pytest.mark.parametrize("name", strata.SCHEDULES)
@pytest.mark.parametrize("num_devices", [1, 2, 4, 8])
def test_travel_brings_every_block_where_it_is_wanted(num_devices, name):
    rng = np.random.default_rng(0)
    held = rng.permutation(P)
    schedule = strata.make_schedule(name, P, rng)
    travel = plan_travel(schedule, held, num_devices)
    per_device = P // num_devices
    for s in range(P):
        new = held.copy()
        for hop in range(1, num_devices):
            for j in range(travel.rounds[s, hop - 1]):
                for here in range(num_devices):
                    there = (here + hop) % num_devices
                    to = travel.receive[there, s, hop - 1, j]
                    if to < per_device:
                        leaving = travel.send[here, s, hop - 1, j]
                        new[there * per_device + to] = held[here * per_device + leaving]
        held = new
        np.testing.assert_array_equal(held, travel.held[:, s])
        home = np.arange(P) // per_device * per_device
        np.testing.assert_array_equal(held[home + travel.slots[:, s]], schedule[s])
    if name == "seq" and num_devices > 1:
        assert (travel.rounds[1:, 1:-1] == 0).all()
