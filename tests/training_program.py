"""Meta-training in little, as a program that several processes run."""

import sys

import jax
import numpy as np

from metamf_jax import parallel, processes
from metamf_jax.checkpoint import Checkpointer, save_params
from metamf_jax.meta_learning import meta_loss, training
from metamf_jax.meta_learning.encoder import EncoderConfig
from metamf_jax.meta_learning.episodes import EpisodeConfig, EpisodeSource
from metamf_jax.meta_learning.map_estimation import MapConfig
from metamf_jax.types import Entries


def meta_train(workdir, steps):
    """Goes on from a checkpoint there is, and leaves ``model.safetensors``."""
    rng = np.random.default_rng(0)
    rows, columns = np.nonzero(rng.random((30, 30)) < 0.5)
    values = rng.normal(size=len(rows)).astype("f")
    world = Entries(rows.astype("i"), columns.astype("i"), values, (30, 30))
    source = EpisodeSource(world, EpisodeConfig((8, 8), (8, 8), minimum_cells=5), 0)
    model = meta_loss.make_model(
        meta_loss.ModelConfig(EncoderConfig(channels=4, layers=1, rank=2), MapConfig(steps=2))
    )
    # A batch that the devices cannot share out evenly.
    config = training.TrainingConfig(batch=6, max_steps=steps, evaluate_every=2)
    state = training.init_state(model.init(jax.random.key(0)), training.make_optimizer(config))
    checkpointer = Checkpointer(workdir)
    state = checkpointer.restore(state) or state
    state = training.meta_train(
        lambda params, episode: meta_loss.episode_loss(model, params, episode),
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
