"""Learns the prior of effects and precisions that `experiments.factorize --prior` takes.

Claim: learned from synthetic matrices alone it lowers the test RMSE of films with 1 to 5 ratings by
0.2% to 2% on three MovieLens sets, and moves that of whole sets by less than 0.2%; it costs where
counts do not mean what they do in such matrices (experiments/RESULTS.md).

    python -m experiments.learn_prior --preset=best --workdir=runs/prior

    python -m experiments.learn_prior --preset=best --learn_from=latest_small,jester \
        --data_dir=DIR --workdir=runs/prior-of-sets

The workdir receives ``prior.json``: ten numbers, and what they were learned from. Of each matrix a
tenth of the entries is held out, and of a tenth of the rows and of the columns all but 0 to 5.
``--learn_from`` are names or files; of each set so many random parts of its rows and columns are
taken.
"""

import dataclasses
import os
from typing import Any

import numpy as np
from absl import flags

from experiments import common, shared_flags, splits
from metamf_jax.data import sources
from metamf_jax.data.rating_matrices import draw_sparse_rating_matrix
from metamf_jax.factorization import learn_pattern_prior, pattern_prior
from metamf_jax.factorization.learn_pattern_prior import LearnConfig, Matrix
from metamf_jax.factorization.pattern_prior import PatternPrior
from metamf_jax.factorization.step_size import sample_entries
from metamf_jax.runs.run_log import RunLog
from metamf_jax.types import Entries, Table

_SETS = flags.DEFINE_list(
    "learn_from", [], "Rating sets to learn from; synthetic matrices if none."
)
_PRECISIONS = flags.DEFINE_bool(
    "precisions",
    False,
    "Whether strengths and powers are learned too, as ALS wants them where it converges; else they"
    " are those of the penalty root_l2, which serve SGD better, whose epochs end before.",
)
_OUTPUT = shared_flags.output()


@dataclasses.dataclass(frozen=True)
class Config:
    """Which matrices, and for how long.

    Attributes:
      sizes: rows and columns of synthetic matrices.
      count: of synthetic matrices of each size; of parts of each set.
      entries: of a part, about.
      rank, steps, precisions: see `LearnConfig`.
      sets: to learn from; none for synthetic matrices.
      seed: of all draws.
    """

    preset: str
    sizes: tuple[int, ...]
    count: int
    entries: int
    rank: int
    steps: int
    sets: tuple[str, ...] = ()
    precisions: bool = False
    seed: int = 0


PRESETS = {
    "smoke": Config("smoke", (40,), 2, 500, 2, 3),
    "tiny": Config("tiny", (200,), 4, 5_000, 8, 20),
    "best": Config("best", (200, 400), 6, 8_000, 12, 24),
}
PRESETS["paper"] = dataclasses.replace(PRESETS["best"], preset="paper")


def matrices(config: Config, data_dir: str | None) -> list[Matrix]:
    """Draws or reads those to learn from."""
    found = []
    for size in () if config.sets else config.sizes:
        for i in range(config.count):
            rng = np.random.default_rng([config.seed, size, i])
            found.append(_parted(draw_sparse_rating_matrix(rng, size), i))
    for name in config.sets:
        whole = sources.load(name, data_dir, config.seed).entries
        for i in range(config.count):
            rng = np.random.default_rng([config.seed, i])
            found.append(_parted(sample_entries(whole, rng, config.entries), i))
    return found


def _parted(entries: Entries, seed: int) -> Matrix:
    """Centred, a tenth held out, and all but few entries of some rows and columns."""
    shape = entries.shape
    train = Table(entries, np.arange(shape[0]), np.arange(shape[1]))
    held = []
    for kind in ("few_rows", "few_columns", "random"):
        train, test = splits.split_entries(train, splits.Split("", kind, seed=seed))
        held.append(test)
    rows, columns, values = (
        np.concatenate([getattr(part, name) for part in held])
        for name in ("rows", "columns", "values")
    )
    return learn_pattern_prior.centred(train.entries, Entries(rows, columns, values, shape))


def run(
    config: Config,
    workdir: str | os.PathLike,
    data_dir: str | None = None,
    output: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """Learns, and writes the prior; returns what ``summary.json`` holds.

    Raises:
      ValueError, FileNotFoundError: a set cannot be read.
    """
    log = RunLog(workdir, "learn_prior", config)
    corpus = matrices(config, data_dir)
    of_sets = f"parts of {', '.join(os.path.basename(name) for name in config.sets)}"
    saw = f"{len(corpus)} {of_sets if config.sets else 'synthetic rating matrices'}, " + (
        f"{sum(len(matrix.train.values) for matrix in corpus)} ratings"
    )

    def tell(step: int, loss: float, learned: PatternPrior) -> None:
        names = "row_strength", "column_strength", "row_power", "column_power"
        numbers = (*learned.strengths, *learned.powers)
        log.metrics(step, {"held_out": loss, **dict(zip(names, numbers, strict=True))})

    lengths = LearnConfig(
        rank=config.rank, steps=config.steps, precisions=config.precisions, seed=config.seed
    )
    learned = learn_pattern_prior.learn(corpus, lengths, saw, tell)
    for path in (log.workdir / "prior.json", output):
        if path is not None:
            pattern_prior.save(path, learned)
    return log.finish(dataclasses.asdict(learned))


def main() -> None:
    preset = PRESETS[common.PRESET.value]
    config = dataclasses.replace(
        preset,
        sets=tuple(_SETS.value),
        precisions=_PRECISIONS.value,
        seed=common.SEED.value,
    )
    workdir = common.WORKDIR.value or f"runs/prior-{config.preset}"
    run(config, workdir, common.DATA_DIR.value, _OUTPUT.value)


if __name__ == "__main__":
    common.run_main(main)
