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

GRID = [{"alpha": alpha} for alpha in (10.0, 100.0, 1000.0)]


def predict(support: Entries, query: Entries, setting: Setting) -> np.ndarray:
    """Predicts the query cells [Q] of one matrix from its support; NumPy, without padding."""
    scikit_learn.module("experimental.enable_iterative_imputer")
    imputer = scikit_learn.module("impute").IterativeImputer(
        scikit_learn.module("linear_model").Ridge(alpha=setting["alpha"]),
        max_iter=_TURNS,
        keep_empty_features=True,
        random_state=0,
    )
    with warnings.catch_warnings():
        # It warns that so few turns did not converge.
        warnings.simplefilter("ignore", scikit_learn.module("exceptions").ConvergenceWarning)
        return scikit_learn.impute(imputer, support, query)
