"""Hyperpriors that were learned: what they say of a side, and their files."""

import numpy as np
import pytest

from metamf_jax.posterior import gibbs, learned_hyperprior
from metamf_jax.posterior.learned_hyperprior import LearnedHyperprior

LEARNED = LearnedHyperprior(
    degrees=20.0,
    interaction=0.2,
    effects=(0.1, 0.05),
    effect_means=((0.0, 0.1), (0.0, 0.2)),
    strengths=(((2.0, 0.1),), ((3.0, 0.2), (4.0, 0.3))),
    noise=(10.0, 4.0),
    shares=(3.0, 0.0),
)


@pytest.mark.parametrize("rank", [1, 4])
def test_products_of_factors_have_one_deviation_whatever_the_rank(rank):
    wishart = gibbs.with_learned(rank, LEARNED).sides[1].wishart
    variances = wishart.inverse_scale / wishart.degrees
    np.testing.assert_allclose(np.sqrt((variances[:-1] ** 2).sum()), 0.2)
    assert variances[-1] == 0.05
    assert wishart.degrees == rank + 21


def test_a_model_has_the_noise_that_was_learned():
    config = gibbs.with_learned(2, LEARNED)
    assert (config.row_noise, config.column_noise, config.noise) == (3.0, 0.0, (10.0, 4.0))
    assert gibbs.GibbsConfig(2).noise == (1.0, 1.0)


def test_features_and_groups_beyond_the_learned_ones_are_flat():
    of_rows = LEARNED.of_side(0, 2)
    np.testing.assert_array_equal(
        of_rows.coefficients((3, 2)), [[0.0, 0.0], [0.0, 0.1], [0.0, 0.0]]
    )
    np.testing.assert_array_equal(of_rows.coefficients((1, 2)), [[0.0, 0.0]])
    np.testing.assert_array_equal(of_rows.of_strengths(2), [[2.0, 0.1], [0.1, 0.1]])
    assert of_rows.of_strengths(0).shape == (2, 0)


def test_a_file_gives_it_back(tmp_path):
    learned_hyperprior.save(tmp_path / "a.json", LEARNED)
    assert learned_hyperprior.load(tmp_path / "a.json") == LEARNED


@pytest.mark.parametrize("text", ["", "[1]", '{"degrees": 3}', "{}"])
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"a\.json"):
        learned_hyperprior.load(tmp_path / "a.json")


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match="positive"):
        LearnedHyperprior(0.0, 1.0, (1.0, 1.0), ((), ()), ((), ()), (1.0, 1.0), (1.0, 1.0))
