"""Chains: which draws are kept, that they can be interrupted, and the figures of their mixing."""

import jax
import numpy as np
import pytest
import scipy.signal

from metamf_jax.posterior import chains, gibbs
from metamf_jax.posterior.chains import ChainsConfig
from metamf_jax.types import Entries

CONFIG = gibbs.GibbsConfig(rank=2)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    rows, columns = np.nonzero(rng.random((8, 7)) < 0.6)
    values = rng.normal(size=len(rows)).astype("f")
    listed = Entries(rows.astype("i"), columns.astype("i"), values, (8, 7))
    features, groups = (np.zeros((8, 0)), np.zeros((7, 0))), (np.zeros(0, int),) * 2
    return gibbs.prepare(listed, features, groups, CONFIG)


def _assert_same(left, right):
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(one, other)


def _last(states, data, lengths, first=1):
    *_, (_, states) = chains.sweeps(states, data, CONFIG, lengths, first)
    return states


@pytest.mark.parametrize("thin", [1, 3])
def test_every_thinth_sweep_after_burn_in_is_kept(data, thin):
    lengths = ChainsConfig(num_chains=2, burn_in=4, num_draws=6, thin=thin)
    kept = [sweep for sweep in range(1, lengths.num_sweeps + 1) if lengths.keeps(sweep)]
    assert kept == [4 + thin * i for i in (1, 2, 3)]
    seen = {}
    draws = chains.run(data, CONFIG, lengths, lambda sweep, states: seen.update({sweep: states}))
    assert list(seen) == list(range(1, 4 + 3 * thin + 1))
    _assert_same(draws, chains.stack([state for sweep in kept for state in seen[sweep]]))
    assert draws.rows.shape == (6, 8, 3)
    assert draws.column_shares.shape == (6, 7)
    assert draws.row_prior.precision.shape == (6, 3, 3)


def test_a_chain_that_is_interrupted_draws_what_it_would_have_drawn(data):
    lengths = ChainsConfig(num_chains=2, burn_in=3, num_draws=4)
    start = chains.init(data, CONFIG, lengths)
    sweeps = chains.sweeps(start, data, CONFIG, lengths)
    next(sweeps)
    _, states = next(sweeps)
    sweeps.close()
    _assert_same(_last(states, data, lengths, 3), _last(start, data, lengths))


def test_chains_beside_each_other_draw_what_each_draws_alone(data):
    lengths = ChainsConfig(num_chains=2, burn_in=3, num_draws=4)
    together = _last(chains.init(data, CONFIG, lengths), data, lengths)
    of_seed = jax.random.key(lengths.seed)
    for chain, state in enumerate(chains.init(data, CONFIG, lengths)):
        for sweep in range(1, lengths.num_sweeps + 1):
            key = jax.random.fold_in(jax.random.fold_in(of_seed, chain), sweep)
            state = gibbs.sweep(key, state, data, CONFIG)
        _assert_same(together[chain], state)
    assert (together[0].rows.factors != together[1].rows.factors).all()


@pytest.mark.parametrize(
    "wrong", [{"num_draws": 5}, {"thin": 0}, {"num_chains": 0}, {"burn_in": -1}]
)
def test_impossible_lengths_are_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        ChainsConfig(**{"num_chains": 2, "num_draws": 4, **wrong})


def test_norm_of_product_equals_the_dense_norm(data):
    (state,) = chains.init(data, CONFIG, ChainsConfig(num_chains=1))
    dense = state.rows.factors[:, :-1] @ state.columns.factors[:, :-1].T
    np.testing.assert_allclose(chains.norm_of_product(state), np.linalg.norm(dense), rtol=1e-6)


def _autoregressive(rng, slope, shape):
    """[C, S] of variance one, each number ``slope`` times the last one plus noise."""
    noise = rng.normal(size=shape) * np.sqrt(1 - slope**2)
    noise[:, 0] = rng.normal(size=shape[0])
    return scipy.signal.lfilter([1], [1, -slope], noise, axis=1)


@pytest.mark.parametrize("slope", [0.0, 0.5, 0.9])
def test_effective_size_of_autoregressions(slope):
    values = _autoregressive(np.random.default_rng(1), slope, (4, 20_000))
    known = 80_000 * (1 - slope) / (1 + slope)
    assert chains.effective_size(values) == pytest.approx(known, rel=0.1)
    assert chains.r_hat(values) == pytest.approx(1, abs=0.01)


def test_effective_size_sums_geyers_pairs():
    # Autocorrelations of moving averages are zero beyond a lag, and known below.
    rng, weights = np.random.default_rng(2), np.array([1.0, -0.9, 0.9])
    noise = rng.normal(size=(4, 20_000))
    values = scipy.signal.lfilter(weights, [1], noise, axis=1)
    variance = (weights**2).sum()
    first, second = -0.9 - 0.81, 0.9
    known = 80_000 / (1 + 2 * (first + second) / variance)
    assert known > 80_000
    assert chains.effective_size(values) == 80_000
    # A pair (1, 2) of a negative sum does not hide the lags after it.
    weights = np.array([1.0, -0.3, 0.0, 0.8])
    values = scipy.signal.lfilter(weights, [1], noise, axis=1)
    lags = np.correlate(weights, weights, "full")[4:] / (weights**2).sum()
    assert lags[0] + lags[1] < 0 < 1 + lags[0]
    known = 80_000 / (1 + 2 * lags.sum())
    assert chains.effective_size(values) == pytest.approx(known, rel=0.1)


def test_r_hat_of_chains_that_lie_apart():
    # Within each variance one, means 0 and 2: of four halves the means' variance is 4 / 3.
    values = np.random.default_rng(3).normal(size=(2, 20_000)) + np.array([[0.0], [2.0]])
    assert chains.r_hat(values) == pytest.approx(np.sqrt(1 + 4 / 3), rel=0.02)
    assert chains.effective_size(values) < 40
    drifting = np.random.default_rng(4).normal(size=(1, 2000)) + np.linspace(0, 4, 2000)
    assert chains.r_hat(drifting) > 1.3


def test_r_hat_of_constants():
    never, apart = np.full((2, 10), 3.0), np.repeat([[1.0], [2.0]], 10, axis=1)
    found = chains.r_hat(np.stack([never, apart], axis=-1))
    np.testing.assert_array_equal(found, [1, np.inf])
    sizes = chains.effective_size(np.stack([never, apart], axis=-1))
    assert sizes.shape == (2,)
    assert (sizes <= 20).all()
