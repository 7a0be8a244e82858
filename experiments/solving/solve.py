"""Factorizes one matrix, for ``experiments.factorize``: choice, epochs, checkpoints, result."""

import dataclasses
import os
import pathlib
import time
from typing import Any, NamedTuple

import numpy as np

from experiments import by_counts, common
from experiments.solving import choice as choices
from experiments.solving import matrix as matrices
from experiments.solving.choice import Choice
from experiments.solving.config import Config
from experiments.solving.matrix import Matrix
from metamf_jax import processes, sums
from metamf_jax.factorization import dsgd, measures, solver, solvers
from metamf_jax.factorization.block_store import BlockStore
from metamf_jax.factorization.factor_file import save_factors
from metamf_jax.factorization.solver import Progress
from metamf_jax.factorization.solvers import SolverConfig
from metamf_jax.factorization.step_size import StepSize
from metamf_jax.runs.checkpoint import Checkpointer
from metamf_jax.runs.run_log import RunLog, open_run_log, read_metrics
from metamf_jax.types import Factors


class _Standing(NamedTuple):
    """What a checkpoint holds: where the run stands, and whether early stopping ended it there."""

    progress: Progress
    stopped: bool = False


class _Job(NamedTuple):
    """What stays the same from epoch to epoch."""

    config: Config
    matrix: Matrix
    method: solver.Solver
    rule: StepSize
    log: RunLog


def run(
    config: Config,
    workdir: str | os.PathLike,
    data_dir: str | None = None,
    num_devices: int | None = None,
    checkpoint_seconds: float = 30.0,
) -> dict[str, Any]:
    """Factorizes, or resumes, and scores; returns what ``summary.json`` holds.

    Of several processes the first alone reads and writes the workdir.

    Args:
      config: the factorization; what is None in it is chosen from the data.
      workdir: for the run's files.
      data_dir: of the rating sets.
      num_devices: None for as many as divide the blocks, where they change nothing, and else one.
      checkpoint_seconds: between two checkpoints; 0 for one with each evaluation.

    Raises:
      ValueError: the data cannot be read or split, loss and solver do not go together, the solver
        does not run in several processes or from a store, the steps diverged, or the workdir holds
        another configuration.
    """
    config.check(processes.count())
    config, work, matrix = matrices.read(config, num_devices, data_dir)
    choice = choices.choose(config, matrix, work, pathlib.Path(workdir))
    settled = choice.settled(config)
    method, factors = _solver(settled, matrix, work)
    log = open_run_log(workdir, "factorize", config)
    choices.tell(choice, config, work, log)
    rule = dataclasses.replace(config.rule, value=choice.step_size)
    job = _Job(settled, matrix, method, rule, log)
    start = solver.start(method, factors, rule)
    del factors
    checkpointer = Checkpointer(workdir, log.print)
    standing = _restored(checkpointer, start)
    log.resume_at(standing.progress.epoch)
    log.start_progress(settled.epochs or 0, standing.progress.epoch, "epoch")
    return _finish(job, _train(job, standing, checkpointer, checkpoint_seconds), choice)


def _solver(config: Config, matrix: Matrix, work: SolverConfig) -> tuple[solver.Solver, Factors]:
    """Bound to the matrix, and the factors it starts from."""
    objective = config.objective
    prior = matrix.factor_prior(config.rank, objective.regularization)
    terms = matrix.terms(objective, prior)
    init, _ = config.start
    factors = solver.initial_factors(
        objective,
        matrix.in_memory,
        terms,
        config.rank,
        np.random.default_rng(config.seed),
        init,
        matrix.scale,
    )
    if isinstance(matrix.train, BlockStore):
        return dsgd.solve_blocks(objective, matrix.train, work, terms), factors
    width = factors.u.shape[1]
    train = matrix.train
    return solvers.make_solver(config.solver, objective, train, work, prior, width), factors


def _restored(checkpointer: Checkpointer, start: Progress) -> _Standing:
    """Where a run that was cut short stands, or the start."""
    restored = checkpointer.restore(_Standing(start))
    if restored is None:
        return _Standing(start)
    progress = restored.progress._replace(
        epoch=int(restored.progress.epoch),
        step_size=float(restored.progress.step_size),
        objective=float(restored.progress.objective),
        finite_objective=float(restored.progress.finite_objective),
        seconds=float(restored.progress.seconds),
    )
    return _Standing(progress, bool(restored.stopped))


def _train(
    job: _Job, standing: _Standing, checkpointer: Checkpointer, checkpoint_seconds: float
) -> Progress:
    """Runs the epochs that are left, with an evaluation every few and checkpoints in between."""
    config, rule, log = job.config, job.rule, job.log
    progress, stopped = standing
    last = config.epochs or 0
    every = config.evaluate_every or last
    before, seconds, saved = progress.finite_objective, [], time.monotonic()
    with common.until_checkpoint() as leave_if_asked:
        while progress.epoch < last and not stopped:
            used, done = progress.step_size, progress.epoch
            due = min(done - done % every + every, last)
            progress = solver.advance(job.method, rule, progress, due)
            seconds += [progress.seconds] * (progress.epoch - done)
            log.advance(progress.epoch - done)
            evaluated = progress.epoch == due
            if evaluated:
                if not rule.reads_objective:
                    used = rule.after(progress.epoch - 1, used, 0.0, 0.0)
                log.metrics(progress.epoch, _metrics(job, progress, used, seconds))
                fall = before - progress.objective
                before, seconds = progress.finite_objective, []
                stopped = config.early_stopping is not None and 0 <= fall < (
                    config.early_stopping * (progress.objective + fall)
                )
            wanted = (evaluated or checkpoint_seconds > 0) and processes.from_first(
                time.monotonic() - saved >= checkpoint_seconds
            )
            if wanted or stopped or progress.epoch == last or common.asked_to_end():
                checkpointer.save(progress.epoch, _Standing(progress, stopped))
                saved = time.monotonic()
                leave_if_asked()
    return progress


def _metrics(
    job: _Job, progress: Progress, step_size_used: float, seconds: list[float]
) -> dict[str, float]:
    """A line of ``metrics.jsonl``; `seconds` are those of the epochs since the last."""
    return {
        "objective": progress.objective,
        **_measured(job, progress.state),
        **({"step_size": step_size_used} if job.config.kind.reads_step_size else {}),
        "epoch_seconds": sum(seconds) / len(seconds),
        "epochs": len(seconds),
        "updates_per_second": job.matrix.num_points / max(min(seconds), 1e-9),
    }


def _measured(job: _Job, state: Any) -> dict[str, float]:
    """The loss's measures: ``train_rmse``, and in the first process ``test_rmse``, and so on."""
    method, matrix, loss = job.method, job.matrix, job.config.loss
    factors = method.factors(state)
    if loss == "squared" and method.squared_error is not None:
        mean = method.squared_error(state) / matrix.num_points
        training = {"rmse": float(np.sqrt(mean))}
    else:
        training = measures.of_entries(loss, factors, matrix.in_memory)
    measured = {f"train_{name}": value for name, value in training.items()}
    if processes.is_first():
        whole = matrix.whole(job.config.objective, factors)
        known = None if isinstance(matrix.train, BlockStore) else matrix.in_memory
        tests = measures.of_entries(loss, whole, matrix.test, known)
        measured.update((f"test_{name}", value) for name, value in tests.items())
    return measured


def _finish(job: _Job, progress: Progress, choice: Choice) -> dict[str, Any]:
    """Writes factors and summary."""
    matrix, workdir = job.matrix, job.log.workdir
    measured = _measured(job, progress.state)
    factors = matrix.whole(job.config.objective, job.method.factors(progress.state))
    path = workdir / "factors.safetensors"
    if processes.is_first():
        save_factors(path, factors, *matrix.ids)
    lines = read_metrics(workdir) if processes.is_first() else []
    decisive = f"test_{measures.decisive(job.config.loss)}"
    tests = [line[decisive] for line in lines if decisive in line]
    of_counts = {}
    if processes.is_first() and "test_rmse" in measured:
        test = matrix.test
        answers = np.asarray(sums.predict(factors, test.rows, test.columns))
        of_counts = by_counts.errors(matrix.train, test, answers)
    results = {
        "objective": progress.finite_objective,
        decisive: None,
        **measured,
        **of_counts,
        f"best_{decisive}": measures.best(measures.decisive(job.config.loss), tests),
        "epochs": progress.epoch,
        "regularization": job.config.regularization,
        "step_size": job.rule.value if job.config.kind.reads_step_size else None,
        "trials": [trial._asdict() for trial in choice.trials],
        "seconds_training": sum(line["epoch_seconds"] * line["epochs"] for line in lines),
        # The first epoch compiles.
        "updates_per_second": max((line["updates_per_second"] for line in lines), default=None),
    }
    for line in by_counts.told(of_counts):
        job.log.print(line)
    told = [f"{name.replace('_', ' ')} {value:.4f}" for name, value in measured.items()]
    job.log.print(
        f"objective {results['objective']:.6g}, {', '.join(told)}; wrote {path} and summary.json"
    )
    return job.log.finish(results)
