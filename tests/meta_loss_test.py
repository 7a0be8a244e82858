"""The meta-loss: batches against loops, empty episodes, and gradients through everything."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from metamf_jax import bias_model, sums
from metamf_jax.kernels import ffi
from metamf_jax.meta_learning import meta_loss, padding
from metamf_jax.meta_learning.encoder import EncoderConfig
from metamf_jax.meta_learning.map_estimation import MapConfig
from metamf_jax.meta_learning.meta_loss import Episode, ModelConfig
from metamf_jax.types import Entries, Factors
from tests.compilation import FAST

# A memory policy of the plain steps, or a learned bias model with steps scaled by curvature.
VARIANTS = ("unroll", "checkpoint", "implicit", "effects")


@functools.cache
def model_and_params(memory, steps=3):
    """A tiny model, and parameters none of which is zero."""
    encoder = EncoderConfig(channels=3, layers=1, rank=2, precision="per_row")
    inner = MapConfig(steps=steps)
    if memory == "effects":
        encoder = dataclasses.replace(encoder, effects=True)
        inner = dataclasses.replace(inner, step_form="curvature")
    elif memory == "implicit":
        inner = MapConfig(memory=memory)
    else:
        inner = dataclasses.replace(inner, memory=memory)
    config = ModelConfig(encoder, inner)
    model = meta_loss.make_model(config)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: rng.normal(0, 0.5, x.shape).astype(np.float32),
        jax.eval_shape(model.init, jax.random.key(0)),
    )
    return model, params._replace(log_step_size=np.float32(-2.5))


@functools.cache
def value_and_gradient(memory):
    """Compiled ``(params, episodes) -> ((loss sum, count), gradient)`` of a batch."""
    model, _ = model_and_params(memory)

    loss = functools.partial(meta_loss.episode_loss, model)
    terms = functools.partial(meta_loss.meta_loss_terms, loss)
    return jax.jit(jax.value_and_grad(terms, has_aux=True), compiler_options=FAST)


def random_entries(rng, num_rows, num_columns, count):
    places = rng.choice(num_rows * num_columns, count, replace=False)
    rows, columns = np.divmod(places.astype(np.int32), np.int32(num_columns))
    return Entries(rows, columns, rng.normal(size=count).astype(np.float32), (5, 4))


def batch_of_episodes(dtype=np.float32):
    """Four episodes: full, small, without a query, without anything. Padding is poisoned."""
    rng = np.random.default_rng(1)
    support = [
        random_entries(rng, 5, 4, 9),
        random_entries(rng, 3, 2, 4),
        random_entries(rng, 5, 3, 6),
    ]
    query = [random_entries(rng, 5, 4, 6), random_entries(rng, 3, 2, 2)]
    empty = random_entries(rng, 5, 4, 0)
    episodes = Episode(
        padding.stack_entries([*support, empty], (5, 4), 12),
        padding.stack_entries([*query, empty, empty], (5, 4), 8),
    )
    for part in episodes:
        part.values[part.rows == 5] = np.nan
    return jax.tree.map(lambda x: x.astype(dtype) if x.dtype == np.float32 else x, episodes)


def member(episodes, b):
    return jax.tree.map(lambda leaf: leaf[b], episodes)


def assert_trees_close(got, expected, **tolerance):
    paths = jax.tree_util.tree_leaves_with_path(expected)
    for (path, b), a in zip(paths, jax.tree.leaves(got), strict=True):
        assert np.isfinite(a).all(), path
        np.testing.assert_allclose(a, b, err_msg=jax.tree_util.keystr(path), **tolerance)


class MetaLossTest(parameterized.TestCase):
    @parameterized.parameters(*VARIANTS)
    def test_a_batch_equals_a_loop(self, memory):
        model, params = model_and_params(memory)
        episodes = batch_of_episodes()

        @functools.partial(jax.jit, compiler_options=FAST)
        @functools.partial(jax.value_and_grad, has_aux=True)
        def one(params, episode):
            return meta_loss.episode_loss(model, params, episode)

        (loss_sum, count), gradient = value_and_gradient(memory)(params, episodes)
        (losses, weights), gradients = jax.tree.map(
            lambda *leaves: np.stack(leaves), *(one(params, member(episodes, b)) for b in range(4))
        )
        np.testing.assert_array_equal(weights, [1, 1, 0, 0])
        np.testing.assert_array_equal(losses[2:], 0)
        assert (losses[:2] > 0).all()
        assert count == 2
        # The implicit solve stops at a relative tolerance of 1e-6, reached at another sweep when
        # the whole batch waits for its slowest member.
        tolerance = 1e-3 if memory == "implicit" else 2e-4
        np.testing.assert_allclose(loss_sum, losses.sum(), rtol=tolerance)
        assert_trees_close(
            gradient,
            jax.tree.map(lambda x: x.sum(axis=0), gradients),
            rtol=tolerance,
            atol=tolerance / 10,
        )
        # An episode without a query teaches nothing.
        for leaf in jax.tree.leaves(gradients):
            np.testing.assert_array_equal(leaf[2:], 0)
        assert any((leaf[:2] != 0).any() for leaf in jax.tree.leaves(gradients))

    def test_a_loss_that_is_no_scalar_is_refused(self):
        def loss(params, episode):
            error, weight = meta_loss.query_error(params, episode.query)
            return error[None], weight

        factors = Factors(np.ones((5, 2), np.float32), np.ones((4, 2), np.float32))
        with pytest.raises(AssertionError, match="shape"):
            meta_loss.meta_loss_terms(loss, factors, batch_of_episodes())

    def test_query_error_is_a_mean_over_cells(self):
        rng = np.random.default_rng(2)
        factors = Factors(rng.normal(size=(5, 2)), rng.normal(size=(4, 2)))
        factors = Factors(*(x.astype(np.float32) for x in factors))
        query = member(batch_of_episodes().query, 0)
        fitted = (factors.u @ factors.v.T)[query.rows[:6], query.columns[:6]]
        error, weight = meta_loss.query_error(factors, query)
        np.testing.assert_allclose(error, ((query.values[:6] - fitted) ** 2).mean(), rtol=1e-5)
        assert weight == 1

    @parameterized.parameters(*VARIANTS)
    def test_meta_gradient_equals_finite_differences(self, memory):
        # Few steps, so that the step size matters; the implicit policy solves to a tolerance.
        model, params = model_and_params(memory)
        with jax.enable_x64(True):
            episodes = batch_of_episodes(np.float64)
            params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)

            @functools.partial(jax.jit, compiler_options=FAST)
            @jax.value_and_grad
            def loss(params):
                episode_loss = functools.partial(meta_loss.episode_loss, model)
                total, count = meta_loss.meta_loss_terms(episode_loss, params, episodes)
                return total / count

            value, gradient = loss(params)
            assert value.dtype == jnp.float64
            if memory == "implicit":
                # The optimum does not depend on the step size.
                assert gradient.log_step_size == 0
            else:
                assert gradient.log_step_size != 0
            rng = np.random.default_rng(3)
            h = 1e-4 if memory == "implicit" else 1e-5
            for _ in range(3):
                direction = jax.tree.map(lambda x: rng.normal(size=x.shape), params)
                along = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, direction)))
                ahead, behind = (
                    loss(jax.tree.map(lambda x, d, s=s: x + s * d, params, direction))[0]
                    for s in (h, -h)
                )
                tolerance = 1e-3 if memory == "implicit" else 1e-6
                np.testing.assert_allclose(along, (ahead - behind) / (2 * h), rtol=tolerance)

    def test_checkpointed_gradient_equals_unrolled(self):
        episodes = batch_of_episodes()
        got, expected = (
            value_and_gradient(memory)(model_and_params(memory)[1], episodes)
            for memory in ("checkpoint", "unroll")
        )
        assert_trees_close(got, expected, rtol=1e-4, atol=1e-5)

    def test_compiled_kernels_equal_xla(self):
        assert ffi.is_available()
        results = []
        for backend in ("numba", "xla"):
            with sums.using_backend(backend):
                _, params = model_and_params("unroll")
                results.append(value_and_gradient("unroll")(params, batch_of_episodes()))
        assert_trees_close(*results, rtol=1e-4, atol=1e-5)

    @parameterized.parameters("unroll", "effects")
    def test_dense_support_equals_listed(self, variant):
        model, params = model_and_params(variant)
        listed = member(batch_of_episodes(), 0)
        dense = listed._replace(support=padding.pad_dense(listed.support))
        loss = jax.jit(
            lambda params, episode: meta_loss.episode_loss(model, params, episode)[0],
            compiler_options=FAST,
        )
        np.testing.assert_allclose(loss(params, dense), loss(params, listed), rtol=1e-5)

    def test_without_steps_effects_and_prior_means_add_up(self):
        model, params = model_and_params("effects", steps=0)
        support = member(batch_of_episodes(), 0).support
        factors, prior_means = jax.jit(model.adapt, compiler_options=FAST)(params, support)
        shrinkage = bias_model.Shrinkage(*np.exp(params.encoder["params"]["log_shrinkage"]))
        effects = bias_model.fit_effects(support, shrinkage, sweeps=4)
        bias = effects.mean + effects.rows[:, None] + effects.columns[None, :]
        np.testing.assert_array_equal(factors.u, prior_means.u)
        assert factors.u.shape == (5, 4)
        np.testing.assert_allclose(
            factors.u @ factors.v.T, factors.u[:, :2] @ factors.v[:, :2].T + bias, rtol=1e-4
        )
