"""Ridge solves agree with a dense solver and fall back on the prior mean."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized
from jax.test_util import check_grads

from metamf_jax.ridge import ridge_solve


def _systems(rng, *batch, samples=6, rank=4):
    design = rng.normal(size=(*batch, samples, rank))
    gram = np.einsum("...ej,...ek->...jk", design, design)
    moment = rng.normal(size=(*batch, rank))
    return (
        np.float32(gram),
        np.float32(moment),
        np.float32(rng.uniform(0.5, 2, size=batch)),
        np.float32(rng.normal(size=(*batch, rank))),
    )


class RidgeTest(parameterized.TestCase):
    @parameterized.parameters(((),), ((3,),), ((2, 3),))
    def test_equals_numpy(self, batch):
        gram, moment, precision, mean = _systems(np.random.default_rng(0), *batch)
        expected = np.linalg.solve(
            np.float64(gram) + precision[..., None, None] * np.eye(4),
            (moment + precision[..., None] * mean)[..., None],
        )[..., 0]
        solved = ridge_solve(gram, moment, precision, mean)
        np.testing.assert_allclose(solved, expected, rtol=1e-4, atol=1e-5)

    def test_without_data_the_answer_is_the_prior_mean(self):
        _, _, precision, mean = _systems(np.random.default_rng(1), 5)
        solved = ridge_solve(np.zeros((5, 4, 4), "f"), np.zeros((5, 4), "f"), precision, mean)
        np.testing.assert_array_equal(solved, mean)

    def test_gradients(self):
        systems = jax.tree.map(jnp.asarray, _systems(np.random.default_rng(2), 2))

        def solve(moment, precision, mean):
            return ridge_solve(systems[0], moment, precision, mean)

        check_grads(solve, systems[1:], order=1, modes=["rev"], rtol=2e-2, atol=2e-2)
