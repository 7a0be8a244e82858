"""Langevin dynamics of one matrix: what it is known to draw, Gibbs' answers, any machine's bits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metamf_jax.factorization import block_store, visits
from metamf_jax.factorization.dsgd import DsgdConfig
from metamf_jax.posterior import (
    block_residuals,
    chains,
    fit,
    gibbs,
    hyperprior,
    langevin,
    predictive,
)
from metamf_jax.posterior.langevin import LangevinConfig, Turn
from metamf_jax.types import Entries, Factors

GROUPS = (np.zeros(1, int),) * 2


def listed(rows, columns, values, shape):
    return Entries(rows.astype("i"), columns.astype("i"), values.astype("f"), shape)


@pytest.fixture(scope="module")
def matrix():
    """Entries of a matrix of rank 2 with noise, the first row and column empty; and all of it."""
    rng, shape = np.random.default_rng(0), (48, 40)
    u, v = rng.normal(size=(shape[0], 2)), rng.normal(size=(shape[1], 2))
    full = (u @ v.T + rng.normal(size=(shape[0], 1)) + rng.normal(size=shape[1])) / 2
    observed = rng.random(shape) < 0.4
    observed[0], observed[:, 0] = False, False
    rows, columns = np.nonzero(observed)
    values = full[rows, columns] + 0.3 * rng.normal(size=len(rows))
    return listed(rows, columns, values, shape), full


def features_of(shape):
    rng = np.random.default_rng(1)
    return tuple(rng.normal(size=(size, 1)) for size in shape)


def prepare(entries, config, devices=1, backend="auto", num_blocks=8):
    cut = DsgdConfig(num_blocks=num_blocks, num_devices=devices, backend=backend)
    return langevin.prepare(entries, features_of(entries.shape), GROUPS, config, cut)


def sample(entries, config, devices=1, backend="auto", num_blocks=8, **lengths):
    data = prepare(entries, config, devices, backend, num_blocks)
    return chains.run(data, config, chains.ChainsConfig(**lengths))


def assert_equal(left, right):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(a, b)


SHORT = {"num_chains": 2, "burn_in": 2, "num_draws": 4}


@pytest.fixture(scope="module")
def alone(matrix):
    """The draws of one device."""
    return sample(matrix[0], LangevinConfig(3), **SHORT)


@pytest.mark.parametrize("devices", [2, 8])
def test_draws_do_not_depend_on_the_number_of_devices(matrix, alone, devices):
    assert_equal(sample(matrix[0], LangevinConfig(3), devices, **SHORT), alone)


def test_nor_do_those_of_xla(matrix):
    short = {"num_chains": 1, "burn_in": 0, "num_draws": 2}
    assert_equal(*(sample(matrix[0], LangevinConfig(3), d, "xla", **short) for d in (1, 4)))


@pytest.fixture(scope="module")
def store(matrix, tmp_path_factory):
    """The same entries on disk, in three chunks."""
    entries, cut = matrix[0], DsgdConfig(num_blocks=8)
    folder = tmp_path_factory.mktemp("langevin") / "store"
    parts = np.array_split(np.arange(len(entries.values)), 3)
    chunks = (
        Entries(entries.rows[i], entries.columns[i], entries.values[i], entries.shape)
        for i in parts
    )
    rngs = visits.sides_rng(cut), visits.block_rng(cut, 0)
    width = langevin.cut_width(LangevinConfig(3))
    block_store.build_store(folder, chunks, entries.shape, 8, width, *rngs, {})
    return block_store.open_store(folder)


@pytest.mark.parametrize("devices", [1, 4])
def test_draws_from_disk_are_those_from_memory_to_the_last_bit(store, alone, devices):
    assert_equal(sample(store, LangevinConfig(3), devices, **SHORT), alone)


def test_a_store_is_read_in_the_units_of_its_values(store, matrix):
    entries = matrix[0]
    scaled, scale = fit.standardised_store(store)
    assert scale[:4] == pytest.approx(fit.scale_of(entries.values)[:4])
    known = fit.standardised(entries, scale)
    of_block = (scaled.u.block[known.rows] == 1) & (scaled.v.block[known.columns] == 2)
    np.testing.assert_array_equal(
        np.sort(scaled.read(1, 2).values), np.sort(known.values[of_block])
    )
    with pytest.raises(ValueError, match="a block store of 4 blocks a side, got one of 8"):
        prepare(store, LangevinConfig(3), num_blocks=4)


def test_a_chain_starts_from_the_answers_of_a_fit(matrix):
    (num_rows, num_columns), rng = matrix[0].shape, np.random.default_rng(6)
    scale, config = predictive.Scale(3.0, 2.0), LangevinConfig(3)
    state = langevin.init(jax.random.key(0), prepare(matrix[0], config), config)
    u, v = rng.normal(size=(num_rows, 4)), rng.normal(size=(num_columns, 4))
    # Two factors and both effects, as DSGD leaves them with biases.
    u[:, 3], v[:, 2] = 1, 1
    started = fit.start_from(state, Factors(u, v), scale)
    started.rows.factors[:, 2] = 0  # The factor that the fit has not.
    rows, columns = np.indices((num_rows, num_columns)).reshape(2, -1)
    found = predictive.answers(started, scale, rows, columns)
    np.testing.assert_allclose(found, (u @ v.T).ravel(), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="at most rank 3, got 48, 40 and 4"):
        fit.start_from(state, Factors(u + 2, v + 2), scale)


def test_the_kernel_and_xla_move_alike(matrix):
    # One epoch: later ones would amplify rounding.
    short = {"num_chains": 1, "burn_in": 0, "num_draws": 1}
    both = (sample(matrix[0], LangevinConfig(3), backend=b, **short) for b in ("numba", "xla"))
    for left, right in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("backend", ["numba", "xla"])
def test_residuals_are_summed_over_what_is_there(backend):
    rng, shape = np.random.default_rng(2), (2, 5, 4)
    sides = [
        block_residuals.Side(
            rng.normal(size=shape).astype("f"), rng.gamma(2.0, size=shape[:2]).astype("f")
        )
        for _ in range(2)
    ]
    places = rng.integers(0, 5, (2, 2, 9)).astype("i")
    values = rng.normal(size=(2, 9)).astype("f")
    first, last, slots = (np.array(x, "i") for x in ([[1], [0]], [[7], [4]], [1, 0]))
    for b in (0, 1):
        outside = np.r_[0 : first[b, 0], last[b, 0] : 9]
        values[b, outside], places[:, b, outside] = np.nan, 10**6
    entries = block_residuals.BlockEntries(*places, values)
    work = block_residuals.Work(first, last, slots)
    entries, work, sides = jax.tree.map(jnp.asarray, (entries, work, sides))
    found = block_residuals.gradients(backend, *sides, entries, work)
    found += block_residuals.squares(backend, *sides, entries, work)

    known = [np.zeros(x.shape) for x in found]
    (u, p), (v, q) = jax.tree.map(np.asarray, sides)
    for b, s in enumerate(slots):
        for t in range(first[b, 0], last[b, 0]):
            n, m = places[:, b, t]
            row, column = np.append(u[b, n, :-1], 1), np.append(v[s, m, :-1], 1)
            left = values[b, t] - u[b, n, :-1] @ v[s, m, :-1] - u[b, n, -1] - v[s, m, -1]
            known[0][b, n] += q[s, m] * left * column
            known[1][s, m] += p[b, n] * left * row
            known[2][b, n] += q[s, m] * left**2
            known[3][s, m] += p[b, n] * left**2
    for one, other in zip(found, known, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_blocks", [1, 4])
def test_effects_alone_have_the_posterior_that_is_known(num_blocks):
    # Many copies of one matrix on a diagonal of blocks, which are independent where alpha, the
    # shares and the hyperprior stay as they are. Entries of a copy are in one row block.
    rng, (num_rows, num_columns), copies = np.random.default_rng(3), (4, 3), 4000
    rows, columns = np.nonzero(rng.random((num_rows, num_columns)) < 0.8)
    values = rng.normal(size=len(rows))
    alpha, p, q = 0.3, rng.gamma(2.0, size=num_rows), rng.gamma(2.0, size=num_columns)
    precisions, slopes = (0.8, 1.3), rng.normal(size=2)
    features = rng.normal(size=num_rows), rng.normal(size=num_columns)

    design = np.zeros((len(rows), num_rows + num_columns))
    design[np.arange(len(rows)), rows] = 1
    design[np.arange(len(rows)), num_rows + columns] = 1
    weighted = alpha * (p[rows] * q[columns])[:, None] * design
    prior = np.repeat(precisions, (num_rows, num_columns))
    known = np.diag(prior) + design.T @ weighted
    pull = prior * np.concatenate([b * f for b, f in zip(slopes, features, strict=True)])
    mean = np.linalg.solve(known, pull + values @ weighted)

    at = np.arange(copies)[:, None]
    entries = listed(
        (rows + num_rows * at).ravel(),
        (columns + num_columns * at).ravel(),
        np.tile(values, copies),
        (copies * num_rows, copies * num_columns),
    )
    config, cut = LangevinConfig(0), DsgdConfig(num_blocks=num_blocks)
    tiled = tuple(np.tile(f, copies)[:, None] for f in features)
    data = langevin.prepare(entries, tiled, GROUPS, config, cut)
    sides = [
        gibbs.Side(
            np.tile(start, copies)[:, None].astype("f"),
            np.tile(share, copies),
            hyperprior.Hyperprior(np.array([[0.0], [slope]]), np.eye(1) * precision, np.ones(1)),
        )
        for start, share, slope, precision in zip(
            np.split(mean, [num_rows]), (p, q), slopes, precisions, strict=True
        )
    ]
    moments = {}
    for step, epochs in ((0.4, 40), (0.1, 100)):
        for epoch in range(1, epochs + 1):
            key = jax.random.fold_in(jax.random.key(epochs), epoch)
            *sides, _, _ = langevin.move_factors(key, *sides, alpha, data, step, Turn(0, epoch))
        draws = np.concatenate([x.factors.reshape(copies, -1) for x in sides], axis=1)
        white = (draws - mean) @ np.linalg.cholesky(known)
        moments[step] = white.mean(axis=0), white.T @ white / copies
    # They began at the mean. The bias falls with the step.
    spread = 4 * np.sqrt((1 + np.eye(len(known))) / copies)
    for step, (center, second) in moments.items():
        assert np.abs(center).max() < 4 / np.sqrt(copies) + step / 5
        assert (np.abs(second - np.eye(len(known))) < spread + step / 5).all()


def test_rows_without_entries_are_drawn_from_their_prior():
    rng, shape = np.random.default_rng(4), (3000, 8)
    entries = listed(np.zeros(4), np.arange(4), rng.normal(size=4), shape)
    config = LangevinConfig(2)
    data = prepare(entries, config, num_blocks=2)
    state = langevin.init(jax.random.key(0), data, config)
    root = np.tril(rng.normal(size=(3, 3))) + 2 * np.eye(3)
    prior = hyperprior.Hyperprior(rng.normal(size=(2, 3)), root @ root.T, np.ones(1))
    rows = state.rows._replace(prior=prior)
    moved = langevin.move_factors(
        jax.random.key(1), rows, state.columns, 1.0, data, 0.2, Turn(0, 1)
    )[0]
    white = (moved.factors - data.rows.features @ prior.coefficients)[1:] @ root
    assert np.abs(white.mean(axis=0)).max() < 4 / np.sqrt(shape[0])
    spread = np.sqrt((1 + np.eye(3)) / shape[0])
    assert (np.abs(white.T @ white / len(white) - np.eye(3)) < 4 * spread).all()


def test_the_coordinates_make_prior_and_information_diagonal():
    rng = np.random.default_rng(5)
    roots = rng.normal(size=(2, 4, 4))
    precision, information = (x @ x.T for x in roots)
    prior = hyperprior.Hyperprior(np.zeros((1, 4)), precision, np.zeros(0))
    drift = langevin.make_drift(prior, information)
    x = np.asarray(drift.basis, float)
    np.testing.assert_allclose(x.T @ precision @ x, np.eye(4), atol=1e-3)
    np.testing.assert_allclose(x.T @ information @ x, np.diag(drift.information), atol=1e-3)
    np.testing.assert_allclose(x @ drift.inverse, np.eye(4), atol=1e-3)


def test_gibbs_and_langevin_give_one_answer(matrix):
    entries, full = matrix
    # So long that the means of either are off by a fifth of an error, and alpha by a fiftieth.
    lengths = chains.ChainsConfig(num_chains=2, burn_in=300, num_draws=2000)
    data = gibbs.prepare(entries, features_of(entries.shape), GROUPS, gibbs.GibbsConfig(3))
    of_gibbs = chains.run(data, gibbs.GibbsConfig(3), lengths)
    config = LangevinConfig(3, step=0.4)
    slow = dataclasses.replace(lengths, burn_in=150, num_draws=400, thin=4)
    of_langevin = chains.run(prepare(entries, config), config, slow)
    rows, columns = np.indices(full.shape).reshape(2, -1)
    answers = functools.partial(
        predictive.predict, scale=predictive.Scale(0.0, 1.0), rows=rows, columns=columns
    )
    one, other = answers(of_gibbs), answers(of_langevin)
    errors = [np.sqrt(((x.mean - full.ravel()) ** 2).mean()) for x in (one, other)]
    assert errors[1] < 1.05 * errors[0], errors
    assert np.sqrt(((one.mean - other.mean) ** 2).mean()) < 0.3 * errors[0]
    assert 0.9 < np.mean(other.std / one.std) < 1.1, np.mean(other.std / one.std)
    assert of_langevin.alpha.mean() == pytest.approx(of_gibbs.alpha.mean(), rel=0.05)


def test_steps_decay_and_bad_ones_are_refused():
    config = LangevinConfig(step=0.8, decay=0.5)
    assert config.step_of(1) == 0.8
    assert config.step_of(4) == pytest.approx(0.4)
    with pytest.raises(ValueError, match="a step above 0 and of at most 1"):
        LangevinConfig(step=1.5)
