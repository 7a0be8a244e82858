"""The k nearest rows, by scikit-learn's `KNNImputer` (Troyanskaya et al., Bioinformatics 2001).

A missing cell is the mean of its column over the k rows nearest to its own that have it, by the
Euclidean distance over the cells that both rows have; the column's mean where no row is comparable,
and zero, the mean of standardised values, where the column is empty.
"""

import numpy as np

from metamf_jax.baselines import scikit_learn
from metamf_jax.baselines.method import Setting
from metamf_jax.types import Entries

GRID = [
    {"neighbors": neighbors, "weights": weights}
    for neighbors in (3, 10, 30)
    for weights in ("uniform", "distance")
]


def predict(support: Entries, query: Entries, setting: Setting) -> np.ndarray:
    """Predicts the query entries [Q] of one matrix from its support; NumPy, without padding."""
    imputer = scikit_learn.module("impute").KNNImputer(
        n_neighbors=setting["neighbors"], weights=setting["weights"], keep_empty_features=True
    )
    return scikit_learn.impute(imputer, support, query)
