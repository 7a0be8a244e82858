"""Meta-trains priors for matrix factorization, and scores them on matrices never seen.

Claim: after meta-training on sub-matrices of one part of a data set, the prior and ten MAP steps
impute matrices from another part, which shares neither rows nor columns with the first, with less
error than the mean, the bias model and matrix factorization of each matrix alone.

    python -m experiments.train --dataset=ml100k --data_dir=DIR --preset=paper --workdir=runs/ml100k

The README has the expected numbers. ``metamf impute --weights=WORKDIR`` uses what this leaves.
"""

import dataclasses
import functools
import os
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import common, presets, protocol, shared_flags
from metamf_jax import plotting, processes
from metamf_jax.baselines import SIMPLE, make_method, tuning
from metamf_jax.data import sources
from metamf_jax.imputation.prior import FILE, LearnedPrior, TrainedOn, metadata
from metamf_jax.meta_learning import meta_loss, padding, training
from metamf_jax.meta_learning.episodes import entry_counts
from metamf_jax.meta_learning.meta_loss import Episode
from metamf_jax.metrics import mean_and_standard_error
from metamf_jax.runs.checkpoint import Checkpointer, save_params
from metamf_jax.runs.run_log import RunLog, open_run_log, read_metrics

_DATASET = shared_flags.dataset()
_SPLIT_SEED = flags.DEFINE_integer(
    "split_seed", 0, "Seed of the split of rows and columns, and of the fixed scored matrices."
)
_OVERRIDE = shared_flags.override()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(protocol.ProtocolConfig):
    """One meta-training run.

    The seed is that of initial parameters and of the episodes.

    Attributes:
      split_seed: of the split and of the scored matrices.
    """

    split_seed: int


def run(
    config: Config, workdir: str | os.PathLike, data_dir: str | None = None, plots: bool = True
) -> dict[str, Any]:
    """Meta-trains, or resumes, and scores; returns what ``summary.json`` holds.

    Of several processes the first alone scores, and reads and writes the workdir.

    Raises:
      ValueError: the data cannot be read or split, or the workdir holds another configuration.
    """
    entries = sources.load(config.dataset, data_dir, config.seed).entries
    split = protocol.draw_split(entries, config, config.split_seed, config.seed)
    log = open_run_log(workdir, "train", config)
    model = meta_loss.make_model(config.model)
    loss = functools.partial(meta_loss.episode_loss, model)
    trained_on = TrainedOn(
        split.parts.standardization,
        (float(entries.values.min()), float(entries.values.max())),
        (config.episodes.rows[1], config.episodes.columns[1]),
    )
    params = model.init(jax.random.key(config.seed))
    state = _meta_train(config, loss, params, trained_on, split, log)
    steps = {"best_step": int(state.best_step), "steps": int(state.step)}
    if not processes.is_first():
        return log.finish(steps)

    test_errors = training.make_evaluate(loss)(state.best_params, split.test)
    settings = {name: tuning.tune(make_method(name), split.validation) for name in SIMPLE}
    errors = {"metamf": test_errors, **_errors_of_simple(settings, split.test)}
    support_counts = entry_counts(split.test.support)
    if plots:
        levels = {
            name: float(of_method.mean())
            for name, of_method in _errors_of_simple(settings, split.validation).items()
        }
        _plot_learning(log, state, levels)
        path = log.plot_path("error_against_observations")
        plotting.error_against_observations(path, support_counts, errors)
        _plot_imputed_matrix(log, state, model, split.test, support_counts)
    _print_table(log, errors, support_counts)
    mse, stderr = mean_and_standard_error(test_errors)
    return log.finish(
        {
            "test_mse": mse,
            "test_mse_stderr": stderr,
            "validation_mse": float(state.best_validation),
            **{f"{name}_mse": float(errors[name].mean(dtype=np.float64)) for name in settings},
            "test_matrices": config.scored_matrices,
            "support_per_matrix": float(support_counts.mean()),
            "steps_per_second": _steps_per_second(workdir),
            **steps,
            "baseline_settings": settings,
        }
    )


def _meta_train(
    config: Config,
    loss: meta_loss.EpisodeLoss,
    params: meta_loss.MetaParams,
    trained_on: TrainedOn,
    split: protocol.Split,
    log: RunLog,
) -> training.MetaState:
    """Meta-trains from the newest checkpoint, or else from `params`, to the end.

    Leaves a checkpoint and, of the parameters kept, ``model.safetensors`` at each validation.
    """
    state = training.init_state(params, training.make_optimizer(config.training))
    checkpointer = Checkpointer(log.workdir, log.print)
    state = checkpointer.restore(state) or state
    log.resume_at(int(state.step))

    def on_evaluation(state: training.MetaState, metrics: dict[str, float]) -> None:
        step = int(state.step)
        log.metrics(step, metrics)
        if step == int(state.best_step) and processes.is_first():
            learned = LearnedPrior(config.model, state.best_params, trained_on)
            save_params(log.workdir / FILE, learned.params, metadata(learned))
        checkpointer.save(step, state)
        leave_if_asked()

    log.start_progress(config.training.max_steps, int(state.step), "step")
    with common.profiled(log.workdir), common.until_checkpoint() as leave_if_asked:
        return training.meta_train(
            loss,
            state,
            lambda step: split.source.draw_batch(step, config.training.batch),
            split.validation,
            config.training,
            on_evaluation,
            lambda step: log.advance(),
        )


def _errors_of_simple(settings: dict[str, Any], part: Episode) -> dict[str, np.ndarray]:
    """Errors on each matrix of the methods that learn nothing, with these settings."""
    return {
        name: tuning.episode_errors(make_method(name), part, setting)
        for name, setting in settings.items()
    }


def _steps_per_second(workdir: str | os.PathLike) -> float | None:
    """Between the first and the last validation, so that compilation does not count."""
    lines = read_metrics(workdir)
    if len(lines) < 2:
        return None
    first, last = lines[0], lines[-1]
    return (last["step"] - first["step"]) / max(last["seconds"] - first["seconds"], 1e-9)


def _plot_learning(log: RunLog, state: training.MetaState, levels: dict[str, float]) -> None:
    lines = read_metrics(log.workdir)
    plotting.learning_curve(
        log.plot_path("learning_curve"),
        [line["step"] for line in lines],
        [line["train_loss"] for line in lines],
        [line["validation_mse"] for line in lines],
        int(state.best_step),
        levels,
    )


def _plot_imputed_matrix(
    log: RunLog,
    state: training.MetaState,
    model: meta_loss.Model,
    test: Episode,
    counts: np.ndarray,
) -> None:
    # The fullest matrix has the most to look at.
    shown = jax.tree.map(lambda leaf: leaf[int(counts.argmax())], test)
    factors, prior = jax.jit(model.adapt)(state.best_params, shown.support)
    observed, held_out = padding.pad_dense(shown.support), padding.pad_dense(shown.query)
    truth = np.where(observed.observed, observed.values, held_out.values)
    known = np.asarray(observed.observed | held_out.observed)
    # A smaller matrix than the batch's largest ends in padding.
    inside = np.ix_(known.any(axis=1), known.any(axis=0))
    plotting.imputed_matrix(
        log.plot_path("imputed_matrix"),
        np.where(known, truth, np.nan)[inside],
        np.asarray(observed.observed)[inside],
        (np.asarray(prior.u) @ np.asarray(prior.v).T)[inside],
        (np.asarray(factors.u) @ np.asarray(factors.v).T)[inside],
    )


def _print_table(log: RunLog, errors: dict[str, np.ndarray], counts: np.ndarray) -> None:
    log.print(
        f"\nQuery MSE on {len(counts)} unseen matrices (standardised units; "
        f"{counts.mean():.1f} observed entries each)"
    )
    log.print(f"{'method':<10}{'MSE':>9}{'stderr':>9}   difference to metamf (paired)")
    for name, values in errors.items():
        mean, stderr = mean_and_standard_error(values)
        line = f"{name:<10}{mean:>9.4f}{stderr:>9.4f}"
        if name != "metamf":
            difference, error = mean_and_standard_error(values - errors["metamf"])
            line += f"   {difference:+.4f} +- {error:.4f}"
        log.print(line)
    log.print(f"\nwrote {log.workdir / 'summary.json'}, model.safetensors and plots/")


def config_from_flags() -> Config:
    """The configuration that the flags ask for."""
    return Config(
        dataset=_DATASET.value,
        preset=common.PRESET.value,
        seed=common.SEED.value,
        split_seed=_SPLIT_SEED.value,
        **presets.overridden(presets.TRAIN[common.PRESET.value], _OVERRIDE.value),
    )


def main() -> None:
    if common.WORKDIR.value is None:
        raise ValueError("--workdir is needed: the folder for the run's files")
    run(config_from_flags(), common.WORKDIR.value, common.DATA_DIR.value)


if __name__ == "__main__":
    common.run_main(main, several_processes=True)
