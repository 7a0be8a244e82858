"""Removes cells of a complete table in seven ways, of which at most the first three are at random.

    mcar        by chance alone
    mar         by a third of the columns, which stay observed; each other column by its own mixture
    mar_blocks  runs of neighbouring columns together, by one column, which stays observed
    self_high   by the cell's own value, the larger the likelier
    self_low    the smaller the likelier
    self_mixed  the one or the other, each column as a coin falls
    tails       the farther from the column's mean the likelier

In all of them the chance that a cell is missing is logistic in a score that is linear in values
standardised by columns, or in their size (Rubin, Biometrika 1976, has the distinction; Muzellec et
al., ICML 2020, such models). The logistic noise is drawn and the cells with the largest sums go, so
that as many go as are asked for.
"""

from collections.abc import Callable

import numpy as np

# Of the scores, a deviation of the value that they depend on.
_SLOPE_OF_OTHERS, _SLOPE_OF_ITSELF = 1.5, 2.0
_FEWEST_OF_ROW, _FEWEST_OF_COLUMN = 1, 5


def missing_cells(values: np.ndarray, kind: str, share: float, seed: int) -> np.ndarray:
    """Draws which cells are missing.

    Args:
      values: [N, M], without gaps; categories as numbers.
      kind: one of `KINDS`.
      share: of the cells of columns that may go missing, between 0 and 1.
      seed: of the draw.

    Returns:
      Which are missing, bool [N, M]; at least a cell of each row and five of each column are not.

    Raises:
      ValueError: an unknown kind, a share that is none, or a value that is not finite.
    """
    if kind not in KINDS:
        raise ValueError(f"expected a kind among {', '.join(KINDS)}, got {kind!r}")
    if not 0 < share < 1:
        raise ValueError(f"expected a share between 0 and 1, got {share}")
    if not np.isfinite(values).all():
        raise ValueError("expected a table without gaps and infinite numbers")
    rng = np.random.default_rng([seed, list(KINDS).index(kind)])
    deviations = values.std(axis=0)
    standard = (values - values.mean(axis=0)) / np.where(deviations > 0, deviations, 1)
    sums = KINDS[kind](rng, standard)
    missing = sums > np.quantile(sums[np.isfinite(sums)], 1 - share)
    _keep(rng, missing, _FEWEST_OF_ROW)
    _keep(rng, missing.T, _FEWEST_OF_COLUMN)
    return missing


# Of each cell its score and noise [N, M], from standardised values; -inf where it stays observed.
Sums = Callable[[np.random.Generator, np.ndarray], np.ndarray]


def _mcar(rng: np.random.Generator, standard: np.ndarray) -> np.ndarray:
    return rng.logistic(size=standard.shape)


def _mar(rng: np.random.Generator, standard: np.ndarray) -> np.ndarray:
    columns = standard.shape[1]
    causes = rng.permutation(columns)[: max(1, columns // 3)]
    mixtures = rng.normal(size=(len(causes), columns)) / np.sqrt(len(causes))
    score = _SLOPE_OF_OTHERS * standard[:, causes] @ mixtures
    sums = score + rng.logistic(size=standard.shape)
    sums[:, causes] = -np.inf
    return sums


def _mar_blocks(rng: np.random.Generator, standard: np.ndarray) -> np.ndarray:
    rows, columns = standard.shape
    cause, count = rng.integers(columns), max(2, columns // 4)
    score = _SLOPE_OF_OTHERS * np.outer(standard[:, cause], rng.choice([-1, 1], count))
    # [N, blocks] -> [N, M]
    block_of_column = np.arange(columns) * count // columns
    sums = (score + rng.logistic(size=(rows, count)))[:, block_of_column]
    sums[:, cause] = -np.inf
    return sums


def _self(rng: np.random.Generator, standard: np.ndarray, signs: np.ndarray) -> np.ndarray:
    return _SLOPE_OF_ITSELF * signs * standard + rng.logistic(size=standard.shape)


def _self_high(rng: np.random.Generator, standard: np.ndarray) -> np.ndarray:
    return _self(rng, standard, np.array(1))


def _self_low(rng: np.random.Generator, standard: np.ndarray) -> np.ndarray:
    return _self(rng, standard, np.array(-1))


def _self_mixed(rng: np.random.Generator, standard: np.ndarray) -> np.ndarray:
    return _self(rng, standard, rng.choice([-1, 1], standard.shape[1]))


def _tails(rng: np.random.Generator, standard: np.ndarray) -> np.ndarray:
    return _self(rng, np.abs(standard), np.array(1))


KINDS: dict[str, Sums] = {
    "mcar": _mcar,
    "mar": _mar,
    "mar_blocks": _mar_blocks,
    "self_high": _self_high,
    "self_low": _self_low,
    "self_mixed": _self_mixed,
    "tails": _tails,
}


def _keep(rng: np.random.Generator, missing: np.ndarray, fewest: int) -> None:
    """Puts cells back, in place, so that each row of ``missing`` has so many observed ones."""
    size = missing.shape[1]
    for row in np.flatnonzero((~missing).sum(axis=1) < min(fewest, size)):
        missing[row, rng.choice(size, min(fewest, size), replace=False)] = False
