"""A matrix completed by draws of its posterior, and what these say of its cells.

The draws are those of `metamf_jax.posterior`: of factors, effects, their hyperparameters and the
noise, by Gibbs sampling, with features of which cells are observed. A cell's value is the mean over
draws of what each makes of it, clipped to the range of the observed values; its error is the spread
of the draws and their noise. One row and one column without cells are drawn with the others, from
the prior. What answers for rows without cells, of the matrix or unknown to it, are draws of their
factors given what the user's tables tell of them, if anything, about those of a row of usual cells.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse
import scipy.special

from metamf_jax.imputation import row_index, scaling
from metamf_jax.imputation.places import Places, find_places, set_aside
from metamf_jax.imputation.row_index import RowIndex
from metamf_jax.imputation.scaling import Bounds, Scaling
from metamf_jax.posterior import chains, fold_in, gibbs, learned_hyperprior, pattern, predictive
from metamf_jax.posterior.chains import ChainsConfig, Draws
from metamf_jax.posterior.draws_file import size_in_bytes
from metamf_jax.posterior.fit import joined, num_pattern_vectors
from metamf_jax.posterior.gibbs import Data, GibbsConfig, Side, State
from metamf_jax.posterior.given import GivenFeatures, none_given
from metamf_jax.posterior.hyperprior import Hyperprior
from metamf_jax.posterior.learned_hyperprior import LearnedHyperprior
from metamf_jax.posterior.pattern import SideFeatures
from metamf_jax.posterior.predictive import Scale
from metamf_jax.types import Entries

# Of the draws that answer, and of those that are compared on held-out cells.
LENGTHS = ChainsConfig(num_chains=2, burn_in=30, num_draws=100)
SHORT_LENGTHS = ChainsConfig(num_chains=2, burn_in=20, num_draws=50)
# Of those of a matrix that has grown.
FURTHER_LENGTHS = ChainsConfig(num_chains=2, burn_in=10, num_draws=100)
# With so many cells, and no larger a share of all, but so many a row and column, any matrix of one
# unit is answered by draws. Those of 30 x 30 with some 200 cells were answered better in one rating
# set, worse in another.
_FEWEST, _MOST_OBSERVED, _FEWEST_A_ROW = 1000, 0.5, 3.5
# What the learned hyperprior is for. It was learned from matrices of 100 to 9,000 cells, and serves
# fewer as well: on twenty cuts each of MovieLens-100K, -1M, latest-small and FilmTrust it lowered
# the squared error of draws by 6% at 30 x 30, 4% at 60 x 60, 3% at 100 x 100, 2% at 150 x 150, and
# 5% where 15 to 80 cells of 30 x 30 were shown; of the whole imputer by 0.6% to 2.1%
# (`experiments.benchmarks.imputer --ablation`; more in RESULTS). Fewer than ten are not checked.
_FEWEST_RATINGS, _MOST_RATINGS = 10, 10_000
# And of ratings candidates leave so much of the variance untold: the hyperprior expects a noise of
# 0.32, and of less than 0.16 with a chance of one in a thousand. Images and plates are told better.
_LEAST_UNTOLD = 0.35
# Of few levels are ratings, of more they may be.
_MOST_LEVELS = 20
# Log odds of draws' share in the answer, beside the candidates: at 500 cells, and by how much they
# grow when cells are e times as many; by `experiments.learn_share --preset=best` before columns'
# means of few cells were shrunken. Since then it finds 1.68 and -0.42: little is known of it.
_SHARE_BY_CELLS = 1.12, 0.12
_LEARNED = pathlib.Path(__file__).parent / "weights" / "ratings.json"
# Where features are given fewer cells will do: nothing else knows them, and the held-out check sees
# what draws are worth.
FEWEST_WITH_FEATURES = 100
# Of all draws.
_MOST_BYTES = 10**9
# With a million cells a sweep of two chains takes some 0.15 s on two cores; more were not tried.
MOST_CELLS = 3_000_000
# On cuts of 100 x 100 and 200 x 200 of two rating sets a rank of an eighth of the shorter side was
# best, of a quarter 0.4% worse.
_RANK_SHARE, _MOST_RANK = 8, 32
_FEWEST_VECTORS = 16
# Cells answered at once: some 10 MB.
_BLOCK = 2**20


class Factors(NamedTuple):
    """What S draws hold of the rows of one side.

    Attributes:
      numbers: [S, N, K + 1], factors with the effect last.
      shares: [S, N], of the noise's precision.
    """

    numbers: np.ndarray
    shares: np.ndarray

    def at(self, places: np.ndarray | slice) -> "Factors":
        """Of some of the rows."""
        return Factors(self.numbers[:, places], self.shares[:, places])


class Sampled(NamedTuple):
    """A matrix completed by draws.

    Attributes:
      shape: (N, M).
      places: where each row and column stands among the drawn ones; those without cells of which
        given features tell stand after the place of other rows without cells.
      scaling: of the drawn columns.
      bounds: of their values, standardised.
      config: of the sampler.
      features: of the drawn rows and columns.
      draws: S of them.
      fitted_rows: the rows by their cells.
      inflation: by what error bars are multiplied.
      one_unit: whether all cells are standardised alike.
      given: features of all rows and columns, which the draws have; None without.
    """

    shape: tuple[int, int]
    places: Places
    scaling: Scaling
    bounds: Bounds
    config: GibbsConfig
    features: tuple[SideFeatures, SideFeatures]
    draws: Draws
    fitted_rows: RowIndex
    inflation: float
    one_unit: bool
    given: tuple[GivenFeatures, GivenFeatures] | None = None

    @property
    def knows_pattern(self) -> bool:
        """Whether features of which cells are observed are known."""
        return bool(np.isfinite(self.features[0].scales).any())

    @property
    def rows(self) -> Factors:
        """The drawn rows, then those without cells: the usual one, and what tables tell of."""
        return Factors(self.draws.rows, self.draws.row_shares)

    @property
    def columns(self) -> Factors:
        """The drawn columns, likewise."""
        return Factors(self.draws.columns, self.draws.column_shares)

    @property
    def told_alone(self) -> tuple[np.ndarray, np.ndarray]:
        """Of which rows [N] and columns [M] nothing but their given features is known."""
        rows, columns = self.places.occupied
        return self.places.rows > rows, self.places.columns > columns


@functools.cache
def packaged_hyperprior() -> LearnedHyperprior:
    """That of small rating matrices, learned from synthetic ones."""
    return learned_hyperprior.load(_LEARNED)


def suits(entries: Entries) -> bool:
    """Whether any matrix of one unit for all cells like this is to be answered by draws.

    Args:
      entries: without empty rows or columns.
    """
    count = len(entries.rows)
    sparse = count < _MOST_OBSERVED * np.prod(entries.shape, dtype=float)
    told = count >= _FEWEST_A_ROW * max(entries.shape)
    return count >= _FEWEST and sparse and told and has_room(entries, entries.shape)


def like_ratings(entries: Entries, untold: float) -> bool:
    """Whether a matrix of one unit is small and as noisy as ratings are: draws then answer it.

    Args:
      entries: without empty rows or columns.
      untold: the mean squared error of held-out cells by the candidates, in units of the variance;
        NaN where it is not known.
    """
    small = _FEWEST_RATINGS <= len(entries.rows) <= _MOST_RATINGS
    return small and untold >= _LEAST_UNTOLD and has_room(entries, entries.shape)


def share_of_ratings(count: int) -> float:
    """What draws of a small rating matrix of so many cells have of the answer, before a check."""
    intercept, slope = _SHARE_BY_CELLS
    return float(scipy.special.expit(intercept + slope * np.log(count / 500)))


def of_few_levels(entries: Entries) -> bool:
    """Whether a matrix is small, and its values levels as those of most ratings are."""
    small = _FEWEST_RATINGS <= len(entries.rows) <= _MOST_RATINGS
    return small and len(np.unique(entries.values)) <= _MOST_LEVELS


def suits_with_features(entries: Entries, shape: tuple[int, int]) -> bool:
    """Whether a matrix can be answered by draws, which alone know features.

    Args:
      entries: without empty rows or columns.
      shape: with these.
    """
    return len(entries.rows) >= FEWEST_WITH_FEATURES and has_room(entries, shape)


def has_room(entries: Entries, shape: tuple[int, int]) -> bool:
    """Whether draws of all rows and columns take neither too long nor too much memory."""
    size = size_in_bytes(shape, _sizes(entries)[0], LENGTHS.num_draws)
    return len(entries.rows) <= MOST_CELLS and size <= _MOST_BYTES


def fit(
    entries: Entries,
    by: str,
    lengths: ChainsConfig = LENGTHS,
    learned: LearnedHyperprior | None = None,
    with_pattern: bool = True,
    given: tuple[GivenFeatures, GivenFeatures] | None = None,
) -> Sampled:
    """Draws from the posterior of a matrix.

    Args:
      entries: [E] observed cells, NumPy arrays.
      by: the standardisation, one of `scaling.SCALINGS`.
      lengths: of the chains.
      learned: what its hyperparameters are expected to be; None where that is not known.
      with_pattern: whether features of which cells are observed are known.
      given: features of all its rows and columns; None without.
    """
    dense, places = _beside_an_empty_one(entries)
    matrix = _standardised(dense, scaling.fit_scaling(dense, by), by)
    rank, vectors = _sizes(dense)
    config = GibbsConfig(rank) if learned is None else gibbs.with_learned(rank, learned)
    of_tables = _of_drawn(given, places)
    features, data = _prepare(matrix.entries, config, vectors, with_pattern, of_tables)
    found = Sampled(
        shape=entries.shape,
        places=places,
        scaling=matrix.scaling,
        bounds=matrix.bounds,
        config=config,
        features=features,
        draws=chains.run(data, config, lengths),
        fitted_rows=row_index.build(entries),
        inflation=1.0,
        one_unit=by == "matrix",
        given=given,
    )
    return _with_empty_rows(found)


def go_on(
    sampled: Sampled,
    entries: Entries,
    lengths: ChainsConfig = FURTHER_LENGTHS,
    given: tuple[GivenFeatures, GivenFeatures] | None = None,
) -> Sampled:
    """Draws from the posterior of a matrix that has grown, from where the chains of `fit` ended.

    Unit, rank and inflation stay, draws are all new.

    Args:
      sampled: the matrix before, of one unit for all cells.
      entries: [E] of the matrix now; rows and columns have the numbers that they had.
      lengths: of the chains, as many as those were.
      given: features of all its rows and columns, if those before had such.
    """
    dense, places = _beside_an_empty_one(entries)
    unit = Scaling(*(np.full(dense.shape[1], part[-1]) for part in sampled.scaling))
    matrix = _standardised(dense, unit, "matrix")
    _, vectors = _sizes(dense)
    of_tables, known = _of_drawn(given, places), sampled.knows_pattern
    features, data = _prepare(matrix.entries, sampled.config, vectors, known, of_tables)
    # Not the random numbers that were drawn before.
    lengths = dataclasses.replace(lengths, seed=len(entries.rows))
    start, kept = _last_states(sampled, places, lengths.num_chains), []
    for sweep, states in chains.sweeps(start, data, sampled.config, lengths):
        if lengths.keeps(sweep):
            kept += states
    found = sampled._replace(
        shape=entries.shape,
        places=places,
        scaling=unit,
        bounds=matrix.bounds,
        features=features,
        draws=chains.stack(kept),
        fitted_rows=row_index.build(entries),
        given=given,
    )
    return _with_empty_rows(found)


class _Standardised(NamedTuple):
    """A matrix in standardised units, float32, with the scaling and the bounds of its columns."""

    entries: Entries
    scaling: Scaling
    bounds: Bounds


def _beside_an_empty_one(entries: Entries) -> tuple[Entries, Places]:
    """The matrix's rows and columns with cells, and one row and one column without."""
    dense, places = set_aside(entries)
    shape = dense.shape[0] + 1, dense.shape[1] + 1
    return Entries(dense.rows, dense.columns, dense.values, shape), places


def _standardised(dense: Entries, scales: Scaling, by: str) -> _Standardised:
    values = scaling.standardize(dense, scales).values.astype(np.float32)
    bounds = scaling.fit_bounds(dense, by, dense.shape[1])
    return _Standardised(
        Entries(dense.rows, dense.columns, values, dense.shape),
        scales,
        Bounds(*((bound - scales.centers) / scales.scales for bound in bounds)),
    )


def _prepare(
    entries: Entries,
    config: GibbsConfig,
    vectors: int,
    with_pattern: bool,
    given: tuple[GivenFeatures, GivenFeatures] | None,
) -> tuple[tuple[SideFeatures, SideFeatures], Data]:
    """Features of the pattern, with so many singular vectors, and the matrix to be swept."""
    features = pattern.pattern_features(
        np.asarray(entries.rows), np.asarray(entries.columns), entries.shape, vectors
    )
    if not with_pattern:
        features = pattern.silenced(features[0]), pattern.silenced(features[1])
    of_tables = given or (none_given(entries.shape[0]), none_given(entries.shape[1]))
    return features, gibbs.prepare(entries, *joined(features, of_tables), config)


def _of_drawn(
    given: tuple[GivenFeatures, GivenFeatures] | None, places: Places
) -> tuple[GivenFeatures, GivenFeatures] | None:
    """Given features of the rows and columns with cells, and of one of each without."""
    if given is None:
        return None
    sides = zip(given, (places.rows, places.columns), places.occupied, strict=True)
    rows, columns = (
        side._replace(features=np.pad(side.features[at < count], ((0, 1), (0, 0))))
        for side, at, count in sides
    )
    return rows, columns


def select(
    given: tuple[GivenFeatures, GivenFeatures], places: Places
) -> tuple[GivenFeatures, GivenFeatures]:
    """Given features of the rows and columns with cells."""
    rows, columns = given
    return (
        rows._replace(features=rows.features[places.rows < places.occupied[0]]),
        columns._replace(features=columns.features[places.columns < places.occupied[1]]),
    )


def _with_empty_rows(sampled: Sampled) -> Sampled:
    """With draws of rows and columns without cells: a usual one, and those that tables tell of."""
    (rows, of_rows), (columns, of_columns) = (_side_with_empty(sampled, side) for side in (0, 1))
    more = columns.shares.shape[1] - len(sampled.scaling.centers)
    scales, bounds = (
        type(each)(*(np.append(part, np.full(more, part[-1])) for part in each))
        for each in (sampled.scaling, sampled.bounds)
    )
    return sampled._replace(
        places=sampled.places._replace(rows=of_rows, columns=of_columns),
        scaling=scales,
        bounds=bounds,
        draws=sampled.draws._replace(
            rows=rows.numbers,
            row_shares=rows.shares,
            columns=columns.numbers,
            column_shares=columns.shares,
        ),
    )


def _side_with_empty(sampled: Sampled, side: int) -> tuple[Factors, np.ndarray]:
    """Draws of the rows (or columns) with cells, then of those without, and all their places."""
    at = (sampled.places.rows, sampled.places.columns)[side].copy()
    count, of_table = sampled.places.occupied[side], _given(sampled, side)
    told = np.flatnonzero((at >= count) & of_table.any(axis=1))
    at[told] = count + 1 + np.arange(len(told))
    # The first is the usual one.
    empty = _empty_rows(sampled, side, np.pad(of_table[told], ((1, 0), (0, 0))))
    known = (sampled.rows, sampled.columns)[side].at(slice(count))
    both = zip(known, empty, strict=True)
    return Factors(*(np.concatenate([x, y.astype(x.dtype)], axis=1) for x, y in both)), at


def _given(sampled: Sampled, side: int) -> np.ndarray:
    """Features of all rows (or columns) that are given, [N, G]."""
    if sampled.given is None:
        return np.zeros((sampled.shape[side], 0), np.float32)
    return sampled.given[side].features


def _empty_rows(sampled: Sampled, side: int, of_table: np.ndarray) -> Factors:
    """Draws of rows (or columns) without cells, given what tables tell of them, [N', G].

    Each is a row to come, whose pattern is not known yet, rather than one that is never observed,
    as the chains take it: its features of the pattern are what the given ones tell of them, by
    ridge regression over the fitted rows, and in each draw what one of these has beyond that. Where
    nothing is told, all features are those of one of these. They count by their cells, since a cell
    that is to be observed stands the likelier in a row that has many. All rows have the same noise.
    """
    at = (sampled.places.rows, sampled.places.columns)[side]
    prior = (sampled.draws.row_prior, sampled.draws.column_prior)[side]
    count, num_draws = sampled.places.occupied[side], len(sampled.draws.alpha)
    of_fitted, of_pattern = _given(sampled, side)[at < count], sampled.features[side]
    every = np.column_stack([of_pattern.features[:count], of_fitted])
    num_pattern, width = of_pattern.features.shape[1], of_fitted.shape[1]
    shares = pattern.counts(of_pattern)[:count]
    shares = shares / shares.sum()
    means = shares @ every
    about = every - means
    # As if half of their variance were told; of unrelated features little remains.
    weighted = (count * shares)[:, None] * about[:, num_pattern:]
    gram = weighted.T @ about[:, num_pattern:] + width * np.eye(width)
    slopes = np.linalg.solve(gram, weighted.T @ about[:, :num_pattern])
    left = np.pad(about[:, :num_pattern] - about[:, num_pattern:] @ slopes, ((0, 0), (0, width)))
    told = of_table.any(axis=1)[:, None]
    expected = means[:num_pattern] + (of_table - means[num_pattern:]) @ slopes
    features = np.where(told, np.column_stack([expected, of_table]), means)
    _, drawn = fold_in.without_entries(prior, features, _noise(sampled, side)[:, None])
    rng = np.random.default_rng([side, 0x9A77])
    some = rng.choice(count, size=(num_draws + 1) // 2, p=shares)

    def of_some(beyond: np.ndarray) -> np.ndarray:
        # [S, 1, F] x [S, F, L]
        return _in_pairs(beyond[some], num_draws)[:, None] @ prior.coefficients[:, 1:]

    drawn += np.where(told, of_some(left), of_some(about))
    return Factors(drawn, np.repeat(_shares(sampled, side)[:, None], len(of_table), axis=1))


def _noise(sampled: Sampled, side: int) -> np.ndarray:
    """Standard normal [S, L], the same for all rows."""
    num_draws, _, width = sampled.draws.rows.shape
    half = np.random.default_rng([side, 0xF01D]).standard_normal(((num_draws + 1) // 2, width))
    return _in_pairs(half, num_draws)


def _in_pairs(noise: np.ndarray, num_draws: int) -> np.ndarray:
    """Each once as it is and once negative, so that the mean over draws is nearly without it."""
    return np.concatenate([noise, -noise])[:num_draws]


def _shares(sampled: Sampled, side: int) -> np.ndarray:
    """Of the noise's precision for a row without cells [S], spread evenly over their prior."""
    count = len(sampled.draws.alpha)
    shape = (sampled.config.row_noise, sampled.config.column_noise)[side]
    if not shape:
        return np.ones(count)
    evenly = np.random.default_rng([side, 0x5A4E]).permutation((np.arange(count) + 0.5) / count)
    return scipy.special.gammaincinv(shape, evenly) / shape


def _last_states(sampled: Sampled, places: Places, num_chains: int) -> list[State]:
    """The states of the chains after their last sweep; new rows and columns as empty ones."""
    before, draws = sampled.places, sampled.draws
    rows = _moved(before.rows, before.occupied[0], places.rows, places.occupied[0])
    columns = _moved(before.columns, before.occupied[1], places.columns, places.occupied[1])

    def side(s: int, factors, shares, prior: Hyperprior, at: np.ndarray) -> Side:
        of_draw = Hyperprior(*(np.asarray(part[s], np.float64) for part in prior))
        return Side(factors[s][at], shares[s][at].astype(np.float64), of_draw)

    # Draws of a sweep stand one after the other.
    return [
        State(
            side(s, draws.rows, draws.row_shares, draws.row_prior, rows),
            side(s, draws.columns, draws.column_shares, draws.column_prior, columns),
            float(draws.alpha[s]),
        )
        for s in range(len(draws.alpha) - num_chains, len(draws.alpha))
    ]


def _moved(before: np.ndarray, empty: int, now: np.ndarray, count: int) -> np.ndarray:
    """Where each of the places 0 to `count` was before; `empty` for those without cells then."""
    places = np.append(before, np.full(len(now) - len(before), empty, before.dtype))
    return np.append(places[now < count], empty)


def _sizes(entries: Entries) -> tuple[int, int]:
    """The rank, and how many singular vectors of the pattern."""
    side = min(entries.shape) // _RANK_SHARE
    most = num_pattern_vectors(entries)
    return int(np.clip(side, 2, _MOST_RANK)), int(np.clip(side, _FEWEST_VECTORS, most))


def predict(
    sampled: Sampled, rows: np.ndarray, columns: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Values and errors at cells; see `completion.predict`."""
    n = find_places(rows, "row", sampled.places.rows, sampled.places.occupied[0])
    m = find_places(columns, "column", sampled.places.columns, sampled.places.occupied[1])
    values, errors = np.empty(len(n)), np.empty(len(n))
    for start in range(0, len(n), _BLOCK // 32):
        part = slice(start, start + _BLOCK // 32)
        i, j = n[part], m[part]
        low, high = (bound[j] for bound in sampled.bounds)
        total, square, noise = np.zeros((3, len(i)))
        for s, alpha in enumerate(sampled.draws.alpha):
            u, v = sampled.draws.rows[s, i], sampled.draws.columns[s, j]
            fitted = np.einsum("pk,pk->p", u[:, :-1], v[:, :-1]) + u[:, -1] + v[:, -1]
            clipped = np.clip(fitted, low, high)
            total += clipped
            square += clipped**2
            noise += 1 / (
                alpha * sampled.draws.row_shares[s, i] * sampled.draws.column_shares[s, j]
            )
        moments = [x / len(sampled.draws.alpha) for x in (total, square, noise)]
        values[part], errors[part] = _in_units(sampled, moments, *_units(sampled, j))
    return values, errors


def quantiles(
    sampled: Sampled,
    rows: np.ndarray,
    columns: np.ndarray,
    means: np.ndarray,
    probabilities: Sequence[float],
) -> np.ndarray:
    """Quantiles [Q, P] at cells about these means [P]; see `quantiles.of_cells`."""
    n = find_places(rows, "row", sampled.places.rows, sampled.places.occupied[0])
    m = find_places(columns, "column", sampled.places.columns, sampled.places.occupied[1])
    own, _ = predict(sampled, rows, columns)
    return _quantiles(sampled, sampled.rows, (n, m), (own, means), probabilities)


def quantiles_of_rows(
    sampled: Sampled,
    values: np.ndarray,
    observed: np.ndarray,
    means: np.ndarray,
    probabilities: Sequence[float],
    features: np.ndarray | None = None,
) -> np.ndarray:
    """Quantiles [Q, N', M] of all cells of rows about these means; see `quantiles.of_rows`."""
    rows, m = further_rows(sampled, values, observed, features), sampled.places.columns
    own, _ = _of_rows(sampled, rows)
    n = np.repeat(np.arange(len(means)), len(m))
    cells = n, np.tile(m, len(means))
    both = own.ravel(), means.ravel()
    found = _quantiles(sampled, rows, cells, both, probabilities)
    return found.reshape(-1, *means.shape)


def _quantiles(
    sampled: Sampled,
    rows: Factors,
    cells: tuple[np.ndarray, np.ndarray],
    means: tuple[np.ndarray, np.ndarray],
    probabilities: Sequence[float],
) -> np.ndarray:
    """Quantiles [Q, P] at places ``cells`` among rows and drawn columns.

    They are moved from the draws' means, the first ones, to the second, and spread.
    """
    n, m = cells
    # Few sizes, since each compiles anew.
    more = (1 << max(len(n) - 1, 0).bit_length()) - len(n)
    draws = sampled.draws._replace(rows=rows.numbers, row_shares=rows.shares)
    standardised = predictive.predict(
        draws, Scale(0.0, 1.0), np.pad(n, (0, more)), np.pad(m, (0, more)), tuple(probabilities)
    ).quantiles[:, : len(n)]
    center, scale = _units(sampled, m)
    low, high = (center + scale * bound[m] for bound in sampled.bounds)
    found = center + scale * standardised
    own, answered = means
    return np.clip(answered + sampled.inflation * (found - own), low, high)


def predict_each_row(sampled: Sampled, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All values and errors of these rows; float64 [len(rows), M]."""
    return _of_rows(sampled, sampled.rows.at(sampled.places.rows[rows]))


def fold_in_rows(
    sampled: Sampled, values: np.ndarray, observed: np.ndarray, features: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Values and errors of all cells of further rows; see `fold_in.fold_in_rows`.

    A row with the cells of a fitted one is answered as that; another one by draws of its factors,
    given each draw of all else, with noise that is the same for all rows.
    """
    return _of_rows(sampled, further_rows(sampled, values, observed, features))


def find_rows(
    sampled: Sampled, values: np.ndarray, observed: np.ndarray, features: np.ndarray | None = None
) -> np.ndarray:
    """The numbers of the fitted rows with these cells and given features, -1 for none; [N']."""
    numbers = row_index.find(sampled.fitted_rows, values, observed)
    if features is None or sampled.given is None:
        return numbers
    return np.where((sampled.given[0].features[numbers] == features).all(axis=1), numbers, -1)


def further_rows(
    sampled: Sampled, values: np.ndarray, observed: np.ndarray, features: np.ndarray | None = None
) -> Factors:
    """The draws of rows [N', M], fitted or not, with given features [N', F] or none."""
    numbers = find_rows(sampled, values, observed, features)
    found = sampled.rows.at(sampled.places.rows[np.maximum(numbers, 0)])
    m = sampled.places.columns
    standardised = (values - sampled.scaling.centers[m]) / sampled.scaling.scales[m]
    used = observed & (m < sampled.places.occupied[1])
    if features is None:
        features = np.zeros((len(values), _given(sampled, 0).shape[1]), np.float32)
    empty = (numbers < 0) & ~used.any(axis=1)
    found.numbers[:, empty], found.shares[:, empty] = _empty_rows(sampled, 0, features[empty])
    for n in np.flatnonzero((numbers < 0) & ~empty):
        found.numbers[:, n], found.shares[:, n] = _fold_in(
            sampled, 0, m[used[n]], standardised[n, used[n]], features[n]
        )
    return found


def fold_in_columns(
    sampled: Sampled, values: np.ndarray, observed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Values and errors of all cells of further columns; see `fold_in.fold_in_columns`."""
    n = sampled.places.rows
    used = observed & (n < sampled.places.occupied[0])[:, None]
    # Those of a column without cells.
    center, scale, low, high = (part[-1] for part in (*sampled.scaling, *sampled.bounds))
    standardised = (values - center) / scale
    columns = sampled.columns.at(np.full(values.shape[1], sampled.places.occupied[1]))
    features = np.zeros(_given(sampled, 1).shape[1], np.float32)
    for m in np.flatnonzero(used.any(axis=0)):
        columns.numbers[:, m], columns.shares[:, m] = _fold_in(
            sampled, 1, n[used[:, m]], standardised[used[:, m], m], features
        )
    moments = _moments(sampled.rows.at(n), columns, sampled.draws.alpha, (low, high))
    return _in_units(sampled, moments, center, scale)


def impute(
    sampled: Sampled,
    values: np.ndarray,
    observed: np.ndarray,
    imputations: int,
    seed: int = 0,
    features: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Completes rows several times, each by one draw and its noise.

    Draws are taken at even distances over all chains. Where all cells have one unit, values are
    clipped to the range of the observed ones.

    Args:
      sampled: the fitted matrix, of one unit for all cells or one for each column.
      values: [N', M], whatever the unobserved cells hold.
      observed: [N', M] bool; these cells come back as they are.
      imputations: how many, no more than there are draws.
      seed: of the noise.
      features: [N', F], given ones of the rows.

    Returns:
      So many matrices [N', M] of the dtype of ``values``.

    Raises:
      ValueError: more imputations than draws, or fewer than one.
    """
    count = len(sampled.draws.alpha)
    if not 1 <= imputations <= count:
        raise ValueError(f"expected 1 to {count} imputations, got {imputations}")
    m, rng = sampled.places.columns, np.random.default_rng([seed, 0x1247])
    rows, columns = further_rows(sampled, values, observed, features), sampled.columns.at(m)
    center, scale = _units(sampled, m)
    found = []
    for s in np.linspace(0, count - 1, imputations).round().astype(int):
        drawn = fitted(rows.numbers[s], columns.numbers[s]).astype(np.float64)
        shares = rows.shares[s][:, None] * columns.shares[s]
        drawn += rng.standard_normal(drawn.shape) / np.sqrt(sampled.draws.alpha[s] * shares)
        if sampled.one_unit:
            drawn = np.clip(drawn, sampled.bounds.low[m], sampled.bounds.high[m])
        drawn = center + scale * drawn
        found.append(np.where(observed, values, drawn).astype(values.dtype))
    return found


def _fold_in(
    sampled: Sampled, side: int, places: np.ndarray, values: np.ndarray, of_table: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Draws of the numbers [S, L] and the share [S] of one more row of a side, which has cells.

    Args:
      sampled: the fitted matrix.
      side: 0 for a row, 1 for a column.
      places: where the row's cells stand in the other side.
      values: of these cells, standardised.
      of_table: [F], its given features.
    """
    shape = (sampled.config.row_noise, sampled.config.column_noise)[side]
    given = fold_in.conditions(sampled.draws, side, shape)
    of_pattern = sampled.features[side]
    cells = scipy.sparse.csr_array(
        (np.ones(len(places)), (np.zeros(len(places), int), places)),
        shape=(1, len(of_pattern.projection)),
    )
    features = fold_in.further_features(of_pattern, of_table[None], cells)[0]
    found = fold_in.further_row(given, features, places, values, _noise(sampled, side))
    return found.drawn, found.share


def _of_rows(sampled: Sampled, rows: Factors) -> tuple[np.ndarray, np.ndarray]:
    """All cells of rows, a block at a time."""
    m = sampled.places.columns
    columns = sampled.columns.at(m)
    bounds = Bounds(*(bound[m].astype(np.float32) for bound in sampled.bounds))
    count = rows.shares.shape[1]
    values, errors = np.empty((2, count, len(m)))
    step = max(1, _BLOCK // max(1, len(m)))
    for start in range(0, count, step):
        part = slice(start, start + step)
        moments = _moments(rows.at(part), columns, sampled.draws.alpha, bounds)
        values[part], errors[part] = _in_units(sampled, moments, *_units(sampled, m))
    return values, errors


def _moments(rows: Factors, columns: Factors, alpha: np.ndarray, bounds):
    """Means over draws of clipped values, of their squares, and of the noise's variance; [N, M]."""
    total, square = np.zeros((2, rows.shares.shape[1], columns.shares.shape[1]), np.float32)
    for u, v in zip(rows.numbers, columns.numbers, strict=True):
        clipped = fitted(u, v)
        np.clip(clipped, *bounds, out=clipped)
        total += clipped
        np.square(clipped, out=clipped)
        square += clipped
    # [N, S] x [S, M]
    noise = (1 / (alpha[:, None] * rows.shares)).T @ (1 / columns.shares)
    return total / len(alpha), square / len(alpha), noise / len(alpha)


def fitted(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Standardised values [N, M] under one draw of rows [N, L] and columns [M, L]."""
    return u[:, :-1] @ v[:, :-1].T + u[:, -1:] + v[:, -1]


def _units(sampled: Sampled, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return sampled.scaling.centers[places], sampled.scaling.scales[places]


def _in_units(sampled: Sampled, moments, center, scale) -> tuple[np.ndarray, np.ndarray]:
    """Values and errors in the units of the values."""
    mean, square, noise = (np.asarray(x, np.float64) for x in moments)
    errors = np.sqrt(np.maximum(square - mean**2, 0) + noise)
    return center + scale * mean, sampled.inflation * scale * errors
