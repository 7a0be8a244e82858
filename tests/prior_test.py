"""Weights in the package, in a run's workdir, and in files that hold none."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from metamf_jax.data import synthetic
from metamf_jax.imputation import completion, fold_in, pipeline, prior
from metamf_jax.imputation.prior import LearnedPrior, TrainedOn
from metamf_jax.meta_learning.encoder import EncoderConfig
from metamf_jax.meta_learning.episodes import Standardization
from metamf_jax.meta_learning.map_estimation import MapConfig
from metamf_jax.meta_learning.meta_loss import ModelConfig, make_model
from metamf_jax.runs.checkpoint import save_params
from metamf_jax.types import Entries

SIZES = {"channels": 4, "layers": 1, "rank": 3}


def of_one_data_set(effects=False, step_form="plain", sides=(25, 20)):
    """A prior as a run of training starts with: of ratings around 3.4."""
    config = ModelConfig(EncoderConfig(**SIZES, effects=effects), MapConfig(5, step_form))
    params = jax.tree.map(np.asarray, make_model(config).init(jax.random.key(0)))
    trained_on = TrainedOn(Standardization(3.4, 1.1), (1.0, 5.0), sides)
    return LearnedPrior(config, params, trained_on)


@pytest.fixture(scope="module")
def ratings():
    return synthetic.synthetic_ratings(3, 25, 20, 0.6).entries


def test_a_file_gives_back_what_was_saved(tmp_path):
    for learned in (of_one_data_set(), of_one_data_set(True)._replace(trained_on=None)):
        path = tmp_path / "model.safetensors"
        save_params(path, learned.params, prior.metadata(learned))
        read = prior.read_prior(path)
        assert read.config == learned.config
        assert read.trained_on == learned.trained_on
        for one, other in zip(*map(jax.tree.leaves, (read.params, learned.params)), strict=True):
            np.testing.assert_array_equal(one, other)


def test_values_of_the_trained_range_are_standardised_as_in_training(ratings):
    learned = of_one_data_set()
    as_trained = pipeline.complete(learned, ratings, standardize="matrix").scaling
    np.testing.assert_array_equal(as_trained.centers, 3.4)
    np.testing.assert_array_equal(as_trained.scales, 1.1)
    tenfold = dataclasses.replace(ratings, values=10 * ratings.values)
    own = pipeline.complete(learned, tenfold, standardize="matrix").scaling
    np.testing.assert_allclose(own.centers, tenfold.values.mean(), rtol=1e-5)


def test_plain_steps_are_for_matrices_as_small_as_in_training():
    learned = of_one_data_set(sides=(10, 30))
    assert learned.config_for((10, 30)).inner.step_form == "plain"
    assert learned.config_for((11, 30)).inner.step_form == "ridge"
    assert of_one_data_set(step_form="curvature").config_for((99, 99)).inner.step_form != "ridge"
    large = synthetic.synthetic_ratings(3, 300, 200, 0.3).entries
    values, _ = completion.predict_rows(pipeline.complete(learned, large), 0, 300)
    assert 0.5 < values.min() < values.max() < 5.5


def test_a_prior_without_a_bias_model_has_one_beside_it(ratings):
    """Rows are folded in as they were fitted; its own candidate is its factors' product alone."""
    learned = of_one_data_set()
    completed = pipeline.complete(learned, ratings, allowed=["learned"])
    cells, (n, m) = completed.cells, ratings.shape
    assert completed.columns.context.effects is not None
    assert completed.check.bias_rmse != completed.check.rmse
    assert np.linalg.matrix_rank(cells.u @ cells.v.T) == SIZES["rank"]
    values, observed = np.zeros((n, m)), np.zeros((n, m), bool)
    values[ratings.rows, ratings.columns] = ratings.values
    observed[ratings.rows, ratings.columns] = True
    rows, columns = np.nonzero(observed)
    listed = Entries(rows.astype("i"), columns.astype("i"), values[observed], (n, m))
    for allowed in (["learned"], ["bias"], ["learned", "posterior", "mean", "bias"]):
        completed = pipeline.complete(learned, listed, allowed=allowed)
        folded = fold_in.fold_in_rows(completed, values, observed)
        for one, other in zip(folded, completion.predict_rows(completed, 0, n), strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-3)


def test_weights_of_another_kind(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        prior.load_prior(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(ValueError, match="does not hold parameters"):
        prior.load_prior(tmp_path / "text.safetensors")


def test_the_package_carries_small_weights_and_their_card():
    assert {"general", "ratings"} <= set(prior.prior_names())
    assert (prior.FOLDER / "README.md").exists()
    sizes = [path.stat().st_size for path in prior.FOLDER.glob("*.safetensors")]
    assert sum(sizes) < 5e6


@pytest.mark.parametrize("name", prior.prior_names())
def test_packaged_weights_are_those_of_their_model(name, tmp_path):
    packaged = prior.load_prior(name)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(packaged.params))
    copy = shutil.copy(prior.FOLDER / f"{name}.safetensors", tmp_path)
    # Elsewhere a file is compared with the model.
    compared = prior.read_prior(copy)
    assert jax.tree.structure(packaged.params) == jax.tree.structure(compared.params)
    for one, other in zip(*map(jax.tree.leaves, (packaged.params, compared.params)), strict=True):
        np.testing.assert_array_equal(one, other)
