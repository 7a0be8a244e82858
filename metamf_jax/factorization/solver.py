"""What every solver of one large matrix has in common: start, epochs, step sizes, the end."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from metamf_jax.factorization.objective import Objective, SideTerms, Terms, with_bias_columns
from metamf_jax.factorization.step_size import StepSize
from metamf_jax.types import Entries, Factors

INITS: Final = ("uniform", "normal", "positive")


# A rise of the objective by more than so many times itself in one epoch is divergence. Sound runs
# rise by a few percent, under `squared_all` by a third. While tenfold rises were kept, some led
# `gkl` on MovieLens-1M to 18 times the objective of the start.
_LARGEST_RISE = 0.5


class Solver(NamedTuple):
    """A method bound to one matrix and objective: functions of a state of its own kind.

    Attributes:
      init: Factors -> state.
      epochs: (state, epoch from 1, step size of each epoch to come) -> (state, how many epochs it
        ran): one, or as many as the method runs at once; the bits are those of single ones.
      objective: state -> the objective, penalty included.
      factors: state -> Factors, in the order of the matrix's rows and columns.
      squared_error: state -> sum of (x - u . v)^2 over the entries; None where they are to be
        scored with the factors.
    """

    init: Callable[[Factors], Any]
    epochs: Callable[[Any, int, Sequence[float]], tuple[Any, int]]
    objective: Callable[[Any], float]
    factors: Callable[[Any], Factors]
    squared_error: Callable[[Any], float] | None = None

    def epoch(self, state: Any, epoch: int, step_size: float) -> Any:
        """The state after one epoch, numbered from 1."""
        return self.epochs(state, epoch, [step_size])[0]


def one_by_one(epoch: Callable[[Any, int, float], Any]) -> Callable[..., tuple[Any, int]]:
    """`Solver.epochs` of a method that runs one epoch at a time, (state, epoch, step) -> state."""
    return lambda state, number, step_sizes: (epoch(state, number, step_sizes[0]), 1)


class Progress(NamedTuple):
    """Where a run stands; with the solver, all that is needed to go on.

    Attributes:
      state: the solver's; under a bold driver the last sound one if the steps diverged.
      epoch: epochs done.
      step_size: of the next epoch.
      objective: when last evaluated; may be NaN or infinite.
      finite_objective: that of the state, never NaN or infinite.
      seconds: of the last epoch, its evaluation not included; the mean of epochs run at once.
    """

    state: Any
    epoch: int
    step_size: float
    objective: float
    finite_objective: float
    seconds: float


def start(solver: Solver, factors: Factors, step_size: StepSize) -> Progress:
    """Before the first epoch.

    Raises:
      ValueError: the objective is not finite there.
    """
    state = solver.init(factors)
    objective = solver.objective(state)
    if not math.isfinite(objective):
        raise ValueError(
            f"the objective is {objective} before the first epoch; start from smaller factors, and"
            " check the values for NaN and huge numbers"
        )
    return Progress(state, 0, step_size.first(), objective, objective, 0.0)


def advance(
    solver: Solver, step_size: StepSize, progress: Progress, until: int | None = None
) -> Progress:
    """One epoch, or several at once where the solver can.

    Args:
      solver: the method.
      step_size: its rule.
      progress: where the run stands.
      until: the epoch after which the objective is evaluated next, which takes about as long as an
        epoch; None for the next one. No more are run, perhaps fewer. Where the rule reads the
        objective it is evaluated after every epoch.

    Raises:
      ValueError: the objective is no longer finite and the step size's rule does not recover.
    """
    first = progress.epoch + 1
    if until is None or step_size.reads_objective:
        until = first
    sizes = [progress.step_size]
    for each in range(first, until):
        sizes.append(step_size.after(each, sizes[-1], 0.0, 0.0))
    begin = time.perf_counter()
    state, done = solver.epochs(progress.state, first, sizes)
    seconds = (time.perf_counter() - begin) / done
    epoch, sizes = progress.epoch + done, sizes[:done]
    if epoch < until:
        value = step_size.after(epoch, sizes[-1], 0.0, 0.0)
        return progress._replace(state=state, epoch=epoch, step_size=value, seconds=seconds)
    objective = solver.objective(state)
    previous = progress.finite_objective
    sound = math.isfinite(objective)
    if step_size.name == "bold_driver":
        # Seen with `gkl` on MovieLens-100K: on the way to NaN an epoch may end at 1e33, from where
        # no smaller step leads back.
        sound = sound and objective <= previous + _LARGEST_RISE * abs(previous)
    elif not sound:
        raise ValueError(
            f"the objective is {objective} after epoch {epoch}: the steps diverged at step size"
            f" {sizes[-1]:g}; take a smaller one, or bold_driver, which recovers"
        )
    return Progress(
        state if sound else progress.state,
        epoch,
        step_size.after(epoch, sizes[-1], previous, objective),
        objective,
        objective if sound else previous,
        seconds,
    )


def fit(
    solver: Solver,
    factors: Factors,
    step_size: StepSize,
    epochs: int,
    on_epoch: Callable[[Progress], None] = lambda progress: None,
) -> tuple[Factors, Progress]:
    """Runs exactly `epochs` epochs.

    Args:
      solver: the method.
      factors: where to start, from `initial_factors`.
      step_size: not read by solvers that need none.
      epochs: how many.
      on_epoch: called before the first epoch and after each.

    Returns:
      The factors and where the run stands.
    """
    progress = start(solver, factors, step_size)
    on_epoch(progress)
    for _ in range(epochs):
        progress = advance(solver, step_size, progress)
        on_epoch(progress)
    return solver.factors(progress.state), progress


def centre(objective: Objective, entries: Entries) -> tuple[Entries, float]:
    """Subtracts the mean value where the loss allows it.

    Returns:
      The entries and the mean to give to `add_mean` in the end; 0 for a loss that reads the values
      as they are.
    """
    if not objective.record.centred or len(entries.values) == 0:
        return entries, 0.0
    mean = float(np.mean(entries.values, dtype=np.float64))
    values = (entries.values - np.float32(mean)).astype(np.float32)
    return Entries(entries.rows, entries.columns, values, entries.shape), mean


def add_mean(objective: Objective, factors: Factors, mean: float) -> Factors:
    """Undoes `centre`: factors of the matrix as it was.

    The mean goes to the row biases where there are biases, and else to one more column,
    ``u = (.., mean)``, ``v = (.., 1)``.
    """
    if mean == 0:
        return factors
    u, v = (np.asarray(f) for f in factors)
    if objective.biases:
        u = u.copy()
        u[:, -2] += np.float32(mean)
        return Factors(u, v)
    extra = [np.full((len(f), 1), c, np.float32) for f, c in ((u, mean), (v, 1))]
    return Factors(np.concatenate([u, extra[0]], 1), np.concatenate([v, extra[1]], 1))


def initial_factors(
    objective: Objective,
    entries: Entries,
    terms: Terms,
    rank: int,
    rng: np.random.Generator,
    init: str = "uniform",
    scale: float | None = None,
) -> Factors:
    """Small random factors around the prior means; the means themselves where there are no entries.

    Args:
      objective: under `gkl` the draw is folded to positive values.
      entries: of the matrix.
      terms: from `objective.make_terms`.
      rank: K, without the bias columns.
      rng: draws the factors.
      init: `uniform` in (-scale, scale), `normal` with this deviation, or `positive`, uniform in
        (0, scale), so that all products start alike.
      scale: None for one with which ``u . v`` is as large as a tenth of the values' root mean
        square, or under `gkl` as large as their mean over all cells.

    Returns:
      ``u`` [N, K], ``v`` [M, K] float32, with two more columns under ``objective.biases``.

    Raises:
      ValueError: an unknown `init`, or a scale or rank that is not positive.
    """
    if init not in INITS:
        raise ValueError(f"expected an init among {', '.join(INITS)}, got {init!r}")
    if rank < 1 or (scale is not None and not 0 < scale < math.inf):
        raise ValueError(f"expected a positive rank and scale, got {rank} and {scale}")
    if scale is None:
        values = np.asarray(entries.values, np.float64)
        moments = len(values), values.sum(), (values**2).sum()
        scale = default_scale(objective, entries.shape, moments, rank, init)
    return Factors(
        *(
            _initial_side(objective, side, size, side_terms, rank, rng, init, scale)
            for side, size, side_terms in zip("uv", entries.shape, terms, strict=True)
        )
    )


def _initial_side(
    objective: Objective,
    side: str,
    size: int,
    terms: SideTerms,
    rank: int,
    rng: np.random.Generator,
    init: str,
    scale: float,
) -> np.ndarray:
    if init == "normal":
        draw = rng.normal(size=(size, rank))
    else:
        draw = rng.uniform(0 if init == "positive" else -1, 1, (size, rank))
    if objective.record.non_negative:
        draw = np.abs(draw)
    draw = (scale * draw).astype(np.float32)
    # Nothing but the prior would ever pull a row without entries from where it starts.
    draw[terms.count == 0] = 0
    if objective.biases:
        draw = with_bias_columns(draw, side)
    mean = terms.mean
    if mean is not None:
        if mean.shape != draw.shape:
            raise ValueError(
                f"expected prior means of rank {rank}, got shape {mean.shape} for {draw.shape}"
            )
        draw[:, :rank] += mean[:, :rank]
        if objective.record.non_negative:
            draw = np.maximum(draw, 0)
    return draw


def default_scale(
    objective: Objective,
    shape: tuple[int, int],
    moments: tuple[int, float, float],
    rank: int,
    init: str = "uniform",
) -> float:
    """The scale that `initial_factors` takes where none is given.

    Args:
      objective: the objective.
      shape: (N, M).
      moments: number, sum and sum of squares of the values.
      rank: K.
      init: likewise.
    """
    size = objective.record.start(shape, moments, rank) if moments[0] else 1.0
    return size * (1.0 if init == "normal" else math.sqrt(3))
