"""Draws of rows against dense float64 solves, row by row, and against the Gaussian they are of."""

import dataclasses

import jax
import numpy as np
import pytest

from metamf_jax import parallel
from metamf_jax.kernels.cholesky import BATCH
from metamf_jax.posterior import row_conditional
from metamf_jax.types import Entries

N, M = 9, 2 * BATCH + 20
BACKENDS = "numba", "xla"


def _entries(seed=0):
    """Row 0 has every column, row 1 exactly one batch of them, row 2 and column 4 nothing."""
    rng = np.random.default_rng(seed)
    observed = rng.random((N, M)) < 0.2
    observed[0], observed[1] = True, np.arange(M) < BATCH + 1
    observed[2], observed[:, 4] = False, False
    rows, columns = np.nonzero(observed)
    order = rng.permutation(len(rows))
    rows, columns = rows[order], columns[order]
    values = rng.normal(size=len(rows))
    return Entries(rows.astype("i"), columns.astype("i"), values.astype("f"), (N, M))


def _given(rank, seed=1):
    """What `row_conditional.draw` takes after its data; weights differ from row to row."""
    rng = np.random.default_rng(seed)
    width = rank + 1
    root = rng.normal(size=(width, width)) / np.sqrt(width)
    return (
        rng.gamma(2.0, size=N),
        rng.normal(size=(N, width)),
        np.eye(width) + root @ root.T,
        rng.normal(size=(M, width)).astype("f"),
        rng.gamma(2.0, size=M),
    )


def _conditionals(entries, weight, pull, precision, columns, column_weight):
    """Yields of each row ``A``, ``h``, its ``t`` [N_n, L], targets and column weights; float64."""
    for n in range(entries.shape[0]):
        of_row = entries.rows == n
        at = entries.columns[of_row]
        t = np.column_stack([columns[at, :-1], np.ones(len(at))]).astype(float)
        targets = entries.values[of_row].astype(float) - columns[at, -1]
        weighted = weight[n] * column_weight[at, None] * t
        a = precision + t.T @ weighted
        a += row_conditional._ROUNDING * np.trace(a) * np.eye(len(a))
        yield a, pull[n] + targets @ weighted, t, targets, at


def _expected(key, entries, *given):
    """``A^-1 h + C^-T z`` with the noise that the draw takes, and the squares this leaves."""
    column_weight, width = given[-1], given[2].shape[0]
    noise = np.asarray(row_conditional._noise(jax.random.key_data(key), N, width), float)
    drawn, squares = np.zeros((N, width)), np.zeros(N)
    for n, (a, h, t, targets, at) in enumerate(_conditionals(entries, *given)):
        root = np.linalg.cholesky(a)
        drawn[n] = np.linalg.solve(a, h) + np.linalg.solve(root.T, noise[n])
        squares[n] = (column_weight[at] * (targets - t @ drawn[n]) ** 2).sum()
    return drawn, squares


def _assert_close(found, expected, tolerance=2e-5):
    """To a part of the largest number."""
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rank", [0, 1, 5, 32, 40])
def test_a_draw_equals_dense_solves(rank, backend):
    entries, given, key = _entries(), _given(rank), jax.random.key(3)
    data = row_conditional.prepare(entries, rank, backend=backend)
    drawn, squares = row_conditional.draw(key, data, *given)
    expected, left = _expected(key, entries, *given)
    _assert_close(drawn, expected)
    _assert_close(squares, left)
    assert drawn.dtype == np.float32
    assert squares.dtype == np.float64
    assert squares[2] == 0
    np.testing.assert_array_equal(data.counts, np.bincount(entries.rows, minlength=N))


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_entries_rows_are_drawn_from_their_prior(backend):
    empty = Entries(*(np.zeros(0, t) for t in "iif"), (N, M))
    given, key = _given(3), jax.random.key(4)
    data = row_conditional.prepare(empty, 3, backend=backend)
    drawn, squares = row_conditional.draw(key, data, *given)
    _assert_close(drawn, _expected(key, empty, *given)[0])
    np.testing.assert_array_equal(squares, np.zeros(N))


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_and_unobserved_columns_are_never_read(backend):
    entries, key = _entries(), jax.random.key(5)
    weight, pull, precision, columns, column_weight = _given(5)
    # On 4 devices the dealt rows and entries are padded.
    data = row_conditional.prepare(entries, 5, 4, backend)
    clean = row_conditional.draw(key, data, weight, pull, precision, columns, column_weight)
    *others, listed, values = data.entries
    padding = np.asarray(listed) == M
    assert padding.any()
    poisoned = np.where(padding, np.nan, np.asarray(values))
    if backend == "numba":
        listed = np.where(padding, -1, np.asarray(listed))
    split = parallel.split(data.mesh, (np.asarray(listed), poisoned))
    data = data._replace(entries=(*others, *split))
    columns, column_weight = columns.copy(), column_weight.copy()
    columns[4], column_weight[4] = np.nan, np.nan
    found = row_conditional.draw(key, data, weight, pull, precision, columns, column_weight)
    for left, right in zip(found, clean, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("backend", BACKENDS)
def test_mean_and_covariance_of_many_draws(backend):
    # Equal rows, so that one call gives many draws.
    num_draws, num_columns, rank = 20_000, 6, 2
    rng = np.random.default_rng(6)
    columns = rng.normal(size=(num_columns, rank + 1)).astype("f")
    values = rng.normal(size=num_columns).astype("f")
    entries = Entries(
        np.repeat(np.arange(num_draws, dtype="i"), num_columns),
        np.tile(np.arange(num_columns, dtype="i"), num_draws),
        np.tile(values, num_draws),
        (num_draws, num_columns),
    )
    one = Entries(*(x[:num_columns] for x in (entries.rows, entries.columns, values)), (1, 6))
    pull, column_weight = rng.normal(size=rank + 1), rng.gamma(2.0, size=num_columns)
    precision = np.array([[2.0, 0.5, 0.3], [0.5, 1.0, -0.2], [0.3, -0.2, 1.5]])
    shared = precision, columns, column_weight
    ((a, h, *_),) = _conditionals(one, [0.7], pull[None], *shared)
    data = row_conditional.prepare(entries, rank, backend=backend)
    drawn, _ = row_conditional.draw(
        jax.random.key(7), data, np.full(num_draws, 0.7), np.tile(pull, (num_draws, 1)), *shared
    )
    # To standard normal numbers.
    white = (drawn - np.linalg.solve(a, h)) @ np.linalg.cholesky(a)
    assert np.abs(white.mean(axis=0)).max() < 4 / np.sqrt(num_draws)
    spread = np.sqrt((1 + np.eye(rank + 1)) / num_draws)
    assert (np.abs(white.T @ white / num_draws - np.eye(rank + 1)) < 4 * spread).all()


def test_a_key_draws_each_row_anew():
    entries, given = _entries(), _given(2)
    data = row_conditional.prepare(entries, 2)
    one, again, other = (
        row_conditional.draw(jax.random.key(k), data, *given)[0] for k in (8, 8, 9)
    )
    np.testing.assert_array_equal(one, again)
    assert (one != other).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_values_given_to_a_draw_take_the_place_of_the_prepared_ones(backend):
    entries, given, key = _entries(), _given(3), jax.random.key(10)
    values = np.random.default_rng(11).normal(size=len(entries.values)).astype("f")
    prepared, others = (
        row_conditional.prepare(dataclasses.replace(entries, values=x), 3, 4, backend)
        for x in (values, np.full(len(values), np.nan))
    )
    expected = row_conditional.draw(key, prepared, *given)
    found = row_conditional.draw(key, others, *given, values)
    for left, right in zip(found, expected, strict=True):
        np.testing.assert_array_equal(left, right)
