"""DSGD equals serial SGD, and does not depend on the number of devices to the last bit."""

import dataclasses
from unittest import mock

import jax
import numpy as np
import pytest
from absl.testing import parameterized

from metamf_jax.factorization import block_update, blocks, dsgd, solver, visits
from metamf_jax.factorization import objective as objectives
from metamf_jax.factorization.block_update import mosaic_gpu
from metamf_jax.factorization.dsgd import DsgdConfig
from metamf_jax.factorization.entries_source import shuffled_entries
from metamf_jax.factorization.objective import Objective, make_terms
from metamf_jax.factorization.step_size import StepSize
from metamf_jax.types import Entries, FactorPrior
from tests import numpy_reference

N, M, E, K, P = 21, 18, 170, 3, 8


def _matrix(seed=0):
    """Positive values; row 5 and column 7 have no entries."""
    rng = np.random.default_rng(seed)
    cells = rng.choice((N - 1) * (M - 1), E, replace=False)
    rows, columns = np.divmod(cells, M - 1)
    return Entries(
        (rows + (rows >= 5)).astype("i"),
        (columns + (columns >= 7)).astype("i"),
        rng.uniform(0.1, 3, E).astype("f"),
        (N, M),
    )


def _prior(seed=1):
    rng = np.random.default_rng(seed)
    return FactorPrior(
        *(rng.uniform(0, 1, (size, K)).astype("f") for size in (N, M)),
        *(rng.uniform(0.5, 2, size).astype("f") for size in (N, M)),
    )


def _problem(objective, prior=None):
    entries = _matrix()
    terms = make_terms(objective, entries, prior)
    rng = np.random.default_rng(2)
    return entries, terms, solver.initial_factors(objective, entries, terms, K, rng, scale=0.5)


def _serial_epoch(entries, config, terms, objective, factors, squares, epoch, step, rng):
    """An epoch in NumPy, the blocks of each stratum in random order."""
    cut = visits.cut_matrix(entries, config, config.num_blocks, factors[0].shape[1])
    drawn = visits.draw_visits(cut, config, epoch, config.schedule)
    shuffled = shuffled_entries(cut, config, drawn.shuffle)
    numbers = [np.empty(side.shape, int) for side in (cut.u, cut.v)]
    for number, side in zip(numbers, (cut.u, cut.v), strict=True):
        number[side.block, side.place] = np.arange(len(side.block))
    seen = 0
    for s, stratum in enumerate(drawn.schedule):
        sums = [numpy_reference.cell_sum(objective, f) for f in factors]
        for i in rng.permutation(len(stratum)):
            order = [
                (
                    numbers[0][i, shuffled.rows[i, t]],
                    numbers[1][stratum[i], shuffled.columns[i, t]],
                    shuffled.values[i, t],
                )
                for first, last in zip(drawn.first[i, s].flat, drawn.last[i, s].flat, strict=True)
                for t in range(first, last)
            ]
            seen += len(order)
            numpy_reference.sgd(
                objective, config.per_row, step, *factors, squares, order, terms, *sums
            )
    assert seen == len(entries.values)


class DsgdTest(parameterized.TestCase):
    @parameterized.parameters(
        ("numba", "squared", "prior", False, "wor", (1, 2, 4, 8)),
        ("numba", "squared", "l2", False, "wor", (1, 2, 4, 8)),
        ("numba", "squared_all", "l2", True, "random", (1, 4)),
        ("xla", "gkl", "weighted_l2", True, "wor", (1, 8)),
    )
    def test_same_bits_on_any_number_of_devices(
        self, backend, loss, penalty, biases, schedule, devices
    ):
        objective = Objective(loss, penalty, 0.1, biases)
        entries, _, start = _problem(objective, _prior())
        reached = []
        for num_devices in devices:
            config = DsgdConfig(P, num_devices, schedule, backend=backend)
            method = dsgd.make_solver(objective, entries, config, _prior(), start.u.shape[1])
            trace = []
            factors, _ = solver.fit(
                method,
                start,
                StepSize("bold_driver", 0.1),
                4,
                lambda progress, trace=trace: trace.append(
                    (progress.objective, progress.step_size)
                ),
            )
            reached.append((trace, factors.u.tobytes(), factors.v.tobytes()))
        assert all(one == reached[0] for one in reached)
        assert len({value for value, _ in reached[0][0]}) == 5

    def test_penalties_round_alike_on_any_number_of_devices(self):
        # At this size XLA's own sums differed between one device and two.
        rng = np.random.default_rng(0)
        cells = rng.choice(203 * 157, 4000, replace=False)
        ids = map(np.int32, np.divmod(cells, 157))
        entries = Entries(*ids, rng.normal(size=4000).astype("f"), (203, 157))
        objective = Objective("squared", "weighted_l2", 0.05)
        terms = make_terms(objective, entries)
        start = solver.initial_factors(objective, entries, terms, 16, np.random.default_rng(0))
        found = []
        for num_devices in (1, 2, 8):
            method = dsgd.make_solver(objective, entries, DsgdConfig(P, num_devices), width=16)
            found.append(method.objective(method.init(start)))
        assert found[0] == found[1] == found[2]

    @parameterized.parameters(("xla", "squared", True, 4), ("numba", "gkl", False, 8))
    def test_sharded_epochs_equal_serial_numpy(self, backend, loss, per_row, num_devices):
        objective = Objective(loss, "prior", biases=True)
        entries, terms, start = _problem(objective, _prior())
        config = DsgdConfig(P, num_devices, backend=backend, per_row=per_row, seed=3)
        method = dsgd.make_solver(objective, entries, config, _prior(), K + 2)
        state = method.init(start)
        rng = np.random.default_rng(0)
        factors = [f.astype(np.float64) for f in start]
        squares = [np.ones(len(f)) for f in start]
        for epoch in range(1, 4):
            state = method.epoch(state, epoch, 0.1)
            if loss == "gkl":  # Those without entries take their share first.
                opposite = factors[1].sum(0), factors[0].sum(0)
                for s, row in ((0, 5), (1, 7)):
                    old, free = factors[s][row].copy(), [K + 1, K][s]
                    falling = terms[s].weight[row] * old + opposite[s] / 2
                    pull = falling - terms[s].weight[row] * terms[s].mean[row]
                    factors[s][row] = np.maximum(old - 0.1 * old * pull / falling, 0)
                    factors[s][row, free] = old[free]
            _serial_epoch(entries, config, terms, objective, factors, squares, epoch, 0.1, rng)
        got = method.factors(state)
        for side, expected in zip(got, factors, strict=True):
            np.testing.assert_allclose(side, expected, rtol=2e-4, atol=2e-5)
        expected = objectives.objective_value(objective, got, entries, terms)
        np.testing.assert_allclose(method.objective(state), expected, rtol=1e-5)
        if loss == "squared":  # Without entries there is only the prior.
            np.testing.assert_array_equal(got.u[5], terms.u.mean[5])
            np.testing.assert_array_equal(got.v[7], terms.v.mean[7])

    @parameterized.parameters((1, 5), (2, 3))
    def test_sub_strata_share_neither_rows_nor_columns(self, num_blocks, parts):
        entries, config = _matrix(), DsgdConfig(num_blocks, backend="mosaic_gpu")
        with mock.patch.object(blocks, "_ENTRIES_ABREAST", E // (num_blocks * parts) ** 2):
            cut = visits.cut_matrix(entries, config, num_blocks, K)
        assert cut.cuts == (parts, parts)
        drawn = [visits.draw_visits(cut, config, epoch) for epoch in (1, 2)]
        assert not np.array_equal(drawn[0].first, drawn[1].first)
        for i, s, sub_stratum in np.ndindex(num_blocks, num_blocks, parts):
            seen = [set(), set()]
            spans = (ends[i, s, sub_stratum] for ends in drawn[0][1:3])
            for first, last in zip(*spans, strict=True):
                for places, table in zip(seen, cut.entries[:2], strict=True):
                    here = set(table[i, first:last])
                    assert not places & here
                    places |= here
        # Every entry is visited once.
        spans = (ends.reshape(num_blocks, -1) for ends in drawn[0][1:3])
        for i, (first, last) in enumerate(zip(*spans, strict=True)):
            visited = [t for span in zip(first, last, strict=True) for t in range(*span)]
            assert sorted(visited) == list(range(cut.offsets[i, -1, -1]))

    @pytest.mark.skipif(
        bool(mosaic_gpu.reason_against()), reason=f"'mosaic_gpu' {mosaic_gpu.reason_against()}"
    )
    def test_interpreted_sub_strata_equal_serial_numpy(self):
        objective = Objective("squared", "l2", 0.1)
        entries = jax.tree.map(lambda x: x[:48], _matrix())
        terms = make_terms(objective, entries)
        start = solver.initial_factors(objective, entries, terms, K, np.random.default_rng(2))
        config = DsgdConfig(2, backend="mosaic_gpu")
        plgpu = mosaic_gpu.plgpu
        with (
            mock.patch.object(blocks, "_ENTRIES_ABREAST", 3),
            mock.patch.object(block_update, "choose_backend", return_value="mosaic_gpu"),
            plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams(detect_races=True)),
        ):
            method = dsgd.make_solver(objective, entries, config, width=K)
            got = method.factors(method.epoch(method.init(start), 1, 0.1))
            factors = [f.astype(np.float64) for f in start]
            squares = [np.ones(len(f)) for f in start]
            rng = np.random.default_rng(0)
            _serial_epoch(entries, config, terms, objective, factors, squares, 1, 0.1, rng)
        for side, expected in zip(got, factors, strict=True):
            np.testing.assert_allclose(side, expected, rtol=2e-4, atol=2e-5)

    def test_400_strata_in_a_row_compile_once(self):
        objective = Objective("squared", "l2", 0.1)
        entries, _, start = _problem(objective)
        method = dsgd.make_solver(objective, entries, DsgdConfig(P, 8), width=K)
        state = method.epoch(method.init(start), 1, 0.01)
        method.objective(state)
        compiled = []

        def listen(event, duration, **_):
            if "backend_compile" in event:
                compiled.append(event)

        jax.monitoring.register_event_duration_secs_listener(listen)
        for epoch in range(2, 2 + 400 // P):
            state = method.epoch(state, epoch, 0.01 / epoch)
        assert np.isfinite(method.objective(state))
        assert compiled == []
        jax.jit(lambda x: x + 41.5)(1.0)
        assert compiled, "the listener hears nothing"

    @parameterized.parameters(("squared", [3, 5, 3]), ("squared_all", [1] * 11))
    def test_epochs_at_once_leave_the_bits_of_single_ones(self, loss, at_once):
        objective = Objective(loss, "l2", 0.1)
        entries, _, start = _problem(objective)
        config = DsgdConfig(4, 2, per_row=True)
        method = dsgd.make_solver(objective, entries, config, width=K)
        sizes = [0.1 / epoch for epoch in range(1, 12)]
        single = method.init(start)
        for epoch, size in enumerate(sizes, 1):
            single = method.epoch(single, epoch, size)
        # The entries are shuffled before the ninth.
        state, done = method.epochs(method.init(start), 1, sizes[: at_once[0]])
        counts = [done]
        while sum(counts) < len(sizes):
            state, done = method.epochs(state, sum(counts) + 1, sizes[sum(counts) :])
            counts.append(done)
        assert counts == at_once
        for one, other in zip(method.factors(single), method.factors(state), strict=True):
            assert one.tobytes() == other.tobytes()
        assert method.objective(single) == method.objective(state)

    def test_bold_driver_recovers_and_others_end(self):
        objective = Objective("squared", "l2", 0.1)
        entries, _, start = _problem(objective)
        method = dsgd.make_solver(objective, entries, DsgdConfig(2), width=K)
        trace = []
        factors, progress = solver.fit(
            method, start, StepSize("bold_driver", 1e4), 40, lambda p: trace.append(p.objective)
        )
        assert not np.isfinite(trace[1])
        assert progress.finite_objective < trace[0]
        assert np.isfinite(factors.u).all()
        with pytest.raises(ValueError, match="the steps diverged at step size 10000"):
            solver.fit(method, start, StepSize("constant", 1e4), 40)

    def test_mistakes(self):
        with pytest.raises(ValueError, match="multiple of the 4 devices, got 6"):
            DsgdConfig(6, 4)
        with pytest.raises(ValueError, match="schedule among seq, wor, random"):
            DsgdConfig(schedule="cyclic")
        entries = _matrix()
        with pytest.raises(ValueError, match="a number of blocks from 1 to 18"):
            dsgd.make_solver(Objective(), entries, DsgdConfig(19))
        with pytest.raises(ValueError, match="a number of devices from 1 to the 8 there are"):
            dsgd.make_solver(Objective(), entries, DsgdConfig(16, 16))
        bad = dataclasses.replace(entries, values=np.full_like(entries.values, np.nan))
        with pytest.raises(ValueError, match="finite values"):
            dsgd.make_solver(Objective(), bad, DsgdConfig())
