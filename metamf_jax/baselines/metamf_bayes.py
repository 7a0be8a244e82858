"""The weighted mean of the answers of `metamf` and of `bayes_learned`, the weight by validation."""

import functools

from metamf_jax.baselines import bayes_learned, metamf
from metamf_jax.baselines.method import Method
from metamf_jax.meta_learning.meta_loss import ModelConfig

GRID = tuple({"weight": weight} for weight in (0.0, 0.2, 0.4, 0.6))


@functools.cache
def method(config: ModelConfig) -> Method:
    """The method; ``weight`` is that of `bayes_learned`."""
    ours = metamf.method(config)

    def predict(params, support, query, setting):
        of_ours = ours.predict(params["metamf"], support, query, {})
        alone = bayes_learned.predict(params["bayes_learned"], support, query, {})
        return of_ours + setting["weight"] * (alone - of_ours)

    return Method(predict, GRID, parts=("metamf", "bayes_learned"))
