"""Sums over the observed entries of one matrix, for both of its layouts.

Everything that the encoder and the MAP solvers need to know about where a matrix is observed goes
through these few functions. Each takes the observations either as ``PaddedMatrices`` (dense, with a
mask; one matrix, ``[N, M]``) or as ``Entries`` (a list), so that the layers and the inner loop
above are written once. ``jax.vmap`` makes batches.

A value per cell and channel is ``[N, M, C]`` in the dense layout; in the list, which has the
observed cells alone, ``[E, C]``.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import chex
import jax
import jax.numpy as jnp
import numpy as np

from metamf_jax.kernels import ffi
from metamf_jax.sums import one_hot, xla
from metamf_jax.types import Array, Entries, FactorPrior, Factors, PaddedMatrices

Observations: TypeAlias = Entries | PaddedMatrices

_FULL_FLOAT32 = jax.lax.Precision.HIGHEST


def _unknown_layout(observations) -> TypeError:
    return TypeError(
        f"expected observations as Entries or PaddedMatrices, got {type(observations).__name__}"
    )


def _assert_fit(shape: tuple[int, ...], factors: Factors) -> None:
    """Gathers would clip or fill where factors do not belong to the matrix, and say nothing."""
    rank = factors.v.shape[-1]
    chex.assert_shape([factors.u, factors.v], [(shape[0], rank), (shape[1], rank)])


@functools.singledispatch
def matrix_shape(observations: Observations) -> tuple[int, int]:
    """(N, M) of one matrix, whose arrays must fit together; ``jax.vmap`` makes batches."""
    raise _unknown_layout(observations)


@matrix_shape.register
def _(observations: PaddedMatrices):
    chex.assert_rank(observations.values, 2)
    chex.assert_equal_shape(observations)
    num_rows, num_columns = observations.values.shape
    return num_rows, num_columns


@matrix_shape.register
def _(observations: Entries):
    chex.assert_rank(observations.values, 1)
    chex.assert_equal_shape(_list(observations))
    return observations.shape


@functools.singledispatch
def observed_values(observations: Observations) -> jax.Array:
    """The observed values, ``[N, M]`` or ``[E]``, with zero at padding and unobserved cells."""
    raise _unknown_layout(observations)


@observed_values.register
def _(observations: PaddedMatrices):
    return jnp.where(observations.observed, observations.values, 0)


@observed_values.register
def _(observations: Entries):
    return jnp.where(observations.rows < observations.shape[0], observations.values, 0)


@functools.singledispatch
def pool(observations: Observations, cells: Array) -> tuple[jax.Array, jax.Array]:
    """Sums over the observed entries of each row and of each column.

    Args:
      observations: the observed entries.
      cells: ``[N, M, C]`` or ``[E, C]``.

    Returns:
      Row sums ``[N, C]`` and column sums ``[M, C]``. The adjoint of `spread`.
    """
    raise _unknown_layout(observations)


@pool.register
def _(observations: PaddedMatrices, cells):
    cells = jnp.where(observations.observed[:, :, None], cells, 0)
    return cells.sum(axis=1), cells.sum(axis=0)


@pool.register
def _(observations: Entries, cells):
    rows, columns, _ = _list(observations)
    return _run("pool", rows, columns, cells, shape=observations.shape)


@functools.singledispatch
def spread(observations: Observations, rows: Array, columns: Array) -> jax.Array:
    """Gives each cell the sum of its row's and its column's value.

    Args:
      observations: the observed entries.
      rows: [N, C].
      columns: [M, C].

    Returns:
      ``[N, M, C]`` or ``[E, C]``; zero at the padding entries of a list. The adjoint of `pool`.
    """
    raise _unknown_layout(observations)


@spread.register
def _(observations: PaddedMatrices, rows, columns):
    return rows[:, None, :] + columns[None, :, :]


@spread.register
def _(observations: Entries, rows, columns):
    return _run("spread", *_list(observations)[:2], rows, columns)


def counts(observations: Observations) -> tuple[jax.Array, jax.Array]:
    """Numbers of observed entries, float32: of each row [N] and of each column [M]."""
    ones = jnp.ones((*observations.values.shape, 1), jnp.float32)
    row_counts, column_counts = pool(observations, ones)
    return row_counts[:, 0], column_counts[:, 0]


@functools.singledispatch
def residual_products(observations: Observations, factors: Factors) -> tuple[jax.Array, jax.Array]:
    """``E V`` and ``E^T U``, where ``E`` holds the residuals ``x - u . v`` at observed entries.

    These are minus the gradients of ``1/2 sum observed (x - u . v)^2`` with respect to ``U`` and
    ``V``. Runs at full float32 precision on every platform.

    Args:
      observations: the observed entries.
      factors: ``u`` [N, K] and ``v`` [M, K].

    Returns:
      ``E V`` [N, K] and ``E^T U`` [M, K].
    """
    raise _unknown_layout(observations)


@residual_products.register
def _(observations: PaddedMatrices, factors):
    u, v = factors
    _assert_fit(observations.values.shape, factors)
    fitted = jnp.matmul(u, v.T, precision=_FULL_FLOAT32)
    residuals = jnp.where(observations.observed, observations.values - fitted, 0)
    return (
        jnp.matmul(residuals, v, precision=_FULL_FLOAT32),
        jnp.matmul(residuals.T, u, precision=_FULL_FLOAT32),
    )


@residual_products.register
def _(observations: Entries, factors):
    _assert_fit(observations.shape, factors)
    return _run("residual_products", *_list(observations), factors.u, factors.v)


def residuals(observations: Observations, factors: Factors) -> jax.Array:
    """``x - u . v`` at observed entries, zero elsewhere; [N, M] or [E]."""
    if isinstance(observations, Entries):
        _assert_fit(observations.shape, factors)
        fitted = predict(factors, observations.rows, observations.columns)
        observed = observations.rows < observations.shape[0]
    else:
        _assert_fit(observations.values.shape, factors)
        fitted = jnp.matmul(factors.u, factors.v.T, precision=_FULL_FLOAT32)
        observed = observations.observed
    return jnp.where(observed, observations.values - fitted, 0)


@functools.singledispatch
def row_normal_equations(observations: Observations, v: Array) -> tuple[jax.Array, jax.Array]:
    """What each row's least-squares problem needs: ``sum v v^T`` and ``sum x v`` over its entries.

    Runs at full float32 precision on every platform.

    Args:
      observations: the observed entries.
      v: [M, K] column factors.

    Returns:
      Gram matrices [N, K, K] and moments [N, K].
    """
    raise _unknown_layout(observations)


@row_normal_equations.register
def _(observations: PaddedMatrices, v):
    chex.assert_shape(v, (observations.values.shape[1], None))
    num_columns, rank = v.shape
    outer = (v[:, :, None] * v[:, None, :]).reshape(num_columns, rank * rank)
    gram = jnp.matmul(observations.observed.astype(v.dtype), outer, precision=_FULL_FLOAT32)
    moment = jnp.matmul(observed_values(observations), v, precision=_FULL_FLOAT32)
    return gram.reshape(-1, rank, rank), moment


@row_normal_equations.register
def _(observations: Entries, v):
    chex.assert_shape(v, (observations.shape[1], None))
    return _run("row_normal_equations", *_list(observations), v, num_rows=observations.shape[0])


def transpose(observations: Observations) -> Observations:
    """The same entries with rows and columns exchanged."""
    if isinstance(observations, Entries):
        num_rows, num_columns = observations.shape
        return Entries(
            rows=observations.columns,
            columns=observations.rows,
            values=observations.values,
            shape=(num_columns, num_rows),
        )
    return PaddedMatrices(observations.values.T, observations.observed.T)


def predict(factors: Factors, rows: Array, columns: Array) -> jax.Array:
    """``u . v`` at cells ``(rows, columns)``, each [E] int32; zero at padding entries. [E]."""
    return _run("predict", rows, columns, factors.u, factors.v)


@functools.singledispatch
def exchange(
    observations: Observations, cells: Array, rows: Array, columns: Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What an exchangeable layer does besides its matrix products, in one pass over the entries.

    Args:
      observations: the observed entries.
      cells: ``[N, M, C]`` or ``[E, C]``.
      rows: [N, C].
      columns: [M, C].

    Returns:
      ``z = relu(cells + spread(rows, columns))``, which is zero at unobserved and padding entries,
      and ``pool(z)``.
    """
    raise _unknown_layout(observations)


@exchange.register
def _(observations: PaddedMatrices, cells, rows, columns):
    active = jax.nn.relu(cells + spread(observations, rows, columns))
    active = jnp.where(observations.observed[:, :, None], active, 0)
    return active, active.sum(axis=1), active.sum(axis=0)


@exchange.register
def _(observations: Entries, cells, rows, columns):
    return _run("exchange", *_list(observations)[:2], cells, rows, columns)


def descend(
    entries: Entries,
    prior: FactorPrior,
    u_step_sizes: Array,
    v_step_sizes: Array,
    num_steps: int,
    by_steps: Callable[[Entries, FactorPrior, tuple[Array, Array], int], Factors],
) -> Factors:
    """Gradient descent on the MAP energy, from the prior means, in one kernel where kernels run.

    The energy is ``1/2 sum observed (x - u . v)^2 + 1/2 sum_n u_precision_n |u_n - u_mean_n|^2``
    and the same for the columns. Both factors are updated from the old values.

    Args:
      entries: the observed entries, a list.
      prior: the prior of every row and column.
      u_step_sizes: [N], a step size for each row.
      v_step_sizes: [M].
      num_steps: ``T``.
      by_steps: the same descent as a program, ``(entries, prior, step sizes, T) -> Factors``: runs
        where kernels do not.

    Returns:
      The factors. Gradients flow through all steps, and need memory for them.
    """

    def fallback(rows, columns, values, u0, v0, u_lam, v_lam, u_eta, v_eta, num_steps):
        # Where this runs no kernel does: without a choice for each sum it is traced faster.
        with using_backend("xla"):
            listed = Entries(rows, columns, values, entries.shape)
            prior = FactorPrior(u0, v0, u_lam, v_lam)
            return tuple(by_steps(listed, prior, (u_eta, v_eta), num_steps))

    arguments = *_list(entries), *prior, u_step_sizes, v_step_sizes
    return Factors(*_run("descend", *arguments, fallback=fallback, num_steps=num_steps))


# Which implementation of the functions on lists is used: see `using_backend`. JAX traces again when
# it changes.
_backend = jax.make_user_context("auto")


def using_backend(name: str):
    """A context in which the functions on `Entries` are traced for one backend.

    Args:
      name: ``"auto"``, the default: compiled kernels on the CPU platform, where Numba is installed
        and everything is float32, XLA elsewhere; ``"numba"``: only the kernels (for tests and
        timings); ``"xla"``: never; ``"one_hot"``: products with one-hot matrices in place of
        the sums of the exchangeable layers, for higher derivatives of short lists.

    Raises:
      ValueError: if the name is unknown, or Numba is asked for and missing.
    """
    if name not in ("auto", "numba", "xla", "one_hot"):
        raise ValueError(f"expected the backend 'auto', 'numba', 'xla' or 'one_hot', got {name!r}")
    if name == "numba" and not ffi.is_available():
        raise ValueError("the backend 'numba' needs Numba: pip install 'metamf_jax[cpu]'")
    return _backend(name)


def kernels_run_here() -> bool:
    """Whether the backend in use means compiled kernels on the default device."""
    backend = _backend.value
    on_cpu = backend == "auto" and jax.default_backend() == "cpu"
    return backend == "numba" or (on_cpu and ffi.is_available())


def _list(observations: Entries) -> tuple[Array, Array, Array]:
    return observations.rows, observations.columns, observations.values


def _run(name: str, *arguments: Array, fallback: Callable[..., Any] | None = None, **static):
    """Runs the function of this name from the module of the backend in use.

    ``fallback`` is for the XLA backend, where its module has no function of this name.
    """
    arguments = tuple(map(jnp.asarray, arguments))
    backend = _backend.value
    by_xla: Callable[..., Any] = fallback or getattr(xla, name)
    if backend == "one_hot":
        by_xla = getattr(one_hot, name, by_xla)
    by_xla = functools.partial(by_xla, **static)
    if backend == "numba":
        return _numba(name)(*arguments, **static)
    of_kernels = {np.dtype(np.int32), np.dtype(np.float32)}
    # Beside an accelerator Numba is not even imported: its kernels would be compiled for nothing.
    if kernels_run_here() and all(a.dtype in of_kernels for a in arguments):
        compiled = functools.partial(_numba(name), **static)
        return jax.lax.platform_dependent(*arguments, cpu=compiled, default=by_xla)
    return by_xla(*arguments)


def _numba(name: str):
    # Numba takes 0.3 s to import, which a program that never pools a list need not pay.
    from metamf_jax.sums import numba

    return getattr(numba, name)
