"""The table of solvers by name, and a step size chosen on a sample."""

import dataclasses
import math
from typing import Final

import numpy as np

from metamf_jax.factorization import als, dsgd, lbfgs, parameter_mixing, solver, step_size
from metamf_jax.factorization.dsgd import DsgdConfig
from metamf_jax.factorization.objective import Objective, check_solver, make_terms
from metamf_jax.factorization.solver import Solver
from metamf_jax.factorization.step_size import StepSize
from metamf_jax.types import Entries, FactorPrior

SOLVERS: Final = {
    "sgd": "stochastic gradient descent, one point after the other",
    "als": "alternating least squares, exact (Cholesky)",
    "psgd": "iterative parameter mixing over --blocks workers",
    "dsgd": "distributed SGD: strata in series, blocks in parallel",
    "lbfgs": "L-BFGS on the whole objective",
}

# Those that read a step size.
STEPPED: Final = ("sgd", "psgd", "dsgd")

# Powers of two, the largest first: tried on a sample where no step size is given.
_CANDIDATES = tuple(2.0**-k for k in range(1, 12))
_SAMPLE_EPOCHS = 3


def make_solver(
    name: str,
    objective: Objective,
    entries: Entries,
    config: DsgdConfig,
    prior: FactorPrior | None = None,
    width: int = 32,
) -> Solver:
    """A solver by name, a key of `SOLVERS`; the other arguments are those of `dsgd.make_solver`.

    Of `config`, `sgd` ignores blocks and devices, `als` reads devices and backend, `lbfgs` nothing.

    Raises:
      ValueError: an unknown solver, or one that does not serve the loss; bad values or sizes.
    """
    check_solver(objective, name)
    match name:
        case "als":
            return als.make_solver(
                objective,
                entries,
                prior,
                width=width,
                num_devices=config.num_devices,
                backend=config.backend,
            )
        case "lbfgs":
            return lbfgs.make_solver(objective, entries, prior)
        case "psgd":
            return parameter_mixing.make_solver(
                objective, entries, config, config.num_blocks, config.num_devices, prior, width
            )
        case "sgd":
            config = dataclasses.replace(config, num_blocks=1, num_devices=1)
    return dsgd.make_solver(objective, entries, config, prior, width)


def choose_step_size(
    objective: Objective,
    entries: Entries,
    rank: int,
    rule: StepSize,
    config: DsgdConfig,
    init: str = "uniform",
    scale: float | None = None,
) -> StepSize:
    """The rule with the first step size that serves best on a sample of at least 50,000 points.

    Each of 1/2, 1/4 .. 1/2048 runs three epochs of SGD on the sample; the lowest objective wins. A
    sample's rows have fewer points than the matrix's; the penalty `prior` is read as no penalty.

    Args:
      objective: the objective.
      entries: the points.
      rank: K, without bias columns.
      rule: its name and power are kept.
      config: backend, order and seed.
      init: see `solver.initial_factors`.
      scale: likewise.
    """
    if objective.penalty == "prior":
        objective = dataclasses.replace(objective, penalty="none")
    sample = step_size.sample_entries(entries, np.random.default_rng((config.seed, 3)))
    # The largest step sizes overflow: that is what the sample is for.
    config = dataclasses.replace(config, num_blocks=1, num_devices=1)
    factors = solver.initial_factors(
        objective,
        sample,
        make_terms(objective, sample),
        rank,
        np.random.default_rng(config.seed),
        init,
        scale,
    )
    method = dsgd.make_solver(objective, sample, config, width=factors.u.shape[1])

    def objective_after(value):
        state = method.init(factors)
        for epoch in range(1, _SAMPLE_EPOCHS + 1):
            state = method.epoch(state, epoch, value)
        return method.objective(state)

    start = method.objective(method.init(factors))

    def worth(value):
        after = objective_after(value)
        return after if after < start else math.inf

    return dataclasses.replace(rule, value=step_size.choose(worth, _CANDIDATES))
