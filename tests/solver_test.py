"""What every run of a solver shares, with solvers whose objectives are given."""

import math

import numpy as np
import pytest

from metamf_jax.factorization import solver
from metamf_jax.factorization.solver import Solver
from metamf_jax.factorization.step_size import StepSize
from metamf_jax.types import Factors


def _given(objectives):
    """A solver whose state is the number of its epochs, with these objectives after each."""
    factors = Factors(np.zeros((1, 1), "f"), np.zeros((1, 1), "f"))
    return Solver(
        init=lambda factors: (0,),
        epochs=lambda state, epoch, step_sizes: ((*state, epoch), 1),
        objective=lambda state: objectives[state[-1]],
        factors=lambda state: factors,
    ), factors


def test_bold_driver_takes_back_what_diverged():
    method, start = _given([10.0, 8.0, 11.0, math.nan, 17.0, 7.0])
    trace = []
    _, end = solver.fit(method, start, StepSize("bold_driver", 1.0), 5, trace.append)
    # A rise by less than half is kept; NaN and one by more are not.
    assert [progress.state for progress in trace[2:]] == [
        (0, 1, 2),
        (0, 1, 2),
        (0, 1, 2),
        (0, 1, 2, 5),
    ]
    assert [p.finite_objective for p in trace] == [10, 8, 11, 11, 11, 7]
    assert math.isnan(trace[3].objective)
    assert trace[4].objective == 17
    steps = [1, 1.05, 0.525, 0.2625, 0.13125, 0.13125 * 1.05]
    np.testing.assert_allclose([p.step_size for p in trace], steps)
    assert end.epoch == 5


def test_a_constant_step_ends_at_nan_alone():
    method, start = _given([10.0, 1e33, math.nan])
    with pytest.raises(
        ValueError, match=r"nan after epoch 2: the steps diverged at step size 0\.5"
    ):
        solver.fit(method, start, StepSize("constant", 0.5), 2)
    with pytest.raises(ValueError, match="inf before the first epoch"):
        solver.start(_given([math.inf])[0], start, StepSize())


def test_several_epochs_are_run_up_to_the_next_evaluation():
    method, start = _given([10.0, math.nan, math.nan, math.nan, 7.0])
    rule, asked = StepSize("decay", 1.0, 1.0), []

    def epochs(state, epoch, step_sizes):
        asked.append(list(step_sizes))
        count = min(3, len(step_sizes))
        return (*state, *range(epoch, epoch + count)), count

    method = method._replace(epochs=epochs)
    progress = solver.advance(method, rule, solver.start(method, start, rule), 4)
    assert (progress.state, progress.epoch, progress.step_size) == ((0, 1, 2, 3), 3, 1 / 4)
    assert progress.objective == 10
    progress = solver.advance(method, rule, progress, 4)
    assert (progress.state, progress.epoch, progress.step_size) == ((0, 1, 2, 3, 4), 4, 1 / 5)
    assert progress.objective == progress.finite_objective == 7
    assert asked == [[1, 1 / 2, 1 / 3, 1 / 4], [1 / 4]]
    # A rule that reads the objective sees it after every epoch.
    rule = StepSize("bold_driver", 1.0)
    with_driver = solver.advance(method, rule, solver.start(method, start, rule), 4)
    assert (with_driver.epoch, with_driver.finite_objective) == (1, 10)
