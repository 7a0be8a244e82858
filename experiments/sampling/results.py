"""What is told of all draws of a posterior, and their file."""

import shutil
from typing import Any

import numpy as np

from experiments import by_counts
from experiments.sampling.job import Job, Progress, Traces, some_cells
from metamf_jax import processes
from metamf_jax.posterior import chains, draws_file, ordinal, predictive

# Test cells whose intervals are looked at, and these.
_COVERED = 20_000
_INTERVAL = 0.05, 0.95
_FEWEST_DRAWS_OF_A_CHAIN = 4


def finish(job: Job, progress: Progress) -> dict[str, Any]:
    """Writes the draws and the summary."""
    config, log = job.config, job.log
    answers = progress.total / config.draws
    of_counts = by_counts.errors(job.matrix.train, job.matrix.test, answers)
    results: dict[str, Any] = {
        "test_rmse": job.rmse(progress.total, config.draws),
        **of_counts,
        "alpha": float(progress.traces.alpha.mean()),
        "draws": config.draws,
        "sweeps": progress.sweep,
        **_mixing(progress.traces),
    }
    if processes.is_first():
        named = _gathered(job)
        results["test_coverage_90"] = _coverage(job, named)
        results["test_log_score"] = _log_score(job, named)
    told = []
    if results["test_rmse"] is not None:
        told.append(f"RMSE {results['test_rmse']:.4f} on the test cells")
    if "r_hat_predictions" in results:
        told.append(f"largest R-hat of predictions {results['r_hat_predictions']:.3f}")
    told.append(f"wrote {job.result} and summary.json")
    for line in by_counts.told(of_counts):
        log.print(line)
    log.print("; ".join(told))
    return log.finish(results)


def _mixing(traces: Traces) -> dict[str, float]:
    """R-hat and effective sizes; of the watched cells the worst."""
    if traces.alpha.shape[1] < _FEWEST_DRAWS_OF_A_CHAIN:
        return {}
    found = {}
    for name, values in traces._asdict().items():
        found[f"r_hat_{name}"] = float(np.max(chains.r_hat(values)))
        found[f"effective_size_{name}"] = float(np.min(chains.effective_size(values)))
    return found


def _gathered(job: Job) -> draws_file.NamedDraws:
    """All draws, from the one file or the many; writes the one."""
    if job.result.exists():
        named = draws_file.load_draws(job.result)
    else:
        draws = draws_file.gather([job.path(n) for n in range(job.config.draws)])
        matrix = job.matrix
        named = draws_file.NamedDraws(draws, matrix.scale, *matrix.ids, job.recipes, matrix.groups)
        draws_file.save_draws(job.result, named)
    shutil.rmtree(job.log.workdir / "draws", ignore_errors=True)
    return named


def _coverage(job: Job, named: draws_file.NamedDraws) -> float | None:
    """The part of (at most `_COVERED`) test cells that lie in their 90% interval."""
    rows, columns, values, at = some_cells(job.matrix.test, job.matrix.test_effects, _COVERED)
    if len(values) == 0:
        return None
    found = predictive.predict(named.draws, named.scale, rows, columns, _INTERVAL, at)
    low, high = found.quantiles
    return float(((low <= values) & (values <= high)).mean())


def _log_score(job: Job, named: draws_file.NamedDraws) -> float | None:
    """Of (at most `_COVERED`) test cells' levels; None where there are none, or too many."""
    rows, columns, values, at = some_cells(job.matrix.test, job.matrix.test_effects, _COVERED)
    levels = job.matrix.levels
    if (
        levels is None
        or len(values) == 0
        or len(levels) > ordinal.MAX_LEVELS
        or not np.isin(values, levels).all()
    ):
        return None
    return predictive.log_score(named.draws, named.scale, levels, rows, columns, values, at)
