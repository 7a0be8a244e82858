"""Our method as one of the table, and its variants.

* ``prior_only``: no inner loop, the products of the prior means.
* ``precision_off``, ``precision_scalar``, ``precision_per_row``: what pulls towards the prior
  means: nothing, so that they are but the start of the descent (one learned number damps its steps
  still: factors near zero would else get steps without bound); one learned number; a head's answer
  for each row and column.
* ``ridge``: exact alternating ridge solves inside, instead of gradient descent.
* ``steps_T``: T inner steps.
* ``no_row_means``, ``no_column_means``: exchangeable layers without that term, as in a network that
  cannot compare a row's (a column's) entries; the heads still pool.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metamf_jax import sums
from metamf_jax.baselines.method import Method, MethodOf
from metamf_jax.meta_learning.meta_loss import ModelConfig, make_model

# Two sweeps: each costs a Cholesky factorization for every row and column, about as much as a
# hundred gradient steps.
_RIDGE_SWEEPS = 2


@functools.cache
def method(config: ModelConfig, change: Callable[[Any], Any] | None = None) -> Method:
    """Meta-learned matrix factorization; ``change`` is applied to the parameters before use."""
    model = make_model(config)

    def predict(params, support, query, setting):
        del setting
        params = params if change is None else change(params)
        factors, _ = model.adapt(params, support)
        return sums.predict(factors, query.rows, query.columns)

    return Method(predict, init=model.init)


def _replace(name: str, value: float, params: Any) -> Any:
    """The same parameters but for those of that name, which are constant."""

    def leaf(path, x):
        last = jax.tree_util.keystr(path[-1:], simple=True)
        return jnp.full_like(x, value) if last == name else x

    return jax.tree_util.tree_map_with_path(leaf, params)


def _without(name: str) -> MethodOf:
    change = functools.partial(_replace, name, 0.0)
    return lambda config: method(config, change)


def _inner(**changes) -> MethodOf:
    return lambda config: method(
        dataclasses.replace(config, inner=dataclasses.replace(config.inner, **changes))
    )


def _precision(kind) -> MethodOf:
    return lambda config: method(
        dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, precision=kind))
    )


def _precision_off(config: ModelConfig) -> Method:
    encoder = dataclasses.replace(config.encoder, precision="scalar")
    return _inner(pull=False)(dataclasses.replace(config, encoder=encoder))


VARIANTS: dict[str, MethodOf] = {
    "prior_only": _inner(steps=0),
    "precision_off": _precision_off,
    "precision_scalar": _precision("scalar"),
    "precision_per_row": _precision("per_row"),
    "ridge": _inner(step_form="ridge", steps=_RIDGE_SWEEPS),
    **{f"steps_{steps}": _inner(steps=steps) for steps in (1, 5, 20, 50)},
    "no_row_means": _without("row"),
    "no_column_means": _without("column"),
}
