"""The table of solvers by name, and a step size chosen on a sample."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np

from metamf_jax.factorization import als, dsgd, parameter_mixing, solver, step_size
from metamf_jax.factorization.dsgd import DsgdConfig
from metamf_jax.factorization.losses import LOSSES, SMOOTH
from metamf_jax.factorization.objective import Objective, check_loss, make_terms
from metamf_jax.factorization.sgd import SgdConfig
from metamf_jax.factorization.solver import Solver
from metamf_jax.factorization.step_size import StepSize
from metamf_jax.types import Entries, FactorPrior

# Powers of two, the largest first: tried on a sample where no step size is given.
_CANDIDATES = tuple(2.0**-k for k in range(1, 12))
_SAMPLE_EPOCHS = 3


@dataclasses.dataclass(frozen=True)
class SolverConfig(DsgdConfig):
    """How any of the solvers works; each reads its part.

    Attributes:
      conjugate_steps: see `als.AlsConfig`.
    """

    conjugate_steps: int = 0

    def __post_init__(self):
        super().__post_init__()
        self.of_als()

    def of_als(self) -> als.AlsConfig:
        """What ALS reads."""
        return als.AlsConfig(self.conjugate_steps, self.num_devices, self.backend)


# Objective, entries, configuration, prior, width of the factors to come -> solver.
_Make = Callable[[Objective, Entries, SolverConfig, FactorPrior | None, int], Solver]


class Kind(NamedTuple):
    """What is particular to a solver.

    Attributes:
      told: what it is.
      title: its name in figures.
      losses: those that it serves.
      make: binds it to a matrix and an objective.
      reads_step_size: whether steps of SGD are what it takes.
      several_devices: whether more than one device serves it.
      several_processes: whether its workers may be spread over processes.
      from_store: whether it runs from a block store.
      sharded: whether each block is a worker's shard, so that more workers give other factors.
    """

    told: str
    title: str
    losses: Sequence[str]
    make: _Make
    reads_step_size: bool = False
    several_devices: bool = False
    several_processes: bool = False
    from_store: bool = False
    sharded: bool = False

    @property
    def takes_all_devices(self) -> bool:
        """Whether more devices do the same work in less time, and change no bit of it."""
        return self.several_devices and self.reads_step_size and not self.sharded


def _make_sgd(objective, entries, config, prior, width):
    return dsgd.make_solver(objective, entries, dsgd.one_block(config), prior, width)


def _make_als(objective, entries, config, prior, width):
    return als.make_solver(objective, entries, prior, config.of_als(), width)


def _make_mixing(objective, entries, config, prior, width):
    workers, devices = config.num_blocks, config.num_devices
    return parameter_mixing.make_solver(objective, entries, config, workers, devices, prior, width)


def _make_lbfgs(objective, entries, config, prior, width):
    del config, width
    # Not before it is wanted: optax takes a tenth of a second to import.
    from metamf_jax.factorization import lbfgs

    return lbfgs.make_solver(objective, entries, prior)


SOLVERS: Final = {
    "sgd": Kind(
        "stochastic gradient descent, one entry after the other",
        "SGD",
        LOSSES,
        _make_sgd,
        reads_step_size=True,
    ),
    "als": Kind(
        "alternating least squares, exact (Cholesky) or by conjugate gradients",
        "ALS",
        als.LOSSES,
        _make_als,
        several_devices=True,
    ),
    "psgd": Kind(
        "iterative parameter mixing over --blocks workers",
        "parameter mixing",
        LOSSES,
        _make_mixing,
        reads_step_size=True,
        several_devices=True,
        several_processes=True,
        sharded=True,
    ),
    "dsgd": Kind(
        "distributed SGD: strata in series, blocks in parallel",
        "DSGD",
        LOSSES,
        dsgd.make_solver,
        reads_step_size=True,
        several_devices=True,
        several_processes=True,
        from_store=True,
    ),
    "lbfgs": Kind("L-BFGS on the whole objective", "L-BFGS", SMOOTH, _make_lbfgs),
}


def check_solver(objective: Objective, name: str) -> None:
    """Refuses a loss that the solver cannot serve.

    Raises:
      ValueError: naming the losses the solver serves and the solvers that serve the loss.
    """
    if name not in SOLVERS:
        raise ValueError(f"expected a solver among {', '.join(SOLVERS)}, got {name!r}")
    try:
        check_loss(objective, name, SOLVERS[name].losses)
    except ValueError as error:
        others = [other for other, kind in SOLVERS.items() if objective.loss in kind.losses]
        raise ValueError(f"{error}; solvers that serve it: {', '.join(others)}") from None


def make_solver(
    name: str,
    objective: Objective,
    entries: Entries,
    config: SolverConfig,
    prior: FactorPrior | None = None,
    width: int = 32,
) -> Solver:
    """A solver by name, a key of `SOLVERS`; the other arguments are those of `dsgd.make_solver`.

    Of `config`, `sgd` ignores blocks and devices, `als` reads devices, backend and conjugate
    gradients, `lbfgs` nothing.

    Raises:
      ValueError: an unknown solver, or one that does not serve the loss; bad values or sizes.
    """
    check_solver(objective, name)
    return SOLVERS[name].make(objective, entries, config, prior, width)


def choose_step_size(
    objective: Objective,
    entries: Entries,
    rank: int,
    rule: StepSize,
    config: SgdConfig,
    init: str = "uniform",
    scale: float | None = None,
) -> StepSize:
    """The rule with the first step size that serves best on a sample of at least 50,000 entries.

    Each of 1/2, 1/4 .. 1/2048 runs three epochs of SGD on the sample; the lowest objective wins. A
    sample's rows have fewer entries than the matrix's; the penalty `prior` is read as no penalty.

    Args:
      objective: the objective.
      entries: of the matrix.
      rank: K, without bias columns.
      rule: its name and power are kept.
      config: backend, order and seed.
      init: see `solver.initial_factors`.
      scale: likewise.
    """
    if objective.penalty == "prior":
        objective = dataclasses.replace(objective, penalty="none")
    sample = step_size.sample_entries(entries, np.random.default_rng((config.seed, 3)))
    factors = solver.initial_factors(
        objective,
        sample,
        make_terms(objective, sample),
        rank,
        np.random.default_rng(config.seed),
        init,
        scale,
    )
    method = dsgd.make_solver(objective, sample, dsgd.one_block(config), None, factors.u.shape[1])
    start = method.init(factors)
    at_the_start = method.objective(start)

    # The largest step sizes overflow: that is what the sample is for.
    def worth(value):
        state = start
        for epoch in range(1, _SAMPLE_EPOCHS + 1):
            state = method.epoch(state, epoch, value)
        after = method.objective(state)
        return after if after < at_the_start else math.inf

    return dataclasses.replace(rule, value=step_size.choose(worth, _CANDIDATES))
