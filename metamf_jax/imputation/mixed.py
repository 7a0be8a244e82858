"""A table of mixed columns completed by draws of one joint model.

Columns are described (`columns`), their cells become latent normal numbers (`margins`), and these,
their means and covariance are drawn (`metamf_jax.posterior.copula`). Rows, of the fitted table or
further ones, are answered under the draws of mean and covariance: several times completed, which is
proper multiple imputation in Rubin's sense; by means and chances of levels; by quantiles. How
likely levels are is also said by forests (`level_forest`), weighted in each column by held-out
cells.
"""

import dataclasses
import functools
from collections.abc import Generator, Sequence
from typing import NamedTuple

import jax
import numpy as np
import threadpoolctl

from metamf_jax.imputation import level_forest, margins
from metamf_jax.imputation.columns import Column, moved
from metamf_jax.imputation.level_forest import LevelForest
from metamf_jax.imputation.margins import Classes, Constant, Margin, Scores
from metamf_jax.posterior import copula
from metamf_jax.posterior.copula import Choice, CopulaConfig, Data, Parameters, Predicted

# A category of more levels has its rare ones in common; fewer, if the table has many categories.
_CLASSES = (20, 8, 4, 2)
_MOST_WIDTH = 500
# Sweeps of the latent numbers alone, before the first and from one draw of the parameters to the
# next.
_WARM, _BETWEEN = 10, 2
_REST = 0x1E5E
# Of the observed cells with levels, parts are held out to see how far the model is to be trusted:
# columns with too few have the table's common trust, and others are drawn to it as if by so many.
# Of a wide table, whose chains are slow and whose cells are many, one part does.
_HELD_OUT, _PARTS, _FEWEST_CHECKED, _CELLS_OF_TABLE = 0.1, 3, 30, 10.0
_WIDE = 100
# The table's trust before any cell was held out, and how many cells this is worth.
_TRUST, _CELLS_BEFORE = (0.6, 0.3, 0.1), 20.0
# Trees of a column; more where they are cheap, by the numbers that they are grown on.
_TREES, _MOST_WORK, _WORK_OF_TREE = (10, 100), 5e6, 1000
_SHORT = 20, 20


@dataclasses.dataclass(frozen=True)
class MixedConfig:
    """How to draw.

    Attributes:
      burn_in: sweeps before the first draw of the parameters is kept.
      num_draws: how many are.
      seed: of all draws.
      copula: the prior.
    """

    burn_in: int = 50
    num_draws: int = 100
    seed: int = 0
    copula: CopulaConfig = dataclasses.field(default_factory=CopulaConfig)

    def __post_init__(self):
        if self.burn_in < 0 or self.num_draws < 1:
            raise ValueError(
                f"expected a burn-in of at least 0 and a draw, got {self.burn_in} and "
                f"{self.num_draws}"
            )


class Mixed(NamedTuple):
    """A fitted table.

    Attributes:
      columns: its M columns.
      margins: theirs.
      parameters: S draws, each leaf with a leading axis.
      trees: of each column with levels and cells enough that say how likely these are; else None.
      trust: [M, 3], how much the chances of levels are the model's, the trees', and those of the
        column alone, since one that nothing predicts had better be answered by its commonest level.
      seed: of the draws.
      values: [N, M], what was fitted, for `grow`.
    """

    columns: tuple[Column, ...]
    margins: tuple[Margin, ...]
    parameters: Parameters
    trees: tuple[LevelForest | None, ...]
    trust: np.ndarray
    seed: int
    values: np.ndarray


class Answers(NamedTuple):
    """What is said of the cells of a table; observed ones as they are.

    Attributes:
      values: [N, M]: means of numbers, rounded if whole; places of the likeliest levels, or of
        ordinal numbers of those nearest to the mean.
      errors: [N, M], 0 where observed: standard errors of numbers, and for levels the chance that
        another one is true.
      chances: by the number of each column with levels, [N, L]: how likely each level is.
      quantiles: [Q, N, M], those that were asked for; of levels the likeliest.
    """

    values: np.ndarray
    errors: np.ndarray
    chances: dict[int, np.ndarray]
    quantiles: np.ndarray


def fit(
    values: np.ndarray, columns: Sequence[Column], config: MixedConfig = MixedConfig()
) -> Mixed:
    """Draws from the posterior of a table's latent means and covariance, and grows trees.

    Args:
      values: [N, M], numbers and places of levels, NaN where missing.
      columns: what the columns are.
      config: how to draw.

    Raises:
      ValueError: no row, or so many columns that their covariance cannot be drawn.
    """
    drawn = fit_draws(values, columns, config)
    if not any(map(margins.width, drawn.margins)):
        return drawn
    trees, trust = _trees_and_trust(values, drawn.columns, drawn.margins, config)
    return drawn._replace(trees=trees, trust=trust)


def fit_draws(
    values: np.ndarray, columns: Sequence[Column], config: MixedConfig = MixedConfig()
) -> Mixed:
    """As `fit`, without trees, which imputations do not need."""
    if not values.size:
        raise ValueError(f"expected rows and columns, got a table of shape {values.shape}")
    found: tuple[Margin, ...] = ()
    for most in _CLASSES:
        found = tuple(margins.fit(column, values[:, m], most) for m, column in enumerate(columns))
        if sum(map(margins.width, found)) <= _MOST_WIDTH:
            break
    else:
        raise ValueError(
            f"expected at most {_MOST_WIDTH} columns with two different values or more, got "
            f"{sum(map(margins.width, found))}: their covariance is drawn as a whole"
        )
    if any(map(margins.width, found)):
        parameters = _draw_parameters(values, found, config)
    else:
        nothing = Parameters(np.zeros(0), np.zeros((0, 0)), np.zeros(0), 1.0)
        parameters = _stack([nothing] * config.num_draws)
    return Mixed(tuple(columns), found, parameters, *_untried(len(columns)), config.seed, values)


def _untried(count: int) -> tuple[tuple[None, ...], np.ndarray]:
    """No trees of so many columns, and full trust in the model."""
    return (None,) * count, np.array([[1.0, 0, 0]] * count)


def _draw_parameters(
    values: np.ndarray, found: Sequence[Margin], config: MixedConfig
) -> Parameters:
    data, rng, kept = _prepare(values, found), np.random.default_rng(config.seed), []
    with _one_thread():
        state = copula.init(rng, data, config.copula)
        for i in range(config.burn_in + config.num_draws):
            state, _ = copula.sweep(rng, state, data, config.copula)
            if i >= config.burn_in:
                kept.append(state.parameters)
    return _stack(kept)


def _trees_and_trust(
    values: np.ndarray, columns: tuple[Column, ...], found: tuple[Margin, ...], config: MixedConfig
) -> tuple[tuple[LevelForest | None, ...], np.ndarray]:
    """`Mixed.trees` and `Mixed.trust`, by held-out cells and short chains."""
    _, trust = _untried(len(columns))
    trees: list[LevelForest | None] = [None] * len(columns)
    observed = ~np.isnan(values)
    with_levels = np.array([column.levels is not None for column in columns])
    enough = observed.sum(axis=0) >= _FEWEST_CHECKED
    rng = np.random.default_rng([config.seed, _REST, 1])
    part = (rng.random(values.shape) / _HELD_OUT).astype(int)
    parts = _PARTS if sum(map(margins.width, found)) <= _WIDE else 1
    checked = observed & with_levels & enough & (part < parts)
    asked = np.flatnonzero(checked.any(axis=0)).tolist()
    if not asked:
        return tuple(trees), trust
    # Of each cell its chances by the model, the trees, and the column's shares.
    said = np.ones((*values.shape, 3))
    short = dataclasses.replace(config, burn_in=_SHORT[0], num_draws=_SHORT[1])
    for i in range(parts):
        held = checked & (part == i)
        left = np.where(held, np.nan, values)
        parameters = _draw_parameters(left, found, short)
        untried = Mixed(columns, found, parameters, *_untried(len(columns)), 0, left)
        chances = answer(untried, left).chances
        for m in asked:
            rows = np.flatnonzero(held[:, m])
            said[rows, m, 0] = chances[m][rows, values[rows, m].astype(int)]
    for m in asked:
        rows, levels = np.flatnonzero(observed[:, m]), columns[m].levels or ()
        places, features = values[rows, m].astype(int), _features(values, columns, found, m)[rows]
        work = len(asked) * (len(rows) * np.sqrt(features.shape[1]) + _WORK_OF_TREE)
        num_trees = int(np.clip(_MOST_WORK / work, *_TREES))
        trees[m], unseen = level_forest.grow(features, places, len(levels), num_trees, config.seed)
        each = np.arange(len(rows))
        said[rows, m, 2] = margins.shares(found[m], levels)[places]
        of_trees = unseen[each, places]
        said[rows, m, 1] = np.where(np.isnan(of_trees), said[rows, m, 2], of_trees)
    common = _weights(said[checked], np.array(_TRUST), _CELLS_BEFORE)
    for m in asked:
        trust[m] = _weights(said[checked[:, m], m], common, _CELLS_OF_TABLE)
    return tuple(trees), trust


def _weights(said: np.ndarray, prior: np.ndarray, strength: float) -> np.ndarray:
    """The likeliest weights [W] of some distributions, by what they say of cells, [R, W].

    Under a prior of so much, as if so many cells had been seen.
    """
    weights = prior
    for _ in range(50):
        of_each = weights * said / (said @ weights)[:, None]
        weights = (of_each.sum(axis=0) + strength * prior) / (len(said) + strength)
    return weights


def _features(
    values: np.ndarray, columns: tuple[Column, ...], found: tuple[Margin, ...], m: int
) -> np.ndarray:
    """What trees know of rows for column m, [N, F]; of categories whether they are a level."""
    parts = [np.zeros((len(values), 1))]
    for other, (column, margin) in enumerate(zip(columns, found, strict=True)):
        cells = values[:, other]
        if other == m or isinstance(margin, Constant):
            continue
        if column.levels is None:
            assert not isinstance(margin, Classes)
            low, high = (bound.clip(-10, 10) for bound in margins.to_latent(margin, cells))
            parts.append(np.where(np.isnan(cells), np.nan, (low + high) / 2)[:, None])
        elif column.type == "nominal":
            is_level = cells[:, None] == np.arange(len(column.levels))
            parts.append(np.where(np.isnan(cells)[:, None], np.nan, is_level))
        else:
            parts.append(cells[:, None])
    return np.hstack(parts)


def grow(mixed: Mixed, values: np.ndarray, columns: Sequence[Column], config: MixedConfig) -> Mixed:
    """The table with further rows, fitted anew.

    Args:
      mixed: the fitted table.
      values: [N', M], further rows, as of ``columns``.
      columns: what the columns are with these rows; levels may be more than there were.
      config: how to draw.
    """
    before = mixed.values.copy()
    for m, (old, new) in enumerate(zip(mixed.columns, columns, strict=True)):
        before[:, m] = moved(old, new, before[:, m])
    return fit(np.concatenate([before, values]), columns, config)


def impute(mixed: Mixed, values: np.ndarray, imputations: int) -> list[np.ndarray]:
    """Completes rows several times, each under another draw of the parameters.

    Args:
      mixed: the fitted table.
      values: [N, M] as of `fit`; the same rows, or others.
      imputations: how many, no more than there are draws.

    Returns:
      So many tables [N, M]; cells of columns without any value stay NaN.

    Raises:
      ValueError: more imputations than draws, or fewer than one.
    """
    count = len(mixed.parameters.mean)
    if not 1 <= imputations <= count:
        raise ValueError(f"expected 1 to {count} imputations, got {imputations}")
    at = np.linspace(0, count - 1, imputations).round().astype(int)
    rng = np.random.default_rng([mixed.seed, _REST])
    with _one_thread():
        return [
            _complete(mixed, values, latent, rng)
            for latent, _ in _latent_numbers(mixed, values, at)
        ]


def answer(mixed: Mixed, values: np.ndarray, quantiles: Sequence[float] = ()) -> Answers:
    """Says what the missing cells of rows hold.

    Args:
      mixed: the fitted table.
      values: [N, M] as of `fit`; the same rows, or others.
      quantiles: of the distribution of each cell, each between 0 and 1.
    """
    count = len(mixed.parameters.mean)
    at = np.arange(count) if quantiles else np.arange(0, count, 2)
    sums = [_Sums.start(margin, values[:, m]) for m, margin in enumerate(mixed.margins)]
    first, rng, drawn = _first_of_each(mixed.margins), np.random.default_rng(mixed.seed), []
    numbers = np.isnan(values) & [column.levels is None for column in mixed.columns]
    with _one_thread():
        for latent, predicted in _latent_numbers(mixed, values, at):
            for m, margin in enumerate(mixed.margins):
                sums[m].add(margin, latent, predicted, first[m])
            if quantiles:
                # All cells of all draws would be gigabytes.
                drawn.append(_complete(mixed, values, latent, rng)[numbers])
    found, errors, chances = values.copy(), np.zeros(values.shape), {}
    for m, (column, margin) in enumerate(zip(mixed.columns, mixed.margins, strict=True)):
        rows, of_trees, forest = sums[m].rows, None, mixed.trees[m]
        if forest is not None:
            features = _features(values[rows], mixed.columns, mixed.margins, m)
            of_trees = level_forest.predict(forest, features)
        found[rows, m], errors[rows, m], of_levels = sums[m].told(
            column, margin, len(at), mixed.trust[m], of_trees
        )
        if column.levels is not None:
            chances[m] = np.zeros((len(values), len(column.levels)))
            chances[m][rows] = of_levels
            known = np.flatnonzero(~np.isnan(values[:, m]))
            chances[m][known, values[known, m].astype(int)] = 1
    between = np.repeat(found[None], len(quantiles), axis=0)
    if quantiles:
        # By this rule an interval holds what it says however few the draws are.
        between[:, numbers] = np.quantile(np.stack(drawn), quantiles, axis=0, method="weibull")
    return Answers(found, errors, chances, between)


def is_empty(margin: Margin) -> bool:
    """Whether a column had no cell."""
    return isinstance(margin, Constant) and np.isnan(margin.value)


@dataclasses.dataclass
class _Sums:
    """Over draws, of the missing cells of one column.

    Attributes:
      rows: [R], where cells are missing.
      first: [R] or [R, L], sums of means, or of chances of values or classes; means and squares in
        units of `margins.unit`.
      second: [R], of mean squares.
    """

    rows: np.ndarray
    first: np.ndarray
    second: np.ndarray

    @classmethod
    def start(cls, margin: Margin, values: np.ndarray) -> "_Sums":
        rows = np.flatnonzero(np.isnan(values))
        size = ()
        if isinstance(margin, Classes):
            size = (margin.count,)
        elif isinstance(margin, Scores) and margin.levels:
            size = (len(margin.values),)
        return cls(rows, np.zeros((len(rows), *size)), np.zeros(len(rows)))

    def add(self, margin: Margin, latent: np.ndarray, predicted: Predicted, first: int) -> None:
        if isinstance(margin, Constant) or not len(self.rows):
            return
        if isinstance(margin, Classes):
            part = latent[self.rows, first : first + margin.count - 1]
            largest = np.argmax(np.pad(part, ((0, 0), (1, 0))), axis=1)
            self.first[np.arange(len(self.rows)), largest] += 1
            return
        normal = predicted.mean[self.rows, first], predicted.deviation[self.rows, first]
        if isinstance(margin, Scores) and margin.levels:
            self.first += margins.chances(margin, *normal)
            return
        mean, square = margins.moments(margin, *normal)
        self.first += mean
        self.second += square

    def told(
        self,
        column: Column,
        margin: Margin,
        count: int,
        trust: np.ndarray,
        of_trees: np.ndarray | None,
    ):
        """Values, errors, and chances of all levels (None of numbers)."""
        if column.levels is None:
            if isinstance(margin, Constant):
                return margin.value, 0, None
            assert not isinstance(margin, Classes)
            mean = self.first / count
            unit = margins.unit(margin)
            errors = unit * np.sqrt(np.maximum(self.second / count - mean**2, 0))
            # Rounding may leave the mean of numbers at a bound beyond it.
            found = np.clip(margins.center(margin) + unit * mean, column.low, column.high)
            return np.rint(found) if column.type == "integer" else found, errors, None
        chances = np.zeros((len(self.rows), len(column.levels)))
        if isinstance(margin, Constant):
            if np.isnan(margin.value):
                return np.nan, 0, chances
            chances[:, int(margin.value)] = 1
        elif isinstance(margin, Scores):
            chances[:, margin.values.astype(int)] = self.first / count
        else:
            assert isinstance(margin, Classes)
            # Draws that never were of a class do not say that none could be.
            of_class = (self.first + 1 / margin.count) / (count + 1)
            used = margin.of_level >= 0
            chances[:, used] = of_class[:, margin.of_level[used]] * margin.shares[used]
        if not isinstance(margin, Constant):
            of_trees = chances if of_trees is None else of_trees
            alone = margins.shares(margin, column.levels)
            chances = trust[0] * chances + trust[1] * of_trees + trust[2] * alone
        answers = chances.argmax(axis=1)
        if column.type == "ordinal" and column.of_numbers:
            # Far levels count by how far they are.
            numbers = np.asarray(column.levels, float)
            expected = chances @ numbers
            answers = np.abs(expected[:, None] - numbers).argmin(axis=1)
        return answers, 1 - chances[np.arange(len(answers)), answers], chances


def _one_thread():
    """Threads of BLAS gain nothing on such small matrices."""
    return _libraries().limit(limits=1, user_api="blas")


@functools.cache
def _libraries() -> threadpoolctl.ThreadpoolController:
    """To find them takes 4 ms."""
    return threadpoolctl.ThreadpoolController()


def _stack(draws: list[Parameters]) -> Parameters:
    """Each leaf with a leading axis."""
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(x) for x in leaves]), *draws)


def _first_of_each(found: Sequence[Margin]) -> np.ndarray:
    """The first latent column of each column."""
    return np.cumsum([0, *map(margins.width, found)])[:-1]


def _prepare(values: np.ndarray, found: Sequence[Margin]) -> Data:
    """The latent numbers of a table."""
    first = _first_of_each(found)
    shape = len(values), int(sum(map(margins.width, found)))
    low, high = np.full(shape, -np.inf), np.full(shape, np.inf)
    unscaled, choices = np.zeros(shape[1], bool), []
    for m, (margin, p) in enumerate(zip(found, first, strict=True)):
        if isinstance(margin, Classes):
            choices.append(Choice(int(p), margins.to_classes(margin, values[:, m]), margin.count))
        elif not isinstance(margin, Constant):
            low[:, p], high[:, p] = margins.to_latent(margin, values[:, m])
            unscaled[p] = isinstance(margin, Scores) and margin.unscaled
    return copula.prepare(low, high, tuple(choices), unscaled)


def _latent_numbers(
    mixed: Mixed, values: np.ndarray, at: np.ndarray
) -> Generator[tuple[np.ndarray, Predicted], None, None]:
    """Yields latent numbers of rows, and what is said of missing ones, under some of the draws."""
    data, rng = _prepare(values, mixed.margins), np.random.default_rng([mixed.seed, _REST, 0])
    latent = data.start
    if not latent.size:
        nothing = np.zeros(latent.shape)
        yield from ((latent, Predicted(nothing, nothing)) for _ in at)
        return
    for i, s in enumerate(at):
        parameters = jax.tree.map(lambda leaf, s=s: leaf[s], mixed.parameters)
        for _ in range(_BETWEEN if i else _WARM):
            latent, predicted = copula.draw_latent(rng, latent, parameters, data)
        yield latent, predicted


def _complete(
    mixed: Mixed, values: np.ndarray, latent: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """The table with its missing cells by their latent numbers."""
    found, first = values.copy(), _first_of_each(mixed.margins)
    for m, (column, margin) in enumerate(zip(mixed.columns, mixed.margins, strict=True)):
        rows, p = np.flatnonzero(np.isnan(values[:, m])), first[m]
        if isinstance(margin, Constant):
            found[rows, m] = margin.value
        elif isinstance(margin, Classes):
            part = latent[rows, p : p + margin.count - 1]
            found[rows, m] = margins.from_classes(margin, part, rng)
        else:
            drawn = margins.from_latent(margin, latent[rows, p])
            found[rows, m] = np.rint(drawn) if column.type == "integer" else drawn
    return found
