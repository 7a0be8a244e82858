"""The learned hyperprior of small matrices: against known ones."""

import jax
import numpy as np
import scipy.stats

from metamf_jax.baselines import bayes_learned
from metamf_jax.baselines.bayes_learned import SideTold, Told
from metamf_jax.meta_learning.meta_loss import Episode
from metamf_jax.types import Entries

SIDE, COUNT = 12, 150
COEFFICIENTS = np.array([0.2, 0.6, 0.0, 0.0])
PRECISION, NOISE_PRECISION = 4.0, 2.0


def entries(rows, columns, values):
    return Entries(rows.astype(np.int32), columns.astype(np.int32), values, (SIDE, SIDE))


def of_cells(cells, table):
    rows, columns = cells[:, 0], cells[:, 1]
    return entries(rows, columns, table[rows, columns])


def corpus():
    """Effects of rows that rise with their numbers of cells, of columns that do not; [B, E]."""
    rng = np.random.default_rng(0)
    matrices = []
    for _ in range(COUNT):
        rows = np.repeat(rng.integers(0, SIDE, 30), 2)[: 2 * SIDE]
        cells = np.unique(np.stack([rows, rng.integers(0, SIDE, len(rows))], axis=1), axis=0)
        support = rng.permutation(cells)[: SIDE + 2]
        query = rng.integers(0, SIDE, (SIDE, 2))
        hidden = {tuple(cell) for cell in support}
        query = np.array([cell for cell in np.unique(query, axis=0) if tuple(cell) not in hidden])
        query = np.resize(query, (SIDE, 2))
        phi = np.asarray(
            bayes_learned.features(of_cells(support, np.zeros((SIDE, SIDE), np.float32)))[0],
            np.float64,
        )
        effects = phi @ COEFFICIENTS + rng.normal(0, PRECISION**-0.5, SIDE)
        table = effects[:, None] + rng.normal(0, PRECISION**-0.5, SIDE)[None]
        table = (table + rng.normal(0, NOISE_PRECISION**-0.5, table.shape)).astype(np.float32)
        matrices.append(Episode(*(of_cells(cells, table) for cells in (support, query))))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *matrices)


def test_learns_what_the_matrices_were_drawn_from():
    learned = bayes_learned.learn(corpus(), rank=0)
    rows, columns = (side.coefficients[:, 0] for side in learned[:2])
    np.testing.assert_allclose(rows[1:3], COEFFICIENTS[1:3], atol=0.15)
    np.testing.assert_allclose(columns[1:3], 0, atol=0.15)
    # What the two have in common is known of their sum alone.
    np.testing.assert_allclose(rows[0] + columns[0], COEFFICIENTS[0], atol=0.15)
    precisions = learned.rows.precision[0, 0], learned.columns.precision[0, 0]
    np.testing.assert_allclose(precisions, PRECISION, rtol=0.25)
    shape, rate = learned.noise
    np.testing.assert_allclose(shape / rate, NOISE_PRECISION, rtol=0.1)


def test_the_likeliest_hyperprior_of_known_draws():
    rng = np.random.default_rng(1)
    degrees, expected = 12.0, np.array([[3.0, 0.5], [0.5, 2.0]])
    kappa, coefficients = 5.0, rng.normal(size=(4, 2))
    draws = scipy.stats.wishart(degrees, expected / degrees).rvs(20_000, random_state=rng)
    means = rng.normal(size=(len(draws), 2, 1)) / kappa**0.5
    # L z with L L^T the inverse has that covariance.
    means = (np.linalg.cholesky(np.linalg.inv(draws)) @ means)[..., 0]
    phi = 10 * rng.normal(size=(9, 4))
    gram = np.einsum("rs,fg->rfsg", draws.mean(axis=0), phi.T @ phi)
    side = SideTold(
        gram=gram,
        moment=np.einsum("rfsg,gs->rf", gram, coefficients),
        precision=draws.mean(axis=0),
        log_det=np.linalg.slogdet(draws)[1].mean(),
        mean_square=np.einsum("bi,bij,bj->b", means, draws, means).mean(),
    )
    alphas = rng.gamma(7.0, 1 / 3.0, 20_000)
    told = Told(side, side, np.array([alphas.mean(), np.log(alphas).mean()]))
    found = bayes_learned.likeliest(told)
    np.testing.assert_allclose(found.rows.coefficients, coefficients, atol=2e-3)
    np.testing.assert_allclose(found.rows.precision, expected, atol=0.03)
    np.testing.assert_allclose(found.columns.degrees, degrees, rtol=0.05)
    np.testing.assert_allclose(found.columns.mean_precision, kappa, rtol=0.05)
    np.testing.assert_allclose(found.noise, [7, 3], rtol=0.05)
