"""What a method of the comparison is: pure functions of one matrix, and settings to choose from."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from metamf_jax import sums
from metamf_jax.meta_learning.meta_loss import Episode, ModelConfig
from metamf_jax.types import Array, Entries

Setting: TypeAlias = dict[str, Any]


class Method(NamedTuple):
    """A method of the literature, or a variant of ours.

    Attributes:
      predict: ``predict(params, support, query, setting)``, the query entries [Q] of one matrix.
      grid: the settings among which validation matrices choose; meta-training knows none.
      init: ``init(key) -> params``, what is meta-trained; None where each matrix stands alone.
      trained_as: the name of the method whose meta-trained parameters it takes; None for its own.
      parts: the names of methods whose parameters it takes, by name, in place of its own.
      axes: where the grid is too large to go through: the values of each name of a setting, in a
        sensible order of names; the grid is then their middle alone. Validation improves one name
        after the other.
      learn: ``learn(matrices) -> params`` from a batch of meta-training matrices, where that is not
        by gradients; ``init`` gives parameters of the same shapes.
      on_host: whether ``predict`` works on NumPy arrays, without padding, and is not traced.
    """

    predict: Callable[[Any, Entries, Entries, Setting], Array]
    grid: tuple[Setting, ...] = ({},)
    init: Callable[[jax.Array], Any] | None = None
    trained_as: str | None = None
    parts: tuple[str, ...] = ()
    axes: Mapping[str, tuple] = MappingProxyType({})
    learn: Callable[[Episode], Any] | None = None
    on_host: bool = False


# The sizes of the meta-learned methods come from the configuration of ours.
MethodOf: TypeAlias = Callable[[ModelConfig], Method]


def alone(module: ModuleType, on_host: bool = False) -> MethodOf:
    """The method of a module: ``predict(support, query, setting)``, ``GRID``, maybe ``AXES``."""
    predict = module.predict
    method = Method(
        lambda params, support, query, setting: predict(support, query, setting),
        tuple(module.GRID),
        axes=getattr(module, "AXES", MappingProxyType({})),
        on_host=on_host,
    )
    return lambda config: method


@functools.cache
def episode_loss(predict: Callable) -> Callable[[Any, Episode], tuple[jax.Array, jax.Array]]:
    """What a method that predicts so is meta-trained with: (mean squared error of the query, 1).

    The same function for the same argument, so that it is compiled once.
    """

    def loss(params, episode):
        support, query = episode
        return squared_error(predict(params, support, query, {}), query)

    return loss


def squared_error(predicted: Array, query: Entries) -> tuple[jax.Array, jax.Array]:
    """Mean squared error of predictions [Q] and 1, or (0, 0) where the query has no entry."""
    inside = query.rows < query.shape[0]
    asked = jnp.where(inside, predicted, 0)
    squares = ((sums.observed_values(query) - asked) ** 2).sum()
    count = inside.sum()
    return squares / jnp.maximum(count, 1), (count > 0).astype(squares.dtype)
