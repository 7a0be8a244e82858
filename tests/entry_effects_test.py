"""Effects of the entries: their bins and places, and their draws against dense solves."""

import numpy as np
import pytest
import scipy.stats

from metamf_jax.posterior import entry_effects

ROWS = np.array([0, 0, 0, 1, 1, 2, 2, 2])
COLUMNS = np.array([0, 1, 2, 0, 1, 0, 1, 2])
WORDS = np.array(["b", "a", "b", "", "a", "a", "a", "c"], object)


def test_words_have_effects_alone_by_row_and_by_column():
    groups = entry_effects.make_groups(ROWS, COLUMNS, {"where": WORDS})
    assert [(g.feature, g.side) for g in groups] == [
        ("where", side) for side in ("all", "row", "column")
    ]
    found = entry_effects.places(groups, ROWS, COLUMNS, {"where": WORDS})
    np.testing.assert_array_equal(found.starts, [0, 3, 8, 13])
    a, b, c, none = 0, 1, 2, 13
    np.testing.assert_array_equal(found.at[0], [b, a, b, none, a, a, a, c])
    # (0, a), (0, b), (1, a), (2, a), (2, c)
    np.testing.assert_array_equal(found.at[1], 3 + np.array([1, 0, 1, 10, 2, 3, 3, 4]))
    # An unknown word, row or column has no effect; nor has a feature that is not told.
    asked = np.array([0, -1, 2, 0]), np.array([0, 0, -1, 1])
    words = np.array(["z", "a", "a", "b"], object)
    told = entry_effects.places(groups, *asked, {"where": words})
    np.testing.assert_array_equal(told.at[0], [none, a, a, b])
    np.testing.assert_array_equal(told.at[1], [none, none, 6, 4])
    assert told.at[2, 2] == none
    assert (entry_effects.places(groups, *asked, {}).at == none).all()


def test_numbers_are_cut_at_their_quantiles():
    rng = np.random.default_rng(0)
    rows, columns = rng.integers(0, 5, 400), rng.integers(0, 4, 400)
    times = rng.normal(size=400) ** 3
    times[7] = np.nan
    groups = entry_effects.make_groups(rows, columns, {"time": times})
    # 400 distinct numbers allow fewer than 1024 bins, and those of 32768 are the same.
    assert [g.side for g in groups] == ["all", "row", "row", "column"]
    found = entry_effects.places(groups, rows, columns, {"time": times})
    assert len(groups[0].keys) == 32
    sizes = np.bincount(found.at[0], minlength=33)[:32]
    assert sizes.min() >= 11
    assert sizes.max() <= 14
    assert (found.at[:, 7] == found.starts[-1]).all()
    for group, at in zip(groups, found.at, strict=True):
        # Whoever shares an effect shares its owner, and follows in time.
        for place in np.unique(at[at < found.starts[-1]]):
            inside = times[at == place]
            owners = {"all": np.zeros(400), "row": rows, "column": columns}[group.side]
            assert len(np.unique(owners[at == place])) == 1
            others = times[(at != place) & (owners == owners[at == place][0])]
            assert not ((others > inside.min()) & (others < inside.max())).any()


def test_few_distinct_numbers_are_levels():
    times = np.array([1.0, 1, 2, 2, 2, 7, 7, 7])
    groups = entry_effects.make_groups(ROWS, COLUMNS, {"time": times})
    assert [g.side for g in groups] == ["all", "row", "column"]
    found = entry_effects.places(groups, ROWS, COLUMNS, {"time": times})
    np.testing.assert_array_equal(found.at[0], [0, 0, 1, 1, 1, 2, 2, 2])


def test_words_where_numbers_were_are_refused():
    groups = entry_effects.make_groups(ROWS, COLUMNS, {"where": WORDS})
    with pytest.raises(ValueError, match="expected words in the column 'where'"):
        entry_effects.places(groups, ROWS, COLUMNS, {"where": np.zeros(8)})


def test_draws_have_the_posterior_that_is_known():
    places = entry_effects.Places(
        np.array([[0, 1, 1, 0, 5], [2, 2, 3, 4, 4]], np.int32), np.array([0, 2, 5])
    )
    rng = np.random.default_rng(1)
    residual, weight = rng.normal(size=5), rng.gamma(2.0, size=5)
    effects, drawn = entry_effects.init(places), []
    for _ in range(6000):
        effects = entry_effects.draw(rng, effects, places, residual, weight)
        drawn.append(np.append(effects.values, np.log(effects.precisions)))
    drawn = np.array(drawn)
    # By weights of the precisions on a grid, given which the effects are Gaussian.
    design = np.zeros((5, 6))
    design[np.arange(5)[None], places.at] = 1
    design = design[:, :5]
    grid = np.linspace(-3, 6, 60)
    total, mean, square = 0.0, 0.0, 0.0
    for first in grid:
        for second in grid:
            tau = np.exp(np.repeat([first, second], [2, 3]))
            covariance = np.diag(1 / weight) + design / tau @ design.T
            likelihood = scipy.stats.multivariate_normal.logpdf(residual, np.zeros(5), covariance)
            prior = scipy.stats.gamma.logpdf(np.exp([first, second]), 2, scale=10).sum()
            mass = np.exp(likelihood + prior + first + second)
            spread = np.linalg.inv(np.diag(tau) + design.T * weight @ design)
            center = np.append(spread @ (design.T @ (weight * residual)), [first, second])
            total += mass
            mean += mass * center
            square += mass * (center**2 + np.append(np.diag(spread), [0, 0]))
    mean, square = mean / total, square / total
    deviation = np.sqrt(square - mean**2)
    np.testing.assert_allclose(drawn.mean(axis=0), mean, rtol=0, atol=0.1 * deviation.max())
    np.testing.assert_allclose(drawn.std(axis=0), deviation, rtol=0.1)
