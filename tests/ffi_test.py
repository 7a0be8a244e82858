"""The bridge between Numba and XLA: values, batches, devices, memory and mistakes."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from jax.sharding import NamedSharding, PartitionSpec

from metamf_jax.kernels import ffi


def _mixed(flags, index, scale, x, shifted, total):
    """shifted = scale x + index where flagged; total = sum of index."""
    total[()] = index.sum()
    for n in range(x.shape[0]):
        for k in range(x.shape[1]):
            shifted[n, k] = scale[()] * x[n, k] + (index[n] if flags[n] else 0)


def _increment(x, out):
    for i in range(x.shape[0]):
        out[i] += 1


def _refuses_negative(x, out):
    for i in range(x.shape[0]):
        if x[i] < 0:
            return 1
        if x[i] > 9:
            raise ValueError("too large")
        out[i] = x[i]
    return 0


def _writes_to_its_argument(x, out):
    x[0] = 1


mixed = ffi.NumbaKernel(
    _mixed,
    arguments=("bool[:]", "int32[:]", "float32", "float32[:,:]"),
    results=("float32[:,:]", "int32"),
)
increment = ffi.NumbaKernel(_increment, arguments=("int64[:]",), results=("int64[:]",))
increment_float = ffi.NumbaKernel(_increment, arguments=("float32[:]",), results=("float32[:]",))
refuses_negative = ffi.NumbaKernel(
    _refuses_negative,
    arguments=("float32[:]",),
    results=("float32[:]",),
    errors=("x must not be negative",),
)


def _arguments(*batch, seed=0, shape=(3, 2)):
    rng = np.random.default_rng(seed)
    return (
        rng.random((*batch, shape[0])) < 0.5,
        rng.integers(0, 9, (*batch, shape[0])).astype(np.int32),
        rng.normal(size=batch).astype(np.float32),
        rng.normal(size=(*batch, *shape)).astype(np.float32),
    )


def _call(flags, index, scale, x):
    return mixed(flags, index, scale, x, shapes=[x.shape, ()])


def _expected(flags, index, scale, x):
    shift = np.where(flags, index, 0)[..., None]
    return scale[..., None, None] * x + shift, index.sum(-1)


class NumbaKernelTest(parameterized.TestCase):
    @parameterized.parameters(False, True)
    def test_values(self, jit):
        arguments = _arguments()
        got = (jax.jit(_call) if jit else _call)(*arguments)
        for value, expected in zip(got, _expected(*arguments), strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-6)

    def test_empty(self):
        shifted, total = _call(*_arguments(shape=(0, 2)))
        assert shifted.shape == (0, 2)
        assert total == 0

    def test_nested_vmap_with_unbatched_arguments(self):
        flags, index, scale, x = _arguments(4, 3)
        flags, index, scale = flags[0, 0], index[:, 0], scale[0, :]
        batched = jax.vmap(jax.vmap(_call, (None, None, 0, 0)), (None, 0, None, 0))
        got = jax.jit(batched)(flags, index, scale, x)
        expected = _expected(flags[None, None], index[:, None], np.broadcast_to(scale, (4, 3)), x)
        np.testing.assert_allclose(got[0], expected[0], rtol=1e-6)
        np.testing.assert_array_equal(got[1], np.broadcast_to(expected[1], (4, 3)))

    def test_alias_starts_from_the_argument(self):
        def twice(x):
            for _ in range(2):
                (x,) = increment_float(x, shapes=[x.shape], aliases={0: 0})
            return x

        x = jnp.arange(6.0).reshape(2, 3)
        np.testing.assert_array_equal(jax.jit(jax.vmap(twice))(x), x + 2)
        np.testing.assert_array_equal(x, np.arange(6.0).reshape(2, 3))
        memory = (
            jax.jit(twice, donate_argnums=0)
            .lower(jax.ShapeDtypeStruct((1000,), jnp.float32))
            .compile()
            .memory_analysis()
        )
        assert memory.temp_size_in_bytes < 4000

    def test_many_calls_on_eight_devices(self):
        mesh = jax.make_mesh((8,), ("device",))
        split = PartitionSpec("device")

        @jax.jit
        @jax.shard_map(mesh=mesh, in_specs=split, out_specs=split)
        def update(x):
            (x,) = increment_float(x, shapes=[x.shape], aliases={0: 0})
            return jax.lax.ppermute(x, "device", [(i, (i + 1) % 8) for i in range(8)])

        x = jax.device_put(jnp.arange(16.0), NamedSharding(mesh, split))
        for _ in range(16):
            x = jax.block_until_ready(update(x))
        np.testing.assert_array_equal(x, np.arange(16.0) + 16)

    def test_one_function_described_twice(self):
        with jax.enable_x64(True):
            (x,) = increment(jnp.zeros(2, jnp.int64), shapes=[(2,)], aliases={0: 0})
        (y,) = increment_float(jnp.zeros(2), shapes=[(2,)], aliases={0: 0})
        np.testing.assert_array_equal(x, [1, 1])
        np.testing.assert_array_equal(y, [1, 1])

    def test_error_of_the_kernel_is_raised(self):
        (out,) = refuses_negative(jnp.ones(2), shapes=[(2,)])
        np.testing.assert_array_equal(out, [1, 1])
        with pytest.raises(Exception, match=r"_refuses_negative.*: x must not be negative"):
            jax.block_until_ready(refuses_negative(-jnp.ones(2), shapes=[(2,)]))
        with pytest.raises(Exception, match="exception was raised inside"):
            jax.block_until_ready(refuses_negative(10 * jnp.ones(2), shapes=[(2,)]))

    def test_unexpected_buffers_are_refused_by_the_handler(self):
        refuses_negative(jnp.ones(2), shapes=[(2,)])
        call = jax.ffi.ffi_call(refuses_negative.name, jax.ShapeDtypeStruct((2,), jnp.int32))
        with pytest.raises(Exception, match="other dtypes or ranks"):
            jax.block_until_ready(call(jnp.ones(2)))

    def test_mistakes_are_named(self):
        x = jnp.ones(2)
        with pytest.raises(ValueError, match="expected x as float32 of rank 1, got int32"):
            refuses_negative(jnp.ones(2, jnp.int32), shapes=[(2,)])
        with pytest.raises(ValueError, match="expected x as float32 of rank 1"):
            refuses_negative(x[None], shapes=[(2,)])
        with pytest.raises(ValueError, match="rank 1 for out"):
            refuses_negative(x, shapes=[(2, 2)])
        with pytest.raises(ValueError, match="takes 1 arguments, got 2"):
            refuses_negative(x, x, shapes=[(2,)])
        with pytest.raises(ValueError, match=r"x of shape \(2,\) cannot become result 0"):
            refuses_negative(x, shapes=[(3,)], aliases={0: 0})
        with pytest.raises(ValueError, match="'float16"):
            ffi.NumbaKernel(_increment, arguments=("float16[:]",), results=())
        with pytest.raises(ValueError, match="takes 2 arrays"):
            ffi.NumbaKernel(_increment, arguments=("int32[:]",), results=())

    def test_arguments_are_read_only(self):
        kernel = ffi.NumbaKernel(
            _writes_to_its_argument, arguments=("int32[:]",), results=("int32[:]",)
        )
        with pytest.raises(Exception, match=r"(?i)readonly"):
            kernel(jnp.zeros(2, jnp.int32), shapes=[(2,)])

    def test_importing_does_not_import_numba(self):
        code = "import sys, metamf_jax.kernels.ffi; assert 'numba' not in sys.modules"
        subprocess.run([sys.executable, "-c", code], check=True)


def test_on_the_host_without_xla():
    flags, index, _, x = _arguments()
    scale = np.asarray(np.float32(0.7))
    found = mixed.on_host(flags, index, scale, x, shapes=[x.shape, ()])
    for got, expected in zip(found, _call(flags, index, scale, x), strict=True):
        np.testing.assert_array_equal(got, np.asarray(expected))
        assert got.dtype == expected.dtype
    with pytest.raises(RuntimeError, match="x must not be negative"):
        refuses_negative.on_host(np.array([1, -1], np.float32), shapes=[(2,)])
    with pytest.raises(TypeError):
        mixed.on_host(flags, index, scale, x.astype(float), shapes=[x.shape, ()])
