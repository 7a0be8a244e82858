"""Where the column blocks go, and when: a plan in integers, so that another one compiles nothing.

Row block i stays in slot ``i % B`` of device ``i // B``. A column block that is wanted on another
device goes straight there, into a slot that another block leaves.
"""

from typing import Any, Final, NamedTuple

import jax.numpy as jnp
import numpy as np

from metamf_jax import parallel
from metamf_jax.factorization.block_update import Work
from metamf_jax.parallel import REPLICATED, SPLIT
from metamf_jax.types import Array


class Travel(NamedTuple):
    """Which blocks move before each sub-epoch, and where they are then.

    Attributes:
      rounds: [S, D - 1], see `parallel.exchange`.
      send: [D, S, D - 1, B].
      receive: [D, S, D - 1, B].
      held: [P, S], the column block in each slot after the move.
      slots: [P, S], for each row block the slot on its device of the column block it meets.
    """

    rounds: Any
    send: Any
    receive: Any
    held: Any
    slots: Any

    def strata(self, which: slice) -> "Travel":
        """The moves before some of the sub-epochs, the last of which continue those before."""
        return Travel(
            self.rounds[which],
            self.send[:, which],
            self.receive[:, which],
            self.held[:, which],
            self.slots[:, which],
        )


# How `parallel.sharded` places a plan, and which of its axes counts the sub-epochs.
TRAVEL_SPECS: Final = Travel(REPLICATED, SPLIT, SPLIT, SPLIT, SPLIT)
TRAVEL_STRATA: Final = Travel(0, 1, 1, 1, 1)


def plan_travel(schedule: np.ndarray, held: np.ndarray, num_devices: int) -> Travel:
    """Plans the moves: a block moves when it is wanted on another device, straight to it.

    Args:
      schedule: [S, P] from `strata.make_schedule`.
      held: [P], where the column blocks lie at first.
      num_devices: D.
    """
    steps, num_blocks = schedule.shape
    per_device = num_blocks // num_devices
    hops = num_devices - 1
    plan = Travel(
        np.zeros((steps, hops), np.int32),
        np.zeros((num_devices, steps, hops, per_device), np.int32),
        np.full((num_devices, steps, hops, per_device), per_device, np.int32),
        np.empty((num_blocks, steps), np.int32),
        np.empty((num_blocks, steps), np.int32),
    )
    for s, wanted in enumerate(schedule):
        held = _plan_one_move(plan, s, wanted, held)
        plan.held[:, s] = held
        slot_of = np.empty(num_blocks, int)
        slot_of[held] = np.arange(num_blocks) % per_device
        plan.slots[:, s] = slot_of[wanted]
    return plan


def _plan_one_move(plan: Travel, s: int, wanted: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Writes the moves before sub-epoch s into the plan; [P], where the blocks lie after them."""
    num_devices, _, hops, per_device = plan.send.shape
    home = np.arange(len(held)) // per_device
    target = np.empty(len(held), int)
    target[wanted] = home
    leaving = np.flatnonzero(target[held] != home)
    vacant = [list(leaving[home[leaving] == d]) for d in range(num_devices)]
    sent = np.zeros((num_devices, hops), int)
    after = held.copy()
    for slot in leaving:
        block = held[slot]
        here, there = home[slot], target[block]
        to = vacant[there].pop(0)
        hop = (there - here) % num_devices - 1
        turn = sent[here, hop]
        sent[here, hop] += 1
        plan.send[here, s, hop, turn] = slot % per_device
        plan.receive[there, s, hop, turn] = to % per_device
        after[to] = block
    plan.rounds[s] = sent.max(axis=0)
    return after


class Step(NamedTuple):
    """One sub-epoch as one device sees it; with a leading axis S, all of them.

    Attributes:
      rounds: [D - 1], see `parallel.exchange`.
      send: [D - 1, B].
      receive: [D - 1, B].
      held: [B], the column block in each of the device's slots after the move.
      work: which entries to visit then.
    """

    rounds: Array
    send: Array
    receive: Array
    held: Array
    work: Work


def own_steps(travel: Travel, first: Array, last: Array) -> Step:
    """Inside `parallel.sharded`: the steps of this device.

    Args:
      travel: this device's share of a plan.
      first: [B, S, Q], see `block_update.Work`.
      last: [B, S, Q].
    """
    # [B, S, ..] -> [S, B, ..]
    first, last = jnp.swapaxes(first, 0, 1), jnp.swapaxes(last, 0, 1)
    return Step(
        travel.rounds,
        travel.send[0],
        travel.receive[0],
        travel.held.T,
        Work(first, last, travel.slots.T),
    )


def move(v: Any, step: Step, num_devices: int) -> Any:
    """Inside `parallel.sharded`: this device's column blocks after the move before a step."""
    return parallel.exchange(v, step.rounds, step.send, step.receive, num_devices)
