"""Gradients around the steps: the optimum, differentiated by the implicit function theorem."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from metamf_jax.meta_learning import adjoint
from metamf_jax.meta_learning.energy import descent_direction
from metamf_jax.types import FactorPrior
from tests import numpy_reference
from tests.compilation import FAST


class AdjointTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.padded, self.entries = numpy_reference.random_matrix(0)
        self.prior = numpy_reference.random_prior(1)

    def test_nothing_moves_at_the_optimum(self):
        for observations in (self.padded, self.entries):
            factors = adjoint.optimum(observations, self.prior)
            for slope in descent_direction(observations, factors, self.prior):
                np.testing.assert_allclose(slope, 0, atol=1e-4)

    def test_implicit_gradients_of_a_batch_equal_those_of_its_members(self):
        def loss(prior, entries):
            return adjoint.optimum(entries, prior).u.sum()

        def batch_loss(prior, entries):
            return jax.vmap(loss, (None, 0))(prior, entries).sum()

        others = jax.tree.map(lambda x: x[::-1], self.entries)
        others = dataclasses.replace(others, values=0.5 * others.values)
        batch = jax.tree.map(lambda *x: jnp.stack(x), self.entries, others)
        got = jax.jit(jax.grad(batch_loss), compiler_options=FAST)(self.prior, batch)
        one = jax.jit(jax.grad(loss), compiler_options=FAST)
        each = one(self.prior, self.entries), one(self.prior, others)
        for a, b, c in zip(got, *each, strict=True):
            np.testing.assert_allclose(a, b + c, rtol=1e-3, atol=1e-4)

    def test_implicit_gradient_is_finite_where_the_hessian_is_indefinite(self):
        # At the optimum of a weak prior around zero the energy has flat and falling directions.
        prior = FactorPrior(
            np.full((6, 3), 1e-3, np.float32),
            np.full((5, 3), 1e-3, np.float32),
            np.full(6, 1e-3, np.float32),
            np.full(5, 1e-3, np.float32),
        )

        def loss(prior):
            factors = adjoint.optimum(self.entries, prior)
            return (factors.u @ factors.v.T).sum()

        for leaf in jax.tree.leaves(jax.jit(jax.grad(loss), compiler_options=FAST)(prior)):
            assert np.isfinite(leaf).all()

    def test_steps_are_not_remembered_implicitly(self):
        with pytest.raises(ValueError, match="'unroll' or 'checkpoint', got 'implicit'"):
            adjoint.remembered(lambda factors: factors, "implicit")
