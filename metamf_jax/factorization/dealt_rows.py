"""The rows of a matrix with their entries, dealt out to devices: listed, or in short runs.

A compiled kernel takes a row's entries however many there are. XLA takes batches of rows, all of
one shape: each row's entries are cut into runs of one length.
"""

from typing import Final, NamedTuple

import numpy as np

from metamf_jax.types import Array

# Floats of gathered factors and normal equations that one batch of rows may take.
BATCH_FLOATS: Final = 1 << 22

# Entries in a run: a row with one more entry than this takes two.
RUN: Final = 32


class DealtRows(NamedTuple):
    """The rows of a matrix with their entries, dealt out to D devices.

    Attributes:
      rows: [D, R] int32, numbers of rows; N where a device has one fewer.
      starts: [D, R + 1] int32: a device's row r has the entries ``starts[r] .. starts[r + 1] - 1``.
      columns: [D, L] int32, padded with M.
      values: [D, L], padded with zero.
    """

    rows: Array
    starts: Array
    columns: Array
    values: Array


def deal_rows(
    rows: Array, columns: Array, values: Array, shape: tuple[int, int], num_devices: int = 1
) -> DealtRows:
    """Deals the rows out, those with many entries first, so that each device has as many entries.

    Args:
      rows: [E] int; pass the columns here, and the rows below, for the other side.
      columns: [E] int.
      values: [E] float32, or of another type, which they keep.
      shape: (N, M).
      num_devices: D.
    """
    rows, columns, values = (np.asarray(x) for x in (rows, columns, values))
    counts = np.bincount(rows, minlength=shape[0])
    height = -(-shape[0] // num_devices)
    dealt = np.full(height * num_devices, shape[0])
    dealt[: shape[0]] = np.argsort(-counts, kind="stable")
    dealt = dealt.reshape(height, num_devices)
    dealt[1::2] = dealt[1::2, ::-1]  # There and back.
    dealt = dealt.T
    lengths = np.append(counts, 0)[dealt]
    starts = np.concatenate([np.zeros((num_devices, 1), int), lengths.cumsum(axis=1)], axis=1)
    longest = max(1, int(starts[:, -1].max()))
    order = np.argsort(rows, kind="stable")
    first = np.concatenate([[0], np.cumsum(counts)])[dealt]
    # Of every place in the dealt order, where its entry is in the order of rows.
    at = np.zeros((num_devices, longest), int)
    inside = np.zeros((num_devices, longest), bool)
    for d in range(num_devices):
        end = starts[d, -1]
        inside[d, :end] = True
        at[d, :end] = np.repeat(first[d] - starts[d, :-1], lengths[d]) + np.arange(end)
    at = order[at] if len(order) else at
    empty = len(order) == 0
    return DealtRows(
        dealt.astype(np.int32),
        starts.astype(np.int32),
        np.where(inside, 0 if empty else columns[at], shape[1]).astype(np.int32),
        np.where(inside, 0 if empty else values[at], 0).astype(values.dtype),
    )


class Runs(NamedTuple):
    """The entries of dealt rows in G batches of C runs, each of one row, from up to B rows.

    Attributes:
      places: [D, G, B] int32, the place of each row in ``DealtRows.rows``; R for none.
      owners: [D, G, C] int32, the row in the batch to which a run belongs; B for none.
      columns: [D, G, C, RUN] int32, padded with M.
      values: [D, G, C, RUN], padded with zero.
    """

    places: Array
    owners: Array
    columns: Array
    values: Array


def cut_into_runs(dealt: DealtRows, num_columns: int, width: int) -> Runs:
    """Cuts the entries of each device into batches of runs, all of one shape.

    Args:
      dealt: from `deal_rows`; NumPy.
      num_columns: M.
      width: K, which sizes the batches.
    """
    lengths = np.diff(dealt.starts, axis=1)
    wanted = -(-lengths // RUN)
    most = max(1, int(wanted.max()), BATCH_FLOATS // ((width + RUN) * width))
    batches = []
    for d, needs in enumerate(wanted):
        # Long rows come first: mixed, all batches have about as many rows.
        members = np.random.default_rng(0).permutation(np.flatnonzero(needs))
        batch, room = [], 0
        for r in members:
            if needs[r] > room:
                batch = []
                batches.append((d, batch))
                room = most
            batch.append(r)
            room -= needs[r]
    num_devices, height = dealt.rows.shape
    depth = max(1, max(np.bincount([d for d, _ in batches], minlength=1), default=1))
    rows = max(1, max((len(batch) for _, batch in batches), default=1))
    runs = Runs(
        np.full((num_devices, depth, rows), height, np.int32),
        np.full((num_devices, depth, most), rows, np.int32),
        np.full((num_devices, depth, most, RUN), num_columns, np.int32),
        np.zeros((num_devices, depth, most, RUN), dealt.values.dtype),
    )
    filled = [0] * num_devices
    for d, batch in batches:
        g = filled[d]
        filled[d] += 1
        runs.places[d, g, : len(batch)] = batch
        at = 0
        for i, r in enumerate(batch):
            span = slice(dealt.starts[d, r], dealt.starts[d, r + 1])
            runs.owners[d, g, at : at + wanted[d, r]] = i
            for table, listed in ((runs.columns, dealt.columns), (runs.values, dealt.values)):
                flat = table[d, g, at : at + wanted[d, r]].reshape(-1)
                flat[: lengths[d, r]] = listed[d, span]
            at += wanted[d, r]
    return runs
