"""What the fit of each loss is told by, on any entries: measures in the loss's own terms.

=============  =======================================================================
`squared`      ``rmse``
`absolute`     ``mae``, ``rmse``
`logistic`     ``log_loss``, ``accuracy``, ``auc``
`gkl`          ``divergence``, ``recall_at_10``, ``ndcg_at_10``
`squared_all`  ``recall_at_10``, ``ndcg_at_10``: its values are no predictions of a cell
=============  =======================================================================

The rankings (`metrics.ranking`) are of held-out entries above zero, among the columns in which the
row has no training entry.
"""

import math
from collections.abc import Callable
from typing import Final

import jax
import numpy as np

from metamf_jax import metrics, sums
from metamf_jax.factorization.losses import GKL_FLOOR
from metamf_jax.types import Entries, Factors

_OF_VALUES: Final[dict[str, dict[str, Callable[[np.ndarray, np.ndarray], float]]]] = {
    "squared": {"rmse": metrics.root_mean_square_error},
    "absolute": {
        "mae": metrics.mean_absolute_error,
        "rmse": metrics.root_mean_square_error,
    },
    "logistic": {
        "log_loss": metrics.log_loss,
        "accuracy": metrics.accuracy,
        "auc": metrics.auc,
    },
    "gkl": {
        "divergence": lambda values, fitted: metrics.kullback_leibler(values, fitted, GKL_FLOOR)
    },
    "squared_all": {},
}

_RANKED: Final = ("squared_all", "gkl")
_PLACES: Final = 10

# Larger is better.
_GAINS: Final = (f"recall_at_{_PLACES}", f"ndcg_at_{_PLACES}", "accuracy", "auc")

_predict = jax.jit(sums.predict)


def decisive(loss: str) -> str:
    """The measure by which runs of a loss are compared."""
    return f"ndcg_at_{_PLACES}" if loss in _RANKED else next(iter(_OF_VALUES[loss]))


def best(name: str, values: list[float]) -> float | None:
    """The best of a measure's values, None of none."""
    if not values:
        return None
    return max(values) if name in _GAINS else min(values)


def error(loss: str, measured: dict[str, float]) -> float:
    """What is to be small: the decisive measure, or less it where larger is better."""
    name = decisive(loss)
    return -measured[name] if name in _GAINS else measured[name]


def of_entries(
    loss: str, factors: Factors, entries: Entries, known: Entries | None = None
) -> dict[str, float]:
    """The loss's measures by name; none of no entries.

    Args:
      loss: a name in `losses.LOSSES`.
      factors: of the matrix as it is, its mean included.
      entries: to be measured on; not those of the training where they are ranked.
      known: the training's entries, which a ranking leaves out; None for no ranking.
    """
    if len(entries.values) == 0:
        return {}
    values = np.asarray(entries.values)
    fitted = np.asarray(_predict(factors, entries.rows, entries.columns))
    measured = {name: measure(values, fitted) for name, measure in _OF_VALUES[loss].items()}
    if loss in _RANKED and known is not None:
        measured.update(_ranking(factors, entries, known))
    return {name: value for name, value in measured.items() if not math.isnan(value)}


def _ranking(factors: Factors, entries: Entries, known: Entries) -> dict[str, float]:
    u, v = np.asarray(factors.u), np.asarray(factors.v)
    liked = np.asarray(entries.values) > 0
    wanted = np.asarray(entries.rows)[liked], np.asarray(entries.columns)[liked]
    left_out = np.asarray(known.rows), np.asarray(known.columns)
    recall, ndcg = metrics.ranking(lambda rows: u[rows] @ v.T, wanted, left_out, _PLACES)
    return {f"recall_at_{_PLACES}": recall, f"ndcg_at_{_PLACES}": ndcg}
