"""Numba functions as XLA operations on the CPU.

XLA calls the compiled function directly: there is no callback into Python, no lock is held, fake
devices run in parallel, and results may overwrite arguments in place. Importing this module does
not import Numba, which is an optional dependency; the first call of a kernel compiles it.

  def _scaled_rows(scale, x, out):
      for n in range(x.shape[0]):
          for k in range(x.shape[1]):
              out[n, k] = scale[n] * x[n, k]

  scaled_rows = NumbaKernel(_scaled_rows, arguments=("float32[:]", "float32[:,:]"),
                            results=("float32[:,:]",))
  (out,) = scaled_rows(scale, x, shapes=[x.shape])
"""

import ctypes
import importlib.util
import inspect
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metamf_jax.types import Array

# Lets a sum be vectorised and a product-sum be fused, and keeps NaN and infinity what they are:
# with all of Numba's `fastmath`, a comparison with NaN may go either way.
VECTORISED = frozenset({"contract", "reassoc", "nsz"})

_compile_lock = threading.Lock()


def is_available() -> bool:
    """Whether Numba is installed (``pip install 'metamf_jax[cpu]'``)."""
    return importlib.util.find_spec("numba") is not None


class NumbaKernel:
    """A Numba function that can be called on JAX arrays, on the CPU platform.

    Under ``jax.vmap`` the function is called once per element, in order, by one compiled loop;
    arguments without the batch axis are not copied. There is no gradient: see `jax.custom_vjp`.
    """

    def __init__(
        self,
        function: Callable[..., int | None],
        *,
        arguments: Sequence[str],
        results: Sequence[str],
        errors: Sequence[str] = (),
        fastmath: frozenset[str] = VECTORISED,
        distinct: bool = False,
    ):
        """Nothing is compiled yet.

        Args:
          function: a module-level function, to be compiled by Numba: takes the argument arrays,
            which it must not write to, then the result arrays, which it must fill. Returns None,
            or the number of an error, counted from 1; 0 is none.
          arguments: dtype and rank of each argument, such as ``"float32[:,:]"``; ``"int32"`` is a
            scalar, which the function sees as an array of rank 0 and reads as ``x[()]``.
          results: likewise.
          errors: the messages of these errors.
          fastmath: LLVM's fast-math flags.
          distinct: promises that no result shares memory with another array, so there can be no
            ``aliases``; loops are then vectorised without looking whether they overlap.

        Raises:
          ValueError: if a dtype or rank cannot be read, or the function takes another number of
            arrays.
        """
        self._function = function
        # The target's name in XLA, the same in every process.
        self.name = (
            f"{function.__module__}.{function.__qualname__}"
            f"({', '.join(arguments)}) -> {', '.join(results)}"
        )
        self._parameters = tuple(inspect.signature(function).parameters)
        self._arguments = tuple(_parse(text) for text in arguments)
        self._results = tuple(_parse(text) for text in results)
        self._errors = tuple(errors)
        self._fastmath = fastmath
        self._distinct = distinct
        self._handler: Any = None
        self._kernel: Any = None
        if len(self._parameters) != len(self._arguments) + len(self._results):
            raise ValueError(
                f"{self.name} takes {len(self._parameters)} arrays, but {len(self._arguments)} "
                f"arguments and {len(self._results)} results are described"
            )
        if not self._results:
            raise ValueError(f"{self.name} needs at least one result")

    def __call__(
        self,
        *arguments: Array,
        shapes: Sequence[Sequence[int]],
        aliases: Mapping[int, int] | None = None,
    ) -> tuple[jax.Array, ...]:
        """Calls the function.

        Args:
          *arguments: arrays of the described dtypes and ranks (without the axes of ``vmap``).
          shapes: the shape of each result.
          aliases: ``{argument: result}``, by position: where the result shall begin with the
            argument's contents, in the argument's memory. The function then sees both arrays at
            one address. XLA copies first where the argument is still needed elsewhere.

        Returns:
          The results. Their contents start undefined, unless aliased.

        Raises:
          ValueError: if a dtype, a rank or a number of arrays is not the described one, or aliases
            are given to a kernel of distinct arrays.
          RuntimeError: if Numba is missing.
        """
        self._check_call(arguments, shapes, aliases or {})
        self._register()
        return tuple(
            jax.ffi.ffi_call(
                self.name,
                [
                    jax.ShapeDtypeStruct(tuple(shape), dtype)
                    for shape, (dtype, _) in zip(shapes, self._results, strict=True)
                ],
                vmap_method="broadcast_all" if aliases else "expand_dims",
                input_output_aliases=dict(aliases or {}),
            )(*map(jnp.asarray, arguments))
        )

    def on_host(
        self, *arguments: np.ndarray, shapes: Sequence[Sequence[int]]
    ) -> tuple[np.ndarray, ...]:
        """Calls the function on NumPy arrays, without XLA, whose dispatch small calls would feel.

        Args:
          *arguments: contiguous, of the described dtypes and ranks.
          shapes: the shape of each result.

        Raises:
          TypeError: an argument is not as described.
          RuntimeError: if Numba is missing, or the function returned the number of an error.
        """
        with _compile_lock:
            kernel = self._compile()
        results = tuple(
            np.empty(shape, dtype) for shape, (dtype, _) in zip(shapes, self._results, strict=True)
        )
        failed = kernel(*arguments, *results)
        if failed:
            raise RuntimeError(f"{self.name}: {self._errors[failed - 1]}")
        return results

    def _check_call(self, arguments, shapes, aliases):
        for given, described, what in (
            (arguments, self._arguments, "arguments"),
            (shapes, self._results, "result shapes"),
        ):
            if len(given) != len(described):
                raise ValueError(f"{self.name} takes {len(described)} {what}, got {len(given)}")
        names = iter(self._parameters)
        for argument, (dtype, rank) in zip(arguments, self._arguments, strict=True):
            name = next(names)
            if argument.dtype != dtype or argument.ndim != rank:
                raise ValueError(
                    f"{self.name}: expected {name} as {dtype} of rank {rank}, got "
                    f"{argument.dtype} of shape {argument.shape}"
                )
        for shape, (_, rank) in zip(shapes, self._results, strict=True):
            name = next(names)
            if len(shape) != rank:
                raise ValueError(
                    f"{self.name}: expected a shape of rank {rank} for {name}, got {shape}"
                )
        if aliases and self._distinct:
            raise ValueError(f"{self.name} is described as distinct, so it takes no aliases")
        for argument, result in aliases.items():
            described = self._arguments[argument], self._results[result]
            if described[0] != described[1] or arguments[argument].shape != tuple(shapes[result]):
                raise ValueError(
                    f"{self.name}: argument {self._parameters[argument]} of shape "
                    f"{arguments[argument].shape} cannot become result {result} of shape "
                    f"{tuple(shapes[result])}"
                )

    def _register(self):
        with _compile_lock:
            if self._handler is not None:
                return
            self._handler = self._make_handler()
            jax.ffi.register_ffi_target(self.name, _capsule(self._handler.address), platform="cpu")

    def _compile(self):
        """The kernel, for its types."""
        if self._kernel is not None:
            return self._kernel
        if not is_available():
            raise RuntimeError(
                f"{self.name} needs Numba; install it with pip install 'metamf_jax[cpu]'"
            )
        from numba.core import compiler

        from metamf_jax.kernels import disk_cache

        class DistinctCompiler(compiler.Compiler):
            """Numba's own, with the promise that arrays do not overlap."""

            def __init__(self, *arguments):
                super().__init__(*arguments)
                self.state.flags.noalias = True

        # Compiled for one signature at once, so that the cache on disk serves the next process.
        self._kernel = disk_cache.compiled(
            self._function,
            self._array_types(),
            nogil=True,
            error_model="numpy",
            fastmath=set(self._fastmath),
            pipeline_class=DistinctCompiler if self._distinct else compiler.Compiler,
        )
        return self._kernel

    def _array_types(self):
        import numba

        return tuple(
            numba.types.Array(numba.from_dtype(dtype), rank, "C", readonly=i < len(self._arguments))
            for i, (dtype, rank) in enumerate(self._arguments + self._results)
        )

    def _make_handler(self):
        """What XLA calls; compiled in every process."""
        kernel = self._compile()
        from metamf_jax.kernels import xla_call_frame

        # Read by the handler: they live as long as the process, like the registration.
        self._messages = [
            ctypes.create_string_buffer(f"{self.name}: {message}".encode())
            for message in (
                "called with buffers of other dtypes or ranks than described",
                "an exception was raised inside, or an unknown error number returned",
                *self._errors,
            )
        ]
        self._description = xla_call_frame.describe(
            self._arguments + self._results,
            len(self._arguments),
            [ctypes.addressof(m) for m in self._messages],
        )
        return xla_call_frame.make_handler(kernel, self._array_types(), self._description)


def _parse(text: str) -> tuple[np.dtype, int]:
    match = re.fullmatch(r"(bool|u?int(?:8|16|32|64)|float(?:32|64))(?:\[(:(?:,\s*:)*)\])?", text)
    if match is None:
        raise ValueError(
            f"expected a dtype and a rank such as 'float32[:,:]' or 'int32', got {text!r}"
        )
    return np.dtype(match[1]), (match[2] or "").count(":")


def _capsule(address: int):
    create = ctypes.pythonapi.PyCapsule_New
    create.restype = ctypes.py_object
    create.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return create(address, None, None)
