"""Samples the posterior of one large matrix, for ``experiments.factorize --solver=gibbs|dsgld``.

The chains' states, the sum of the draws' answers for the test cells and the traces by which mixing
is judged are a checkpoint; kept draws are files of their own in ``WORKDIR/draws`` until the end,
when they become ``draws.safetensors``, from which ``experiments.predict`` answers.
"""

import contextlib
import os
import pathlib
import time
from typing import Any

import numpy as np

from experiments import common
from experiments.sampling import matrix as matrices
from experiments.sampling import results
from experiments.sampling.config import Config
from experiments.sampling.job import Cells, Job, Progress, Traces
from metamf_jax import processes
from metamf_jax.factorization.factor_file import load_factors
from metamf_jax.posterior import chains, draws_file, entry_effects, fit, predictive, row_conditional
from metamf_jax.posterior.gibbs import State
from metamf_jax.runs.checkpoint import Checkpointer
from metamf_jax.runs.run_log import open_run_log
from metamf_jax.types import Factors


def run(
    config: Config,
    workdir: str | os.PathLike,
    data_dir: str | None = None,
    num_devices: int | None = None,
) -> dict[str, Any]:
    """Samples, or resumes, and scores; returns what ``summary.json`` holds.

    Of several processes the first alone reads and writes the workdir.

    Raises:
      ValueError: the data cannot be read or split, there is no room for the draws, or the workdir
        holds another configuration.
    """
    # A wrong number is refused before anything is read.
    _, lengths = config.model, config.lengths
    matrix = matrices.read(config, num_devices or 1, data_dir)
    if processes.is_first():
        matrices.require_room(config, matrix, pathlib.Path(workdir))
    log = open_run_log(workdir, "factorize", config)
    job = Job(config, matrix, *matrices.prepare(config, matrix, num_devices or 1, log), log)
    checkpointer = Checkpointer(workdir, log.print)
    progress = _start(job)
    restored = checkpointer.restore(progress)
    if restored is not None:
        progress = restored._replace(sweep=int(restored.sweep))
    log.resume_at(progress.sweep)
    log.start_progress(lengths.num_sweeps, progress.sweep, "sweep")
    return results.finish(job, _sample(job, progress, checkpointer))


def _start(job: Job) -> Progress:
    lengths = job.config.lengths
    of_chains = lengths.num_chains, lengths.num_draws // lengths.num_chains
    watched = len(job.watched.rows)
    traces = Traces(*(np.zeros((*of_chains, *rest)) for rest in ((), (), (watched,))))
    states = chains.init(job.data, job.config.model, lengths)
    if job.config.start is not None:
        factors = _factors_to_start_from(job.config.start, job.matrix.ids)
        states = [fit.start_from(state, factors, job.matrix.scale) for state in states]
    return Progress(0, states, np.zeros(len(job.matrix.test.values)), traces)


def _factors_to_start_from(path: str, ids: tuple[np.ndarray, np.ndarray]) -> Factors:
    """Those of a file, of the same rows and columns in the same order.

    Raises:
      ValueError: the file cannot be read, or has others.
    """
    factors, *there = load_factors(path)
    for side, own, found in zip(("row", "column"), ids, there, strict=True):
        if not np.array_equal(own, found):
            raise ValueError(
                f"{path}: expected factors of the {len(own)} {side}s of this matrix in their order,"
                f" got those of {len(found)}, some of which differ; factorize the same input"
            )
    return factors


def _sample(job: Job, progress: Progress, checkpointer: Checkpointer) -> Progress:
    """Runs the sweeps that are left, with an evaluation and a checkpoint every few."""
    config, log = job.config, job.log
    lengths = config.lengths
    every, seconds = config.evaluate_every or lengths.num_sweeps, []
    if processes.is_first() and progress.sweep < lengths.num_sweeps:
        (log.workdir / "draws").mkdir(exist_ok=True)
    left = chains.sweeps(progress.states, job.data, config.model, lengths, progress.sweep + 1)
    with common.until_checkpoint() as leave_if_asked, contextlib.closing(left):
        begin = time.perf_counter()
        for sweep, states in left:
            seconds.append(time.perf_counter() - begin)
            progress = progress._replace(sweep=sweep, states=states)
            due = sweep % every == 0 or sweep == lengths.num_sweeps
            answers = []
            if due or lengths.keeps(sweep):
                answers = [_answers(job, state) for state in states]
            if lengths.keeps(sweep):
                progress = _kept(job, progress, answers)
            log.advance()
            if due:
                log.metrics(sweep, _metrics(job, progress, answers, seconds))
                checkpointer.save(sweep, progress)
                leave_if_asked()
                seconds = []
            begin = time.perf_counter()
    return progress


def _kept(job: Job, progress: Progress, answers: list[np.ndarray]) -> Progress:
    """Writes the draws of a sweep, and adds them, and their answers, to what is told of all."""
    config = job.config
    at = (progress.sweep - config.burn_in) // config.thin - 1
    total, traces = progress.total, Traces(*(x.copy() for x in progress.traces))
    for chain, state in enumerate(progress.states):
        total = total + answers[chain]
        traces.alpha[chain, at] = state.alpha
        traces.norm[chain, at] = chains.norm_of_product(state)
        traces.predictions[chain, at] = _fitted(state, job.watched)
        if processes.is_first():
            draws_file.save_draw(job.path(at * config.chains + chain), state)
    return progress._replace(total=total, traces=traces)


def _answers(job: Job, state: State) -> np.ndarray:
    """One draw's for the test cells."""
    scale, test = job.matrix.scale, job.matrix.test
    return predictive.answers(state, scale, test.rows, test.columns, job.matrix.test_effects)


def _fitted(state: State, cells: Cells) -> np.ndarray:
    """The standardised (or latent) values of cells under one draw."""
    factors = state.rows.factors, state.columns.factors
    found = np.asarray(row_conditional.fitted(*factors, cells.rows, cells.columns))
    if cells.effects is None:
        return found
    return found + entry_effects.total(state.effects.values, cells.effects)


def _metrics(
    job: Job, progress: Progress, answers: list[np.ndarray], seconds: list[float]
) -> dict[str, float]:
    """A line of ``metrics.jsonl``; `seconds` are those of the sweeps since the last."""
    config, states = job.config, progress.states
    num_draws = max(0, progress.sweep - config.burn_in) // config.thin * config.chains
    errors = {
        "test_rmse": job.rmse(progress.total, num_draws),
        # Of the mean of this sweep's draws alone.
        "sweep_test_rmse": job.rmse(np.sum(answers, axis=0), len(states)),
    }
    return {
        **{name: value for name, value in errors.items() if value is not None},
        "alpha": float(np.mean([state.alpha for state in states])),
        "draws": num_draws,
        "sweep_seconds": sum(seconds) / len(seconds),
    }
