"""Chained ridge regressions, by scikit-learn's `IterativeImputer` (MICE; van Buuren 2007).

In turns, each column is regressed on the others, whose gaps hold the last turn's predictions, and
its own gaps are filled from the regression; the first turn starts from the columns' means.
"""

import warnings

import numpy as np

from metamf_jax.baselines import scikit_learn
from metamf_jax.baselines.method import Setting
from metamf_jax.types import Entries

_TURNS = 3
# Of so many other columns each is regressed on, the most correlated, where precisions are learned.
_NEAREST = 20

GRID = [{"alpha": alpha} for alpha in (10.0, 100.0, 1000.0)]


def predict(support: Entries, query: Entries, setting: Setting) -> np.ndarray:
    """Predicts the query entries [Q] of one matrix from its support; NumPy, without padding.

    With None for ``alpha`` the regressions are scikit-learn's default, Bayesian ones that find it
    by themselves, in its default of ten turns.
    """
    scikit_learn.module("experimental.enable_iterative_imputer")
    learned = setting["alpha"] is None
    ridge = None if learned else scikit_learn.module("linear_model").Ridge(alpha=setting["alpha"])
    imputer = scikit_learn.module("impute").IterativeImputer(
        ridge,
        max_iter=10 if learned else _TURNS,
        n_nearest_features=_NEAREST if learned and support.shape[1] > 2 * _NEAREST else None,
        keep_empty_features=True,
        random_state=0,
    )
    with warnings.catch_warnings():
        # It warns that so few turns did not converge.
        warnings.simplefilter("ignore", scikit_learn.module("exceptions").ConvergenceWarning)
        return scikit_learn.impute(imputer, support, query)
