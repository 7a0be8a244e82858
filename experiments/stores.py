"""Block stores of the binaries: opened, or built where there is none."""

import os

import numpy as np

from metamf_jax import parallel, processes
from metamf_jax.data import entry_streams
from metamf_jax.factorization import block_store, visits
from metamf_jax.factorization.block_store import BlockStore
from metamf_jax.factorization.dsgd import DsgdConfig


def opened(
    folder: str,
    dataset: str,
    data_dir: str | None,
    test_fraction: float,
    work: DsgdConfig,
    width: int | None,
) -> BlockStore:
    """The store of a matrix; the first process builds it where there is none.

    Args:
      folder: of the store.
      dataset: as for `entry_streams.open_stream`.
      data_dir: likewise.
      test_fraction: part of the entries that are held out at random.
      work: blocks, devices and seed.
      width: see `block_store.build_store`.

    Raises:
      ValueError: the data cannot be read, or the folder holds something else.
    """
    made_from = {
        "dataset": dataset,
        "num_blocks": work.num_blocks,
        "width": width,
        "test_fraction": test_fraction,
        "seed": work.seed,
    }
    if processes.is_first() and not os.path.exists(folder):
        print(f"building the block store {folder}", flush=True)
        stream = entry_streams.open_stream(dataset, data_dir, work.seed)
        held_out = np.random.default_rng((work.seed, 4))
        try:
            block_store.build_store(
                folder,
                stream.chunks,
                stream.shape,
                work.num_blocks,
                width,
                visits.sides_rng(work),
                visits.block_rng(work, 0),
                made_from,
                stream.ids,
                (test_fraction, held_out),
            )
        except block_store.DuplicateCell as error:
            if stream.given_twice is None:
                raise
            raise stream.given_twice(error.row, error.column) from None
    processes.from_first(None)  # The others wait until it is there.
    own = parallel.own_share(parallel.make_mesh(work.num_devices), work.num_blocks)
    return block_store.open_store(folder, made_from, own)
