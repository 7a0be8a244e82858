"""The objective of matrix factorization: a loss over the entries plus a penalty on the factors.

    sum over observed (n, m) of  loss(x_nm, u_n . v_m)  +  all-cell term  +  penalty

Reported without the factor 1/2. Gradients, here and in every solver, are those of *half* the
objective, so that a step of SGD on the squared loss reads ``u += step (e v - lam u)``.

The losses and their all-cell terms are those of `losses`. With ``N_n`` entries in row n:

=============  ====================================================  =======================
penalty        term (columns alike)                                  share of an entry
=============  ====================================================  =======================
`none`
`l2`           lam sum_n abs(u_n - u0_n)^2                           lam / N_n
`weighted_l2`  lam sum_n N_n abs(u_n - u0_n)^2                       lam
`root_l2`      lam sum_n sqrt(N_n) abs(u_n - u0_n)^2                 lam / sqrt(N_n)
`prior`        sum_n lam_n abs(u_n - u0_n)^2                         lam_n / N_n
=============  ====================================================  =======================

The claim on which SGD rests: the local gradients of `local_gradient`, summed over all entries, are
the gradient of `full_gradient` on every row and column that has entries.

Gemulla, Nijkamp, Haas, Sismanis: Large-scale matrix factorization with distributed stochastic
gradient descent, KDD 2011.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from metamf_jax.factorization.losses import LEAST_FALL, LOSSES, RECORDS, Loss
from metamf_jax.types import Array, Entries, FactorPrior, Factors

PENALTIES: Final = ("none", "l2", "weighted_l2", "root_l2", "prior")

# The names that lecture slides on the subject use.
ALIASES: Final = {
    "nzsl": ("squared", "none"),
    "sl": ("squared_all", "none"),
    "l2": ("squared", "l2"),
    "nzl2": ("squared", "weighted_l2"),
}

# `cell_sums` of one side: an array, or None where the loss has no all-cell term.
CellSums: TypeAlias = Any


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss, a penalty and its strength.

    Attributes:
      loss: one of `LOSSES`.
      penalty: one of `PENALTIES`.
      regularization: ``lam`` of `l2`, `weighted_l2` and `root_l2`; not read by the others.
      biases: whether the last two columns of the factors are ``u = (.., b, 1)`` and
        ``v = (.., 1, c)``, with the ones frozen.
    """

    loss: str = "squared"
    penalty: str = "l2"
    regularization: float = 0.0
    biases: bool = False

    def __post_init__(self):
        if self.loss not in LOSSES:
            raise ValueError(f"expected a loss among {', '.join(LOSSES)}, got {self.loss!r}")
        if self.penalty not in PENALTIES:
            raise ValueError(
                f"expected a penalty among {', '.join(PENALTIES)}, got {self.penalty!r}"
            )
        if not 0 <= self.regularization < np.inf:
            raise ValueError(
                f"expected a finite regularization of at least 0, got {self.regularization}"
            )

    @property
    def record(self) -> Loss:
        """All that is particular to the loss."""
        return RECORDS[self.loss]


def resolve_names(loss: str, penalty: str | None = None) -> tuple[str, str]:
    """Resolves a loss that may be one of `ALIASES`.

    Args:
      loss: a loss or an alias, which names loss and penalty together.
      penalty: a penalty; None for the alias's own, or `l2` where `loss` is no alias.

    Returns:
      (loss, penalty).

    Raises:
      ValueError: a penalty was given that contradicts the alias.
    """
    if loss not in ALIASES:
        return loss, penalty or "l2"
    resolved, own_penalty = ALIASES[loss]
    if penalty is not None and penalty != own_penalty:
        raise ValueError(
            f"the loss {loss!r} means {resolved} with the penalty {own_penalty!r}, but the penalty"
            f" {penalty!r} came with it; leave the penalty out, or give the loss as {resolved!r}"
        )
    return resolved, own_penalty


def check_loss(objective: Objective, solver: str, losses: Sequence[str]) -> None:
    """Refuses a loss that is none of the `losses` that a solver serves.

    Raises:
      ValueError: naming them.
    """
    if objective.loss not in losses:
        raise ValueError(
            f"the solver {solver!r} serves the losses {', '.join(losses)}, but the loss is"
            f" {objective.loss!r}"
        )


def check_values(
    objective: Objective,
    entries: Entries,
    row_ids: np.ndarray | None = None,
    column_ids: np.ndarray | None = None,
) -> None:
    """Refuses values the loss has no meaning for, and rows and columns outside the matrix.

    Args:
      objective: its loss decides.
      entries: of the matrix.
      row_ids: [N] names for the message; None for the rows' numbers.
      column_ids: [M] likewise.

    Raises:
      ValueError: naming the first offending entry.
    """
    rows, columns, values = (np.asarray(x) for x in (entries.rows, entries.columns, entries.values))
    allowed, expected = np.isfinite(values), "finite values"
    domain = objective.record.domain
    if domain is not None:
        allowed &= domain.allows(values)
        expected = f"{domain.what} under the loss {objective.loss!r}"
    inside = (rows >= 0) & (rows < entries.shape[0])
    inside &= (columns >= 0) & (columns < entries.shape[1])
    for mask, what in (
        (inside, f"cells inside a matrix of shape {entries.shape}"),
        (allowed, expected),
    ):
        if not mask.all():
            at = int(np.argmin(mask))
            place = [int(rows[at]), int(columns[at])]
            if row_ids is not None and column_ids is not None and mask is allowed:
                place = [row_ids.tolist()[place[0]], column_ids.tolist()[place[1]]]
            raise ValueError(
                f"expected {what}, but entry {at} of {len(values)} is {values[at]} at row"
                f" {place[0]!r}, column {place[1]!r}"
            )


class SideTerms(NamedTuple):
    """What the objective knows of one side of the matrix, its rows or its columns.

    A single row or column has the same type with the leading axis gone.

    Attributes:
      count: [N] float32, numbers of entries.
      weight: [N] float32, the penalty is ``weight_n |u_n - mean_n|^2``.
      mean: [N, K] prior means, or None for zero.
    """

    count: Array
    weight: Array
    mean: Array | None


class Terms(NamedTuple):
    """`SideTerms` of the rows and of the columns."""

    u: SideTerms
    v: SideTerms


def make_terms(objective: Objective, entries: Entries, prior: FactorPrior | None = None) -> Terms:
    """Counts the entries of rows and columns and weighs their penalties.

    Args:
      objective: its penalty decides the weights.
      entries: of the matrix, without padding; NumPy.
      prior: means [N, K], [M, K] and, for the penalty `prior`, precisions; None for zero means.
        Under ``objective.biases`` the two extra columns are added to its means, zero for a bias.

    Returns:
      Terms of NumPy arrays.

    Raises:
      ValueError: the penalty `prior` without a prior, or a prior of another shape.
    """
    rows, columns = (
        np.bincount(np.asarray(ids), minlength=size)
        for ids, size in zip((entries.rows, entries.columns), entries.shape, strict=True)
    )
    return terms_of_counts(objective, rows, columns, prior)


def terms_of_counts(
    objective: Objective,
    row_counts: Array,
    column_counts: Array,
    prior: FactorPrior | None = None,
) -> Terms:
    """`make_terms` from the numbers of entries of rows [N] and of columns [M]."""
    if objective.penalty == "prior" and prior is None:
        raise ValueError("the penalty 'prior' needs a prior, but none was given; pass one, or l2")
    sides = []
    for side, count in (("u", row_counts), ("v", column_counts)):
        count, size = np.asarray(count, np.float32), len(count)
        precision = mean = None
        if prior is not None:
            mean = np.asarray(getattr(prior, f"{side}_mean"), np.float32)
            precision = np.asarray(getattr(prior, f"{side}_precision"), np.float32)
            if mean.shape[0] != size or precision.shape != (size,):
                raise ValueError(
                    f"expected a prior for {size} {'rows' if side == 'u' else 'columns'}, got means"
                    f" of shape {mean.shape} and precisions of shape {precision.shape}"
                )
            if objective.biases:
                mean = with_bias_columns(mean, side)
        weight = {
            "none": np.zeros_like(count),
            "l2": np.full_like(count, objective.regularization),
            "weighted_l2": objective.regularization * count,
            "root_l2": objective.regularization * np.sqrt(count),
            "prior": precision,
        }[objective.penalty]
        sides.append(SideTerms(count, np.asarray(weight, np.float32), mean))
    return Terms(*sides)


def with_bias_columns(mean: Array, side: str) -> np.ndarray:
    """Appends the two bias columns to means: zero for the bias, one where it is frozen.

    Args:
      mean: [N, K].
      side: "u" for ``(.., b, 1)``, "v" for ``(.., 1, c)``.

    Returns:
      [N, K + 2] float32.
    """
    mean = np.asarray(mean, np.float32)
    extra = np.zeros((len(mean), 2), np.float32)
    extra[:, 1 if side == "u" else 0] = 1
    return np.concatenate([mean, extra], axis=1)


def trainable(objective: Objective, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Which columns of U and of V are trained, two bool [width]: all but the frozen ones."""
    u, v = np.ones(width, bool), np.ones(width, bool)
    if objective.biases:
        u[-1], v[-2] = False, False
    return u, v


def entry_loss(objective: Objective, value: Array, fitted: Array) -> Array:
    """Loss of an entry (or, elementwise, of many) of value ``x`` fitted by ``u . v``."""
    return objective.record.of_entry(value, fitted)


def half_slope(objective: Objective, value: Array, fitted: Array) -> Array:
    """Half the derivative of `entry_loss` with respect to ``u . v``."""
    return objective.record.half_slope(value, fitted)


def cell_sums(objective: Objective, factors: Array) -> CellSums:
    """What the all-cell term needs of one side's factors [N, K]; additive over blocks of rows.

    Returns:
      ``U^T U`` [K, K] for `squared_all`, ``sum_n u_n`` [K] for `gkl`, None for the others.
    """
    all_cells = objective.record.all_cells
    return None if all_cells is None else all_cells.sums(factors)


def side_gradient(
    objective: Objective, factor: Array, terms: SideTerms, opposite: CellSums
) -> Array:
    """Gradient of half the penalty and half the all-cell term with respect to one ``u_n``.

    A row's entries share it equally; a row without entries takes it whole, once an epoch.

    Args:
      objective: the objective.
      factor: [K], of a row or of a column.
      terms: the row's terms.
      opposite: `cell_sums` of the other side.

    Returns:
      [K].
    """
    gradient = terms.weight * (factor if terms.mean is None else factor - terms.mean)
    all_cells = objective.record.all_cells
    return gradient if all_cells is None else gradient + all_cells.half_gradient(factor, opposite)


def scaled_gradient(
    objective: Objective, gradient: Array, factor: Array, terms: SideTerms, opposite: CellSums
) -> Array:
    """A gradient at one entry in the metric of multiplicative updates, where factors are bounded.

    With ``r_n = lam_n u_n + sum_m v_m / 2``, what draws a row's factors to zero, the gradient ``g``
    becomes ``u_n g / r_n``, elementwise. Less its sum over the row's entries, ``u_n`` would be
    ``u_n (sum_m x_nm / (u_n . v_m) v_m) / (2 r_n)``: Lee and Seung's update (Algorithms for
    non-negative matrix factorization, NIPS 2000), which keeps signs and needs no step size.

    Args:
      objective: the objective; where its loss does not bound the factors, nothing changes.
      gradient: [K], half that of the objective's share at the entry.
      factor: [K] ``u_n``.
      terms: the row's.
      opposite: `cell_sums` of the other side.

    Returns:
      [K].
    """
    all_cells = objective.record.all_cells
    if all_cells is None or not objective.record.non_negative:
        return gradient
    falling = terms.weight * factor + all_cells.half_gradient(factor, opposite)
    return factor * gradient / jnp.maximum(falling, LEAST_FALL)


def local_gradient(
    objective: Objective,
    value: Array,
    u: Array,
    v: Array,
    terms: Terms,
    sums: tuple[CellSums, CellSums] = (None, None),
) -> tuple[Array, Array]:
    """Gradient of half the objective's share at one entry (n, m).

    Args:
      objective: the objective.
      value: scalar ``x_nm``.
      u: [K] ``u_n``.
      v: [K] ``v_m``.
      terms: the terms of row n and of column m.
      sums: `cell_sums` of U and of V.

    Returns:
      With respect to ``u_n`` and ``v_m``, each [K]; zero in frozen columns.
    """
    slope = half_slope(objective, value, (u * v).sum())
    gradients = unmasked_gradient(objective, slope, u, v, terms, sums)
    mask_u, mask_v = trainable(objective, u.shape[-1])
    return jnp.where(mask_u, gradients[0], 0), jnp.where(mask_v, gradients[1], 0)


def unmasked_gradient(
    objective: Objective,
    slope: Array,
    u: Array,
    v: Array,
    terms: Terms,
    sums: tuple[CellSums, CellSums],
) -> tuple[Array, Array]:
    """`local_gradient` from the `half_slope` at the entry, with something in the frozen columns."""
    return (
        slope * v + side_gradient(objective, u, terms.u, sums[1]) / terms.u.count,
        slope * u + side_gradient(objective, v, terms.v, sums[0]) / terms.v.count,
    )


def penalty(objective: Objective, factor: Array, terms: SideTerms, side: str) -> Array:
    """Penalty of one row's ``u_n`` (``side="u"``) or one column's ``v_m`` ("v"), [K] -> scalar."""
    return penalty_parts(objective, factor, terms, side).sum()


def penalty_parts(objective: Objective, factor: Array, terms: SideTerms, side: str) -> Array:
    """The K numbers whose sum is `penalty`."""
    mask = trainable(objective, factor.shape[-1])["uv".index(side)]
    offset = factor if terms.mean is None else factor - terms.mean
    return terms.weight * jnp.where(mask, offset**2, 0)


def sum_in_order(x: Array) -> Array:
    """Sums over the last axis, one after the other: the same bits whatever the other axes.

    XLA's own sum over an axis is compiled otherwise for other shapes, and products that feed it are
    fused into it or not; the steps of a loop over arrays in memory only add.
    """
    columns = jnp.moveaxis(jnp.asarray(x), -1, 0)
    return jax.lax.scan(lambda sums, column: (sums + column, None), columns[0], columns[1:])[0]


def entry_losses(
    objective: Objective, factors: Factors, rows: Array, columns: Array, values: Array
) -> Array:
    """Losses of the entries ``(rows, columns, values)``, each [E]. [E]."""
    u, v = jnp.asarray(factors.u), jnp.asarray(factors.v)
    return entry_loss(objective, values, (u[rows] * v[columns]).sum(axis=-1))


def objective_value(
    objective: Objective, factors: Factors, entries: Entries, terms: Terms
) -> Array:
    """The objective as one differentiable float32 number. See `total` for one that decides.

    Args:
      objective: the objective.
      factors: ``u`` [N, K] and ``v`` [M, K].
      entries: of the matrix, without padding.
      terms: from `make_terms`.
    """
    losses = entry_losses(objective, factors, entries.rows, entries.columns, entries.values)
    value = losses.sum()
    for side in ("u", "v"):
        value += jax.vmap(lambda f, t, side=side: penalty(objective, f, t, side))(
            jnp.asarray(getattr(factors, side)), getattr(terms, side)
        ).sum()
    sums = cell_sums(objective, factors.u), cell_sums(objective, factors.v)
    if sums[0] is not None:
        value += (sums[0] * sums[1]).sum()
    return value


def total(losses: Array, penalties: Array, u_sums: CellSums, v_sums: CellSums) -> float:
    """Adds the objective up in float64, in block order, from float32 sums over blocks.

    Where the objective decides (bold driver, early stopping) it must not depend on how many
    devices added the blocks up.

    Args:
      losses: sums of `entry_losses` over blocks, any shape.
      penalties: sums of `penalty` over blocks of rows and of columns, any shape.
      u_sums: `cell_sums` of each block of rows, [P, ...], or None.
      v_sums: of each block of columns.
    """
    # Where the steps diverged the sum is NaN, as it should be, and NumPy need not warn.
    with np.errstate(invalid="ignore", over="ignore"):
        value = np.asarray(losses, np.float64).sum() + np.asarray(penalties, np.float64).sum()
        if u_sums is not None:
            u_total = np.asarray(u_sums, np.float64).sum(axis=0)
            value += (u_total * np.asarray(v_sums, np.float64).sum(axis=0)).sum()
    return float(value)


@functools.partial(jax.jit, static_argnums=0)
def _block_sums(objective, factors, entries, terms):
    losses = entry_losses(objective, factors, entries.rows, entries.columns, entries.values)
    penalties = [
        jax.vmap(lambda f, t, side=side: penalty(objective, f, t, side))(factor, side_terms)
        for side, factor, side_terms in zip("uv", factors, terms, strict=True)
    ]
    return (
        *(_sums_of_runs(x) for x in (losses, jnp.concatenate(penalties))),
        *(None if s is None else s[None] for s in (cell_sums(objective, f) for f in factors)),
    )


def _sums_of_runs(x, length=4096):
    return jnp.pad(x, (0, -len(x) % length)).reshape(-1, length).sum(axis=1)


def evaluate(objective: Objective, factors: Factors, entries: Entries, terms: Terms) -> float:
    """The objective, with sums over runs of entries added in float64. Arguments as above."""
    # The strength is in the terms: one program serves all.
    objective = dataclasses.replace(objective, regularization=0.0)
    return total(*_block_sums(objective, Factors(*map(jnp.asarray, factors)), entries, terms))


def full_gradient(
    objective: Objective, factors: Factors, entries: Entries, terms: Terms
) -> Factors:
    """Gradient of half of `objective_value`; zero in frozen columns. [N, K] and [M, K]."""
    half = jax.grad(lambda f: 0.5 * objective_value(objective, f, entries, terms))
    gradient = half(Factors(*map(jnp.asarray, factors)))
    masks = trainable(objective, gradient.u.shape[-1])
    return Factors(*(jnp.where(m[None, :], g, 0) for m, g in zip(masks, gradient, strict=True)))
