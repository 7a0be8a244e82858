"""Local gradients sum to the full one, and the all-cell losses equal brute force."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from metamf_jax.factorization import objective as objectives
from metamf_jax.factorization.objective import LOSSES, PENALTIES, Objective
from metamf_jax.types import Entries, FactorPrior, Factors

N, M, K = 6, 5, 3


def matrix(loss, seed=0):
    """Entries of a 6 x 5 matrix that leaves row 2 and column 4 without any."""
    rng = np.random.default_rng(seed)
    observed = rng.random((N, M)) < 0.6
    observed[2], observed[:, 4], observed[0, 0] = False, False, True
    rows, columns = (x.astype(np.int32) for x in np.nonzero(observed))
    values = rng.normal(size=len(rows))
    if loss == "logistic":
        values = np.sign(values)
    elif loss == "gkl":
        values = np.abs(values)
        values[1] = 0
    return Entries(rows, columns, values.astype(np.float32), (N, M))


def factors(loss, seed=1, width=K):
    rng = np.random.default_rng(seed)
    u, v = rng.normal(size=(N, width)), rng.normal(size=(M, width))
    if loss == "gkl":
        u, v = np.abs(u) + 0.1, np.abs(v) + 0.1
    return Factors(np.float32(u), np.float32(v))


def prior(seed=2):
    rng = np.random.default_rng(seed)
    return FactorPrior(
        np.float32(rng.normal(size=(N, K))),
        np.float32(rng.normal(size=(M, K))),
        np.float32(rng.uniform(0.5, 2, N)),
        np.float32(rng.uniform(0.5, 2, M)),
    )


def case(loss, penalty, biases=False):
    objective = Objective(loss, penalty, 0.3, biases)
    entries = matrix(loss)
    start = factors(loss, width=K + 2 * biases)
    if biases:
        start.u[:, -1], start.v[:, -2] = 1, 1
    return objective, entries, start, objectives.make_terms(objective, entries, prior())


class ObjectiveTest(parameterized.TestCase):
    @parameterized.parameters(
        *itertools.product(LOSSES, PENALTIES, [False]), ("squared", "l2", True), ("gkl", "l2", True)
    )
    def test_local_gradients_sum_to_the_full_gradient(self, loss, penalty, biases):
        objective, entries, start, terms = case(loss, penalty, biases)
        sums = tuple(objectives.cell_sums(objective, f) for f in start)
        rows, columns = entries.rows, entries.columns

        def at_entry(row, column, value):
            here = objectives.Terms(
                *(
                    jax.tree.map(lambda x, i=i: jnp.asarray(x)[i], side)
                    for side, i in ((terms.u, row), (terms.v, column))
                )
            )
            u, v = jnp.asarray(start.u)[row], jnp.asarray(start.v)[column]
            return objectives.local_gradient(objective, value, u, v, here, sums)

        local_u, local_v = jax.vmap(at_entry)(rows, columns, entries.values)
        full = objectives.full_gradient(objective, start, entries, terms)
        masks = objectives.trainable(objective, start.u.shape[1])
        for side, (local, ids, gradient, factor, opposite) in enumerate(
            (
                (local_u, rows, full.u, start.u, sums[1]),
                (local_v, columns, full.v, start.v, sums[0]),
            )
        ):
            summed = np.zeros(gradient.shape)
            np.add.at(summed, ids, np.asarray(local))
            empty = terms[side].count == 0
            assert empty.sum() == 1
            for n in np.flatnonzero(empty):
                here = jax.tree.map(lambda x, n=n: x[n], terms[side])
                share = objectives.side_gradient(objective, factor[n], here, opposite)
                summed[n] = np.where(masks[side], share, 0)
            np.testing.assert_allclose(gradient, summed, rtol=1e-4, atol=1e-5)

    @parameterized.parameters(*LOSSES)
    def test_full_gradient_equals_finite_differences(self, loss):
        objective, entries, start, terms = case(loss, "prior")
        gradient = objectives.full_gradient(objective, start, entries, terms)
        rng = np.random.default_rng(3)
        direction = Factors(rng.normal(size=(N, K)), rng.normal(size=(M, K)))
        with jax.enable_x64(True):

            def along(step):
                moved = Factors(
                    *(np.float64(f) + step * d for f, d in zip(start, direction, strict=True))
                )
                return float(objectives.objective_value(objective, moved, entries, terms))

            slope = (along(1e-4) - along(-1e-4)) / 2e-4
        expected = 2 * sum(np.vdot(g, d) for g, d in zip(gradient, direction, strict=True))
        np.testing.assert_allclose(slope, expected, rtol=2e-4)

    @parameterized.parameters(*itertools.product(LOSSES, PENALTIES))
    def test_objective_equals_brute_force(self, loss, penalty):
        objective, entries, start, terms = case(loss, penalty)
        dense = np.zeros((N, M))
        dense[entries.rows, entries.columns] = entries.values
        u, v = (np.float64(f) for f in start)
        fitted = u @ v.T
        with np.errstate(divide="ignore", invalid="ignore"):
            cells = {
                "squared": (dense - fitted) ** 2,
                "squared_all": (dense - fitted) ** 2,
                "absolute": np.abs(dense - fitted),
                "logistic": -np.log(1 / (1 + np.exp(-dense * fitted))),
                "gkl": np.where(dense > 0, dense * np.log(dense / fitted), 0) - dense + fitted,
            }[loss]
        if loss not in ("squared_all", "gkl"):  # The others see the entries alone.
            observed = np.zeros((N, M), bool)
            observed[entries.rows, entries.columns] = True
            cells = cells[observed]
        expected = cells.sum()
        given, counts = prior(), (np.bincount(entries.rows), np.bincount(entries.columns))
        for factor, mean, precision, count in zip(
            (u, v), given[:2], given[2:], counts, strict=True
        ):
            count = np.pad(count, (0, len(factor) - len(count)))
            weight = {
                "none": 0 * count,
                "l2": 0.3 + 0 * count,
                "weighted_l2": 0.3 * count,
                "root_l2": 0.3 * np.sqrt(count),
                "prior": precision,
            }[penalty]
            expected += (weight * ((factor - mean) ** 2).sum(1)).sum()
        value = objectives.objective_value(objective, start, entries, terms)
        np.testing.assert_allclose(value, expected, rtol=1e-5)

    @parameterized.parameters(*itertools.product(["squared", "squared_all", "gkl"], [False, True]))
    def test_total_of_blocks_equals_the_objective(self, loss, biases):
        objective, entries, start, terms = case(loss, "l2", biases)
        losses = np.asarray(
            objectives.entry_losses(objective, start, entries.rows, entries.columns, entries.values)
        )
        penalties = [
            objectives.penalty(objective, f, jax.tree.map(lambda x, n=n: x[n], t), side)
            for side, fs, t in zip("uv", start, terms, strict=True)
            for n, f in enumerate(fs)
        ]
        sums = [[objectives.cell_sums(objective, half) for half in (f[:2], f[2:])] for f in start]
        sums = [None if s[0] is None else np.stack(s) for s in sums]
        value = objectives.total(losses, np.stack(penalties), *sums)
        expected = objectives.objective_value(objective, start, entries, terms)
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        evaluated = objectives.evaluate(objective, start, entries, terms)
        np.testing.assert_allclose(evaluated, value, rtol=1e-6)

    def test_aliases(self):
        assert objectives.resolve_names("nzl2") == ("squared", "weighted_l2")
        assert objectives.resolve_names("sl") == ("squared_all", "none")
        assert objectives.resolve_names("gkl", "none") == ("gkl", "none")
        assert objectives.resolve_names("squared") == ("squared", "l2")
        with pytest.raises(ValueError, match="means squared with the penalty 'l2'"):
            objectives.resolve_names("l2", "none")

    def test_refusals_name_what_would_do(self):
        with pytest.raises(ValueError, match="expected a loss among squared, squared_all"):
            Objective("hinge")
        with pytest.raises(ValueError, match="needs a prior"):
            objectives.make_terms(Objective(penalty="prior"), matrix("squared"))

    @parameterized.parameters(
        ("squared", np.nan, "finite values, but entry 3 of 11 is nan"),
        ("gkl", -1.0, "at least 0 under the loss 'gkl', but entry 3"),
        ("logistic", 0.5, "labels -1 and 1 under the loss 'logistic', but entry 3"),
    )
    def test_bad_values_are_named(self, loss, bad, message):
        entries = matrix(loss)
        objectives.check_values(Objective(loss), entries)
        entries.values[3] = bad
        with pytest.raises(ValueError, match=message):
            objectives.check_values(Objective(loss), entries)

    def test_bad_values_are_named_by_id(self):
        entries = matrix("gkl")
        entries.values[3] = -1
        names = np.array(list("abcdef"), object), 10 * np.arange(M)
        place = names[0][entries.rows[3]], 10 * entries.columns[3]
        with pytest.raises(ValueError, match=rf"is -1.0 at row '{place[0]}', column {place[1]}$"):
            objectives.check_values(Objective("gkl"), entries, *names)

    def test_a_diverged_total_is_not_finite(self):
        infinite = np.array([np.inf, -np.inf])
        assert np.isnan(objectives.total(infinite, np.ones(2), None, None))
        assert np.isnan(
            objectives.total(np.ones(2), np.ones(2), infinite[:, None], np.ones((2, 1)))
        )

    def test_cells_outside_the_matrix_are_named(self):
        entries = matrix("squared")
        entries.rows[2] = N
        with pytest.raises(ValueError, match=r"inside a matrix of shape \(6, 5\), but entry 2"):
            objectives.check_values(Objective(), entries)
