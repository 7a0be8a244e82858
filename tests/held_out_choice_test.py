"""Strength and epochs chosen by held-out entries: the search, single trials, and the whole."""

import dataclasses
import math

import numpy as np
import pytest

from metamf_jax.factorization import held_out_choice
from metamf_jax.factorization.held_out_choice import Setting, Trial
from metamf_jax.factorization.objective import Objective
from metamf_jax.factorization.solvers import SolverConfig
from metamf_jax.factorization.step_size import StepSize
from metamf_jax.types import Entries

N, M = 60, 40


def noisy_entries(noise, count=1500, seed=0):
    """Entries of a matrix of rank 2 and variance 1, plus noise."""
    rng = np.random.default_rng(seed)
    u, v = rng.normal(size=(N, 2)), rng.normal(size=(M, 2)) / 2**0.5
    cells = rng.permutation(N * M)[:count]
    rows, columns = (x.astype("i") for x in np.divmod(cells, M))
    values = (u[rows] * v[columns]).sum(axis=1) + noise * rng.normal(size=count)
    return Entries(rows, columns, values.astype("f"), (N, M))


def setting(solver="dsgd", blocks=1, **changes):
    rule = StepSize("adagrad", 0.1) if solver == "dsgd" else StepSize("constant")
    work = SolverConfig(blocks, per_row=rule.per_row, backend="xla")
    objective = Objective(**{"penalty": "root_l2", **changes})
    return Setting(objective, solver, work, rule, 4, "uniform", None)


@pytest.mark.parametrize("best", [-2.5, 0, 0.5, 3])
def test_the_search_ends_at_the_least_error(best):
    asked = []

    def trial(strength):
        asked.append(strength)
        return Trial(strength, 5, (math.log2(strength / 3) - best) ** 2, "root_l2")

    trials = held_out_choice.search(trial, 3.0)
    assert trials[0].regularization == pytest.approx(3 * 2**best)
    assert trials == sorted(trials, key=lambda t: t.error)
    assert len(asked) == len(set(asked)) == len(trials) <= 10


def test_noise_wants_a_stronger_penalty_and_the_choice_is_the_seed_s():
    chosen = [
        held_out_choice.choose(setting(), noisy_entries(noise), None, 10)[0] for noise in (0.1, 2.0)
    ]
    assert chosen[1].regularization > 3 * chosen[0].regularization
    assert {trial.epochs for trial in chosen} == {10}
    again = held_out_choice.choose(setting(), noisy_entries(0.1), None, 10)[0]
    assert again == chosen[0]


def test_a_run_ends_where_the_held_out_error_is_least():
    train, held_out = held_out_choice.part(noisy_entries(2.0), seed=0)
    assert len(held_out.values) == 150
    assert len(train.values) == 1350
    early = held_out_choice.run_trial(setting(), 0.01, train, held_out, 60)
    assert 0 < early.epochs < 30
    late = held_out_choice.run_trial(setting(), 0.01, train, held_out, 40, stops=False)
    assert late.epochs == 40
    assert early.error < late.error


def test_what_is_given_is_not_chosen():
    entries = noisy_entries(1.0)
    (trial,) = held_out_choice.choose(setting(), entries, 0.3, None)
    assert trial.regularization == 0.3
    assert trial.epochs > 0
    (trial,) = held_out_choice.choose(setting(penalty="none"), entries, None, None)
    assert trial.regularization == 0
    few = noisy_entries(1.0, count=50)
    (trial,) = held_out_choice.choose(setting(), few, None, None)
    assert math.isnan(trial.error)
    assert trial.epochs > 0


def test_the_first_strength_goes_with_values_and_counts():
    entries = noisy_entries(1.0)
    twice = dataclasses.replace(entries, values=2 * entries.values)

    def first(penalty, entries=entries, loss="squared"):
        return held_out_choice.first_strength(Objective(loss, penalty), entries)

    assert first("root_l2", twice) == pytest.approx(2 * first("root_l2"))
    assert first("l2") * first("weighted_l2") == pytest.approx(first("root_l2") ** 2)
    assert first("root_l2", loss="absolute") == first("root_l2", twice, loss="absolute") == 1


def test_the_penalty_is_chosen_where_the_whole_matrix_is_tried():
    entries = noisy_entries(1.0)
    alone = held_out_choice.choose(setting(), entries, None, 10)
    both = held_out_choice.choose(setting(), entries, None, 10, penalties=("l2",))
    assert {trial.penalty for trial in both} == {"root_l2", "l2"}
    assert both[0].error == min(trial.error for trial in both)
    assert [trial for trial in both if trial.penalty == "root_l2"] == alone
    of_sample = held_out_choice.choose(setting(), entries, None, 10, 10**6, ("l2",))
    given = held_out_choice.choose(setting(), entries, 0.3, None, penalties=("l2",))
    assert {trial.penalty for trial in of_sample + given} == {"root_l2"}


def test_where_each_trial_diverges_nothing_is_chosen():
    wild = setting()._replace(rule=StepSize("constant", 1e6))
    (trial,) = held_out_choice.choose(wild, noisy_entries(1.0), None, None)
    assert trial.error == math.inf
    assert trial.epochs > 0
