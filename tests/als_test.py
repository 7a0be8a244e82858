"""ALS against dense solves, row by row, and L-BFGS against ALS."""

import dataclasses

import numpy as np
import optax
import pytest
from absl.testing import parameterized

from metamf_jax.factorization import als, lbfgs, solver
from metamf_jax.factorization.als import AlsConfig
from metamf_jax.factorization.objective import Objective, full_gradient, make_terms
from metamf_jax.factorization.step_size import StepSize
from metamf_jax.types import Entries, FactorPrior

N, M, K = 12, 9, 3


def _matrix(seed=0):
    """Row 2 and column 4 have no entries, row 3 has nearly all."""
    rng = np.random.default_rng(seed)
    observed = rng.random((N, M)) < 0.4
    observed[3] = True
    observed[2], observed[:, 4] = False, False
    rows, columns = np.nonzero(observed)
    values = rng.normal(size=len(rows))
    return Entries(rows.astype("i"), columns.astype("i"), values.astype("f"), (N, M))


def _prior(seed=1):
    rng = np.random.default_rng(seed)
    means = (rng.normal(size=(size, K)).astype("f") for size in (N, M))
    precisions = (rng.uniform(0.5, 2, size).astype("f") for size in (N, M))
    return FactorPrior(*means, *precisions)


def _start(objective, entries, prior):
    rng = np.random.default_rng(2)
    return solver.initial_factors(
        objective, entries, make_terms(objective, entries, prior), K, rng, "normal", 1.0
    )


def _solved_rows(objective, entries, terms, u, v):
    """The best U given V, by one dense solve a row, in float64."""
    dense = np.zeros(entries.shape)
    dense[entries.rows, entries.columns] = entries.values
    observed = np.zeros(entries.shape, bool)
    observed[entries.rows, entries.columns] = True
    if objective.loss == "squared_all":
        observed[:] = True
    free = np.arange(u.shape[1]) != (u.shape[1] - 1 if objective.biases else -1)
    rows = []
    for n in range(entries.shape[0]):
        design = np.float64(v[observed[n]])
        target = dense[n, observed[n]] - design[:, ~free].sum(1)
        design = design[:, free]
        mean = np.zeros(u.shape[1]) if terms.mean is None else terms.mean[n]
        weight = terms.weight[n] or 1e-9
        gram = design.T @ design + weight * np.eye(free.sum())
        row = np.ones(u.shape[1])
        row[free] = np.linalg.solve(gram, design.T @ target + weight * mean[free])
        rows.append(row)
    return np.stack(rows)


class AlsTest(parameterized.TestCase):
    @parameterized.parameters(
        ("squared", "l2", False, False, 0),
        ("squared", "weighted_l2", False, True, 0),
        ("squared", "prior", True, True, 0),
        ("squared", "prior", True, True, K + 4),
        ("squared_all", "l2", False, False, 0),
        ("squared_all", "prior", True, True, 0),
        ("squared_all", "prior", False, True, K + 4),
    )
    def test_half_step_equals_dense_solves(self, loss, penalty, biases, with_prior, steps):
        objective = Objective(loss, penalty, 0.3, biases)
        entries, prior = _matrix(), _prior() if with_prior else None
        terms = make_terms(objective, entries, prior)
        u, v = _start(objective, entries, prior)
        listed = entries.rows, entries.columns, entries.values
        expected = _solved_rows(objective, entries, terms.u, u, v)
        if penalty == "weighted_l2":  # No entries, no penalty: the prior mean by convention.
            expected[2] = terms.u.mean[2]
        tolerance = 2e-3 if steps else 1e-4
        for backend in ("xla", "numba"):
            prepared = als.prepare_half_step(
                objective, "u", listed, entries.shape, u.shape[1], AlsConfig(steps, 1, backend)
            )
            solved = als.half_step(prepared, u, v, terms.u)
            np.testing.assert_allclose(solved, expected, rtol=tolerance, atol=tolerance)

    def test_columns_are_the_rows_of_the_transposed_matrix(self):
        objective = Objective("squared", "prior", biases=True)
        entries = _matrix()
        terms = make_terms(objective, entries, _prior())
        u, v = _start(objective, entries, _prior())
        swap = [*range(K), K + 1, K]  # (.., 1, c) becomes (.., c, 1).
        transposed = Entries(entries.columns, entries.rows, entries.values, (M, N))
        mirrored = terms.v._replace(mean=terms.v.mean[:, swap])
        expected = _solved_rows(objective, transposed, mirrored, v[:, swap], u[:, swap])
        listed = entries.columns, entries.rows, entries.values
        config = AlsConfig(backend="xla")
        prepared = als.prepare_half_step(objective, "v", listed, (M, N), v.shape[1], config)
        solved = als.half_step(prepared, v, u, terms.v)
        np.testing.assert_allclose(solved[:, swap], expected, rtol=1e-4, atol=1e-4)

    @parameterized.parameters(("squared", "none"), ("squared_all", "weighted_l2"))
    def test_objective_never_rises(self, loss, penalty):
        objective = Objective(loss, penalty, 0.1, biases=True)
        entries = _matrix()
        objectives = []
        factors, _ = solver.fit(
            als.make_solver(objective, entries),
            _start(objective, entries, None),
            StepSize(),
            6,
            lambda progress: objectives.append(progress.objective),
        )
        assert np.isfinite(factors.u).all()
        assert (factors.u[:, -1] == 1).all()
        assert (factors.v[:, -2] == 1).all()
        assert (np.diff(objectives) <= 1e-5 * objectives[0]).all(), objectives

    def test_lbfgs_ends_where_the_gradient_vanishes(self):
        objective = Objective("logistic", "l2", 0.5, biases=True)
        entries = _matrix()
        entries = dataclasses.replace(entries, values=np.sign(entries.values))
        terms = make_terms(objective, entries)
        start = _start(objective, entries, None)
        method = lbfgs.make_solver(objective, entries)
        factors, _ = solver.fit(method, start, StepSize(), 40)
        norms = [
            float(optax.tree.norm(full_gradient(objective, f, entries, terms)))
            for f in (start, factors)
        ]
        assert norms[1] < 1e-3 * norms[0], norms
        assert (factors.u[:, -1] == 1).all()

    def test_any_number_of_devices_gives_the_same_bits_and_widths_beyond_a_tile_work(self):
        objective = Objective("squared", "l2", 0.5)
        entries, width = _matrix(), 70
        terms = make_terms(objective, entries)
        rng = np.random.default_rng(3)
        u, v = (rng.normal(size=(size, width)).astype("f") for size in (N, M))
        expected = _solved_rows(objective, entries, terms.u, u, v)
        found = []
        for num_devices in (1, 5):
            listed = entries.rows, entries.columns, entries.values
            config = AlsConfig(num_devices=num_devices, backend="numba")
            prepared = als.prepare_half_step(objective, "u", listed, entries.shape, width, config)
            found.append(als.half_step(prepared, u, v, terms.u))
        np.testing.assert_allclose(found[0], expected, rtol=1e-3, atol=1e-3)
        np.testing.assert_array_equal(*found)

    @parameterized.parameters("squared", "squared_all")
    def test_few_steps_are_the_same_compiled_and_on_any_number_of_devices(self, loss):
        objective = Objective(loss, "l2", 0.5)
        entries, width = _matrix(), 70
        terms = make_terms(objective, entries)
        rng = np.random.default_rng(3)
        u, v = (rng.normal(size=(size, width)).astype("f") for size in (N, M))
        listed, found = (entries.rows, entries.columns, entries.values), []
        for backend, num_devices in (("xla", 1), ("numba", 1), ("numba", 5)):
            config = AlsConfig(2, num_devices, backend)
            prepared = als.prepare_half_step(objective, "u", listed, entries.shape, width, config)
            found.append(als.half_step(prepared, u, v, terms.u))
        assert np.abs(found[0] - u).max() > 0.1
        np.testing.assert_allclose(found[1], found[0], rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(found[1], found[2])

    def test_refusals(self):
        with pytest.raises(ValueError, match="the solver 'als' serves the losses squared,"):
            als.make_solver(Objective("logistic"), _matrix())
        with pytest.raises(ValueError, match="the solver 'lbfgs' serves"):
            lbfgs.make_solver(Objective("absolute"), _matrix())
