"""The models of a narrow table's rows, on rows that are Gaussian and on some that are not."""

import numpy as np

from metamf_jax.imputation import row_models


def curved(num_rows=300):
    """The third column is the square of the first; the second a skewed function of it."""
    rng = np.random.default_rng(3)
    along = rng.uniform(-2, 2, num_rows)
    values = np.stack([along, np.exp(2 * along), along**2], axis=1)
    values = (values - values.mean(axis=0)) / values.std(axis=0)
    values += 0.05 * rng.normal(size=values.shape)
    observed = rng.random(values.shape) < 0.8
    observed[:, 0] |= ~observed.any(axis=1)
    return values, observed


def test_trees_and_scores_tell_what_is_not_linear():
    values, observed = curved()
    models = row_models.fit(values, observed, 20)
    completed = row_models.complete(models, values, observed)
    error = {
        name: np.sqrt(((answer - values)[~observed] ** 2).mean())
        for name, answer in completed._asdict().items()
        if name != "variances"
    }
    assert error["gaussian_trees"] < 0.8 * error["gaussian"]
    assert error["scores_trees"] < 0.8 * error["scores"]
    for name in error:
        np.testing.assert_array_equal(getattr(completed, name)[observed], values[observed])
    assert not completed.variances[observed].any()


def test_a_row_is_answered_from_its_own_cells():
    values, observed = curved(60)
    models = row_models.fit(values, observed, 5)
    together = row_models.complete(models, values, observed)
    for n in (0, 7):
        alone = row_models.complete(models, values[n : n + 1], observed[n : n + 1])
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_allclose(one[0], other[n], atol=1e-9)
    nothing = row_models.complete(models, values[:1], np.zeros((1, 3), bool))
    gaussian = models.values.gaussian
    np.testing.assert_array_equal(nothing.gaussian[0], gaussian.mean)
    np.testing.assert_allclose(nothing.variances[0], np.diag(gaussian.covariance))


def test_errors_of_trees_are_of_cells_that_were_not_seen():
    """Noise alone: trees that had seen a cell through what it imputes would repeat it."""
    rng = np.random.default_rng(4)
    values = rng.normal(size=(200, 6))
    observed = rng.random(values.shape) < 0.6
    models = row_models.fit(values, observed, 20)
    completed = row_models.complete(models, values, observed)
    left, other = (
        ((answer - values)[~observed] ** 2).mean()
        for answer in (completed.gaussian_trees, completed.gaussian)
    )
    assert left < 1.15 * other
