"""The table of baselines without meta-training; tuning on validation matrices, and scoring."""

import functools
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metamf_jax.baselines import bias, mean, mf
from metamf_jax.meta_learning.meta_loss import Episode

BASELINES: dict[str, ModuleType] = {"mean": mean, "bias": bias, "mf": mf}


def episode_errors(name: str, setting: dict[str, Any], episodes: Episode) -> np.ndarray:
    """Mean squared error over each episode's query cells; [B]."""
    return np.asarray(_errors(name, setting, episodes))


@functools.partial(jax.jit, static_argnums=0)
def _errors(name, setting, episodes):
    def one(episode):
        query = episode.query
        inside = query.rows < query.shape[0]
        predicted = BASELINES[name].predict(episode.support, query, setting)
        return (jnp.where(inside, query.values - predicted, 0) ** 2).sum() / jnp.maximum(
            inside.sum(), 1
        )

    return jax.lax.map(one, episodes, batch_size=50)


def tune(name: str, validation: Episode) -> dict[str, Any]:
    """The setting of the baseline's grid with the least error on validation episodes.

    Args:
      name: one of `BASELINES`.
      validation: a batch of episodes.

    Raises:
      ValueError: no such baseline.
    """
    if name not in BASELINES:
        raise ValueError(f"unknown baseline {name!r}; there are {sorted(BASELINES)}")
    grid = BASELINES[name].GRID
    if len(grid) == 1:
        return grid[0]
    errors = [episode_errors(name, point, validation).mean(dtype=np.float64) for point in grid]
    return grid[int(np.argmin(errors))]
