"""Scoring methods on batches of episodes, and tuning them on validation matrices."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from metamf_jax.baselines.method import Method, Setting, squared_error
from metamf_jax.meta_learning import padding
from metamf_jax.meta_learning.meta_loss import Episode


def episode_errors(
    method: Method, episodes: Episode, setting: Setting | None = None, params: Any = None
) -> np.ndarray:
    """Mean squared error over each episode's query entries; [B].

    Args:
      method: the method.
      episodes: a batch, entry lists [B, E].
      setting: one of the method's grid; its first by default.
      params: meta-trained parameters, for methods that have any.
    """
    setting = method.grid[0] if setting is None else setting
    if method.on_host:
        return _errors_on_host(method, episodes, setting)
    return np.asarray(_errors(method.predict, params, setting, episodes))


@functools.partial(jax.jit, static_argnums=0)
def _errors(predict, params, setting, episodes):
    def one(episode):
        predicted = predict(params, episode.support, episode.query, setting)
        return squared_error(predicted, episode.query)[0]

    return jax.lax.map(one, episodes, batch_size=50)


def _errors_on_host(method, episodes, setting):
    errors = []
    for support, query in zip(
        padding.unstack_entries(episodes.support),
        padding.unstack_entries(episodes.query),
        strict=True,
    ):
        predicted = method.predict(None, support, query, setting)
        errors.append(np.mean((query.values - predicted) ** 2) if len(query.rows) else 0.0)
    return np.array(errors, np.float32)


def tune(method: Method, validation: Episode, params: Any = None) -> Setting:
    """The setting of the grid, or on the axes, with the least error on validation episodes.

    Args:
      method: the method.
      validation: a batch of episodes.
      params: meta-trained parameters, for methods that have any.
    """

    def error(setting: Setting) -> float:
        return float(episode_errors(method, validation, setting, params).mean(dtype=np.float64))

    if len(method.grid) == 1 and not method.axes:
        return method.grid[0]
    errors = [error(setting) for setting in method.grid]
    best = int(np.argmin(errors))
    return _by_axes(method, error, method.grid[best], errors[best])


def _by_axes(
    method: Method, error: Callable[[Setting], float], setting: Setting, least: float
) -> Setting:
    """The best value of one name after the other, the others as they are by then."""
    for name, values in method.axes.items():
        for value in values:
            if value == setting[name]:
                continue
            other = {**setting, name: value}
            found = error(other)
            if found < least:
                setting, least = other, found
    return setting
