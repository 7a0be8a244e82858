"""Errors of learned priors on matrices of other sets."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments import zero_shot_errors
from metamf_jax.data.rating_worlds import draw_world
from metamf_jax.imputation.prior import LearnedPrior
from metamf_jax.meta_learning import padding
from metamf_jax.meta_learning.encoder import EncoderConfig
from metamf_jax.meta_learning.map_estimation import MapConfig
from metamf_jax.meta_learning.meta_loss import Episode, ModelConfig, make_model
from metamf_jax.types import Entries


@pytest.fixture(scope="module")
def prior():
    config = ModelConfig(
        EncoderConfig(channels=4, layers=1, rank=2, precision="per_row", effects=True),
        MapConfig(1, "ridge"),
    )
    params = make_model(config).init(jax.random.key(0))
    return LearnedPrior(config, jax.tree.map(np.asarray, params))


def parts(seed):
    """Observed and scored entries of a matrix of 20 x 20."""
    world = draw_world(np.random.default_rng(seed), (20, 20))
    half = len(world.rows) // 2
    return tuple(
        Entries(world.rows[which], world.columns[which], world.values[which], world.shape)
        for which in (slice(half), slice(half, None))
    )


def test_own_units_are_those_of_a_single_matrix(prior):
    matrices = [parts(seed) for seed in range(3)]
    stacked = (padding.stack_entries(side, (20, 20), 256) for side in zip(*matrices, strict=True))
    found = zero_shot_errors.protocol_errors(prior, Episode(*stacked))
    assert found["set"].shape == found["own"].shape == (3,)
    one = padding.stack_entries([matrices[1][0]], (20, 20), 256)
    moved = Episode(
        dataclasses.replace(one, values=np.where(one.rows < 20, 10 + 2 * one.values, 0)),
        padding.stack_entries(
            [dataclasses.replace(matrices[1][1], values=10 + 2 * matrices[1][1].values)],
            (20, 20),
            256,
        ),
    )
    again = zero_shot_errors.protocol_errors(prior, moved)
    np.testing.assert_allclose(again["own"][0], 4 * found["own"][1], rtol=1e-4)
    assert abs(again["set"][0] / (4 * found["set"][1]) - 1) > 0.1


def test_answers_are_within_the_range_of_what_was_seen(prior):
    train, test = parts(1)
    answered = zero_shot_errors.answer(prior, train, test)
    assert answered.shape == test.rows.shape
    assert train.values.min() <= answered.min() < answered.max() <= train.values.max()
    errors = zero_shot_errors.cut_errors({"ours": prior}, train, test, with_draws=False)
    expected = ((answered - test.values) ** 2).mean() / train.values.var()
    assert errors == {"ours": pytest.approx(expected)}
