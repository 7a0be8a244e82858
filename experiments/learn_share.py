"""Learns what share draws have in the answers for small rating matrices, from synthetic ones.

Claim: the squared error on those is lower with it than with the share that any matrix starts with,
by 0.16% +- 0.11; the `best` preset takes two minutes on one core.

The answer averages draws of the posterior and the candidates (`metamf_jax.imputation.held_out`).
The share of draws before anything is known of the matrix has log odds ``a + b log(cells / 500)``;
the two numbers are those of the least squared error on removed cells, over that of draws alone.

    python -m experiments.learn_share --preset=best --workdir=runs/share

finds them, for `metamf_jax.imputation.sampled`, and by how much the error is lower than with the
share that any matrix starts with. Matrices that draws do not answer are left out. No file of data
is read.
"""

import dataclasses
import os
from typing import Any

import numpy as np
import scipy.optimize
import scipy.special
from absl import flags

from experiments import common
from experiments.imputation_tasks import select
from experiments.rating_cuts import rating_cut
from metamf_jax.data.rating_worlds import draw_world
from metamf_jax.imputation import completion, held_out, pipeline
from metamf_jax.imputation.prior import load_prior
from metamf_jax.runs.run_log import RunLog, read_metrics

_MATRICES = flags.DEFINE_integer(
    "matrices", None, "Matrices of each side; the preset's if not given.", lower_bound=1
)

_REMOVED = 0.2
# Of a world: so many times the side of the cut.
_WORLD = 2


@dataclasses.dataclass(frozen=True)
class Config:
    """Which matrices: so many of each side."""

    preset: str
    sides: tuple[int, ...]
    count: int
    seed: int = 0


PRESETS = {
    "smoke": Config("smoke", (30,), 2),
    "tiny": Config("tiny", (30, 60), 5),
    "best": Config("best", (30, 60, 100, 150), 25),
}
PRESETS["paper"] = dataclasses.replace(PRESETS["best"], preset="paper")


def run(config: Config, workdir: str | os.PathLike) -> dict[str, Any]:
    """Completes the matrices, each a step of the run; returns what ``summary.json`` holds."""
    log = RunLog(workdir, "learn_share", config)
    done = len(read_metrics(workdir))
    log.resume_at(done - 1)
    chosen = [(side, i) for i in range(config.count) for side in config.sides]
    for step, (side, i) in enumerate(chosen[done:], done):
        log.metrics(step, _measure(np.random.default_rng([config.seed, side, i]), side))
    lines = [line for line in read_metrics(workdir) if line["drawn"]]
    errors = np.array([[line[name] for name in ("cells", *_MOMENTS)] for line in lines])
    found = best_share(errors)
    start = np.array([scipy.special.logit(held_out.START_SHARE), 0.0])
    less = _ratios(errors, start) - _ratios(errors, found)
    return log.finish(
        {
            "share_by_cells": found.tolist(),
            "matrices": len(lines),
            "less": float(less.mean()),
            "less_error": float(less.std() / np.sqrt(len(less))),
        }
    )


_MOMENTS = "draws", "both", "candidates"


def _measure(rng: np.random.Generator, side: int) -> dict[str, float]:
    """Products of the errors of draws and of candidates, means over the removed cells."""
    world = draw_world(rng, (_WORLD * side, _WORLD * side))
    cut = rating_cut(rng, world, side)
    kept = rng.permutation(len(cut.rows)) >= _REMOVED * len(cut.rows)
    train, test = select(cut, kept), select(cut, ~kept)
    allowed = [name for name in pipeline.PARTS if name != pipeline.SHARE]
    found = pipeline.complete(load_prior("general"), train, allowed=allowed)
    places = np.asarray(test.rows), np.asarray(test.columns)
    drawn = float(found.sampled is not None)
    draws, candidates = (
        test.values - completion.predict(of_one, *places)[0]
        for of_one in (dataclasses.replace(found, draws_share=share) for share in (drawn, 0.0))
    )
    moments = (draws**2).mean(), (draws * candidates).mean(), (candidates**2).mean()
    line = dict(zip(_MOMENTS, map(float, moments), strict=True))
    return {"cells": float(len(train.rows)), "drawn": drawn, **line}


def best_share(errors: np.ndarray) -> np.ndarray:
    """``a`` and ``b`` of the least error.

    Args:
      errors: [T, 4], of T matrices the cells and the `_MOMENTS`.
    """

    def loss(numbers: np.ndarray) -> float:
        return float(_ratios(errors, numbers).mean())

    return scipy.optimize.minimize(loss, np.zeros(2), method="Nelder-Mead").x


def _ratios(errors: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Squared errors of the averages, over those of draws alone."""
    cells, draws, both, candidates = errors.T
    share = scipy.special.expit(numbers[0] + numbers[1] * np.log(cells / 500))
    return (
        share**2 * draws + 2 * share * (1 - share) * both + (1 - share) ** 2 * candidates
    ) / draws


def main() -> None:
    config = dataclasses.replace(PRESETS[common.PRESET.value], seed=common.SEED.value)
    if _MATRICES.value is not None:
        config = dataclasses.replace(config, count=_MATRICES.value)
    run(config, common.WORKDIR.value or f"runs/share-{config.preset}")


if __name__ == "__main__":
    common.run_main(main)
