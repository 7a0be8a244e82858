"""The posterior of one matrix: each sweep against mean-field updates in dense float64, what sweeps
end in, and that turning the factors is free."""

from typing import NamedTuple
from unittest import mock

import numpy as np
import pytest

from metamf_jax import sums
from metamf_jax.bias_model import Effects
from metamf_jax.data import synthetic
from metamf_jax.imputation import posterior
from metamf_jax.imputation.row_solver import Rows
from metamf_jax.meta_learning.padding import pad_dense
from metamf_jax.types import Entries, Factors

SHAPE, NOISE = (60, 50), 0.4


@pytest.fixture(scope="module")
def matrix():
    entries = synthetic.low_rank(1, *SHAPE, 2, density=0.6, noise=NOISE, bias=0.7)[0].entries
    return Rows(entries), Rows(sums.transpose(entries))


def started(seed, rank=4):
    rng = np.random.default_rng(seed)
    effects = Effects(*(np.zeros(size, np.float32) for size in ((), *SHAPE)))
    factors = (rng.normal(size=(size, rank)).astype(np.float32) for size in SHAPE)
    return posterior.start(effects, Factors(*factors), 1.0)


def products(found):
    return found.rows.mean @ found.columns.mean.T


def test_the_noise_is_found_and_factors_that_are_not_there_die_away(matrix):
    found = posterior.fit(*matrix, started(0))
    np.testing.assert_allclose(np.sqrt(np.median(found.noise)), NOISE, rtol=0.15)
    sizes = np.sort(found.columns.mean[:, :4].std(axis=0) * found.rows.mean[:, :4].std(axis=0))
    assert sizes[1] < 0.05 < 0.3 < sizes[2]


def test_the_end_does_not_depend_on_the_start(matrix):
    one, other = (posterior.fit(*matrix, started(seed)) for seed in (0, 1))
    np.testing.assert_allclose(products(one), products(other), atol=0.1)


def test_turned_factors_have_the_same_products(matrix):
    found = posterior.fit(*matrix, started(0), sweeps=1)
    turned = posterior._rotated(found, *matrix)
    np.testing.assert_allclose(products(turned), products(found), atol=1e-5)
    u, v = (
        side.mean[:, :4].T @ side.mean[:, :4] + np.diag(side.variance[:, :4].sum(axis=0))
        for side in (turned.rows, turned.columns)
    )
    # Diagonal up to the variances of which only the diagonal is known.
    size = np.diag(v).max()
    np.testing.assert_allclose(v - np.diag(np.diag(v)), 0, atol=0.02 * size)
    np.testing.assert_allclose(np.diag(u) / SHAPE[0], np.diag(v) / SHAPE[1], rtol=0.1)


class Part(NamedTuple):
    """A factor and an effect for each row (or column), as one of K + 1 columns; plain float64."""

    mean: np.ndarray
    variance: np.ndarray
    precision: np.ndarray


class Plain(NamedTuple):
    """A posterior with nothing in it that is one by definition."""

    mean: float
    rows: Part
    columns: Part
    noise: np.ndarray


def regressions(x, observed, other, mean, weight, noise, precision):
    """Each row's factor and effect given the other side: mean, variance and expected squares."""
    other_mean, other_variance, _ = other
    means, variances, squares = [], [], []
    for n in range(len(x)):
        m = observed[n]
        design = np.column_stack([other_mean[m, :-1], np.ones(m.sum())])
        spread = np.column_stack([other_variance[m, :-1], np.zeros(m.sum())])
        target = x[n, m] - mean - other_mean[m, -1]
        weights = weight[m] / noise[n]
        gram = design.T @ np.diag(weights) @ design + np.diag(weights @ spread)
        covariance = np.linalg.inv(gram + np.diag(precision))
        own = covariance @ design.T @ (weights * target)
        own_variance = np.diag(covariance)
        # The variance of a product of independent factors, and of the other side's effect.
        explained = design**2 @ own_variance + spread @ own**2 + spread @ own_variance
        squares.append(((target - design @ own) ** 2 + explained + other_variance[m, -1]).sum())
        means.append(own)
        variances.append(own_variance)
    return np.array(means), np.array(variances), np.array(squares)


def relevance(part, seen):
    """With the prior precisions that the mean squares ask for, as if of two more rows of 0.1."""
    squares = (part.mean**2 + part.variance)[seen].sum(axis=0)
    return part._replace(precision=(seen.sum() + 2) / (squares + 0.2))


def noise_of(squares, counts, overall):
    """Each column's own, with ten observations of what all have."""
    return (squares + 10 * overall) / (counts + 10)


def turned(plain, seen_rows, seen_columns):
    """The coordinates in which both second moments are diagonal, and in proportion to the sides."""
    (u, u_variance, _), (v, v_variance, _) = (
        (part.mean[seen, :-1], part.variance[seen, :-1], None)
        for part, seen in ((plain.rows, seen_rows), (plain.columns, seen_columns))
    )
    of_rows = u.T @ u + np.diag(u_variance.sum(axis=0))
    of_columns = v.T @ v + np.diag(v_variance.sum(axis=0))
    # A^T of_rows A and A^-1 of_columns A^-T are both diagonal.
    values, a = np.linalg.eig(of_columns @ of_rows)
    order = np.argsort(values)
    values, a = values[order], a[:, order]
    wanted = np.sqrt(values * seen_rows.sum() / seen_columns.sum())
    a = a * np.sqrt(wanted / np.diag(a.T @ of_rows @ a))
    parts = []
    for part, by, seen in (
        (plain.rows, a, seen_rows),
        (plain.columns, np.linalg.inv(a).T, seen_columns),
    ):
        mean = np.column_stack([part.mean[:, :-1] @ by, part.mean[:, -1]])
        variance = np.column_stack([part.variance[:, :-1] @ by**2, part.variance[:, -1]])
        parts.append(relevance(Part(mean, variance, part.precision), seen))
    return plain._replace(rows=parts[0], columns=parts[1])


def plain_sweeps(x, observed, plain, sweeps):
    """What `posterior.fit` does, cell by cell."""
    seen_rows, seen_columns = observed.any(axis=1), observed.any(axis=0)
    counts = observed.sum(axis=0)
    mean, rows, columns, noise = plain
    rows, columns = relevance(rows, seen_rows), relevance(columns, seen_columns)
    for _ in range(sweeps):
        ones = np.ones(len(x))
        *solved, squares = regressions(x.T, observed.T, rows, mean, ones, noise, columns.precision)
        columns = relevance(Part(*solved, columns.precision), seen_columns)
        noise = noise_of(squares, counts, squares.sum() / counts.sum())
        *solved, _ = regressions(x, observed, columns, mean, 1 / noise, ones, rows.precision)
        rows = Part(*solved, rows.precision)
        left = x - fitted(Plain(mean, rows, columns, noise))
        mean += (left / noise)[observed].sum() / (counts / noise).sum()
        mean, rows, columns, noise = turned(
            Plain(mean, rows, columns, noise), seen_rows, seen_columns
        )
    *solved, _ = regressions(x, observed, columns, mean, 1 / noise, ones, rows.precision)
    return Plain(mean, Part(*solved, rows.precision), columns, noise)


def fitted(plain):
    u, v = plain.rows.mean, plain.columns.mean
    return plain.mean + u[:, :-1] @ v[:, :-1].T + u[:, -1:] + v[None, :, -1]


def without_ones(found):
    """What `posterior` keeps, but for the columns that are one; float64."""
    sides = []
    for side, one in ((found.rows, -1), (found.columns, -2)):
        mean, variance, precision = (np.delete(np.float64(x), one, axis=-1) for x in side)
        np.testing.assert_array_equal(side.mean[:, one], 1)
        np.testing.assert_array_equal(side.variance[:, one], 0)
        sides.append(Part(mean, variance, precision))
    return Plain(np.float64(found.mean), *sides, np.float64(found.noise))


def small(layout):
    """9 x 7, row 3 and column 2 empty, noise of columns unlike, and a posterior to start from."""
    rng = np.random.default_rng(4)
    observed = rng.random((9, 7)) < 0.7
    observed[3], observed[:, 2] = False, False
    x = rng.normal(size=(9, 2)) @ rng.normal(size=(2, 7)) + 0.5
    x += rng.normal(size=x.shape) * np.linspace(0.1, 1.5, 7)
    x = x.astype(np.float32)
    rows, columns = (at.astype(np.int32) for at in np.nonzero(observed))
    entries = Entries(rows, columns, x[rows, columns], x.shape)
    if layout == "dense":
        entries = pad_dense(entries)
    effects = Effects(*(0.3 * rng.normal(size=size).astype(np.float32) for size in ((), 9, 7)))
    factors = Factors(*(rng.normal(size=(size, 2)).astype(np.float32) for size in (9, 7)))
    start = posterior.start(effects, factors, 1.4)
    for side, one in ((start.rows, -1), (start.columns, -2)):
        side.variance[:] = rng.uniform(0.2, 0.8, side.variance.shape)
        side.variance[:, one] = 0
    start = start._replace(noise=np.linspace(0.3, 1.2, 7).astype(np.float32))
    return np.float64(x), observed, Rows(entries), Rows(sums.transpose(entries)), start


def assert_equal_but_for_signs(found, expected):
    """Factors have no sign."""
    found = without_ones(found)
    np.testing.assert_allclose(fitted(found), fitted(expected), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.noise, expected.noise, rtol=1e-4)
    for one, other in ((found.rows, expected.rows), (found.columns, expected.columns)):
        np.testing.assert_allclose(np.abs(one.mean), np.abs(other.mean), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(one.variance, other.variance, rtol=1e-3)
        np.testing.assert_allclose(one.precision, other.precision, rtol=1e-3)


@pytest.mark.parametrize("sweeps", [1, 2])
@pytest.mark.parametrize("layout", ["list", "dense"])
def test_sweeps_are_the_mean_field_updates(layout, sweeps):
    x, observed, rows, columns, start = small(layout)
    found = posterior.fit(rows, columns, start, sweeps=sweeps)
    expected = plain_sweeps(x, observed, without_ones(start), sweeps)
    assert_equal_but_for_signs(found, expected)


def test_further_columns_are_the_mean_field_updates():
    _, _, rows, columns, start = small("list")
    found = posterior.fit(rows, columns, start, sweeps=1)
    plain = without_ones(found)
    rng = np.random.default_rng(5)
    further = rng.normal(size=(9, 4)).astype(np.float32) * np.float32([0.1, 1, 3, 1])
    seen = rng.random((9, 4)) < 0.6
    seen[:, 3] = False
    at = [part.astype(np.int32) for part in np.nonzero(seen.T)]
    entries = Entries(*at, further.T[tuple(at)], (4, 9))
    side, noise = posterior.fold_in_columns(Rows(entries), found)

    def solved(noise):
        return regressions(
            np.float64(further.T),
            seen.T,
            plain.rows,
            plain.mean,
            np.ones(9),
            noise,
            plain.columns.precision,
        )

    usual = np.exp(np.log(plain.noise).mean())
    expected = noise_of(solved(np.full(4, usual))[2], seen.sum(axis=0), usual)
    np.testing.assert_allclose(noise, expected, rtol=1e-4)
    mean, variance, _ = solved(expected)
    np.testing.assert_allclose(np.delete(side.mean, -2, axis=1), mean, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(np.delete(side.variance, -2, axis=1), variance, rtol=1e-3)


def test_the_sweeps_stop_where_the_noise_stands_still(matrix):
    """Where they end is where more would have ended."""
    counted = []

    def solve(problem):
        counted.append(problem)
        return matrix[1].solve(problem)

    columns = mock.Mock(counts=matrix[1].counts, solve=solve)
    found = posterior.fit(matrix[0], columns, started(0))
    assert 2 < len(counted) < 50
    further = posterior.fit(*matrix, found, sweeps=10)
    np.testing.assert_allclose(further.noise, found.noise, rtol=0.02)
