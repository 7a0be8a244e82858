"""Every backend runs the same SGD as serial NumPy, for every loss and penalty."""

import doctest
import itertools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from metamf_jax.factorization import block_update
from metamf_jax.factorization import objective as objectives
from metamf_jax.factorization.block_update import SideBlocks, Work, mosaic_gpu
from metamf_jax.factorization.blocks import BlockEntries
from metamf_jax.factorization.objective import LOSSES, Objective, SideTerms, Terms
from tests import numpy_reference

# Of four entries in a row, some share a row or column and others do not.
B, R, C, K, L = 2, 13, 11, 3, 24

CASES = [
    *itertools.product(LOSSES, ["l2"], [False], [False]),
    ("squared", "prior", True, False),
    ("squared", "l2", False, True),
    ("squared", "l2", True, True),
    ("logistic", "l2", True, False),
    ("squared", "prior", True, True),
    ("gkl", "prior", True, True),
    ("squared_all", "prior", False, True),
]

# Its interpreter takes a second for each: between them, these have everything.
MOSAIC_CASES = [
    ("squared", "prior", True, True),
    ("absolute", "l2", False, False),
    ("logistic", "l2", True, False),
    ("gkl", "prior", True, True),
]

needs_dialect = pytest.mark.skipif(
    bool(mosaic_gpu.reason_against()),
    reason=f"the backend 'mosaic_gpu' {mosaic_gpu.reason_against()}",
)


def interpreted(**parameters):
    """On a CPU, as a GPU would; a race is an error."""
    plgpu = mosaic_gpu.plgpu
    return plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams(detect_races=True, **parameters))


def _problem(loss, penalty, biases, seed=0):
    rng = np.random.default_rng(seed)
    objective = Objective(loss, penalty, 0.3, biases)
    width = K + 2 * biases
    values = rng.normal(size=(B, L))
    values = {"logistic": np.sign(values), "gkl": np.abs(values)}.get(loss, values)
    entries = BlockEntries(
        rng.integers(0, R, (B, L)).astype("i"),
        rng.integers(0, C, (B, L)).astype("i"),
        values.astype("f"),
    )
    # In block 1 four that share nothing come first, then three of which two share a row.
    entries.rows[1, 12:19] = [3, 5, 1, 2, 7, 7, 8]
    entries.columns[1, 12:19] = [9, 2, 4, 1, 3, 5, 6]
    # Block 0 visits 5..10 and then 0..5; block 1 visits 12..20. The rest is never visited.
    work = Work(
        np.array([[5, 0], [12, 20]], "i"), np.array([[10, 5], [20, 20]], "i"), np.array([1, 0], "i")
    )

    def side(size, frozen):
        factors = rng.normal(size=(B, size, width))
        factors = np.abs(factors) if loss == "gkl" else factors
        if biases:
            factors[..., frozen] = 1
        mean = rng.normal(size=factors.shape).astype("f") if penalty == "prior" else None
        count = rng.integers(1, 5, (B, size)).astype("f")
        weight = rng.uniform(0.1, 0.5, (B, size)).astype("f")
        return SideBlocks(
            factors.astype("f"),
            rng.uniform(1, 2, (B, size)).astype("f"),
            SideTerms(count, weight, mean),
        )

    u, v = side(R, -1), side(C, -2)
    sums = tuple(objectives.cell_sums(objective, s.factors.reshape(-1, width)) for s in (u, v))
    return objective, u, v, entries, work, sums


@jax.jit(static_argnums=(0, 1, 2))
def _update(*arguments):
    return block_update.block_update(*arguments)


class BlockUpdateTest(parameterized.TestCase):
    @parameterized.parameters((b, *c) for b in ("xla", "numba") for c in CASES)
    def test_equals_serial_numpy(self, backend, loss, penalty, biases, per_row):
        self._check_equals_serial_numpy(backend, loss, penalty, biases, per_row)

    @parameterized.parameters(MOSAIC_CASES)
    @needs_dialect
    def test_interpreted_kernel_equals_serial_numpy(self, *case):
        with interpreted():
            self._check_equals_serial_numpy("mosaic_gpu", *case)

    def _check_equals_serial_numpy(self, backend, loss, penalty, biases, per_row):
        objective, u, v, entries, work, sums = _problem(loss, penalty, biases)
        step = jnp.float32(0.05)
        got = _update(backend, objective, per_row, step, u, v, entries, work, sums)
        losses = block_update.block_losses(
            backend, objective, jnp.asarray(u.factors), jnp.asarray(v.factors), entries, work
        )
        factors = [np.asarray(s.factors, np.float64) for s in (u, v)]
        squares = [np.asarray(s.squares, np.float64) for s in (u, v)]
        for b, s in enumerate(work.slots):
            visits = [t for q in range(2) for t in range(work.first[b, q], work.last[b, q])]
            order = [tuple(x[b, t] for x in entries) for t in visits]
            total = sum(
                float(
                    objectives.entry_loss(
                        objective, x, jnp.float32(u.factors[b, n] @ v.factors[s, m])
                    )
                )
                for n, m, x in order
            )
            np.testing.assert_allclose(losses[b], total, rtol=1e-4)
            numpy_reference.sgd(
                objective,
                per_row,
                0.05,
                factors[0][b],
                factors[1][s],
                (squares[0][b], squares[1][s]),
                order,
                Terms(
                    jax.tree.map(lambda x, b=b: x[b], u.terms),
                    jax.tree.map(lambda x, s=s: x[s], v.terms),
                ),
                *(None if x is None else np.asarray(x) for x in sums),
            )
        for side, expected, memory, old in zip(got, factors, squares, (u, v), strict=True):
            np.testing.assert_allclose(side.factors, expected, rtol=2e-4, atol=2e-5)
            np.testing.assert_allclose(side.squares, memory, rtol=2e-4)
            assert not np.array_equal(side.factors, old.factors)
            assert np.array_equal(side.squares, old.squares) != per_row

    @needs_dialect
    def test_sub_strata_of_the_kernel_equal_sub_blocks_in_series(self):
        objective, u, v, entries, _, sums = _problem("squared", "l2", False)
        # Sub-blocks of 6, 6, 6 and no entries: rows up to 6 or from there, columns likewise.
        parts = np.arange(L) // 6
        entries.rows[...] = entries.rows % 6 + 6 * (parts // 2)
        entries.columns[...] = entries.columns % 5 + 5 * (parts % 2)
        first = 6 * np.array([[[0, 3], [1, 2]], [[2, 1], [3, 0]]], "i")
        last = np.minimum(first + 6, 18)
        slots = np.array([1, 0], "i")

        def run(backend, first, last):
            step, work = jnp.float32(0.05), Work(first, last, slots)
            return _update(backend, objective, True, step, u, v, entries, work, sums)

        # Sub-strata whose sub-blocks share rows or columns are found out.
        with interpreted(), pytest.raises(jax.errors.JaxRuntimeError, match="RACE DETECTED"):
            jax.block_until_ready(run("mosaic_gpu", *(x.reshape(2, 1, 4) for x in (first, last))))
        with interpreted():
            got = run("mosaic_gpu", first, last)
        for side, *expected in zip(
            got, run("xla", first, last), run("numba", first, last), strict=True
        ):
            for other in expected:
                np.testing.assert_allclose(side.factors, other.factors, rtol=2e-5, atol=2e-6)
                np.testing.assert_allclose(side.squares, other.squares, rtol=2e-5)

    @parameterized.parameters(MOSAIC_CASES)
    @needs_dialect
    def test_kernel_lowers_for_cuda(self, loss, penalty, biases, per_row):
        objective, *arguments = _problem(loss, penalty, biases)
        step = jnp.float32(0.05)
        traced = _update.trace("mosaic_gpu", objective, per_row, step, *arguments)
        program = traced.lower(lowering_platforms=("cuda",)).as_text()
        assert program.count("custom_call @mosaic_gpu") == 1

    def test_docstring_of_the_kernel(self):
        assert doctest.testmod(mosaic_gpu) == (0, 1)

    def test_kernel_refuses_a_loss(self):
        objective, *arguments = _problem("squared_all", "l2", False)
        with pytest.raises(ValueError, match="logistic, gkl, but the loss is 'squared_all'"):
            mosaic_gpu.block_update(objective, False, jnp.float32(0.05), *arguments)

    def test_choice_of_backend(self):
        assert block_update.choose_backend("auto") == "numba"
        assert block_update.choose_backend("xla") == "xla"
        for platform in ("gpu", "tpu"):
            with mock.patch.object(jax, "default_backend", return_value=platform):
                assert block_update.choose_backend("auto") == "xla"
                with pytest.raises(ValueError, match="'numba' needs a CPU"):
                    block_update.choose_backend("numba")
        for platform, reason in (("tpu", "an NVIDIA GPU"), ("gpu", "Mosaic GPU as jax has it")):
            with (
                mock.patch.object(jax, "default_backend", return_value=platform),
                mock.patch.object(mosaic_gpu, "plgpu", None),
                pytest.raises(ValueError, match=f"'mosaic_gpu' needs {reason}"),
            ):
                block_update.choose_backend("mosaic_gpu")
        with pytest.raises(ValueError, match="among auto, xla, numba, mosaic_gpu, got"):
            block_update.choose_backend("pallas")
