"""What the data tell of a factorization: first step size, penalty and its strength, epochs."""

import dataclasses
import json
import math
import pathlib
from typing import NamedTuple

from experiments.solving.config import PENALTIES_TO_TRY, Config
from experiments.solving.matrix import Matrix
from metamf_jax import processes
from metamf_jax.factorization import held_out_choice, measures, solvers
from metamf_jax.factorization.solvers import SolverConfig
from metamf_jax.factorization.step_size import StepSize
from metamf_jax.runs.files import write_text
from metamf_jax.runs.run_log import RunLog

# Of AdaGrad, by the root of the values' root mean square, with which factors scale: on MovieLens-
# 100K and FilmTrust 0.05 and 0.08 reach the same RMSE, the larger in half the epochs; with 0.12 it
# is 0.4% higher.
_ADAGRAD_STEP = 0.07

# In the workdir, so that a run that goes on need not choose again.
_FILE = "chosen.json"


class Choice(NamedTuple):
    """What the data told.

    Attributes:
      step_size: the first.
      trials: of penalty, strength and epochs, the best first; none where all were given.
    """

    step_size: float
    trials: list[held_out_choice.Trial]

    def settled(self, config: Config) -> Config:
        """The configuration with the best trial's penalty, and its epochs where none are given."""
        if not self.trials:
            return config
        best = self.trials[0]
        return dataclasses.replace(
            config,
            penalty=best.penalty,
            regularization=best.regularization,
            epochs=best.epochs if config.epochs is None else config.epochs,
        )

    def told(self, config: Config) -> list[str]:
        """In lines for the log, what was not given."""
        lines = []
        if config.kind.reads_step_size and ":auto" in (config.step_size or ":auto"):
            lines.append(f"step size {self.step_size:g}, chosen from the data")
        if self.trials:
            best, error = self.settled(config), self.trials[0].error
            measure = measures.decisive(config.loss)
            how = f"by held-out {measure} ({abs(error):.4f}), of {len(self.trials)} trials"
            if not math.isfinite(error):
                why = (
                    "too few cells to hold some out" if math.isnan(error) else "all trials diverged"
                )
                how = f"not chosen, {why}"
            strength = f"{best.penalty}, regularization {best.regularization:.4g}"
            lines.append(f"penalty {strength}, epochs {best.epochs}: {how}")
        return lines


def choose(config: Config, matrix: Matrix, work: SolverConfig, workdir: pathlib.Path) -> Choice:
    """What an earlier start of this run chose, or what the data tell now, in the first process."""
    choice = None
    if processes.is_first():
        path = workdir / _FILE
        if path.exists():
            choice = json.loads(path.read_text(encoding="utf-8"))
        else:
            rule = _with_value(config, matrix, work)
            choice = rule.value, _trials(config, matrix, work, rule)
    step, trials = processes.from_first(choice)
    return Choice(step, [held_out_choice.Trial(*trial) for trial in trials])


def _with_value(config: Config, matrix: Matrix, work: SolverConfig) -> StepSize:
    """The rule with its first step size: from the values, on a sample (`auto`) or as given."""
    rule = config.rule
    if not config.kind.reads_step_size:
        return rule
    if config.step_size is None:
        return dataclasses.replace(rule, value=_ADAGRAD_STEP * matrix.spread**0.5)
    if ":auto" not in config.step_size:
        return rule
    init, _ = config.start
    return solvers.choose_step_size(
        config.objective, matrix.sample(50_000), config.rank, rule, work, init, matrix.scale
    )


def _trials(
    config: Config, matrix: Matrix, work: SolverConfig, rule: StepSize
) -> list[held_out_choice.Trial]:
    """Of penalty, strength and number of epochs, where one of them is not given."""
    if None not in (config.regularization, config.epochs):
        return []
    init, _ = config.start
    return held_out_choice.choose(
        held_out_choice.Setting(
            *(config.objective, config.solver, work, rule, config.rank, init, matrix.scale),
            matrix.prior and matrix.prior.factors,
        ),
        matrix.sample(held_out_choice.SAMPLE),
        config.regularization,
        config.epochs,
        matrix.num_points,
        PENALTIES_TO_TRY[1:] if config.penalty is None else (),
    )


def tell(choice: Choice, config: Config, work: SolverConfig, log: RunLog) -> None:
    """What was chosen: printed, and kept in the workdir."""
    for line in choice.told(config):
        log.print(line)
    if config.kind.takes_all_devices:
        log.print(f"{work.num_blocks} blocks a side, {work.num_devices} devices")
    path = log.workdir / _FILE
    if processes.is_first() and choice.trials and not path.exists():
        write_text(path, json.dumps(choice) + "\n")
