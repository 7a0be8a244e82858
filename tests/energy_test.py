"""The energy and its direction against NumPy and automatic differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from metamf_jax.meta_learning import energy
from metamf_jax.types import Factors
from tests import numpy_reference


class EnergyTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.padded, self.entries = numpy_reference.random_matrix(0)
        self.prior = numpy_reference.random_prior(1)

    def test_energy_equals_numpy(self):
        factors = Factors(self.prior.u_mean + 0.3, self.prior.v_mean - 0.2)
        expected = numpy_reference.energy(self.padded, *factors, self.prior)
        for observations in (self.padded, self.entries):
            got = energy.energy(observations, factors, self.prior)
            np.testing.assert_allclose(got, expected, rtol=1e-5)

    def test_direction_is_minus_the_gradient_of_the_energy(self):
        factors = Factors(jnp.asarray(self.prior.u_mean + 0.3), jnp.asarray(self.prior.v_mean))
        for observations in (self.padded, self.entries):
            gradient = jax.grad(lambda f, o=observations: energy.energy(o, f, self.prior))
            direction = energy.descent_direction(observations, factors, self.prior)
            for g, d in zip(gradient(factors), direction, strict=True):
                np.testing.assert_allclose(d, -g, rtol=1e-4, atol=1e-5)
