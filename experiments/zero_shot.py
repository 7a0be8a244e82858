"""Measures learned priors on real rating matrices that nothing of was learned.

Claim: a prior learned from synthetic worlds of ratings is near one learned in the domain.

    python -m experiments.zero_shot --weights=ratings,general --splits=2 --data_dir=DIR \\
        --workdir=runs/zero-shot
    python -m experiments.zero_shot --weights=ratings --cuts=20 --data_dir=DIR --workdir=runs/cuts

On the test matrices of the protocol: mean squared error in the units of `compare_methods`, with
values standardised by the meta-train part of the set, as all methods there have them, and by the
matrix's own support alone. With --cuts, on popular cuts of rating sets (30 to 150 on a side, a
fifth of the ratings held out): squared error beside that of draws of the posterior under the
learned hyperprior, and of the mean of the two answers.
"""

import dataclasses
import os
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import common, presets, protocol
from experiments.protocol import ProtocolConfig
from experiments.rating_cuts import RATING_SETS, rating_cut, rating_set
from metamf_jax import sums
from metamf_jax.data import sources
from metamf_jax.imputation import sampled, scaling
from metamf_jax.imputation.prior import LearnedPrior, load_prior
from metamf_jax.meta_learning import padding
from metamf_jax.meta_learning.meta_loss import Episode, episode_loss, make_model
from metamf_jax.meta_learning.training import make_evaluate
from metamf_jax.runs.run_log import RunLog
from metamf_jax.types import Entries

_WEIGHTS = flags.DEFINE_list("weights", ["general"], "Names or files of learned priors.")
_SETS = flags.DEFINE_list("sets", ["ml100k", "ml1m", "jester"], "Rating sets of the protocol.")
_SPLITS = flags.DEFINE_integer("splits", 2, "Random splits of the protocol.", lower_bound=0)
_CUTS = flags.DEFINE_integer("cuts", 0, "Cuts of each set and side.", lower_bound=0)
_SIDES = flags.DEFINE_multi_integer("side", [30, 60, 100], "Of the cuts; may be repeated.")
_CUT_SETS = flags.DEFINE_list("cut_sets", list(RATING_SETS), "Rating sets that are cut.")
_DRAWS = flags.DEFINE_bool("draws", True, "Whether draws of the posterior are compared with.")


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured; see the flags."""

    weights: tuple[str, ...]
    sets: tuple[str, ...]
    splits: int
    cut_sets: tuple[str, ...]
    sides: tuple[int, ...]
    cuts: int
    draws: bool = True
    seed: int = 0


def protocol_errors(prior: LearnedPrior, test: Episode) -> dict[str, np.ndarray]:
    """Mean squared errors [B] on the protocol's matrices, in their units.

    Returns:
      ``set``: of values as they come; ``own``: of values standardised by each support.
    """
    model = make_model(prior.config)
    evaluate = make_evaluate(lambda params, episode: episode_loss(model, params, episode))
    own, deviations = _standardised_by_support(test)
    return {
        "set": evaluate(prior.params, test),
        "own": evaluate(prior.params, own) * deviations**2,
    }


def _standardised_by_support(test: Episode) -> tuple[Episode, np.ndarray]:
    """The same matrices in units of their own, and these [B]; 1 where all values are equal."""
    assert isinstance(test.support, Entries)
    inside = test.support.rows < test.support.shape[0]
    counts = np.maximum(inside.sum(axis=1), 1)
    means = (test.support.values * inside).sum(axis=1) / counts
    squares = (((test.support.values - means[:, None]) ** 2) * inside).sum(axis=1)
    deviations = np.sqrt(squares / np.maximum(counts - 1, 1))
    deviations = np.where(deviations > 0, deviations, 1).astype(np.float32)

    def in_own_units(part: Entries) -> Entries:
        values = (part.values - means[:, None].astype(np.float32)) / deviations[:, None]
        return dataclasses.replace(part, values=np.where(part.rows < part.shape[0], values, 0))

    return Episode(in_own_units(test.support), in_own_units(test.query)), deviations


def answer(prior: LearnedPrior, train: Entries, test: Entries) -> np.ndarray:
    """Predictions [Q] at the test's cells of one matrix, standardised by its training cells."""
    measured = scaling.fit_scaling(train, "matrix")
    standardised = scaling.standardize(train, measured)
    side = padding.bucket_size(max(train.shape), 30)
    batch = padding.stack_entries(
        [standardised], (side, side), padding.bucket_size(len(train.rows), 128)
    )
    factors = _adapted(prior.config, prior.params, jax.tree.map(lambda x: x[0], batch))
    u, v = (np.asarray(side) for side in factors)
    predicted = (u[test.rows] * v[test.columns]).sum(axis=1)
    values = measured.centers[0] + measured.scales[0] * predicted
    return np.clip(values, train.values.min(), train.values.max())


def _adapt(config, params, observations):
    return make_model(config).adapt(params, observations)[0]


_adapted = jax.jit(_adapt, static_argnums=0)


def cut_errors(
    priors: dict[str, LearnedPrior], train: Entries, test: Entries, with_draws: bool
) -> dict[str, float]:
    """Mean squared errors of one cut by method, in units of its training cells' variance."""
    answers = {name: answer(prior, train, test) for name, prior in priors.items()}
    if with_draws:
        found = sampled.fit(train, "matrix", learned=sampled.packaged_hyperprior())
        drawn = sampled.predict(found, np.asarray(test.rows), np.asarray(test.columns))[0]
        answers |= {f"{name} and draws": (each + drawn) / 2 for name, each in answers.items()}
        answers["draws"] = drawn
    unit = float(train.values.var())
    return {
        name: float(((each - test.values) ** 2).mean()) / unit for name, each in answers.items()
    }


def run(config: Config, workdir: str | os.PathLike, data_dir: str | None = None) -> dict[str, Any]:
    """Measures and prints; returns what ``summary.json`` holds."""
    log = RunLog(workdir, "zero_shot", config)
    priors = {name: load_prior(name) for name in config.weights}
    results: dict[str, Any] = {"protocol": {}, "cuts": {}}
    for name in config.sets if config.splits else ():
        settings = ProtocolConfig(dataset=name, preset="best", seed=0, **presets.TRAIN["best"])
        entries = sources.load(name, data_dir).entries
        for split in range(config.splits):
            test = protocol.draw_split(entries, settings, split, split).test
            for weights, prior in priors.items():
                errors = {k: float(x.mean()) for k, x in protocol_errors(prior, test).items()}
                results["protocol"][f"{name} {split} {weights}"] = errors
                told = "  ".join(f"{k} {x:.4f}" for k, x in errors.items())
                log.print(f"{name} split {split}  {weights:24s} {told}")
    for name in config.cut_sets if config.cuts else ():
        entries = rating_set(name, data_dir)
        for side in config.sides:
            lines = []
            for i in range(config.cuts):
                rng = np.random.default_rng([config.seed, i, side])
                lines.append(cut_errors(priors, *_split(rng, entries, side), config.draws))
            results["cuts"][f"{name} {side}"] = lines
            log.print(f"{name} {side} x {side}  {_told(lines, next(iter(priors)))}")
    return log.finish(results)


def _split(rng: np.random.Generator, entries: Entries, side: int) -> tuple[Entries, Entries]:
    cut = rating_cut(rng, entries, side)
    held = rng.permutation(len(cut.rows)) < max(1, round(0.2 * len(cut.rows)))
    return tuple(
        Entries(cut.rows[which], cut.columns[which], cut.values[which], cut.shape)
        for which in (~held, held)
    )


def _told(lines: list[dict[str, float]], reference: str) -> str:
    """Mean errors, and by which share they are larger than the first's, with standard errors."""
    base = np.array([line[reference] for line in lines])
    told = [f"{reference} {base.mean():.4f}"]
    for name in lines[0]:
        if name != reference:
            more = np.array([line[name] for line in lines]) - base
            error = more.std(ddof=1) / len(more) ** 0.5 if len(more) > 1 else np.nan
            told.append(f"{name} {more.mean() / base.mean():+.2%} +- {error / base.mean():.2%}")
    return "  ".join(told)


def main() -> None:
    config = Config(
        tuple(_WEIGHTS.value),
        tuple(_SETS.value),
        _SPLITS.value,
        tuple(_CUT_SETS.value),
        tuple(_SIDES.value),
        _CUTS.value,
        _DRAWS.value,
        common.SEED.value,
    )
    run(config, common.WORKDIR.value or "runs/zero-shot", common.DATA_DIR.value)


if __name__ == "__main__":
    common.run_main(main)
