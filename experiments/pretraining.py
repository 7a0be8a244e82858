"""Meta-training of a prior on synthetic matrices: sizes, batches, loss and the run."""

import dataclasses
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common, rating_episodes
from experiments.rating_episodes import SizeClass
from metamf_jax.data.families import draw_matrix
from metamf_jax.imputation import scaling
from metamf_jax.imputation.prior import FILE, LearnedPrior, metadata
from metamf_jax.meta_learning import meta_loss, padding, training
from metamf_jax.meta_learning.encoder import EncoderConfig
from metamf_jax.meta_learning.map_estimation import MapConfig
from metamf_jax.runs.checkpoint import Checkpointer, load_params, save_params
from metamf_jax.runs.run_log import RunLog
from metamf_jax.types import Entries

_SMALL = (
    SizeClass((5, 24), (5, 24), 192, 16),
    SizeClass((12, 64), (12, 64), 512, 10),
)
_ALL = (
    *_SMALL,
    SizeClass((40, 200), (40, 200), 2048, 4),
    SizeClass((60, 400), (4, 40), 1536, 4),
)


@dataclasses.dataclass(frozen=True)
class Config:
    """One run: seed, model, training, size classes, and the weights that it starts from."""

    preset: str
    seed: int
    model: meta_loss.ModelConfig
    training: training.TrainingConfig
    classes: tuple[SizeClass, ...]
    start: str | None = None
    source: str = "families"
    worlds: int | None = None


_BEST = Config(
    preset="best",
    seed=0,
    # Gradient steps of any form here diverged on some matrix within 250 steps of training.
    model=meta_loss.ModelConfig(
        EncoderConfig(channels=32, layers=3, rank=16, precision="per_row", effects=True),
        MapConfig(steps=2, step_form="ridge"),
    ),
    # The batch follows from the size class.
    training=training.TrainingConfig(
        max_steps=4000,
        learning_rate=1.5e-3,
        schedule="cosine",
        evaluate_every=250,
        patience=10**9,
        keep="last",
    ),
    classes=_ALL,
)


def _shorter(preset: str, steps: int, **changes) -> Config:
    every = max(steps // 10, 1)
    shorter = dataclasses.replace(_BEST.training, max_steps=steps, evaluate_every=every)
    return dataclasses.replace(_BEST, preset=preset, training=shorter, **changes)


PRESETS = {
    "smoke": _shorter(
        "smoke",
        4,
        model=meta_loss.ModelConfig(
            EncoderConfig(channels=4, layers=1, rank=3, precision="per_row", effects=True),
            MapConfig(steps=1, step_form="ridge"),
        ),
        classes=_SMALL[:1],
    ),
    "tiny": _shorter("tiny", 1200, classes=(SizeClass((5, 80), (5, 80), 768, 10),)),
    "paper": _shorter("paper", 2000),
    "best": _BEST,
}

# Of rating matrices: small ones are the most, and say the least each.
_OF_RATINGS = (
    SizeClass((15, 40), (15, 40), 512, 16),
    SizeClass((15, 40), (15, 40), 512, 16),
    SizeClass((40, 80), (40, 80), 1536, 8),
    SizeClass((80, 150), (80, 150), 4096, 4),
)
_TINY_RATINGS = (SizeClass((8, 12), (8, 12), 48, 4),)


def of_ratings(config: Config, worlds: int | None = None) -> Config:
    """The same for rating matrices.

    Args:
      config: one of `PRESETS`.
      worlds: how many; new ones all the time if not given.
    """
    shorter = dataclasses.replace(config.training, average_decay=0.998)
    classes = {"smoke": _TINY_RATINGS, "tiny": _OF_RATINGS[:1]}.get(config.preset, _OF_RATINGS)
    return dataclasses.replace(
        config, training=shorter, classes=classes, source="ratings", worlds=worlds
    )


# Loss of a matrix imputed perfectly, in standardised units: below it nothing is gained.
_LEAST_ERROR = 0.01
_SHARE_BY_COLUMN = 0.3


def draw_batch(rng: np.random.Generator, size: SizeClass) -> meta_loss.Episode:
    """Draws matrices, each of a random family, size and density, standardised by its own cells."""
    observed, scored = [], []
    for _ in range(size.batch):
        shape = tuple(
            round(np.exp(rng.uniform(np.log(low), np.log(high + 0.49))))
            for low, high in (size.rows, size.columns)
        )
        if rng.random() < 0.6:
            # As many a row as rated by a new or a devoted user.
            cells = shape[0] * np.exp(rng.uniform(np.log(2), np.log(60)))
        else:
            cells = shape[0] * shape[1] * np.exp(rng.uniform(np.log(0.01), np.log(0.95)))
        cells = int(np.clip(cells, 3, size.cells))
        matrix = draw_matrix(rng, shape, cells, max(size.cells // 8, 24))
        way = "columns" if rng.random() < _SHARE_BY_COLUMN else "matrix"
        measured = scaling.fit_scaling(matrix.observed, way)
        observed.append(scaling.standardize(matrix.observed, measured))
        scored.append(_clipped(scaling.standardize(matrix.scored, measured)))
    shape = size.rows[1], size.columns[1]
    return meta_loss.Episode(
        padding.stack_entries(observed, shape, size.cells),
        padding.stack_entries(scored, shape, max(size.cells // 8, 24)),
    )


def _clipped(entries: Entries) -> Entries:
    """Three cells may be standardised by a deviation far too small; their loss must stay finite."""
    return dataclasses.replace(entries, values=np.clip(entries.values, -10, 10))


def episode_loss(
    config: meta_loss.ModelConfig, params: meta_loss.MetaParams, episode: meta_loss.Episode
) -> tuple[jax.Array, jax.Array]:
    """Log of the mean squared error over an episode's scored cells, and 1.

    The log gives a tenth less error the same worth in a noisy matrix and in one without noise.
    """
    observed, scored = episode.support, episode.query
    factors, _ = meta_loss.make_model(config).adapt(params, observed)
    error, weight = meta_loss.query_error(factors, scored)
    return weight * jnp.log(error + _LEAST_ERROR), weight


def _validation(config: Config) -> meta_loss.Episode:
    """Matrices that no step of training draws."""
    rng = np.random.default_rng([config.seed, 2**31])
    if config.source == "ratings":
        small = config.preset == "smoke"
        size = (_TINY_RATINGS if small else _OF_RATINGS)[0]._replace(batch=20 if small else 400)
        return rating_episodes.draw_batch(rng, size, config.seed, 2**31, at_hand=size.batch // 10)
    middle = config.classes[min(2, len(config.classes) - 1)]
    return draw_batch(rng, middle._replace(batch=50))


def run(
    config: Config, workdir: str | os.PathLike, output: str | os.PathLike | None = None
) -> dict[str, Any]:
    """Trains, or resumes, and writes the weights; returns what ``summary.json`` holds.

    Raises:
      ValueError: the workdir holds another configuration, or ``output`` has no folder.
    """
    if output is not None and not pathlib.Path(output).parent.is_dir():
        raise ValueError(f"--output={output}: there is no such folder; make it first")
    log = RunLog(workdir, "pretrain", config)

    def loss(params, episode):
        return episode_loss(config.model, params, episode)

    def draw(step: int) -> meta_loss.Episode:
        rng = np.random.default_rng([config.seed, step])
        size = config.classes[rng.integers(len(config.classes))]
        if config.source == "ratings":
            return rating_episodes.draw_batch(rng, size, config.seed, step, config.worlds)
        return draw_batch(rng, size)

    validation = _validation(config)
    params = meta_loss.make_model(config.model).init(jax.random.key(config.seed))
    if config.start is not None:
        params = load_params(config.start, params)
    state = training.init_state(params, training.make_optimizer(config.training))
    checkpointer = Checkpointer(workdir)
    state = checkpointer.restore(state) or state
    log.resume_at(int(state.step))
    paths = [pathlib.Path(workdir) / FILE, *([output] if output else [])]

    def on_evaluation(state: training.MetaState, metrics: dict[str, float]) -> None:
        log.metrics(int(state.step), metrics)
        learned = LearnedPrior(config.model, state.best_params)
        for path in paths:
            save_params(path, learned.params, metadata(learned))
        checkpointer.save(int(state.step), state)

    log.start_progress(config.training.max_steps, int(state.step), "step")
    with common.profiled(workdir):
        state = training.meta_train(
            loss,
            state,
            draw,
            validation,
            config.training,
            on_evaluation,
            lambda step: log.advance(),
        )
    return log.finish({"validation_loss": float(state.best_validation), "steps": int(state.step)})
