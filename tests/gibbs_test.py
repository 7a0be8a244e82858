"""Gibbs sampling of one matrix: that it samples the posterior, and not by the machine it runs on.

The whole sweep is held to the joint distribution test of J. Geweke, Getting it right: joint
distribution tests of posterior simulators, JASA 2004, and to the coverage of its intervals.
"""

import dataclasses

import jax
import numpy as np
import pytest
import threadpoolctl

from metamf_jax.posterior import (
    chains,
    entry_effects,
    gibbs,
    hyperprior,
    noise,
    pattern,
    predictive,
    row_conditional,
)
from metamf_jax.types import Entries
from tests import posterior_model


@pytest.fixture(scope="module")
def matrix():
    """A matrix of rank 2 with effects and a little noise, a third of it observed."""
    rng = np.random.default_rng(0)
    u, v = rng.normal(size=(40, 2)), rng.normal(size=(30, 2))
    full = u @ v.T + rng.normal(size=(40, 1)) + rng.normal(size=30)
    values = full + 0.1 * rng.normal(size=full.shape)
    rows, columns = np.nonzero(rng.random(full.shape) < 0.4)
    scale = predictive.Scale(float(values.mean()), float(values.std()))
    standardised = ((values - scale.center) / scale.unit)[rows, columns]
    listed = Entries(
        rows.astype(np.int32), columns.astype(np.int32), standardised.astype(np.float32), (40, 30)
    )
    return listed, scale, full


def sample(entries, config=None, devices=1, backend="auto", **lengths):
    config = gibbs.GibbsConfig(rank=3) if config is None else config
    sides = pattern.pattern_features(entries.rows, entries.columns, entries.shape, 4)
    features, groups = (tuple(getattr(s, name) for s in sides) for name in ("features", "groups"))
    data = gibbs.prepare(entries, features, groups, config, devices, backend)
    return chains.run(data, config, chains.ChainsConfig(**lengths))


def test_a_matrix_of_low_rank_is_found(matrix):
    entries, scale, full = matrix
    draws = sample(entries, num_chains=2, burn_in=40, num_draws=60)
    rows, columns = np.indices(full.shape).reshape(2, -1)
    found = predictive.predict(draws, scale, rows, columns, (0.05, 0.95))
    error = np.sqrt(((found.mean - full.ravel()) ** 2).mean())
    assert error < 0.25 * full.std()
    low, high = found.quantiles
    assert ((low < full.ravel()) & (full.ravel() < high)).mean() > 0.85


@pytest.fixture(scope="module")
def levels(matrix):
    """The matrix in four levels."""
    entries, *_ = matrix
    values = np.searchsorted([-1.0, 0.0, 0.7], entries.values).astype("f")
    return dataclasses.replace(entries, values=values), gibbs.GibbsConfig(3, likelihood="ordinal")


def test_levels_of_a_matrix_of_low_rank_are_found(matrix, levels):
    (_, scale, full), (entries, config) = matrix, levels
    draws = sample(entries, config, num_chains=2, burn_in=40, num_draws=60)
    cells = np.indices(full.shape).reshape(2, -1)
    true = np.searchsorted([-1.0, 0.0, 0.7], (full.ravel() - scale.center) / scale.unit)
    named = predictive.Scale(0.0, 1.0, 1.0, 4.0, (1.0, 2.0, 3.0, 4.0))
    found = predictive.predict(draws, named, *cells, (0.05, 0.95))
    assert np.sqrt(((found.mean - 1 - true) ** 2).mean()) < 0.5 * true.std()
    low, high = found.quantiles
    assert ((low <= 1 + true) & (1 + true <= high)).mean() > 0.9
    probability = predictive.level_probabilities(draws, draws.thresholds, *cells)
    np.testing.assert_allclose(probability.sum(axis=1), 1, rtol=1e-12)
    assert -np.log(probability[np.arange(len(true)), true]).mean() < 0.5 * np.log(4)


@pytest.mark.parametrize("devices", [2, 4, 8])
@pytest.mark.parametrize("likelihood", gibbs.LIKELIHOODS)
def test_draws_do_not_depend_on_the_number_of_devices(matrix, levels, likelihood, devices):
    entries, config = levels if likelihood == "ordinal" else (matrix[0], None)
    lengths = {"num_chains": 1, "burn_in": 3, "num_draws": 2}
    alone, several = (sample(entries, config, devices=d, **lengths) for d in (1, devices))
    for left, right in zip(jax.tree.leaves(alone), jax.tree.leaves(several), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("likelihood", gibbs.LIKELIHOODS)
def test_the_kernel_and_xla_draw_alike(matrix, levels, likelihood):
    entries, config = levels if likelihood == "ordinal" else (matrix[0], None)
    # One sweep: later ones would amplify rounding.
    lengths = {"num_chains": 1, "burn_in": 0, "num_draws": 1}
    compiled, xla = (sample(entries, config, backend=b, **lengths) for b in ("numba", "xla"))
    for left, right in zip(jax.tree.leaves(compiled), jax.tree.leaves(xla), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-4)


ONE_GROUP = (np.zeros(1, int),) * 2


def _tiny(rng, shape, density):
    """Places of entries, the first row and column without any; and a feature a side."""
    observed = rng.random(shape) < density
    observed[0], observed[:, 0] = False, False
    return np.nonzero(observed), tuple(rng.normal(size=(size, 1)) for size in shape)


def _effects(rng, rows, columns):
    """Of a category, some of them blank: for all, by row and by column."""
    values = rng.choice(np.array(["", "a", "b"], object), len(rows))
    groups = entry_effects.make_groups(rows, columns, {"word": values})
    return entry_effects.places(groups, rows, columns, {"word": values})


def _listed(rows, columns, values, shape):
    return Entries(rows.astype("i"), columns.astype("i"), values, shape)


@pytest.fixture
def tame_strengths(monkeypatch):
    """See `posterior_model`; and on tiny matrices BLAS's threads only wait for each other."""
    monkeypatch.setattr(hyperprior, "_STRENGTH", posterior_model.STRENGTH)
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        yield


def _told(state):
    """Functionals of a state that have moments."""
    told = [np.log(state.alpha), np.log1p(chains.norm_of_product(state))]
    told += [*np.log(np.diff(state.thresholds)), *np.log(state.effects.precisions)]
    told += [*np.arctan(state.effects.values[::3])]
    for side in (state.rows, state.columns):
        told += [
            *np.log(side.shares[:2]),
            np.linalg.slogdet(side.prior.precision)[1],
            np.arctan(side.prior.precision[0, -1]),
            *np.arctan(side.prior.coefficients[:, -1]),
            np.log(side.prior.strengths[0]),
            *np.arctan(side.factors[:2, -1]),
            np.log((side.factors**2).sum()),
        ]
    told = np.array(told)
    return np.concatenate([told, told**2])


@pytest.mark.parametrize(
    ("config", "with_effects"),
    [
        (gibbs.GibbsConfig(1, 2.0, 3.0, degrees=5.0, factor_scale=2.0), False),
        (gibbs.GibbsConfig(2, 4.0, 0.0, degrees=4.0, effect_scale=3.0), True),
        (gibbs.GibbsConfig(1, 3.0, 4.0, degrees=5.0, likelihood="ordinal"), False),
        (gibbs.GibbsConfig(0, 3.0, 4.0, degrees=5.0, likelihood="ordinal"), True),
    ],
)
def test_sweeps_and_data_in_turn_leave_the_prior_as_it_is(config, with_effects, tame_strengths):
    rng, shape, num_starts, num_sweeps = np.random.default_rng(1), (6, 5), 60, 12
    places, features = _tiny(rng, shape, 0.8)
    effects = _effects(rng, *places) if with_effects else None
    # Batches are independent: each starts anew from the prior.
    of_batches = []
    for start in range(num_starts):
        state, told = posterior_model.draw_state(rng, features, config, effects), 0
        for sweep in range(num_sweeps):
            values = posterior_model.draw_values(rng, state, *places, effects)
            listed = _listed(*places, values, shape)
            data = gibbs.prepare(listed, features, ONE_GROUP, config, 1, "numba", effects)
            key = jax.random.fold_in(jax.random.key(start), sweep)
            state = gibbs.sweep(key, state, data, config)
            told += _told(state) / num_sweeps
        of_batches.append(told)
    of_prior = [
        _told(posterior_model.draw_state(rng, features, config, effects)) for _ in range(4000)
    ]
    (mean, error), (expected, rest) = (
        (np.mean(x, axis=0), np.var(x, axis=0, ddof=1) / len(x)) for x in (of_batches, of_prior)
    )
    # Shares that are all one have no error.
    z = (mean - expected) / np.sqrt(np.maximum(error + rest, 1e-12))
    assert np.abs(z).max() < 4, z.round(1)


def test_effects_alone_have_the_posterior_that_is_known():
    # Many copies of one matrix on a diagonal of blocks, which are independent where alpha, the
    # shares and the hyperprior stay as they are.
    rng, (num_rows, num_columns), copies = np.random.default_rng(2), (4, 3), 6000
    (rows, columns), _ = _tiny(rng, (num_rows, num_columns), 0.9)
    values = rng.normal(size=len(rows))
    alpha, p, q = 1.7, rng.gamma(2.0, size=num_rows), rng.gamma(2.0, size=num_columns)
    precisions, pulls = (0.8, 1.3), (rng.normal(size=num_rows), rng.normal(size=num_columns))

    design = np.zeros((len(rows), num_rows + num_columns))
    design[np.arange(len(rows)), rows] = 1
    design[np.arange(len(rows)), num_rows + columns] = 1
    weighted = alpha * (p[rows] * q[columns])[:, None] * design
    known = np.diag(np.repeat(precisions, (num_rows, num_columns))) + design.T @ weighted
    mean = np.linalg.solve(known, np.concatenate(pulls) + values @ weighted)

    at = np.arange(copies)[:, None]
    listed = _listed(
        (rows + num_rows * at).ravel(),
        (columns + num_columns * at).ravel(),
        np.tile(values, copies).astype("f"),
        (copies * num_rows, copies * num_columns),
    )
    turned = Entries(listed.columns, listed.rows, listed.values, listed.shape[::-1])
    data = [row_conditional.prepare(x, 0) for x in (listed, turned)]
    shares = [np.tile(x, copies) for x in (p, q)]
    pulls = [np.tile(x, copies)[:, None] for x in pulls]
    drawn = [np.zeros((size, 1), np.float32) for size in listed.shape]
    for i in range(30):
        for side in (0, 1):
            drawn[side], _ = row_conditional.draw(
                jax.random.fold_in(jax.random.key(i), side),
                data[side],
                alpha * shares[side],
                pulls[side],
                np.eye(1) * precisions[side],
                drawn[1 - side],
                shares[1 - side],
            )
    draws = np.concatenate([x.reshape(copies, -1) for x in drawn], axis=1)
    white = (draws - mean) @ np.linalg.cholesky(known)
    assert np.abs(white.mean(axis=0)).max() < 4 / np.sqrt(copies)
    spread = np.sqrt((1 + np.eye(len(known))) / copies)
    assert (np.abs(white.T @ white / copies - np.eye(len(known))) < 4 * spread).all()


def test_intervals_of_held_out_cells_hold_what_they_say(tame_strengths):
    rng, shape = np.random.default_rng(3), (12, 10)
    config = gibbs.GibbsConfig(1, 2.0, 3.0, degrees=4.0)
    lengths = chains.ChainsConfig(num_chains=1, burn_in=15, num_draws=30)
    (rows, columns), features = _tiny(rng, shape, 0.6)
    everywhere = np.indices(shape).reshape(2, -1)
    held_out = ~np.isin(everywhere[0] * shape[1] + everywhere[1], rows * shape[1] + columns)
    inside = []
    for _ in range(40):
        true = posterior_model.draw_state(rng, features, config)
        values = posterior_model.draw_values(rng, true, *everywhere)
        listed = _listed(*everywhere[:, ~held_out], values[~held_out], shape)
        data = gibbs.prepare(listed, features, ONE_GROUP, config, backend="numba")
        draws = chains.run(data, config, lengths)
        low, high = predictive.predict(
            draws, predictive.Scale(0.0, 1.0), *everywhere[:, held_out], (0.05, 0.95)
        ).quantiles
        inside.append((low < values[held_out]) & (values[held_out] < high))
    assert 0.87 < np.mean(inside) < 0.93, np.mean(inside)


@pytest.mark.parametrize("backend", ["numba", "xla"])
def test_a_matrix_without_noise_leaves_everything_finite(backend):
    # The noise's precision rises until float32 cannot tell the rows' matrices from singular ones.
    rng, shape = np.random.default_rng(4), (150, 100)
    full = np.outer(rng.normal(size=shape[0]), rng.normal(size=shape[1]))
    rows, columns = np.nonzero(rng.random(shape) < 0.9)
    listed = _listed(rows, columns, full[rows, columns].astype("f"), shape)
    draws = sample(
        listed, gibbs.GibbsConfig(8), backend=backend, num_chains=1, burn_in=24, num_draws=2
    )
    fitted = np.einsum("snk,smk->snm", draws.rows[..., :-1], draws.columns[..., :-1])
    fitted += draws.rows[..., -1][:, :, None] + draws.columns[..., -1][:, None]
    assert np.sqrt(((fitted.mean(axis=0) - full) ** 2).mean()) < 0.02


def test_columns_are_drawn_given_the_rows_of_the_same_sweep(monkeypatch):
    # The last step of a sweep, which would change the rows' shares once more.
    monkeypatch.setattr(
        noise, "rescale", lambda rng, shape, alpha, shares, expected: (alpha, shares)
    )
    rng, shape, config = np.random.default_rng(5), (6, 5), gibbs.GibbsConfig(2)
    places, features = _tiny(rng, shape, 0.8)
    values = rng.normal(size=len(places[0])).astype("f")
    data = gibbs.prepare(_listed(*places, values, shape), features, ONE_GROUP, config)
    first, key = gibbs.init(jax.random.key(0), data, config), jax.random.key(1)
    second = gibbs.sweep(key, first, data, config)
    columns, _ = gibbs.draw_factors(
        jax.random.fold_in(key, 1),
        first.columns,
        second.rows,
        first.alpha,
        data.columns,
        config.sides[1],
    )
    np.testing.assert_array_equal(columns.factors, second.columns.factors)
