"""The configuration of one factorization, and what its words mean."""

import dataclasses

from metamf_jax.factorization import solvers
from metamf_jax.factorization.objective import Objective
from metamf_jax.factorization.solvers import SOLVERS
from metamf_jax.factorization.step_size import StepSize, parse

# Where none is given; the first where there is no trying.
PENALTIES_TO_TRY = ("root_l2", "l2")
# Of `--als_solver=cg`.
_CONJUGATE_STEPS = 3


@dataclasses.dataclass(frozen=True)
class Config:
    """One factorization; the names are those of the flags.

    `blocks` decides the result, the number of devices does not, so that it is no part of it.
    `penalty`, `regularization`, `epochs`, `step_size` and `blocks` are None where the data are to
    tell them.
    """

    dataset: str = "synthetic"
    test_input: str | None = None
    split: str = "random"
    fold: str = "u1"
    test_fraction: float = 0.1
    solver: str = "dsgd"
    loss: str = "squared"
    penalty: str | None = "weighted_l2"
    prior: str | None = None
    regularization: float | None = 0.05
    biases: bool = False
    rank: int = 32
    epochs: int | None = 20
    early_stopping: float | None = None
    evaluate_every: int = 1
    init: str = "uniform"
    step_size: str | None = "bold_driver:auto"
    schedule: str = "wor"
    point_order: str = "blocks"
    blocks: int | None = 1
    backend: str = "auto"
    block_store: str | None = None
    als_solver: str | None = None
    seed: int = 0

    @property
    def kind(self) -> solvers.Kind:
        """What is particular to the solver."""
        return SOLVERS[self.solver]

    @property
    def objective(self) -> Objective:
        """What is minimised; penalty and strength may be chosen later."""
        penalty = self.penalty or PENALTIES_TO_TRY[0]
        return Objective(self.loss, penalty, self.regularization or 0.0, self.biases)

    @property
    def start(self) -> tuple[str, float | None]:
        """How factors start, and their scale; None for the default.

        Raises:
          ValueError: the scale is no number.
        """
        name, _, scale = self.init.partition(":")
        try:
            return name, float(scale) if scale else None
        except ValueError:
            raise ValueError(f"expected an init as NAME[:SCALE], got {self.init!r}") from None

    @property
    def rule(self) -> StepSize:
        """The rule for the step size, whose value may be chosen later.

        Raises:
          ValueError: there is no such rule.
        """
        text = "adagrad" if self.step_size is None else self.step_size
        rule = parse(text.replace(":auto", ""))
        if not self.kind.reads_step_size:
            # A bold driver would want the objective after every epoch.
            return StepSize("constant")
        return rule

    @property
    def conjugate_steps(self) -> int:
        """Of ALS; 0 for Cholesky.

        Raises:
          ValueError: it is neither.
        """
        if self.als_solver in (None, "cholesky"):
            return 0
        name, _, steps = self.als_solver.partition(":")
        steps = steps or str(_CONJUGATE_STEPS)
        if name != "cg" or not steps.isdecimal() or int(steps) == 0:
            raise ValueError(
                f"expected an ALS solver as cholesky or cg[:STEPS], got {self.als_solver!r}"
            )
        return int(steps)

    def check(self, num_processes: int) -> None:
        """Refuses what does not go together, before anything is read.

        Raises:
          ValueError: loss and solver do not go together, or a prior with the rest; the solver does
            not run in so many processes; or the start or the steps are not understood.
        """
        solvers.check_solver(self.objective, self.solver)
        self._check_prior()
        _ = self.rule, self.start
        if num_processes > 1 and not self.kind.several_processes:
            raise ValueError(
                f"the solver {self.solver!r} runs in one process, but there are"
                f" {num_processes}; take --solver=dsgd or psgd, or start one process"
            )

    def _check_prior(self) -> None:
        """Refuses a learned prior where it has no meaning; or the penalty without one."""
        if self.prior is None and self.penalty != "prior":
            return
        found = self.penalty, self.loss, self.biases
        if self.prior is None or found != ("prior", "squared", True):
            raise ValueError(
                "a learned prior (--prior) is the penalty `prior` of the loss squared with biases,"
                f" got --prior={self.prior}, --penalty={self.penalty}, --loss={self.loss} and"
                f" --{'' if self.biases else 'no'}biases"
            )
