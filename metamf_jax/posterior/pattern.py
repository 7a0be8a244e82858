"""Features of which entries are observed, never of their values.

With ``R`` one at observed entries, and ``D_r`` and ``D_c`` the diagonal matrices of its rows' and
columns' counts, a row has two features of its count, ``log(1 + N_n)`` and ``max(N_n, 1)^-1/2``, and
its part of the leading left singular vectors of ``D_r^-1/2 R D_c^-1/2``, each times the cube of its
singular value. The first one is left out: it is ``N_n^1/2``, a count, known beforehand. (Where
parts of the matrix have no entry in common, its value 1 is there once for each.) These are
coordinates of the row after three steps of diffusion over the graph of rows and columns, so that
what rows have in common at large outweighs what a few share, and more vectors than needed do no
harm (on held-out training entries of MovieLens-100K, 128 vectors instead of 32 cost 0.5% when
standardised each, 0.1% times the squares of their singular values).

The singular vectors come of a randomised range finder with power iterations (Halko, Martinsson,
Tropp, SIAM Review 2011, algorithms 4.4 and 5.1), and are deterministic in the seed.
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.sparse
import threadpoolctl

_OVERSAMPLING, _POWER_ITERATIONS = 10, 4
_DIFFUSION = 3

# The groups of features, see `hyperprior`.
OF_COUNT, _OF_VECTORS = 0, 1


class SideFeatures(NamedTuple):
    """Features of the rows of one side, and what those of a further row are computed with.

    Attributes:
      features: [N, F] float32, of mean square one where they are not constant.
      groups: [F] int, see `hyperprior`.
      projection: [M, F - 2], from a row's entries, each 1 / sqrt(N_n), to its singular vectors'
        features before they are centred.
      centers, scales: [F], subtracted, then divided by.
    """

    features: np.ndarray
    groups: np.ndarray
    projection: np.ndarray
    centers: np.ndarray
    scales: np.ndarray


def pattern_features(
    rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int], count: int, seed: int = 0
) -> tuple[SideFeatures, SideFeatures]:
    """Computes the features of both sides.

    Args:
      rows: [E], of the observed entries.
      columns: [E].
      shape: (N, M).
      count: singular vectors; fewer where the matrix has fewer.
      seed: of the range finder.
    """
    counts = tuple(
        np.bincount(x, minlength=size) for x, size in zip((rows, columns), shape, strict=True)
    )
    if count == 0:
        return count_features(*counts)
    pattern = scipy.sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=shape)
    row_root, column_root = (scipy.sparse.diags_array(np.maximum(n, 1) ** -0.5) for n in counts)
    normalised = scipy.sparse.csr_array(row_root @ pattern @ column_root)
    of_counts = tuple(np.sqrt(n / max(len(rows), 1)) for n in counts)
    left, singular, right = further_singular_vectors(
        normalised, of_counts[0], of_counts[1], count, seed
    )
    # A row's part of U S^3 is its row of D_r^-1/2 R times D_c^-1/2 V S^2.
    onto_rows = column_root @ right * singular ** (_DIFFUSION - 1)
    onto_columns = row_root @ left * singular ** (_DIFFUSION - 1)
    return (
        _side(counts[0], left * singular**_DIFFUSION, onto_rows),
        _side(counts[1], right * singular**_DIFFUSION, onto_columns),
    )


def count_features(
    row_counts: np.ndarray, column_counts: np.ndarray
) -> tuple[SideFeatures, SideFeatures]:
    """`pattern_features` without singular vectors, from numbers of entries [N] and [M] alone."""
    none = tuple(np.zeros((len(counts), 0)) for counts in (row_counts, column_counts))
    return _side(row_counts, none[0], none[1]), _side(column_counts, none[1], none[0])


def of_further_rows(side: SideFeatures, observed: scipy.sparse.csr_array) -> np.ndarray:
    """The features of rows that were not there when the singular vectors were computed.

    Args:
      side: of the side to which they are added.
      observed: [N', M], one at observed entries; M as it was then.

    Returns:
      [N', F] float32.
    """
    counts = np.asarray(observed.sum(axis=1)).ravel()
    root = scipy.sparse.diags_array(np.maximum(counts, 1) ** -0.5)
    raw = np.column_stack([*_of_counts(counts), root @ observed @ side.projection])
    return ((raw - side.centers) / side.scales).astype(np.float32)


def counts(side: SideFeatures) -> np.ndarray:
    """How many entries each row has, [N], to rounding; of silenced features, alike for all."""
    if not np.isfinite(side.scales[0]):
        return np.ones(len(side.features))
    return np.expm1(side.features[:, 0] * side.scales[0] + side.centers[0])


def silenced(side: SideFeatures) -> SideFeatures:
    """Features that tell nothing: all zero, those of further rows too."""
    scales = np.full_like(side.scales, np.inf)
    return side._replace(features=np.zeros_like(side.features), scales=scales)


def _side(counts, vectors, projection) -> SideFeatures:
    raw = np.column_stack([*_of_counts(counts), vectors])
    groups = np.repeat([OF_COUNT, _OF_VECTORS], [2, vectors.shape[1]])
    centers = raw.mean(axis=0)
    scales = np.sqrt(((raw - centers) ** 2).mean(axis=0))
    # One scale for all singular vectors: the first are the larger ones.
    scales[2:] = np.sqrt((scales[2:] ** 2).mean()) if vectors.shape[1] else 1
    scales[scales < 1e-9] = 1
    features = ((raw - centers) / scales).astype(np.float32)
    return SideFeatures(features, groups, projection, centers, scales)


def _of_counts(counts):
    return np.log1p(counts), np.maximum(counts, 1) ** -0.5


def further_singular_vectors(
    matrix: scipy.sparse.csr_array,
    first_left: np.ndarray,
    first_right: np.ndarray,
    count: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The leading singular vectors after the first ones, which are known, with the value 1.

    Args:
      matrix: [N, M].
      first_left: [N].
      first_right: [M].
      count: how many; fewer where the matrix has fewer.
      seed: of the range finder.

    Returns:
      ``U`` [N, count], ``s`` [count] and ``V`` [M, count], the largest first; signs are fixed.
    """
    count = min(count, min(np.shape(matrix)) - 1)
    rng = np.random.default_rng((seed, count))
    num_rows, num_columns = np.shape(matrix)
    width = min(count + _OVERSAMPLING, num_rows, num_columns)
    turned = scipy.sparse.csr_array(matrix.T)

    def times(x):
        return matrix @ x - np.outer(first_left, first_right @ x)

    def turned_times(x):
        return turned @ x - np.outer(first_right, first_left @ x)

    # On cores that others use too, BLAS's threads wait for each other: 10 times as long.
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        basis = np.linalg.qr(times(rng.standard_normal((num_columns, width))))[0]
        for _ in range(_POWER_ITERATIONS):
            basis = np.linalg.qr(turned_times(basis))[0]
            basis = np.linalg.qr(times(basis))[0]
        left, singular, right = scipy.linalg.svd(turned_times(basis).T, full_matrices=False)
    left, singular, right = basis @ left[:, :count], singular[:count], right[:count].T
    # Of the two signs that by which the largest number is positive.
    signs = np.sign(left[np.abs(left).argmax(axis=0), np.arange(left.shape[1])])
    return left * signs, singular, right * signs
