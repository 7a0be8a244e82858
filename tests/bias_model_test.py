"""The bias model against the closed-form ridge solution of all effects at once."""

import jax
import numpy as np
from absl.testing import parameterized

from metamf_jax import bias_model, sums
from metamf_jax.types import Factors
from tests import numpy_reference

SHRINKAGE = bias_model.Shrinkage(1.0, 2.0, 3.0)


def closed_form(matrix):
    rows, columns = np.nonzero(matrix.observed)
    num_rows, num_columns = matrix.observed.shape
    design = np.zeros((len(rows), 1 + num_rows + num_columns))
    design[:, 0] = 1
    design[np.arange(len(rows)), 1 + rows] = 1
    design[np.arange(len(rows)), 1 + num_rows + columns] = 1
    penalty = np.diag([1.0] + [2.0] * num_rows + [3.0] * num_columns)
    target = design.T @ matrix.values[rows, columns]
    solution = np.linalg.solve(design.T @ design + penalty, target)
    return solution[0], solution[1 : 1 + num_rows], solution[1 + num_rows :]


class BiasModelTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.padded, self.entries = numpy_reference.random_matrix(0)

    def test_many_sweeps_reach_the_closed_form(self):
        fit = jax.jit(lambda o: bias_model.fit_effects(o, SHRINKAGE, sweeps=200))
        for observations in (self.padded, self.entries):
            for got, expected in zip(fit(observations), closed_form(self.padded), strict=True):
                np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)

    def test_residuals_and_appended_factors_agree(self):
        effects = bias_model.fit_effects(self.padded, SHRINKAGE, sweeps=3)
        fitted = effects.mean + effects.rows[:, None] + effects.columns[None, :]
        expected = np.where(self.padded.observed, self.padded.values - fitted, 0)
        dense = bias_model.residuals(self.padded, effects)
        np.testing.assert_allclose(
            np.where(self.padded.observed, dense.values, 0), expected, rtol=1e-5, atol=1e-6
        )
        listed = bias_model.residuals(self.entries, effects)
        inside = self.entries.rows < 6
        np.testing.assert_allclose(
            listed.values[inside],
            expected[self.entries.rows[inside], self.entries.columns[inside]],
            rtol=1e-5,
            atol=1e-6,
        )
        factors = Factors(np.ones((6, 1), np.float32), np.zeros((5, 1), np.float32))
        appended = bias_model.append(factors, effects)
        rows, columns = (x.astype(np.int32) for x in np.indices((6, 5)).reshape(2, -1))
        np.testing.assert_allclose(
            sums.predict(appended, rows, columns), fitted[rows, columns], rtol=1e-5, atol=1e-6
        )
