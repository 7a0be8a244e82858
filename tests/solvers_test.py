"""The table of solvers: what it refuses, and a step size chosen on a sample."""

import pytest

from metamf_jax.factorization import solvers
from metamf_jax.factorization.losses import LOSSES
from metamf_jax.factorization.objective import Objective
from metamf_jax.factorization.solvers import SOLVERS, SolverConfig


def test_refusals_name_what_would_do():
    with pytest.raises(ValueError, match="'gkl'; solvers that serve it: sgd, psgd, dsgd"):
        solvers.check_solver(Objective("gkl"), "als")
    with pytest.raises(ValueError, match="expected a solver among sgd"):
        solvers.check_solver(Objective(), "adam")
    with pytest.raises(ValueError, match="number of conjugate gradients of at least 0, got -1"):
        SolverConfig(conjugate_steps=-1)


def test_losses_that_solvers_serve():
    served = {name: tuple(kind.losses) for name, kind in SOLVERS.items()}
    assert served == {
        "sgd": LOSSES,
        "als": ("squared", "squared_all"),
        "psgd": LOSSES,
        "dsgd": LOSSES,
        "lbfgs": ("squared", "squared_all", "logistic"),
    }
