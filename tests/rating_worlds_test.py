"""Worlds of ratings, what is cut from them, what they are like, and what is learned of them."""

import json

import numpy as np
import pytest

from experiments import pretraining, rating_cuts, rating_episodes, rating_statistics, scaling_curves
from experiments.rating_episodes import SizeClass
from metamf_jax.data.rating_worlds import draw_world
from metamf_jax.meta_learning import padding
from metamf_jax.types import Entries


def test_worlds_are_sparse_matrices_of_a_scale():
    kinds = set()
    for seed in range(20):
        world = draw_world(np.random.default_rng(seed), (40, 30))
        assert world.shape == (40, 30)
        flat = world.rows.astype(int) * 30 + world.columns
        assert len(np.unique(flat)) == len(flat)
        assert 0.02 * 1200 - 1 <= len(flat) <= 0.8 * 1200 + 1
        assert world.values.dtype == np.float32
        levels = np.unique(world.values)
        continuous = len(levels) > 21
        kinds.add(continuous)
        if continuous:
            assert np.abs(levels).max() < 10
        else:
            np.testing.assert_array_equal(levels, np.round(levels))
    assert kinds == {False, True}


def test_one_generator_one_world():
    one, other = (draw_world(np.random.default_rng(4), (30, 20)) for _ in range(2))
    np.testing.assert_array_equal(one.values, other.values)
    np.testing.assert_array_equal(one.rows, other.rows)


def matrix(values):
    """All cells of an array but those that are NaN."""
    rows, columns = np.nonzero(np.isfinite(values))
    return Entries(
        rows.astype(np.int32), columns.astype(np.int32), values[rows, columns], values.shape
    )


def test_statistics_find_what_a_matrix_was_made_of():
    rng = np.random.default_rng(0)
    size = 300
    parts = (
        np.sqrt(0.1) * rng.standard_normal((1, size)),
        np.sqrt(0.3) * rng.standard_normal((size, 1)),
        np.sqrt(0.2) * np.outer(rng.standard_normal(size), rng.standard_normal(size)),
        np.sqrt(0.4) * rng.standard_normal((size, size)) * np.exp(rng.normal(0, 0.25, (size, 1))),
    )
    values = np.add.reduce([part + np.zeros((size, size)) for part in parts])
    values[rng.random((size, size)) < 0.7] = np.nan
    found = rating_statistics.statistics(matrix(values))
    assert found["observed"] == pytest.approx(0.3, abs=0.01)
    assert found["columns"] == pytest.approx(0.1, abs=0.03)
    assert found["rows"] == pytest.approx(0.3, abs=0.05)
    assert found["interaction"] == pytest.approx(0.2, abs=0.05)
    # A row's factor makes for unequal rows, too.
    assert 0.4 < found["row_noise"] < 0.9
    assert abs(found["popular_liked"]) < 0.2


def test_statistics_of_what_goes_with_the_pattern():
    rng = np.random.default_rng(1)
    popularity, activity = rng.normal(0, 1, 200), rng.normal(0, 0.5, (150, 1))
    values = np.round(3 + popularity + 0.5 * rng.standard_normal((150, 200))).clip(1, 5)
    values[rng.random((150, 200)) > 0.3 * np.exp(popularity + activity).clip(0, 3)] = np.nan
    found = rating_statistics.statistics(matrix(values))
    assert found["popular_liked"] > 0.8
    # Who rates much rates what is less popular, too.
    assert found["active_like"] < -0.4
    assert found["levels"] == 5
    assert found["mode"] <= found["row_mode"] <= 1


def test_cuts_are_of_rows_and_columns_with_entries():
    world = draw_world(np.random.default_rng(3), (80, 60))
    for popular in (True, False):
        cut = rating_cuts.rating_cut(np.random.default_rng(0), world, 70, popular)
        assert cut.rows.max() < cut.shape[0] <= 70
        assert cut.shape[1] <= 60
        assert len(cut.rows) <= len(world.rows)
    uniform, popular = (
        rating_cuts.rating_cut(np.random.default_rng(0), world, 20, popular)
        for popular in (False, True)
    )
    assert len(popular.rows) > len(uniform.rows)


def test_episodes_depend_on_seed_and_step_alone():
    size = SizeClass((10, 20), (10, 20), 40, 6)

    def drawn(step, worlds=None):
        rating_episodes._world.cache_clear()
        return rating_episodes.draw_batch(np.random.default_rng(1), size, 0, step, worlds)

    one, other = drawn(16), drawn(16)
    np.testing.assert_array_equal(one.support.values, other.support.values)
    np.testing.assert_array_equal(one.query.rows, other.query.rows)
    # Of eight worlds in all, steps that are far apart have the same.
    np.testing.assert_array_equal(drawn(0).support.values, drawn(32, 8).support.values)
    assert np.abs(one.query.values).max() <= 10
    assert isinstance(one.support, Entries)
    matrices = zip(*map(padding.unstack_entries, (one.support, one.query)), strict=True)
    for observed, scored in matrices:
        flat = [
            np.asarray(part.rows) * 20 + np.asarray(part.columns) for part in (observed, scored)
        ]
        assert min(map(len, flat)) >= 1
        assert not np.isin(*flat).any()


def test_statistics_are_printed_side_by_side(tmp_path, capsys):
    rating_statistics.run(rating_statistics.PRESETS["smoke"], tmp_path)
    assert "| synthetic 5% | synthetic 50% |" in capsys.readouterr().out
    results = json.loads((tmp_path / "summary.json").read_text())["results"]
    assert set(results) == {"uniform", "popular"}


def test_scaling_curves_train_each_point_once(tmp_path):
    config = scaling_curves.PRESETS["smoke"]
    scaling_curves.run(config, tmp_path)
    text = (tmp_path / "scaling.csv").read_text()
    assert text.splitlines()[0] == "varied,value,seed,synthetic"
    assert len(text.splitlines()) == 2
    changed = (tmp_path / "matrices-8-0" / "model.safetensors").stat().st_mtime_ns
    scaling_curves.run(config, tmp_path)
    assert (tmp_path / "scaling.csv").read_text() == text
    assert (tmp_path / "matrices-8-0" / "model.safetensors").stat().st_mtime_ns == changed


def test_ratings_are_a_source_of_pretraining():
    config = pretraining.of_ratings(pretraining.PRESETS["best"], worlds=3)
    assert config.source == "ratings"
    assert config.worlds == 3
    assert config.training.average_decay > 0
    assert config.classes != pretraining.PRESETS["best"].classes
