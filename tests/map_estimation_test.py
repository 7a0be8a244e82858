"""The inner loop against NumPy, closed forms and finite differences."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from metamf_jax import sums
from metamf_jax.meta_learning import map_estimation
from metamf_jax.meta_learning.energy import step_sizes
from metamf_jax.meta_learning.map_estimation import MapConfig, map_estimate
from metamf_jax.types import FactorPrior
from tests import numpy_reference
from tests.compilation import FAST


class MapEstimationTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.padded, self.entries = numpy_reference.random_matrix(0)
        self.prior = numpy_reference.random_prior(1)

    @parameterized.product(
        form=["plain", "scaled", "curvature", "ridge"], memory=["unroll", "checkpoint"]
    )
    def test_equals_numpy_loop(self, form, memory):
        config = MapConfig(steps=4, step_form=form, memory=memory)
        expected = numpy_reference.map_steps(self.padded, self.prior, 0.1, 4, form)
        for observations in (self.padded, self.entries):
            got = map_estimate(observations, self.prior, jnp.float32(0.1), config)
            np.testing.assert_allclose(got.u, expected[0], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(got.v, expected[1], rtol=1e-4, atol=1e-5)

    def test_with_fixed_columns_descends_to_closed_form_ridge(self):
        # A huge precision holds the columns at their prior means.
        prior = self.prior._replace(v_precision=np.full(5, 1e6, np.float32))
        factors = map_estimate(
            self.entries, prior, jnp.float32(0.7), MapConfig(steps=400, step_form="scaled")
        )
        expected = numpy_reference.ridge_rows(
            self.padded.values, self.padded.observed, prior.v_mean, prior.u_mean, prior.u_precision
        )
        np.testing.assert_allclose(factors.u, expected, rtol=1e-3, atol=1e-4)

    @parameterized.parameters("scaled", "curvature")
    def test_without_the_pull_only_the_step_sizes_know_the_precisions(self, form):
        size = jnp.float32(0.5)

        def after(steps, pull):
            config = MapConfig(steps=steps, step_form=form, pull=pull)
            return map_estimate(self.entries, self.prior, size, config)

        # The first step starts at the prior means, where nothing pulls.
        first = after(1, True)
        np.testing.assert_allclose(after(1, False).u, first.u, rtol=1e-6)
        u_sizes, v_sizes = step_sizes(self.entries, self.prior, size, form)
        u_pull = (u_sizes * self.prior.u_precision)[:, None] * (first.u - self.prior.u_mean)
        v_pull = (v_sizes * self.prior.v_precision)[:, None] * (first.v - self.prior.v_mean)
        assert np.abs(u_pull).max() > 1e-3
        np.testing.assert_allclose(after(2, False).u - after(2, True).u, u_pull, atol=1e-6)
        np.testing.assert_allclose(after(2, False).v - after(2, True).v, v_pull, atol=1e-6)

    def test_an_exact_solve_needs_the_pull(self):
        for changes in ({"step_form": "ridge"}, {"memory": "implicit"}):
            with pytest.raises(ValueError, match="without the pull"):
                MapConfig(pull=False, **changes)

    def test_rows_without_cells_stay_at_the_prior_mean(self):
        empty = self.padded._replace(observed=np.zeros_like(self.padded.observed))
        for form in ("plain", "scaled", "curvature", "ridge"):
            got = map_estimate(empty, self.prior, jnp.float32(0.1), MapConfig(3, form))
            np.testing.assert_allclose(got.u, self.prior.u_mean, rtol=1e-6)

    def test_no_steps_give_the_prior_means(self):
        got = map_estimate(self.entries, self.prior, jnp.float32(0.1), MapConfig(steps=0))
        np.testing.assert_array_equal(got.u, self.prior.u_mean)

    @parameterized.parameters("unroll", "checkpoint", "implicit")
    def test_gradient_equals_finite_differences_in_float64(self, memory):
        config = MapConfig(memory=memory) if memory == "implicit" else MapConfig(5, memory=memory)
        rng = np.random.default_rng(2)
        weights = rng.normal(size=(6, 5))

        @functools.partial(jax.jit, compiler_options=FAST)
        @jax.value_and_grad
        def loss(arguments):
            values, prior, step_size = arguments
            observations = self.padded._replace(values=values)
            factors = map_estimate(observations, prior, step_size, config)
            return (weights * (factors.u @ factors.v.T)).sum()

        with jax.enable_x64(True):
            values = np.where(self.padded.observed, self.padded.values, 0).astype(np.float64)
            prior = FactorPrior(*(np.asarray(x, np.float64) for x in self.prior))
            point = jax.tree.map(jnp.asarray, (values, prior, np.float64(0.05)))
            _, gradient = loss(point)
            direction = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), point)
            if memory == "implicit":
                # The optimum does not depend on the step size.
                assert gradient[2] == 0
            along = sum(
                float(jnp.vdot(g, d))
                for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
            )
            h = 1e-4
            ahead, _ = loss(jax.tree.map(lambda x, d: x + h * d, point, direction))
            behind, _ = loss(jax.tree.map(lambda x, d: x - h * d, point, direction))
            # The implicit policy solves to a tolerance of 1e-6.
            tolerance = 1e-3 if memory == "implicit" else 1e-6
            np.testing.assert_allclose(along, (ahead - behind) / (2 * h), rtol=tolerance)

    @parameterized.parameters("xla", "numba")
    def test_the_fused_descent_equals_the_scan_values_and_gradients(self, backend):
        sizes = step_sizes(self.entries, self.prior, jnp.float32(0.3), "scaled")

        def loss(descent, values, prior, sizes):
            entries = dataclasses.replace(self.entries, values=values)
            factors = descent(entries, prior, sizes, 6)
            return (factors.u**2).sum() + (factors.u @ factors.v.T).sum(), factors

        def run(descent):
            of_all = jax.value_and_grad(loss, argnums=(1, 2, 3), has_aux=True)
            arguments = jnp.asarray(self.entries.values), self.prior, sizes
            return jax.jit(of_all, static_argnums=0)(descent, *arguments)

        with sums.using_backend("xla"):
            expected = run(map_estimation.descent)
        with sums.using_backend(backend):
            got = run(map_estimation.fused_descent)
        # Where no kernel runs it is the scan itself; the kernel adds in another order.
        tolerance = 0 if backend == "xla" else 2e-5
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)

    def test_checkpointed_gradients_equal_unrolled(self):
        def gradient(memory):
            def loss(prior):
                factors = map_estimate(
                    self.entries, prior, jnp.float32(0.1), MapConfig(memory=memory)
                )
                return (factors.u**2).sum() + factors.v.sum()

            return jax.jit(jax.grad(loss), compiler_options=FAST)(self.prior)

        for a, b in zip(gradient("unroll"), gradient("checkpoint"), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

    def test_bad_configurations_are_refused(self):
        for bad in ({"steps": -1}, {"step_form": "newton"}, {"memory": "disk"}):
            with pytest.raises(ValueError, match=next(iter(bad))):
                MapConfig(**bad)

    def test_a_number_of_steps_does_not_apply_to_a_solve_to_a_tolerance(self):
        with pytest.raises(ValueError, match=r"to a tolerance.* got 5; leave steps out"):
            MapConfig(steps=5, memory="implicit")
        assert MapConfig(memory="implicit") == MapConfig(step_form="plain", memory="implicit")
