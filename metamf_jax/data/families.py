"""Synthetic families: matrices of many kinds to learn a general prior for imputation from.

Each family draws a world, a function from cells to values: ratings, surveys, sensors, images,
tables of features, low-rank and nonlinear ones, blocks, and effects alone. `draw_matrix` draws a
family, which of its cells are observed (at random or not), and others to be scored.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from metamf_jax.types import Entries

# (rows [E], columns [E]) to values [E], each cell to be asked for once: noise is drawn anew.
World = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Drawn(NamedTuple):
    """Entries of one matrix, in random order: ``observed``, and ``scored`` among all others."""

    observed: Entries
    scored: Entries


def draw_matrix(
    rng: np.random.Generator,
    shape: tuple[int, int],
    num_observed: int,
    num_scored: int,
    family: str | None = None,
) -> Drawn:
    """Draws a matrix of a random family with random missingness.

    Popular rows and columns are seen more, by power laws of a random exponent that is often zero;
    so are high (or low) values, sometimes. Scored entries are held out of what was seen in this
    way, or lie anywhere else, each in half of the draws.

    Args:
      rng: draws everything.
      shape: (N, M).
      num_observed: wanted number of observed entries; where the matrix is too small, fewer.
      num_scored: wanted number of scored entries.
      family: a key of `FAMILIES`; None for a random one.
    """
    num_rows, num_columns = shape
    names, weights = zip(*_WEIGHTS.items(), strict=True)
    world = FAMILIES[family or str(rng.choice(names, p=np.array(weights) / sum(weights)))](
        rng, *shape
    )
    held_out = rng.random() < 0.5
    total = num_rows * num_columns
    num_scored = max(1, min(num_scored, total // 4))
    num_observed = max(1, min(num_observed, total - num_scored))
    wanted = num_observed + (num_scored if held_out else 0)
    popularity = [_log_popularity(rng, size) for size in shape]
    by_value = rng.choice([0.0, 0.0, 0.0, rng.normal()])
    all_cells = total <= 4 * (wanted + num_scored)
    if all_cells:
        flat = np.arange(total)
        log_weights = popularity[0][flat // num_columns] + popularity[1][flat % num_columns]
    else:
        rows, columns = (
            rng.choice(len(logs), 3 * wanted, p=np.exp(logs) / np.exp(logs).sum())
            for logs in popularity
        )
        flat = np.unique(rows.astype(np.int64) * num_columns + columns)
        log_weights = np.zeros(len(flat))
    values = world(flat // num_columns, flat % num_columns)
    log_weights = log_weights + by_value * _standardised(values)
    # The largest keys are a weighted draw without replacement (Gumbel).
    order = np.argsort(-(log_weights + rng.gumbel(size=len(flat))))[:wanted]
    order = rng.permutation(order)
    if held_out:
        seen, scored = np.split(order, [max(1, len(order) - num_scored)])
    elif all_cells:
        seen = order
        scored = rng.permutation(np.setdiff1d(np.arange(len(flat)), order))[:num_scored]
    else:
        others = np.setdiff1d(rng.integers(0, total, num_scored), flat)
        other_values = world(others // num_columns, others % num_columns)
        observed = _entries(flat[order], values[order], shape)
        return Drawn(observed, _entries(others, other_values, shape))
    return Drawn(*(_entries(flat[part], values[part], shape) for part in (seen, scored)))


def _log_popularity(rng, size: int) -> np.ndarray:
    exponent = rng.choice([0.0, rng.uniform(0, 1.2)])
    return exponent * -np.log(rng.permutation(size) + 1 + 0.03 * size)


def _entries(flat: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> Entries:
    rows, columns = (flat // shape[1]).astype(np.int32), (flat % shape[1]).astype(np.int32)
    return Entries(rows, columns, values.astype(np.float32), shape)


def _standardised(x: np.ndarray) -> np.ndarray:
    deviation = x.std()
    return (x - x.mean()) / deviation if deviation > 0 else np.zeros_like(x)


def _noise_level(rng) -> float:
    """Standard deviation of noise beside a signal of unit variance, 0.02 .. 3."""
    return float(np.exp(rng.uniform(np.log(0.02), np.log(3))))


def _cells_anywhere(rng, shape, count=600):
    return rng.integers(shape[0], size=count), rng.integers(shape[1], size=count)


def _unit(rng, shape, signal: World) -> World:
    """The same world shifted and scaled to mean 0 and variance 1."""
    sample = signal(*_cells_anywhere(rng, shape))
    mean, deviation = sample.mean(), max(sample.std(), 1e-9)
    return lambda rows, columns: (signal(rows, columns) - mean) / deviation


def _sum(*weighted: tuple[float, World]) -> World:
    def both(rows, columns):
        return np.add.reduce([weight * part(rows, columns) for weight, part in weighted])

    return both


def _additive(rng, shape) -> tuple[World, World]:
    """Row effects and column effects, Gaussian or skewed."""

    def effects(size):
        drawn = rng.standard_normal(size)
        return _standardised(np.exp(0.7 * drawn)) if rng.random() < 0.2 else drawn

    row_effects, column_effects = effects(shape[0]), effects(shape[1])
    return (lambda rows, columns: row_effects[rows]), (
        lambda rows, columns: column_effects[columns]
    )


def _noise(rng, shape) -> World:
    """Noise of unit variance: Gaussian or heavy-tailed; sometimes of other size in each column."""
    degrees = rng.choice([np.inf, np.inf, 3.0, 6.0])
    sizes = np.exp(rng.choice([0.0, 0.0, 0.5]) * rng.standard_normal(shape[1]))
    sizes /= np.sqrt((sizes**2).mean())

    def draw(rows, columns):
        drawn = rng.standard_normal(len(rows))
        if np.isfinite(degrees):
            heavy = np.sqrt(rng.chisquare(degrees, len(rows)) / degrees)
            drawn = drawn / heavy * np.sqrt((degrees - 2) / degrees)
        return sizes[columns] * drawn

    return draw


def _factor_world(rng, u, v) -> World:
    return _unit(rng, (len(u), len(v)), lambda rows, columns: (u[rows] * v[columns]).sum(axis=1))


def _fading(rng, rank: int) -> np.ndarray:
    return (np.arange(rank) + 1.0) ** -rng.uniform(0, 1.5)


def _clustered(rng, size: int, rank: int) -> np.ndarray:
    """Factors scattered around a few centres, or blends of these."""
    centres = rng.standard_normal((rng.integers(2, 8), rank))
    if rng.random() < 0.5:
        picked = centres[rng.integers(len(centres), size=size)]
    else:
        picked = rng.dirichlet(np.full(len(centres), 0.3), size) @ centres
    return picked + rng.uniform(0.05, 0.6) * rng.standard_normal((size, rank))


def _cut(rng, shape, world: World, levels: int, per_column: bool) -> World:
    """Values cut to levels at random quantiles, the same for all columns or not."""
    sample = np.sort(world(*_cells_anywhere(rng, shape)))
    quantiles = np.cumsum(rng.dirichlet(np.full(levels, 2.0)))[:-1]
    cuts = np.quantile(sample, quantiles)
    shifts = 0.4 * rng.standard_normal(shape[1]) * per_column * sample.std()
    return lambda rows, columns: 1.0 + np.searchsorted(cuts, world(rows, columns) + shifts[columns])


def _ratings(rng, num_rows, num_columns):
    shape = num_rows, num_columns
    rank = rng.integers(1, 9)
    draw = _clustered if rng.random() < 0.6 else lambda r, s, k: r.standard_normal((s, k))
    u = draw(rng, num_rows, rank) * _fading(rng, rank)
    interaction = _factor_world(rng, u, draw(rng, num_columns, rank))
    shares = np.sqrt(rng.dirichlet([1.0, 1.0, 1.5, 3.0]))
    parts = (*_additive(rng, shape), interaction, _noise(rng, shape))
    world = _sum(*zip(shares, parts, strict=True))
    if rng.random() < 0.3:
        return world
    return _cut(rng, shape, world, int(rng.integers(2, 12)), per_column=False)


def _survey(rng, num_rows, num_columns):
    rank = rng.integers(1, 6)
    traits = rng.standard_normal((num_rows, rank))
    loadings = 0.15 * rng.standard_normal((num_columns, rank))
    own = rng.integers(rank, size=num_columns)
    loadings[np.arange(num_columns), own] += rng.uniform(0.4, 1.2, num_columns) * rng.choice(
        [1, 1, -1], num_columns
    )
    style = np.exp(0.3 * rng.standard_normal(num_rows))
    shift = rng.uniform(0, 0.6) * rng.standard_normal(num_rows)
    noise, level = _noise(rng, (num_rows, num_columns)), rng.uniform(0.3, 1.2)

    def latent(rows, columns):
        signal = (traits[rows] * loadings[columns]).sum(axis=1)
        return style[rows] * signal + shift[rows] + level * noise(rows, columns)

    levels = int(rng.integers(2, 8))
    return _cut(rng, (num_rows, num_columns), latent, levels, per_column=True)


def _sensors(rng, num_rows, num_columns):
    rank = rng.integers(1, 7)
    time = np.arange(num_rows)[:, None] / num_rows
    waves = np.sin(2 * np.pi * (rng.uniform(0.5, 12, rank) * time + rng.random(rank)))
    walks = np.cumsum(rng.standard_normal((num_rows, rank)), axis=0) / np.sqrt(num_rows)
    courses = np.where(rng.random(rank) < 0.5, waves, walks) * _fading(rng, rank)
    loadings = rng.standard_normal((num_columns, rank)) + rng.choice([0.0, 1.5])
    signal = _factor_world(rng, courses, loadings)
    _, offsets = _additive(rng, (num_rows, num_columns))
    noise = _noise(rng, (num_rows, num_columns))
    level = float(np.exp(rng.uniform(np.log(0.02), np.log(0.7))))
    return _sum((1.0, signal), (rng.choice([0.0, 1.0, 3.0]), offsets), (level, noise))


def _image(rng, num_rows, num_columns):
    count = rng.integers(2, 15)
    centres, widths = rng.random((count, 2)), rng.uniform(0.05, 0.5, (count, 2))
    heights, boxes = rng.standard_normal(count), rng.random(count) < rng.random()

    def signal(rows, columns):
        at = np.stack([rows / num_rows, columns / num_columns], axis=1)
        total = np.zeros(len(rows))
        for centre, width, height, box in zip(centres, widths, heights, boxes, strict=True):
            apart = (at - centre) / width
            inside = (np.abs(apart) < 1).all(axis=1) if box else np.exp(-(apart**2).sum(axis=1))
            total += height * inside
        return total

    noise = _noise(rng, (num_rows, num_columns))
    level = float(np.exp(rng.uniform(np.log(0.02), np.log(0.7))))
    return _sum((1.0, _unit(rng, (num_rows, num_columns), signal)), (level, noise))


def _low_rank(rng, num_rows, num_columns):
    rank = rng.integers(1, 13)

    def factors(size):
        kind = rng.integers(3)
        if kind == 0:
            return rng.gamma(0.7, size=(size, rank))
        return rng.standard_normal((size, rank)) if kind == 1 else rng.laplace(size=(size, rank))

    shape = num_rows, num_columns
    signal = _factor_world(rng, factors(num_rows) * _fading(rng, rank), factors(num_columns))
    of_rows, of_columns = _additive(rng, shape)
    sizes = rng.choice([0.0, 0.3, 1.0], 2)
    return _sum(
        (1.0, signal),
        (sizes[0], of_rows),
        (sizes[1], of_columns),
        (_noise_level(rng), _noise(rng, shape)),
    )


def _nonlinear(rng, num_rows, num_columns):
    size, waves = rng.integers(1, 5), 40
    at_rows, at_columns = (rng.standard_normal((n, size)) for n in (num_rows, num_columns))
    pace = rng.uniform(0.2, 1.0)
    of_rows, of_columns = (pace * rng.standard_normal((size, waves)) for _ in range(2))
    phases, heights = rng.uniform(0, 2 * np.pi, waves), rng.standard_normal(waves)
    by_rows, by_columns = at_rows @ of_rows + phases, at_columns @ of_columns

    def signal(rows, columns):
        return np.cos(by_rows[rows] + by_columns[columns]) @ heights

    shape = num_rows, num_columns
    return _sum((1.0, _unit(rng, shape, signal)), (_noise_level(rng), _noise(rng, shape)))


def _blocks(rng, num_rows, num_columns):
    row_groups, column_groups = rng.integers(2, 9, 2)
    of_rows = rng.integers(row_groups, size=num_rows)
    of_columns = rng.integers(column_groups, size=num_columns)
    heights = rng.standard_normal((row_groups, column_groups))

    def signal(rows, columns):
        return heights[of_rows[rows], of_columns[columns]]

    shape = num_rows, num_columns
    return _sum((1.0, _unit(rng, shape, signal)), (_noise_level(rng), _noise(rng, shape)))


def _features(rng, num_rows, num_columns):
    """Rows are individuals of a few classes; columns are features, of unequal noise and skew."""
    rank = rng.integers(1, 7)
    u = (
        _clustered(rng, num_rows, rank)
        if rng.random() < 0.7
        else rng.standard_normal((num_rows, rank))
    )
    v = rng.standard_normal((num_columns, rank)) * _fading(rng, rank)
    sizes = np.sqrt((v**2).sum(axis=1))
    noise = sizes * np.exp(rng.uniform(np.log(0.05), np.log(2), num_columns))
    skewed = np.where(rng.random(num_columns) < 0.3, 0.5, 0.0)
    offsets = rng.choice([0.0, 1.0, 4.0]) * rng.standard_normal(num_columns)

    def world(rows, columns):
        latent = (u[rows] * v[columns]).sum(axis=1) + noise[columns] * rng.standard_normal(
            len(rows)
        )
        bent = skewed[columns]
        straight = np.where(bent > 0, np.expm1(bent * latent.clip(-4, 4)) / 0.5, latent)
        return straight + offsets[columns]

    return world


def _effects_alone(rng, num_rows, num_columns):
    shape = num_rows, num_columns
    of_rows, of_columns = _additive(rng, shape)
    sizes = rng.choice([0.0, 0.3, 1.0], 2)
    return _sum((sizes[0], of_rows), (sizes[1], of_columns), (1.0, _noise(rng, shape)))


FAMILIES: dict[str, Callable[[np.random.Generator, int, int], World]] = {
    "ratings": _ratings,
    "survey": _survey,
    "sensors": _sensors,
    "image": _image,
    "low_rank": _low_rank,
    "nonlinear": _nonlinear,
    "blocks": _blocks,
    "features": _features,
    "effects_alone": _effects_alone,
}
# Ratings are the hardest to gain on, and take the most care.
_WEIGHTS = {**dict.fromkeys(FAMILIES, 1.0), "ratings": 4.0, "effects_alone": 0.5}
