"""The penalty, its strength and the number of epochs, chosen by the error on held-out entries.

A tenth of the entries of a sample is held out. A run of each strength goes on while the error on
them falls; the strength starts at the unit of the objective's scale, is doubled or halved while
that helps, and is then tried once more at a root of two to each side. The number of epochs is that
after which the best run's error was least.

Of a matrix that is tried as a whole the penalty itself may be chosen. Where rows and columns have
few entries `l2` is better than `root_l2`: test RMSE of FilmTrust 0.769 and 0.775, of random 5% and
2% of MovieLens-1M 0.959 and 0.961, 0.990 and 0.995; where they have many, `root_l2`: MovieLens-100K
0.901 and 0.904, latest-small 0.862 and 0.866. The held-out error told so of each. Strengths of `l2`
that suit a sample do not suit the whole.

That a sub-matrix of 100,000 entries tells what serves the whole: on nine tenths of MovieLens-1M
(rank 64, AdaGrad) it and the whole have the same best strength of 0.6, 0.8, 1 and 1.3, reached
after the same 21 epochs. Where SGD visits entries through XLA, far more slowly than in the compiled
loops, 15,000 have to do: on MovieLens-100K what they choose is 0.2% to 0.3% worse.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np

from metamf_jax.factorization import block_update, measures, solver, solvers
from metamf_jax.factorization.objective import Objective, make_terms
from metamf_jax.factorization.solvers import SOLVERS, SolverConfig
from metamf_jax.factorization.step_size import StepSize, sample_entries
from metamf_jax.types import Entries, FactorPrior, Factors

SAMPLE: Final = 100_000
_SMALL_SAMPLE: Final = 15_000

_PART: Final = 10  # One entry in so many is held out.
_FEWEST: Final = 100
_UNTRIED_EPOCHS: Final = 20
# A trial's at most: so few, or so many where they are fewer than so many updates of the matrix.
_FEW_EPOCHS, _MANY_EPOCHS, _UPDATES = 60, 300, 10_000_000
# A run ends when the error has not fallen, by this part of itself, for so many evaluations: of few
# held-out entries it goes up and down, and that of exact ALS falls by 1e-6 for ever.
_PATIENCE: Final = 5
_LEAST_FALL: Final = 1e-4
# Epochs of SGD between two evaluations.
_EVERY: Final = 2
_FEWEST_DOUBLINGS, _MOST_DOUBLINGS = -8, 6


class Setting(NamedTuple):
    """What all trials share.

    Attributes:
      objective: its regularization is not read.
      solver: a name in `solvers.SOLVERS`.
      work: how it works; in a trial on one device.
      rule: of its step size.
      rank: K, without bias columns.
      init: see `solver.initial_factors`.
      scale: likewise.
      prior: under the penalty `prior`: (entries, K, strength) -> what is expected of factors.
    """

    objective: Objective
    solver: str
    work: SolverConfig
    rule: StepSize
    rank: int
    init: str
    scale: float | None
    prior: Callable[[Entries, int, float], FactorPrior] | None = None


class Trial(NamedTuple):
    """One strength of a penalty, the number of epochs that served it best, the error then."""

    regularization: float
    epochs: int
    error: float
    penalty: str


def first_strength(objective: Objective, entries: Entries) -> float:
    """Where the search starts: what scales with values and penalty as the objective does.

    Of `root_l2` under a quadratic loss the root mean square of the (centred) values: on nine tenths
    of MovieLens-100K, MovieLens-1M and FilmTrust the best strength was 0.8 to 1.2 times that. Under
    the others, whose losses are of the first order in the values, or of labels, it is one. Of `l2`
    and `weighted_l2` it is as strong on a row with the average number of entries. What was learned
    (`prior`) is taken as it is.
    """
    if objective.penalty == "prior":
        return 1.0
    if objective.penalty == "none" or len(entries.values) == 0:
        return 0.0
    strength = root_mean_square(entries) if objective.record.quadratic else 1.0
    per_row = math.sqrt(2 * len(entries.values) / sum(entries.shape))
    return strength * {"l2": per_row, "weighted_l2": 1 / per_row}.get(objective.penalty, 1.0)


def root_mean_square(entries: Entries) -> float:
    """Of the values; one where all are zero."""
    return float(np.sqrt(np.mean(np.square(entries.values), dtype=np.float64))) or 1.0


def part(entries: Entries, seed: int, size: int = SAMPLE) -> tuple[Entries, Entries] | None:
    """(to train on, held out) of a sample of so many entries; None where there are too few."""
    rng = np.random.default_rng((seed, 5))
    sample = sample_entries(entries, rng, size)
    size = len(sample.values)
    if size < _FEWEST:
        return None
    order = rng.permutation(size)
    held = np.sort(order[: size // _PART]), np.sort(order[size // _PART :])
    taken = [
        Entries(sample.rows[at], sample.columns[at], sample.values[at], sample.shape) for at in held
    ]
    return taken[1], taken[0]


def run_trial(
    setting: Setting,
    regularization: float,
    train: Entries,
    held_out: Entries,
    most_epochs: int,
    stops: bool = True,
) -> Trial:
    """Runs with one strength while the held-out error falls, or all the epochs if it never `stops`.

    The error of a run that diverges is infinite.
    """
    objective = dataclasses.replace(setting.objective, regularization=regularization)
    work, rng = setting.work, np.random.default_rng(setting.work.seed)
    prior = setting.prior and setting.prior(train, setting.rank, regularization)
    terms = make_terms(objective, train, prior)
    factors = solver.initial_factors(
        objective, train, terms, setting.rank, rng, setting.init, setting.scale
    )
    method = solvers.make_solver(setting.solver, objective, train, work, prior, factors.u.shape[1])
    progress = solver.start(method, factors, setting.rule)
    every = _EVERY if SOLVERS[setting.solver].reads_step_size else 1
    every = every if stops else most_epochs
    best = Trial(regularization, 0, math.inf, objective.penalty)
    while progress.epoch < min(most_epochs, best.epochs + _PATIENCE * every):
        due = min(progress.epoch + every, most_epochs)
        try:
            while progress.epoch < due:
                progress = solver.advance(method, setting.rule, progress, due)
        except ValueError:
            break
        error = _error(objective, method.factors(progress.state), train, held_out)
        if best.error == math.inf or error < best.error - _LEAST_FALL * abs(best.error):
            best = best._replace(epochs=progress.epoch, error=error)
    return best


def _error(objective: Objective, factors: Factors, train: Entries, held_out: Entries) -> float:
    measured = measures.of_entries(objective.loss, factors, held_out, train)
    error = measures.error(objective.loss, measured) if measured else math.inf
    return error if math.isfinite(error) else math.inf


def search(trial_of: Callable[[float], Trial], start: float) -> list[Trial]:
    """Tries strengths around `start` until the least error is between others; best first."""
    tried: dict[float, Trial] = {}

    def error(doublings: float) -> float:
        if doublings not in tried:
            tried[doublings] = trial_of(start * 2.0**doublings)
        return tried[doublings].error

    for step in (1.0, 0.5):
        at = min(tried, key=error, default=0.0)
        for direction in (-step, step):
            while _FEWEST_DOUBLINGS <= at + direction <= _MOST_DOUBLINGS and error(
                at + direction
            ) < error(at):
                at += direction
    return sorted(tried.values(), key=lambda trial: trial.error)


def choose(
    setting: Setting,
    entries: Entries,
    regularization: float | None,
    epochs: int | None,
    num_entries: int | None = None,
    penalties: Sequence[str] = (),
) -> list[Trial]:
    """Chooses what is None of strength and number of epochs, and the penalty.

    Args:
      setting: what all trials share.
      entries: of the training, centred where the loss wants it.
      regularization: None to choose.
      epochs: None to choose.
      num_entries: of the whole matrix, where `entries` are a sample of it.
      penalties: tried besides that of the objective where strengths are chosen on the whole matrix.

    Returns:
      The trials, best first. Where there are fewer than 100 entries, or each diverges, the one that
      would have come first, with 20 epochs, and an error of NaN or infinity.
    """
    objective = setting.objective
    start = first_strength(objective, entries) if regularization is None else regularization
    untried = Trial(start, epochs or _UNTRIED_EPOCHS, math.nan, objective.penalty)
    slow = (
        SOLVERS[setting.solver].reads_step_size
        and block_update.choose_backend(setting.work.backend) != "numba"
    )
    parted = part(entries, setting.work.seed, _SMALL_SAMPLE if slow else SAMPLE)
    if parted is None:
        return [untried]
    train, held_out = parted
    work = dataclasses.replace(
        setting.work, num_devices=1, num_blocks=min(setting.work.num_blocks, *train.shape)
    )
    setting = setting._replace(work=work)
    most = _FEW_EPOCHS
    if epochs is not None:
        most = min(most, epochs)
    elif not slow:
        affordable = _UPDATES // (num_entries or len(entries.values))
        most = max(most, min(_MANY_EPOCHS, affordable))

    def trial_of(strength, setting=setting):
        return run_trial(setting, strength, train, held_out, most, stops=epochs is None)

    given = regularization is not None or objective.penalty == "none"
    trials = [trial_of(start)] if given else search(trial_of, start)
    whole = len(train.values) + len(held_out.values) == (num_entries or len(entries.values))
    for penalty in penalties if whole and not given else ():
        other = dataclasses.replace(objective, penalty=penalty)
        trial_of_other = functools.partial(trial_of, setting=setting._replace(objective=other))
        trials += search(trial_of_other, first_strength(other, entries))
    trials.sort(key=lambda trial: trial.error)
    return [untried._replace(error=math.inf)] if trials[0].error == math.inf else trials
