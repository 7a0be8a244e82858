"""Thresholds and latent values against scipy's distributions and finite differences."""

import jax
import numpy as np
import pytest
import scipy.stats

from metamf_jax.posterior import ordinal

UNIFORM = (np.arange(20_000) + 0.5) / 20_000


@pytest.mark.parametrize(
    ("lower", "upper", "tolerance"),
    [
        (-1, 2, 1e-5),
        (-np.inf, -3, 1e-5),
        (4, np.inf, 1e-5),
        (-0.001, 0.001, 1e-5),
        (8.5, np.inf, 1e-5),
        (12, 12.0078125, 1e-5),
        # Where the density's slope is that of another, by one part in so many squares.
        (-20, -11, 0.01),
        (12, np.inf, 0.01),
        (30, np.inf, 0.005),
    ],
)
def test_truncated_gaussians_have_their_quantiles(lower, upper, tolerance):
    bounds = np.float32(lower), np.float32(upper)
    found = np.sort(np.asarray(ordinal.truncated(UNIFORM.astype("f"), *bounds), float))
    # Of the right tail scipy's are exact only when mirrored.
    turned = -1 if lower > 0 else 1
    known = turned * scipy.stats.truncnorm.ppf(UNIFORM, *sorted((turned * lower, turned * upper)))
    np.testing.assert_allclose(found[1:-1], np.sort(known)[1:-1], rtol=0, atol=tolerance)
    assert (lower <= found).all()
    assert (found <= upper).all()


def test_mass_keeps_its_digits_in_both_tails():
    bounds = np.array([-12, -9.5, -9, -1, 0.5, 8, 8.1, 11], "f")
    exact = np.diff(scipy.stats.norm.cdf(bounds.astype(float)))
    exact[4:] = -np.diff(scipy.stats.norm.sf(bounds[4:].astype(float)))
    np.testing.assert_allclose(ordinal.mass(bounds[:-1], bounds[1:]), exact, rtol=1e-4)


def _cells(seed=0, count=3000, thresholds=(-0.8, 0.1, 1.0)):
    rng = np.random.default_rng(seed)
    rows, columns = np.divmod(rng.permutation(count).astype("i"), 60)
    fitted, root = rng.normal(size=count), np.sqrt(rng.gamma(2.0, size=count) / 2)
    levels = np.searchsorted(thresholds, fitted + rng.normal(size=count) / root)
    return ordinal.Cells(rows, columns, levels.astype("i"), fitted.astype("f"), root.astype("f"))


def _log_posterior(thresholds, cells):
    bounds = np.concatenate([[-np.inf], thresholds, [np.inf]])
    fitted, root = (np.asarray(x, float) for x in (cells.fitted, cells.root))
    below, above = (root * (bounds[cells.levels + i] - fitted) for i in (0, 1))
    mass = scipy.stats.norm.cdf(above) - scipy.stats.norm.cdf(below)
    prior = scipy.stats.gamma(2, scale=0.5).logpdf(np.diff(thresholds)).sum()
    return np.log(mass).sum() + prior


def test_the_expansion_of_the_thresholds_posterior():
    cells, thresholds = _cells(), np.array([-0.8, 0.2, 0.9])
    found = ordinal._expand(thresholds, cells)
    curvature = found.root @ found.root.T

    def shifted(*steps):
        return _log_posterior(thresholds + np.append(0, np.sum(steps, axis=0)), cells)

    steps = 1e-3 * np.eye(2)
    slope = np.array([shifted(s) - shifted(-s) for s in steps]) / 2e-3
    np.testing.assert_allclose(curvature @ (found.center - thresholds[1:]), slope, rtol=1e-3)
    second = [
        [shifted(s, t) - shifted(s, -t) - shifted(-s, t) + shifted(-s, -t) for s in steps]
        for t in steps
    ]
    np.testing.assert_allclose(curvature, -np.array(second) / 4e-6, rtol=1e-3, atol=0.5)
    other = np.array([-0.8, 0.1, 1.1])
    gain = ordinal._expand(other, cells).log_density - found.log_density
    exact = _log_posterior(other, cells) - _log_posterior(thresholds, cells)
    assert gain == pytest.approx(exact, abs=0.01)


def test_thresholds_have_the_posterior_that_is_known():
    cells, rng = _cells(count=300), np.random.default_rng(1)
    thresholds, drawn = np.array([-0.8, 3.0, 5.0]), []
    for _ in range(1200):
        thresholds = ordinal.draw_thresholds(rng, thresholds, cells)
        drawn.append(thresholds[1:])
    drawn = np.array(drawn[200:])
    assert (np.abs(np.diff(drawn, axis=0)).max(axis=1) > 0).mean() > 0.7
    # On a grid of the two that move.
    grid = np.linspace(-0.4, 2.0, 121)
    log_density = np.array(
        [
            [_log_posterior(np.array([-0.8, a, b]), cells) if a < b else -np.inf for b in grid]
            for a in grid
        ]
    )
    weight = np.exp(log_density - log_density.max())
    weight /= weight.sum()
    for axis in (0, 1):
        density = weight.sum(axis=1 - axis)
        mean = density @ grid
        spread = np.sqrt(density @ (grid - mean) ** 2)
        assert drawn[:, axis].mean() == pytest.approx(mean, abs=4 * spread / np.sqrt(300))
        assert drawn[:, axis].std() == pytest.approx(spread, rel=0.15)


def test_two_levels_have_one_threshold_that_stays():
    cells = _cells(thresholds=(0.0,))
    thresholds = ordinal.init(cells.levels)
    assert thresholds.shape == (1,)
    moved = ordinal.draw_thresholds(np.random.default_rng(2), thresholds, cells)
    np.testing.assert_array_equal(moved, thresholds)


def test_latent_values_lie_between_thresholds_and_belong_to_their_cells():
    cells, thresholds, key = _cells(), np.array([-0.8, 0.1, 1.0]), jax.random.key(3)
    found = np.asarray(ordinal.draw_latent(key, thresholds, cells, 60))
    np.testing.assert_array_equal(np.searchsorted(thresholds.astype("f"), found), cells.levels)
    order = np.random.default_rng(4).permutation(len(found))
    permuted = ordinal.Cells(*(x[order] for x in cells))
    again = ordinal.draw_latent(key, thresholds, permuted, 60)
    # To rounding: the last few of a vector are computed by other instructions.
    np.testing.assert_allclose(again, found[order], rtol=1e-5, atol=1e-6)
    # Over all levels they are Gaussian about the fitted values.
    standardised = cells.root * (found - cells.fitted)
    assert scipy.stats.kstest(standardised, scipy.stats.norm.cdf).pvalue > 1e-3


def test_a_start_gives_each_level_its_part():
    levels = np.repeat([0, 1, 2], [100, 300, 600])
    expected = scipy.stats.norm.ppf([0.1, 0.4])
    np.testing.assert_allclose(ordinal.init(levels), expected, atol=0.01)
