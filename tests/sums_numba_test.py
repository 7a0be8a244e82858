"""The compiled kernels against XLA: values, gradients, batches, devices and padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from metamf_jax import sums
from metamf_jax.meta_learning import map_estimation
from metamf_jax.types import Entries, FactorPrior, Factors

B, N, M, E, C = 8, 7, 5, 20, 33  # C: a vector's width and a remainder


def _entries(num_cells=E, batch=(B,), poison=np.nan):
    """Random lists (with cells that occur twice); one to five cells of each are padding."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, N, (*batch, num_cells)).astype(np.int32)
    columns = rng.integers(0, M, (*batch, num_cells)).astype(np.int32)
    values = rng.normal(size=(*batch, num_cells)).astype(np.float32)
    padding = np.arange(num_cells) % 5 == rng.integers(0, 4, (*batch, 1))
    return Entries(
        np.where(padding, N, rows).astype(np.int32),
        np.where(padding, M, columns).astype(np.int32),
        np.where(padding, poison, values).astype(np.float32),
        (N, M),
    )


def _normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _descend(entries, u, v, u_lam, v_lam, u_eta, v_eta):
    prior = FactorPrior(u, v, u_lam**2, v_lam**2)
    return map_estimation.fused_descent(entries, prior, (0.01 * u_eta**2, 0.01 * v_eta**2), 4)


# Each function of a list, and the shapes of the arrays it takes besides.
FUNCTIONS = {
    "pool": (sums.pool, [(E, C)]),
    "spread": (sums.spread, [(N, C), (M, C)]),
    "products": (lambda e, u, v: sums.residual_products(e, Factors(u, v)), [(N, C), (M, C)]),
    "predict": (
        lambda e, u, v: sums.predict(Factors(u, v), e.rows, e.columns),
        [(N, C), (M, C)],
    ),
    "normal_equations": (sums.row_normal_equations, [(M, C)]),
    "exchange": (sums.exchange, [(E, C), (N, C), (M, C)]),
    "descend": (_descend, [(N, C), (M, C), (N,), (M,), (N,), (M,)]),
}


def _inputs(name, *batch):
    return [_normal(i, *batch, *shape) for i, shape in enumerate(FUNCTIONS[name][1])]


def _weighted(function, entries, values, *inputs):
    """A random weighted sum of a function's results, so that its gradient tests them all."""
    entries = Entries(entries.rows, entries.columns, values, entries.shape)
    results = jax.tree.leaves(function(entries, *inputs))
    return sum((_normal(9 + i, *r.shape) * r).sum() for i, r in enumerate(results))


def _assert_equal(got, expected, rtol=2e-5, atol=2e-5):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol), got, expected)


def _on(backend, function, *arguments):
    with sums.using_backend(backend):
        return jax.tree.map(np.asarray, function(*arguments))


def _exactly(function, entries, *inputs):
    """The function through XLA in float64."""
    with jax.enable_x64(True):
        values, *inputs = (np.asarray(x, np.float64) for x in (entries.values, *inputs))
        entries = Entries(entries.rows, entries.columns, values, entries.shape)
        return _on("xla", function, entries, *inputs)


def _assert_as_exact(got, by_xla, exact):
    """Each array is as near the exact one as XLA's, or within a few roundings of its largest entry.

    Small entries are sums of larger ones that cancel, so that it is these whose rounding counts.
    Longest is the chain of `descend` and its gradient: four steps there and four back, of about
    four sums each. Errors of either sign over n sums add up to some sqrt(n) of them.
    """
    for x, other, target in zip(*map(jax.tree.leaves, (got, by_xla, exact)), strict=True):
        assert x.dtype == np.float32
        assert target.dtype == np.float64
        largest = np.abs(target).max(initial=0)
        few_roundings = 16 * np.finfo(np.float32).eps * largest
        allowed = max(np.abs(other - target).max(initial=0), few_roundings)
        np.testing.assert_allclose(x, target, rtol=0, atol=allowed)


@pytest.mark.parametrize("name", FUNCTIONS)
class TestKernels:
    def test_values_and_gradients_of_a_batch(self, name):
        function = FUNCTIONS[name][0]
        entries, inputs = _entries(), _inputs(name, B)

        def values_and_gradients(entries, *inputs):
            gradients = jax.grad(
                functools.partial(_weighted, function, entries),
                argnums=range(len(inputs) + 1),
            )(entries.values, *inputs)
            return function(entries, *inputs), gradients

        batched = jax.jit(jax.vmap(values_and_gradients))
        expected = _on("xla", batched, entries, *inputs)
        got = _on("numba", batched, entries, *inputs)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(got))
        _assert_as_exact(got, expected, _exactly(batched, entries, *inputs))
        _assert_equal(_on("auto", batched, entries, *inputs), got, rtol=0, atol=0)

    def test_unbatched_arguments_and_devices(self, name):
        function = FUNCTIONS[name][0]
        entries, inputs = _entries(), _inputs(name)
        batched = jax.vmap(function, in_axes=(0, *[None] * len(inputs)))
        by_xla = _on("xla", batched, entries, *inputs)
        exact = _exactly(batched, entries, *inputs)
        _assert_as_exact(_on("numba", batched, entries, *inputs), by_xla, exact)
        split = jax.tree.map(lambda x: x.reshape(8, B // 8, *x.shape[1:]), entries)
        mapped = jax.pmap(batched, in_axes=(0, *[None] * len(inputs)))
        got = _on("auto", mapped, split, *inputs)
        got = jax.tree.map(lambda x: x.reshape(B, *x.shape[2:]), got)
        _assert_as_exact(got, by_xla, exact)

    def test_no_cells(self, name):
        function, shapes = FUNCTIONS[name]
        inputs = [_normal(i, *[0 if n == E else n for n in s]) for i, s in enumerate(shapes)]
        entries = _entries(num_cells=0, batch=())
        expected = _on("xla", function, entries, *inputs)
        _assert_equal(_on("numba", function, entries, *inputs), expected)

    def test_nan_at_an_observed_cell_is_seen(self, name):
        function = FUNCTIONS[name][0]
        entries, inputs = _entries(batch=()), _inputs(name)
        assert entries.rows[0] < N
        # The first cell, its row, or its column, whichever the first table is of.
        inputs[0][[0, entries.rows[0] % len(inputs[0]), entries.columns[0]]] = np.nan
        results = _on("numba", function, entries, *inputs)
        assert all(np.isnan(x).any() for x in jax.tree.leaves(results))

    def test_other_dtypes(self, name):
        function = FUNCTIONS[name][0]
        with jax.enable_x64(True):
            inputs = [x.astype(np.float64) for x in _inputs(name)]
            entries = _entries(batch=())
            entries = Entries(
                entries.rows, entries.columns, entries.values.astype(np.float64), (N, M)
            )
            with pytest.raises(ValueError, match="float32"):
                _on("numba", function, entries, *inputs)
            results = _on("auto", function, entries, *inputs)
        assert all(x.dtype == np.float64 for x in jax.tree.leaves(results))


class SecondDerivativesTest(parameterized.TestCase):
    @parameterized.parameters("pool", "spread", "products")
    def test_hessian_products(self, name):
        function = FUNCTIONS[name][0]
        entries, inputs = _entries(batch=()), _inputs(name)
        argnums = tuple(range(len(inputs) + 1))

        def energy(values, *inputs):
            entries_ = Entries(entries.rows, entries.columns, values, entries.shape)
            return sum((r**3).sum() for r in jax.tree.leaves(function(entries_, *inputs)))

        @jax.jit
        def hessian_product(values, *inputs):
            def slope(*arguments):
                gradients = jax.grad(energy, argnums)(*arguments)
                return sum((_normal(i, *g.shape) * g).sum() for i, g in enumerate(gradients))

            return jax.grad(slope, argnums)(values, *inputs)

        arguments = 0.3 * np.nan_to_num(entries.values), *(0.3 * x for x in inputs)
        expected = _on("xla", hessian_product, *arguments)
        _assert_equal(_on("numba", hessian_product, *arguments), expected, rtol=1e-4, atol=1e-3)


class BackendTest(parameterized.TestCase):
    def test_many_steps_on_eight_devices(self):
        entries = _entries()
        split = jax.tree.map(lambda x: x.reshape(8, B // 8, *x.shape[1:]), entries)

        def step(u, v, entries):
            u_sum, v_sum = jax.vmap(lambda e: sums.residual_products(e, Factors(u, v)))(entries)
            total = jax.lax.psum((u_sum.sum(0), v_sum.sum(0)), "device")
            return u + 1e-3 * total[0], v + 1e-3 * total[1]

        mapped = jax.pmap(step, "device", in_axes=(None, None, 0), out_axes=None)
        u, v = _normal(0, N, C), _normal(1, M, C)
        for _ in range(30):
            u, v = jax.block_until_ready(mapped(u, v, split))
        assert np.isfinite(u).all()

    def test_unknown_backend_is_named(self):
        with pytest.raises(ValueError, match="'auto', 'numba', 'xla' or 'one_hot', got 'torch'"):
            sums.using_backend("torch")

    def test_kernels_are_in_the_lowered_program(self):
        u, v = jnp.ones((N, C)), jnp.ones((M, C))
        products = jax.jit(lambda e: sums.residual_products(e, Factors(u, v)))
        entries = _entries(batch=())
        assert "_residual_products" in products.lower(entries).as_text()
        other = products.trace(entries).lower(lowering_platforms=("tpu",))
        assert "_residual_products" not in other.as_text()
        with sums.using_backend("xla"):
            assert "_residual_products" not in products.lower(entries).as_text()
