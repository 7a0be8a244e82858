"""Meta-training in little, as a program that several processes run."""

import sys

import jax.numpy as jnp
import numpy as np

from metamf_jax import parallel, processes
from metamf_jax.meta_learning import training
from metamf_jax.meta_learning.episodes import EpisodeConfig, EpisodeSource
from metamf_jax.runs.checkpoint import Checkpointer, save_params
from metamf_jax.types import Entries


def _loss(params, episode):
    """Of a sum of row and column effects, which compiles in no time."""
    cells = episode.query
    there = cells.rows < cells.shape[0]
    effects = (
        x.at[ids].get(mode="fill", fill_value=0)
        for x, ids in zip(params, (cells.rows, cells.columns), strict=True)
    )
    errors = jnp.where(there, (cells.values - sum(effects)) ** 2, 0)
    count = there.sum()
    return errors.sum() / jnp.maximum(count, 1), jnp.where(count > 0, 1.0, 0.0)


def meta_train(workdir, steps):
    """Goes on from a checkpoint there is, and leaves ``model.safetensors``."""
    rng = np.random.default_rng(0)
    rows, columns = np.nonzero(rng.random((30, 30)) < 0.5)
    values = rng.normal(size=len(rows)).astype("f")
    world = Entries(rows.astype("i"), columns.astype("i"), values, (30, 30))
    source = EpisodeSource(world, EpisodeConfig((8, 8), (8, 8), minimum_cells=5), 0)
    params = jnp.zeros(8), jnp.zeros(8)
    # A batch that the devices cannot share out evenly.
    config = training.TrainingConfig(batch=6, max_steps=steps, evaluate_every=2)
    state = training.init_state(params, training.make_optimizer(config))
    checkpointer = Checkpointer(workdir)
    state = checkpointer.restore(state) or state
    state = training.meta_train(
        _loss,
        state,
        lambda step: source.draw_batch(step, config.batch),
        source.draw_batch(10**6, 3),
        config,
        lambda state, metrics: checkpointer.save(int(state.step), state),
    )
    if processes.is_first():
        save_params(f"{workdir}/model.safetensors", state, {"devices": len(parallel.devices())})


if __name__ == "__main__":
    processes.initialize()
    meta_train(sys.argv[1], int(sys.argv[2]))
