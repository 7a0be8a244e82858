"""Chained ridge regressions (MICE; van Buuren 2007), as scikit-learn's `IterativeImputer` has them.

In turns, each column is regressed on the others, whose gaps hold the last turn's predictions, and
its own gaps are filled from the regression; the first turn starts from the columns' means. Columns
come in the order of their numbers of gaps, those without entries stay zero, and turns end early
once none changes any cell by more than a thousandth of the largest value.
"""

import functools
import warnings

import jax
import jax.numpy as jnp
import jax.scipy.linalg
import numpy as np

from metamf_jax.baselines import scikit_learn
from metamf_jax.baselines.dense import at_cells, to_dense
from metamf_jax.baselines.method import Setting
from metamf_jax.types import Array, Entries

_TURNS, _TOLERANCE = 3, 1e-3
# Of so many other columns each is regressed on, the most correlated, where precisions are learned.
_NEAREST = 20

GRID = [{"alpha": alpha} for alpha in (10.0, 100.0, 1000.0)]

_product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def predict(support: Entries, query: Entries, setting: Setting) -> jax.Array:
    """Predicts the query entries [Q] of one matrix from its support."""
    values, observed = to_dense(support)
    counts = observed.sum(axis=0)
    means = values.sum(axis=0) / jnp.maximum(counts, 1)
    start = jnp.where(observed, values, means[None])
    # Most entries first; of as many, in the columns' order.
    order = jnp.argsort(-counts, stable=True)
    tolerance = _TOLERANCE * jnp.abs(values).max()

    def turn(_, carry):
        filled, ended = carry
        new = jax.lax.fori_loop(
            0, len(order), lambda i, x: _refill(x, observed, order[i], setting["alpha"]), filled
        )
        change = jnp.abs(new - filled).sum(axis=1).max()
        return jnp.where(ended, filled, new), ended | (change < tolerance)

    filled, _ = jax.lax.fori_loop(0, _TURNS, turn, (start, jnp.asarray(False)))
    return at_cells(filled, query)


def _refill(filled: jax.Array, observed: Array, column: Array, alpha: Array) -> jax.Array:
    """The matrix [N, M] with the gaps of a column predicted from the other columns."""
    seen = jnp.asarray(observed)[:, column]
    count = jnp.maximum(seen.sum(), 1)
    # Zero in place of the column itself: its coefficient is then zero.
    others = filled.at[:, column].set(0)
    mean, target = (
        jnp.where(seen, x.T, 0).sum(axis=-1) / count for x in (others, filled[:, column])
    )
    centred = jnp.where(seen[:, None], others - mean[None], 0)
    gram = _product(centred.T, centred) + alpha * jnp.eye(len(mean))
    moment = _product(centred.T, filled[:, column] - target)
    coefficients = jax.scipy.linalg.solve(gram, moment, assume_a="pos")
    predicted = target + _product(others - mean[None], coefficients)
    gaps = ~seen & seen.any()
    return filled.at[:, column].set(jnp.where(gaps, predicted, filled[:, column]))


def predict_with_learned_precision(
    support: Entries, query: Entries, setting: Setting
) -> np.ndarray:
    """The same by scikit-learn, with its default regressions: NumPy, without padding.

    They are Bayesian ones that find their penalties by themselves, in ten turns, on the 20 nearest
    columns where there are more than twice as many.
    """
    del setting
    scikit_learn.module("experimental.enable_iterative_imputer")
    imputer = scikit_learn.module("impute").IterativeImputer(
        n_nearest_features=_NEAREST if support.shape[1] > 2 * _NEAREST else None,
        keep_empty_features=True,
        random_state=0,
    )
    with warnings.catch_warnings():
        # It warns that so few turns did not converge.
        warnings.simplefilter("ignore", scikit_learn.module("exceptions").ConvergenceWarning)
        return scikit_learn.impute(imputer, support, query)
