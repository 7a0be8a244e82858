"""What a GPU would run: lowered for one here, it calls no CPU kernel, and products are exact."""

import functools
import re
from unittest import mock

import jax
import numpy as np
import pytest

from metamf_jax import sums
from metamf_jax.factorization import als
from metamf_jax.factorization.objective import Objective
from metamf_jax.meta_learning.map_estimation import MapConfig, map_estimate
from metamf_jax.posterior import row_conditional
from metamf_jax.types import Entries, FactorPrior

N, M, K = 9, 7, 3


@pytest.fixture(autouse=True)
def beside_a_gpu():
    with (
        mock.patch.object(jax, "default_backend", return_value="gpu"),
        mock.patch.object(sums, "_numba", side_effect=AssertionError("Numba is not wanted")),
    ):
        yield


def lowered(function, *arguments):
    """The program for CUDA as text, and the foreign functions that it calls."""
    program = function.trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    return program, set(re.findall(r"custom_call @([\w.]+)", program))


def is_exact(program):
    products = re.findall(r"stablehlo\.dot_general.*", program)
    return all("HIGHEST, HIGHEST" in product for product in products)


def entries():
    rows, columns = np.nonzero(np.random.default_rng(0).random((N, M)) < 0.5)
    values = np.sin(np.arange(len(rows)))
    return Entries(
        *(x.astype(np.int32) for x in (rows, columns)), values.astype(np.float32), (N, M)
    )


@pytest.mark.parametrize(
    "config",
    [MapConfig(2), MapConfig(2, "curvature"), MapConfig(2, "ridge"), MapConfig(memory="implicit")],
    ids=lambda config: f"{config.step_form}-{config.memory}",
)
def test_the_meta_gradient(config):
    def loss(prior, listed):
        u, v = map_estimate(listed, prior, np.float32(0.1), config)
        return (u * u).sum() + (v * v).sum()

    def ones(*shape):
        return np.ones((2, *shape), np.float32)

    prior = FactorPrior(ones(N, K), ones(M, K), ones(N), ones(M))
    batch = jax.tree.map(lambda x: np.stack([x, x]), entries())
    program, calls = lowered(jax.jit(jax.vmap(jax.grad(loss))), prior, batch)
    assert calls <= {"cusolver_potrf_ffi"}
    assert is_exact(program)


def test_als():
    listed = entries()
    side = als.prepare_half_step(
        Objective("squared", "l2", 1.0),
        "u",
        (listed.rows, listed.columns, listed.values),
        (N, M),
        K,
    )
    assert not als.AlsConfig().compiled
    of_rows = np.ones((1, N), np.float32), *[np.ones((1, N, K), np.float32)] * 2
    program, calls = lowered(
        side.program.__wrapped__, side.work, np.ones((M, K), np.float32), *of_rows
    )
    assert calls == {"cusolver_potrf_ffi"}
    assert is_exact(program)


def test_gibbs():
    data = row_conditional.prepare(entries(), K)
    of_rows = np.ones((1, N), np.float32), *[np.ones((1, N, K + 1), np.float32)] * 2
    of_all = np.eye(K + 1, dtype=np.float32), np.ones((M, K + 1), np.float32)
    run = row_conditional._program(data.mesh, data.compiled).__wrapped__
    program, calls = lowered(run, data.entries, *of_rows, *of_all, np.ones(M, np.float32))
    assert calls == {"cusolver_potrf_ffi"}
    assert is_exact(program)


def test_sums_over_a_list():
    listed = entries()
    pool = jax.jit(functools.partial(sums.pool, listed))
    program, calls = lowered(pool, np.ones((len(listed.rows), 2), np.float32))
    assert "scatter" in program
    assert not calls
