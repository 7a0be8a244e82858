"""Extremely randomised trees, one forest for each column of a table, kept as arrays.

A forest's answer is the mean of its trees', a tree's the mean target of the leaf that a row falls
into. On the CPU, where Numba is installed, compiled code grows them (`kernels.trees`), else
scikit-learn; as arrays they can be saved, and read without it.

Geurts, Ernst, Wehenkel, Extremely randomized trees, Machine Learning 2006.
"""

import concurrent.futures
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from metamf_jax import sums

# Leaves of one row had errors 3% higher where cells were missing at random.
_LEAST_IN_LEAF, _FEATURES = 3, 0.7
# Columns with fewer rows have no forest.
_FEWEST_ROWS = 8


class Forest(NamedTuple):
    """T trees for each of M columns, of Q nodes together.

    Attributes:
      roots: [M, T] int, numbers of nodes.
      features: [Q] int, what a node asks for.
      thresholds: [Q] float64; rows with at most this go left.
      children: [Q, 2] int, left and right; of a leaf, itself.
      answers: [Q] float32, means of the targets.
    """

    roots: np.ndarray
    features: np.ndarray
    thresholds: np.ndarray
    children: np.ndarray
    answers: np.ndarray


def grow(
    samples: Callable[[int], tuple[np.ndarray, np.ndarray]], num_columns: int, num_trees: int
) -> Forest:
    """Grows the forests of all columns.

    Args:
      samples: of a column, the rows [R, F] and targets [R] it is grown on.
      num_columns: M.
      num_trees: T.
    """
    # A leaf, of the answer zero: the trees of columns with too few rows.
    nodes = [(np.zeros(1, int), np.zeros(1), np.zeros((1, 2), int), np.zeros(1))]
    roots, size = np.zeros((num_columns, num_trees), int), 1
    grow_one = _grow_compiled if sums.kernels_run_here() else _grow_by_library
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        grown = pool.map(lambda m: _grow_one(grow_one, *samples(m), num_trees), range(num_columns))
        for m, trees in enumerate(grown):
            for t, (features, thresholds, children, answers) in enumerate(trees):
                roots[m, t] = size
                nodes.append((features, thresholds, children + size, answers))
                size += len(features)
    features, thresholds, children, answers = map(np.concatenate, zip(*nodes, strict=True))
    return Forest(
        roots.astype(np.int32),
        features.astype(np.int32),
        thresholds,
        children.astype(np.int32),
        answers.astype(np.float32),
    )


def _grow_one(grow_one, rows: np.ndarray, targets: np.ndarray, num_trees: int) -> list[tuple]:
    """Each tree's features, thresholds, children and answers."""
    if len(rows) < _FEWEST_ROWS or not num_trees:
        return []
    return grow_one(rows, targets, num_trees)


def _grow_compiled(rows: np.ndarray, targets: np.ndarray, num_trees: int) -> list[tuple]:
    from metamf_jax.kernels import trees

    tried = max(1, int(_FEATURES * rows.shape[1]))
    return trees.grow(rows, targets, num_trees, tried, _LEAST_IN_LEAF)


def _grow_by_library(rows: np.ndarray, targets: np.ndarray, num_trees: int) -> list[tuple]:
    import sklearn
    from sklearn.tree import ExtraTreeRegressor

    # One after the other: what a forest does beside growing costs more than small trees.
    grower = ExtraTreeRegressor(
        min_samples_leaf=_LEAST_IN_LEAF,
        max_features=_FEATURES,
        random_state=np.random.RandomState(0),
    )
    rows = np.ascontiguousarray(rows, np.float32)
    targets = np.ascontiguousarray(targets[:, None], np.float64)
    trees = []
    with sklearn.config_context(skip_parameter_validation=True):
        for _ in range(num_trees):
            tree = grower.fit(rows, targets, check_input=False).tree_
            children = np.stack([tree.children_left, tree.children_right], axis=1)
            leaf = children[:, 0] < 0
            children = np.where(leaf[:, None], np.arange(len(leaf))[:, None], children)
            features = np.where(leaf, 0, tree.feature)
            trees.append((features, tree.threshold, children, tree.value[:, 0, 0]))
    return trees


def predict(forest: Forest, column: int, rows: np.ndarray) -> np.ndarray:
    """The answers [P] of a column's forest for rows [P, F]; zeros of a forest without trees."""
    if not forest.roots.shape[1]:
        return np.zeros(len(rows))
    # scikit-learn compares in this precision.
    rows = np.ascontiguousarray(rows, np.float32)
    if sums.kernels_run_here():
        from metamf_jax.kernels import trees

        return trees.predict(forest.roots[column], *forest[1:], rows)
    at = np.broadcast_to(forest.roots[column], (len(rows), forest.roots.shape[1]))
    # By places in the flat arrays: `take` of them is much faster than indices by row and column.
    first = rows.shape[1] * np.arange(len(rows))[:, None]
    while True:
        right = rows.take(first + forest.features.take(at)) > forest.thresholds.take(at)
        below = forest.children.take(2 * at + right)
        if (below == at).all():
            return forest.answers.take(at).mean(axis=1, dtype=np.float64)
        at = below
