"""Chained random forests for tables with categories: another imputer, to compare with.

Each column with gaps in turn is predicted from all others, completed as they stand, numbers by
regression, categories by classification; after the last turn the share of each level in the leaves
is its chance. D. Stekhoven and P. Buehlmann, MissForest, Bioinformatics 2012.
"""

from collections.abc import Sequence

import numpy as np

from metamf_jax.baselines import scikit_learn

_TURNS, _TREES = 4, 50
# Of classifiers, whose shares of one row say zero or one.
_LEAST_IN_LEAF = 5


def complete(values: np.ndarray, levels: Sequence[int]) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Completes a table.

    Args:
      values: [N, M], numbers, and levels from 0; NaN where missing.
      levels: [M], how many a column has; 0 of numbers.

    Returns:
      The completed table, and by the number of each category its levels' chances [N, L].
    """
    ensemble, missing = scikit_learn.module("ensemble"), np.isnan(values)
    completed, chances = values.copy(), {}
    for m, count in enumerate(levels):
        known = values[~missing[:, m], m]
        if count:
            shares = np.bincount(known.astype(int), minlength=count) / len(known)
            chances[m] = np.tile(shares, (len(values), 1))
        completed[missing[:, m], m] = shares.argmax() if count else known.mean()
    order = [m for m in np.argsort(missing.sum(axis=0)) if missing[:, m].any()]
    for _ in range(_TURNS):
        for m in order:
            gaps = missing[:, m]
            others = _design(completed, levels, int(m))
            if not levels[m]:
                forest = ensemble.RandomForestRegressor(_TREES, max_features="sqrt", random_state=0)
                forest.fit(others[~gaps], values[~gaps, m])
                completed[gaps, m] = forest.predict(others[gaps])
                continue
            forest = ensemble.RandomForestClassifier(
                _TREES, min_samples_leaf=_LEAST_IN_LEAF, random_state=0
            ).fit(others[~gaps], values[~gaps, m].astype(int))
            told = np.zeros((gaps.sum(), levels[m]))
            told[:, forest.classes_] = forest.predict_proba(others[gaps])
            chances[int(m)][gaps] = told
            completed[gaps, m] = told.argmax(axis=1)
    return completed, chances


def _design(completed: np.ndarray, levels: Sequence[int], left_out: int) -> np.ndarray:
    """All columns [N, F] but one, of categories a column of zeros and ones for each level."""
    parts = []
    for m, count in enumerate(levels):
        if m != left_out:
            cells = completed[:, m, None]
            parts.append(cells == np.arange(count) if count else cells)
    return np.hstack(parts)
