"""Random forests that say how likely the levels of a column are, kept as arrays.

Trees are grown on the cells as they are, gaps and all: a node sends rows that lack what it asks for
to the side where they fit better. What a forest says of the rows that it was grown on is said by
the trees that did not see them. scikit-learn grows them.

L. Breiman, Random forests, Machine Learning 2001.
"""

from typing import NamedTuple

import numpy as np

# Over 25 columns with levels of six tables leaves of one row were worse.
_LEAST_IN_LEAF = 3
# Drawn for a tree.
_MOST_ROWS = 8192
# Rows times trees that are answered at once: some arrays of 8 MB.
_BLOCK = 2**20


class LevelForest(NamedTuple):
    """T trees of Q nodes together.

    Attributes:
      roots: [T] int, numbers of nodes.
      features: [Q] int, what a node asks for.
      thresholds: [Q] float64; rows with at most this go left.
      gaps_left: [Q] bool, whether rows without it do.
      children: [Q, 2] int, left and right; of a leaf, itself.
      chances: [Q, L] float32, of levels.
    """

    roots: np.ndarray
    features: np.ndarray
    thresholds: np.ndarray
    gaps_left: np.ndarray
    children: np.ndarray
    chances: np.ndarray


def grow(
    rows: np.ndarray, levels: np.ndarray, num_levels: int, num_trees: int, seed: int
) -> tuple[LevelForest, np.ndarray]:
    """Grows a forest.

    Args:
      rows: [R, F], NaN where missing.
      levels: [R] int, from 0.
      num_levels: L.
      num_trees: T.
      seed: of the trees.

    Returns:
      The forest, and what trees that did not see a row say of it, [R, L]: NaN where all saw it.
    """
    from sklearn.ensemble import RandomForestClassifier

    grower = RandomForestClassifier(
        num_trees,
        min_samples_leaf=_LEAST_IN_LEAF,
        max_samples=min(len(rows), _MOST_ROWS),
        random_state=seed,
    ).fit(rows.astype(np.float32), levels)
    roots, parts, size = [], [], 0
    for tree in (each.tree_ for each in grower.estimators_):
        children = np.stack([tree.children_left, tree.children_right], axis=1)
        leaf = children[:, :1] < 0
        children = np.where(leaf, np.arange(len(leaf))[:, None], children)
        chances = np.zeros((len(leaf), num_levels), np.float32)
        of_classes = tree.value[:, 0]
        chances[:, grower.classes_] = of_classes / of_classes.sum(axis=1, keepdims=True)
        features = np.where(leaf[:, 0], 0, tree.feature)
        gaps_left = tree.missing_go_to_left.astype(bool)
        parts.append((features, tree.threshold, gaps_left, children + size, chances))
        roots.append(size)
        size += len(leaf)
    features, thresholds, gaps_left, children, chances = map(
        np.concatenate, zip(*parts, strict=True)
    )
    grown = LevelForest(
        np.array(roots, np.int32),
        features.astype(np.int32),
        thresholds,
        gaps_left,
        children.astype(np.int32),
        chances,
    )
    return grown, _unseen(grown, grower.estimators_samples_, rows)


def _unseen(forest: LevelForest, samples, rows: np.ndarray) -> np.ndarray:
    """What trees say of rows [R, F] that they were not grown on."""
    total, count = np.zeros((len(rows), forest.chances.shape[1])), np.zeros((len(rows), 1))
    for tree, sample in enumerate(samples):
        others = np.setdiff1d(np.arange(len(rows)), sample)
        leaves = _leaves(forest, rows[others], forest.roots[tree : tree + 1])
        total[others] += forest.chances[leaves[:, 0]]
        count[others] += 1
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def predict(forest: LevelForest, rows: np.ndarray) -> np.ndarray:
    """How likely each level is, [R, L], for rows [R, F]."""
    found, count = np.zeros((len(rows), forest.chances.shape[1])), len(forest.roots)
    for first in range(0, len(rows), _BLOCK // count):
        part = slice(first, first + _BLOCK // count)
        for leaves in _leaves(forest, rows[part], forest.roots).T:
            found[part] += forest.chances[leaves]
    return found / count


def _leaves(forest: LevelForest, rows: np.ndarray, roots: np.ndarray) -> np.ndarray:
    """The leaf of each row in each of some trees, [R, T]."""
    # scikit-learn compares in this precision.
    rows = rows.astype(np.float32)
    at = np.broadcast_to(roots, (len(rows), len(roots)))
    each = np.arange(len(rows))[:, None]
    while True:
        asked = rows[each, forest.features[at]]
        left = np.where(np.isnan(asked), forest.gaps_left[at], asked <= forest.thresholds[at])
        below = forest.children[at, np.where(left, 0, 1)]
        if (below == at).all():
            return at
        at = below
