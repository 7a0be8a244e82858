"""Errors of learned priors on matrices of other sets."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments import rating_episodes, zero_shot_errors
from experiments.rating_episodes import SizeClass
from metamf_jax.baselines import bias, method
from metamf_jax.data.rating_worlds import draw_world
from metamf_jax.imputation.prior import LearnedPrior, load_prior
from metamf_jax.meta_learning import padding
from metamf_jax.meta_learning.encoder import EncoderConfig
from metamf_jax.meta_learning.map_estimation import MapConfig
from metamf_jax.meta_learning.meta_loss import Episode, ModelConfig, episode_loss, make_model
from metamf_jax.meta_learning.training import make_evaluate
from metamf_jax.types import Entries


@pytest.fixture(scope="module")
def prior():
    config = ModelConfig(
        EncoderConfig(channels=4, layers=1, rank=2, precision="per_row", effects=True),
        MapConfig(1, "ridge"),
    )
    params = jax.jit(make_model(config).init)(jax.random.key(0))
    return LearnedPrior(config, jax.tree.map(np.asarray, params))


def parts(seed):
    """Observed and scored entries of a matrix of 20 x 20."""
    world = draw_world(np.random.default_rng(seed), (20, 20))
    half = len(world.rows) // 2
    return tuple(
        Entries(world.rows[which], world.columns[which], world.values[which], world.shape)
        for which in (slice(half), slice(half, None))
    )


def test_own_units_are_those_of_each_matrix(prior):
    matrices = [parts(seed) for seed in range(3)]
    in_other_units = [
        tuple(dataclasses.replace(part, values=10 + 2 * part.values) for part in both)
        for both in matrices
    ]

    def errors(drawn):
        stacked = (padding.stack_entries(side, (20, 20), 256) for side in zip(*drawn, strict=True))
        return zero_shot_errors.protocol_errors(prior, Episode(*stacked))

    found, again = errors(matrices), errors(in_other_units)
    assert found["set"].shape == found["own"].shape == (3,)
    np.testing.assert_allclose(again["own"], 4 * found["own"], rtol=1e-3)
    assert np.abs(again["set"] / (4 * found["set"]) - 1).max() > 0.1


def test_answers_are_within_the_range_of_what_was_seen(prior):
    train, test = parts(1)
    answered = zero_shot_errors.answer(prior, train, test)
    assert answered.shape == test.rows.shape
    assert train.values.min() <= answered.min() < answered.max() <= train.values.max()
    errors = zero_shot_errors.cut_errors({"ours": prior}, train, test, with_draws=False)
    expected = ((answered - test.values) ** 2).mean() / train.values.var()
    assert errors == {"ours": pytest.approx(expected)}


def test_the_packaged_prior_of_ratings_does_better_than_a_bias_model_on_worlds_it_has_not_seen():
    size = SizeClass((15, 20), (15, 20), 128, 80)
    unseen = rating_episodes.draw_batch(np.random.default_rng(0), size, 10**6, 0, at_hand=40)
    ours = make_model(load_prior("ratings").config)
    evaluate = make_evaluate(lambda params, episode: episode_loss(ours, params, episode))
    errors = evaluate(load_prior("ratings").params, unseen)
    setting = {"mean_shrinkage": 3.0, "row_shrinkage": 4.0, "column_shrinkage": 4.0}
    of_bias = make_evaluate(
        method.episode_loss(lambda params, *parts: bias.predict(*parts[:2], setting))
    )
    ratios = np.log(errors / of_bias({}, unseen))
    assert ratios.mean() < -3 * ratios.std() / len(ratios) ** 0.5
    assert ratios.mean() < -0.02
