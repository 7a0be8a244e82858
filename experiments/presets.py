"""The named sizes of meta-training."""

from metamf_jax.meta_learning.encoder import EncoderConfig
from metamf_jax.meta_learning.episodes import EpisodeConfig
from metamf_jax.meta_learning.map_estimation import MapConfig
from metamf_jax.meta_learning.meta_loss import ModelConfig
from metamf_jax.meta_learning.training import TrainingConfig

_PAPER = {
    "model": ModelConfig(EncoderConfig(channels=32, layers=3, rank=32), MapConfig(steps=10)),
    "episodes": EpisodeConfig(),
    "training": TrainingConfig(),
    "scored_matrices": 200,
}

TRAIN = {
    "smoke": {
        "model": ModelConfig(EncoderConfig(channels=4, layers=2, rank=4), MapConfig(steps=3)),
        "episodes": EpisodeConfig(rows=(12, 12), columns=(12, 12), minimum_cells=5),
        "training": TrainingConfig(batch=4, max_steps=20, evaluate_every=5),
        "scored_matrices": 10,
    },
    "tiny": {
        **_PAPER,
        "training": TrainingConfig(max_steps=1000, evaluate_every=100),
    },
    "paper": _PAPER,
    "best": _PAPER,
}
