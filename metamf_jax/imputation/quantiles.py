"""Quantiles of what a completed matrix says of its cells.

Where draws answer, they are those of the draws' mixture, moved to what `completion.predict` says
and as much wider as the error bars are; else those of a Gaussian with the error bars. Neither
leaves the bounds of the values.
"""

from collections.abc import Sequence

import numpy as np
import scipy.special

from metamf_jax.imputation import completion, fold_in, sampled
from metamf_jax.imputation.completion import Completion
from metamf_jax.imputation.scaling import Bounds


def of_cells(
    completed: Completion, rows: np.ndarray, columns: np.ndarray, probabilities: Sequence[float]
) -> np.ndarray:
    """Quantiles at cells ``(rows, columns)``, each [P], as of `completion.predict`.

    Args:
      completed: the matrix.
      rows, columns: numbers, from N (or M) on of unknown rows (or columns).
      probabilities: Q of them.

    Returns:
      float64 [Q, P].

    Raises:
      ValueError: a probability is not between 0 and 1, or a number is negative.
    """
    require_probabilities(probabilities)
    values, errors = completion.predict(completed, rows, columns)
    if completed.sampled is not None:
        return sampled.quantiles(completed.sampled, rows, columns, values, probabilities)
    places = completed.places.columns
    numbers = np.asarray(rows if completed.transposed else columns)
    # Beyond the known ones, padding: a column of which nothing is known.
    at = np.append(places, len(completed.bounds.low) - 1)[np.minimum(numbers, len(places))]
    bounds = Bounds(*(bound[at] for bound in completed.bounds))
    return _gaussian(values, errors, bounds, probabilities)


def of_rows(
    completed: Completion,
    values: np.ndarray,
    observed: np.ndarray,
    probabilities: Sequence[float],
    features: np.ndarray | None = None,
) -> np.ndarray:
    """Quantiles of every cell of rows [N', M], as of `fold_in.fold_in_rows`; float64 [Q, N', M].

    Raises:
      ValueError: a probability is not between 0 and 1.
    """
    require_probabilities(probabilities)
    found, errors = fold_in.fold_in_rows(completed, values, observed, features)
    if completed.sampled is not None:
        drawn = completed.sampled
        return sampled.quantiles_of_rows(drawn, values, observed, found, probabilities, features)
    bounds = fold_in.bounds_of_rows(completed, values, observed)
    return _gaussian(found, errors, bounds, probabilities)


def require_probabilities(probabilities: Sequence[float]) -> None:
    """Refuses what is no probability inside of (0, 1).

    Raises:
      ValueError: there is such a one, or none at all.
    """
    if not len(probabilities) or not all(0 < p < 1 for p in probabilities):
        listed = ", ".join(map(str, probabilities)) or "none"
        raise ValueError(f"expected quantiles between 0 and 1, such as 0.05 and 0.95, got {listed}")


def _gaussian(values, errors, bounds: Bounds, probabilities: Sequence[float]) -> np.ndarray:
    beyond = scipy.special.ndtri(np.asarray(probabilities))
    return np.stack([np.clip(values + z * errors, *bounds) for z in beyond])
