"""Parameter mixing against NumPy, and the solvers against each other and multiplicative updates."""

import numpy as np
from absl.testing import parameterized

from metamf_jax.factorization import als, dsgd, parameter_mixing, solver, visits
from metamf_jax.factorization.dsgd import DsgdConfig
from metamf_jax.factorization.objective import Objective, evaluate, make_terms
from metamf_jax.factorization.sgd import SgdConfig
from metamf_jax.factorization.step_size import StepSize
from metamf_jax.types import Entries, Factors
from tests import numpy_reference

N, M, K = 24, 18, 2


def _low_rank(seed=0, density=0.6, noise=0.1):
    rng = np.random.default_rng(seed)
    dense = rng.normal(size=(N, K)) @ rng.normal(size=(K, M)) + noise * rng.normal(size=(N, M))
    rows, columns = np.nonzero(rng.random((N, M)) < density)
    return Entries(rows.astype("i"), columns.astype("i"), dense[rows, columns].astype("f"), (N, M))


def _start(objective, entries, rank=K, scale=0.5):
    terms = make_terms(objective, entries)
    rng = np.random.default_rng(1)
    return terms, solver.initial_factors(objective, entries, terms, rank, rng, scale=scale)


class ParameterMixingTest(parameterized.TestCase):
    def test_an_epoch_is_the_mean_of_the_shards(self):
        objective = Objective("squared", "l2", 0.3)
        entries = _low_rank()
        terms, start = _start(objective, entries)
        config = SgdConfig(seed=5)
        method = parameter_mixing.make_solver(objective, entries, config, 4, 2, width=K)
        got = method.factors(method.epoch(method.init(start), 1, 0.05))
        owner = np.random.default_rng(5).permutation(len(entries.values)) % 4
        mean = [np.zeros(f.shape) for f in start]
        for w in range(4):
            mine = owner == w
            shard = Entries(entries.rows[mine], entries.columns[mine], entries.values[mine], (N, M))
            cut = visits.cut_matrix(shard, config, 1, K)
            assert cut.offsets.shape == (1, 1, 2)  # One sub-block: the entries in the order cut.
            row, column = np.argsort(cut.u.place), np.argsort(cut.v.place)
            in_order = zip(
                row[cut.entries.rows[0]],
                column[cut.entries.columns[0]],
                cut.entries.values[0],
                strict=True,
            )
            factors = [f.astype(np.float64) for f in start]
            numpy_reference.sgd(
                objective, False, 0.05, *factors, (None, None), list(in_order), terms, None, None
            )
            mean = [m + f / 4 for m, f in zip(mean, factors, strict=True)]
        np.testing.assert_allclose(got.u, mean[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(got.v, mean[1], rtol=1e-4, atol=1e-5)

    def test_factors_and_objective_do_not_depend_on_the_devices(self):
        # The 18 columns do not divide among four devices.
        objective = Objective("squared", "weighted_l2", 0.1)
        entries = _low_rank()
        terms, start = _start(objective, entries)
        reached = []
        for devices in (1, 4):
            method = parameter_mixing.make_solver(
                objective, entries, SgdConfig(), 8, devices, width=K
            )
            factors, end = solver.fit(method, start, StepSize("bold_driver", 0.05), 3)
            reached.append((*factors, end.objective, method.squared_error(end.state)))
        for one, four in zip(*reached, strict=True):
            np.testing.assert_array_equal(one, four)
        u, v, value, squared_error = reached[0]
        expected = evaluate(objective, Factors(u, v), entries, terms)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        fitted = (u[entries.rows] * v[entries.columns]).sum(axis=1)
        np.testing.assert_allclose(squared_error, ((entries.values - fitted) ** 2).sum(), rtol=1e-5)

    def test_shards_of_unequal_size_are_cut_alike(self):
        # By its own size the shard of 1024 entries would have 16 sub-blocks, that of 1023 nine.
        rng = np.random.default_rng(0)
        ids = rng.integers(0, 4000, (2, 2047)).astype("i")
        entries = Entries(*ids, rng.normal(size=2047).astype("f"), (4000, 4000))
        objective = Objective("squared", "l2", 0.1)
        _, start = _start(objective, entries)
        method = parameter_mixing.make_solver(objective, entries, SgdConfig(), 2, width=32)
        before = method.init(start)
        after = method.epoch(before, 1, 0.05)
        assert method.objective(after) < method.objective(before)

    def test_dsgd_converges_like_sgd_and_mixing_lags(self):
        objective = Objective("squared", "l2", 0.1)
        entries = _low_rank()
        _, start = _start(objective, entries)
        als_end = solver.fit(als.make_solver(objective, entries), start, StepSize(), 200)[1]
        reached = {}
        for name, method in (
            ("sgd", dsgd.make_solver(objective, entries, DsgdConfig(1), width=K)),
            ("dsgd", dsgd.make_solver(objective, entries, DsgdConfig(6), width=K)),
            (
                "mixing",
                parameter_mixing.make_solver(objective, entries, SgdConfig(), 6, width=K),
            ),
        ):
            reached[name] = [
                solver.fit(method, start, StepSize("bold_driver", 0.05), epochs)[1].objective
                for epochs in (10, 80)
            ]
        assert reached["mixing"][0] > 1.5 * reached["dsgd"][0]
        np.testing.assert_allclose(reached["dsgd"][1], reached["sgd"][1], rtol=0.01)
        np.testing.assert_allclose(reached["sgd"][1], als_end.objective, rtol=0.01)

    def test_gkl_reaches_what_multiplicative_updates_reach(self):
        rng = np.random.default_rng(2)
        dense = rng.poisson(3 * rng.random((N, K)) @ rng.random((K, M)) + 0.5).astype("f")
        rows, columns = (x.astype("i") for x in np.nonzero(dense))
        assert len(rows) < N * M - 50  # Zeros are no entries, but count in the divergence.
        entries = Entries(rows, columns, dense[rows, columns], (N, M))
        objective = Objective("gkl", "none")
        _, start = _start(objective, entries, scale=1.0)
        u, v = numpy_reference.multiplicative_updates(np.float64(dense), *start, 1000)
        fitted = u @ v.T
        logs = np.log(np.where(dense > 0, dense, 1) / fitted)
        expected = (dense * logs - dense + fitted).sum()
        method = dsgd.make_solver(objective, entries, DsgdConfig(2), width=K)
        state = method.init(start)
        for epoch in range(1, 201):
            state = method.epoch(state, epoch, 1 / (1 + max(0, epoch - 100) / 20))
        assert method.objective(state) <= 1.003 * expected
        # And there it stays.
        end = method.init(Factors(u.astype("f"), v.astype("f")))
        for epoch in range(1, 21):
            end = method.epoch(end, epoch, 0.01)
        np.testing.assert_allclose(method.objective(end), expected, rtol=1e-3)
