"""Measures learned priors on real rating matrices that nothing of was learned.

Claim: a prior learned from synthetic worlds of ratings is 1% to 3% behind one learned in the
domain, and 1% ahead of draws of the posterior where 30 or 80 cells of 30 x 30 are shown.

    python -m experiments.zero_shot --priors=ratings,general --protocol_splits=2 --data_dir=DIR \\
        --workdir=runs/zero-shot
    python -m experiments.zero_shot --priors=ratings --cuts=20 --data_dir=DIR --workdir=runs/cuts

On the test matrices of the protocol: mean squared error in the units of `compare_methods`, with
values standardised by the meta-train part of the set, as all methods there have them, and by the
matrix's own support alone. With --cuts, on popular cuts of rating sets (a fifth of the ratings held
out, or all but --shown of them): squared error beside that of draws of the posterior under the
learned hyperprior, and of the mean of the two answers; with --imputer also beside that of the whole
imputer with each prior.
"""

import dataclasses
import os
from typing import Any

import numpy as np
from absl import flags

from experiments import common, shared_flags
from experiments.imputation_tasks import hold_out
from experiments.rating_cuts import RATING_SETS, rating_cut, rating_set
from experiments.zero_shot_errors import cut_errors, protocol_errors, protocol_matrices
from metamf_jax.imputation.prior import load_prior
from metamf_jax.runs.run_log import RunLog

_WEIGHTS = flags.DEFINE_list("priors", ["general"], "Names or files of learned priors.")
_SETS = shared_flags.rating_sets()
_SPLITS = flags.DEFINE_integer("protocol_splits", 2, "Random splits of each.", lower_bound=0)
_PROTOCOL_SETS = "ml100k", "ml1m", "jester"
_CUTS = flags.DEFINE_integer("cuts", 0, "Cuts of each set and side.", lower_bound=0)
_SIDES = flags.DEFINE_multi_integer("cut_side", [30, 60, 100], "Of the cuts; may be repeated.")
_CUT_SETS = flags.DEFINE_list("cut_sets", list(RATING_SETS), "Rating sets that are cut.")
_DRAWS = flags.DEFINE_bool("draws", True, "Whether draws of the posterior are compared with.")
_SHOWN = flags.DEFINE_integer(
    "shown", None, "Cells of a cut that are shown, not four fifths of them.", lower_bound=2
)
_IMPUTER = flags.DEFINE_bool("imputer", False, "Whether the whole imputer is compared with.")


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
    imputer: bool = False
    shown: int | None = None
    seed: int = 0


def run(config: Config, workdir: str | os.PathLike, data_dir: str | None = None) -> dict[str, Any]:
    """Measures and prints; returns what ``summary.json`` holds."""
    log = RunLog(workdir, "zero_shot", config)
    priors = {name: load_prior(name) for name in config.weights}
    results: dict[str, Any] = {"protocol": {}, "cuts": {}}
    for name in config.sets if config.splits else ():
        found: dict[str, list[dict[str, float]]] = {weights: [] for weights in priors}
        for split in range(config.splits):
            test = protocol_matrices(name, split, data_dir)
            for weights, prior in priors.items():
                errors = protocol_errors(prior, test)
                found[weights].append({k: float(x.mean()) for k, x in errors.items()})
        results["protocol"][name] = found
        for weights, errors in found.items():
            told = (f"{k} {np.mean([each[k] for each in errors]):.4f}" for k in errors[0])
            log.print(f"{name}, {config.splits} splits  {weights:24s} {'  '.join(told)}")
    for name in config.cut_sets if config.cuts else ():
        entries = rating_set(name, data_dir)
        for side in config.sides:
            lines = []
            for i in range(config.cuts):
                rng = np.random.default_rng([config.seed, i, side])
                cut = rating_cut(rng, entries, side)
                count = len(cut.rows)
                held = round(0.2 * count) if config.shown is None else count - config.shown
                train, test = hold_out(rng, cut, held)
                lines.append(cut_errors(priors, train, test, config.draws, config.imputer))
            results["cuts"][f"{name} {side}"] = lines
            reference = "draws" if config.draws else next(iter(priors))
            log.print(f"{name} {side} x {side}  {_told(lines, reference)}")
    return log.finish(results)


def _told(lines: list[dict[str, float]], reference: str) -> str:
    """By which share errors are larger than the reference's, with standard errors over cuts."""
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
        tuple(_SETS.value or _PROTOCOL_SETS),
        _SPLITS.value,
        tuple(_CUT_SETS.value),
        tuple(_SIDES.value),
        _CUTS.value,
        _DRAWS.value,
        _IMPUTER.value,
        _SHOWN.value,
        common.SEED.value,
    )
    run(config, common.WORKDIR.value or "runs/zero-shot", common.DATA_DIR.value)


if __name__ == "__main__":
    common.run_main(main)
