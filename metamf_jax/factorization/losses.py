"""The losses of one large matrix: a record each, and the table of their names.

=============  ====================================================  =======================
loss           loss of an entry                                      all-cell term
=============  ====================================================  =======================
`squared`      (x - u.v)^2
`squared_all`  x^2 - 2 x u.v                                         <U^T U, V^T V>
`absolute`     abs(x - u.v)
`logistic`     log(1 + exp(-x u.v)), x in {-1, 1}
`gkl`          x log(x / u.v) - x, with x, U, V >= 0                 (sum_n u_n).(sum_m v_m)
=============  ====================================================  =======================

`squared_all` counts the missing cells as zeros and never visits them; `gkl` is the generalised
Kullback-Leibler divergence over all cells.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Final

import jax
import jax.numpy as jnp
import numpy as np

from metamf_jax.types import Array

# `u . v` is read as at least this under `gkl`.
GKL_FLOOR: Final = 1e-6

# What draws a bounded factor to zero is read as at least this; with less, the gradient is less too.
LEAST_FALL: Final = 1e-30

_FULL_FLOAT32 = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class AllCells:
    """A term of all cells, which moves rows without entries too.

    The term is ``<sums of U, sums of V>``.

    Attributes:
      sums: what it needs of one side's factors [N, K]; additive over blocks of rows.
      half_gradient: half its gradient with respect to one factor [K], from that factor and the
        sums of the other side.
    """

    sums: Callable[[Array], Array]
    half_gradient: Callable[[Array, Array], Array]


@dataclasses.dataclass(frozen=True)
class Domain:
    """The values that a loss has a meaning for, beyond being finite.

    Attributes:
      what: in words, for messages.
      allows: which of the values [E] it takes, bool [E].
      refuses: what a stored table's least value, and whether all are labels, say against it; empty
        for nothing.
    """

    what: str
    allows: Callable[[np.ndarray], np.ndarray]
    refuses: Callable[[float, bool], str]


def _spread_of_tenth(shape: tuple[int, int], moments: tuple[int, float, float], rank: int) -> float:
    """Root mean square of factors with ``u . v`` as large as a tenth of the values'."""
    del shape
    count, _, squares = moments
    return math.sqrt(0.1 * math.sqrt(squares / count or 1.0) / math.sqrt(rank))


def _spread_of_mean(shape: tuple[int, int], moments: tuple[int, float, float], rank: int) -> float:
    """That of non-negative factors with ``u . v`` as large as the values' mean over all cells."""
    _, total, _ = moments
    # Folded draws of root mean square s have products of at least (s / 2)^2 a column.
    return 1.2 * math.sqrt(max(total / (shape[0] * shape[1]), 1e-12) / rank)


@dataclasses.dataclass(frozen=True)
class Loss:
    """One loss.

    Attributes:
      name: its name.
      of_entry: loss of an entry of value ``x`` fitted by ``u . v``, elementwise.
      half_slope: half the derivative of `of_entry` with respect to ``u . v``.
      all_cells: its term of all cells, or None.
      domain: the values it takes, or None for any that are finite.
      centred: whether the matrix is centred first; the others read the values as they are.
      non_negative: whether the factors are bound to be at least zero.
      quadratic: whether it is a quadratic function of ``u . v``, so that least squares solve it.
      smooth: whether it has a gradient everywhere, and no bounds.
      start: (shape, moments of the values, K) -> root mean square of the factors to start from.
    """

    name: str
    of_entry: Callable[[Array, Array], Array]
    half_slope: Callable[[Array, Array], Array]
    all_cells: AllCells | None = None
    domain: Domain | None = None
    centred: bool = False
    non_negative: bool = False
    quadratic: bool = False
    smooth: bool = False
    start: Callable[[tuple[int, int], tuple[int, float, float], int], float] = _spread_of_tenth


_SQUARED: Final = Loss(
    "squared",
    of_entry=lambda value, fitted: (value - fitted) ** 2,
    half_slope=lambda value, fitted: fitted - value,
    centred=True,
    quadratic=True,
    smooth=True,
)

_SQUARED_ALL: Final = Loss(
    "squared_all",
    of_entry=lambda value, fitted: value**2 - 2 * value * fitted,
    half_slope=lambda value, fitted: -jnp.asarray(value),
    all_cells=AllCells(
        sums=lambda factors: jnp.matmul(factors.T, factors, precision=_FULL_FLOAT32),
        # Sums of products rather than a dot: full float32 on every platform.
        half_gradient=lambda factor, opposite: (opposite * factor[None, :]).sum(axis=-1),
    ),
    quadratic=True,
    smooth=True,
)

_ABSOLUTE: Final = Loss(
    "absolute",
    of_entry=lambda value, fitted: jnp.abs(value - fitted),
    half_slope=lambda value, fitted: 0.5 * jnp.sign(fitted - value),
    centred=True,
)

_LOGISTIC: Final = Loss(
    "logistic",
    of_entry=lambda value, fitted: jax.nn.softplus(-value * fitted),
    half_slope=lambda value, fitted: -0.5 * value * jax.nn.sigmoid(-value * fitted),
    domain=Domain(
        "labels -1 and 1",
        allows=lambda values: np.abs(values) == 1,
        refuses=lambda least, are_labels: "" if are_labels else "there are other values",
    ),
    smooth=True,
)


def _gkl_of_entry(value: Array, fitted: Array) -> Array:
    entropy = value * jnp.log(jnp.where(value > 0, value, 1))
    return entropy - value * jnp.log(jnp.maximum(fitted, GKL_FLOOR)) - value


_GKL: Final = Loss(
    "gkl",
    of_entry=_gkl_of_entry,
    # Below the floor, the slope at the floor.
    half_slope=lambda value, fitted: -0.5 * value / jnp.maximum(fitted, GKL_FLOOR),
    all_cells=AllCells(
        sums=lambda factors: factors.sum(axis=0),
        half_gradient=lambda factor, opposite: 0.5 * opposite,
    ),
    domain=Domain(
        "values of at least 0",
        allows=lambda values: values >= 0,
        refuses=lambda least, are_labels: f"the least is {least}" if least < 0 else "",
    ),
    non_negative=True,
    start=_spread_of_mean,
)

RECORDS: Final = {loss.name: loss for loss in (_SQUARED, _SQUARED_ALL, _ABSOLUTE, _LOGISTIC, _GKL)}

# Compiled kernels know a loss by its place here.
LOSSES: Final = tuple(RECORDS)
# Those with a gradient everywhere.
SMOOTH: Final = tuple(name for name, loss in RECORDS.items() if loss.smooth)
