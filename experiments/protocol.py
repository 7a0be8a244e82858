"""The protocol: its configuration, one random split of a data set, the matrices that are scored."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from metamf_jax.baselines.method import Method, episode_loss
from metamf_jax.meta_learning import padding, training
from metamf_jax.meta_learning.episodes import EpisodeConfig, EpisodeSource, Parts, split_parts
from metamf_jax.meta_learning.meta_loss import Episode, ModelConfig
from metamf_jax.sums import Observations
from metamf_jax.types import Entries

# Keep the draws of meta-training, validation and test apart.
_TRAIN, _VALIDATION, _TEST = range(3)

# For methods that learn otherwise than by gradients.
_MATRICES_TO_LEARN_FROM = 256

# A split has 20% of the rows and of the columns for testing, 70% for training.
TEST_TRAIN_RATIO = 20 / 70


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProtocolConfig:
    """What is drawn, meta-trained and scored.

    A binary that has more to configure inherits it, so that ``config.json`` has all names side by
    side.

    Attributes:
      dataset: a name of `metamf_jax.data.sources`, or a path.
      preset: the name of the sizes below.
      seed: of a synthetic data set; the binaries say of what else.
      model, training: see their classes.
      episodes: what the scored matrices look like,
      training_episodes: and the episodes of meta-training, where these differ.
      scored_matrices: number of fixed validation matrices, and of fixed test matrices, of a split.
    """

    dataset: str
    preset: str
    seed: int
    model: ModelConfig
    episodes: EpisodeConfig
    training: training.TrainingConfig
    scored_matrices: int
    training_episodes: EpisodeConfig | None = None


class Split(NamedTuple):
    """One random split of a data set.

    Attributes:
      parts: its three parts.
      source: draws the episodes of meta-training.
      alike: draws matrices of the meta-train part that look like the scored ones.
      validation, test: fixed matrices, the same for all methods.
    """

    parts: Parts
    source: EpisodeSource
    alike: EpisodeSource
    validation: Episode
    test: Episode


class JoinedSource:
    """Draws batches of which every source gives a share, as even as may be."""

    def __init__(self, sources: Sequence[EpisodeSource]):
        self._sources = sources

    def draw_batch(self, step: int, batch: int) -> Episode:
        """Draws a step's episodes, those of the first source first."""
        shares = [len(share) for share in np.array_split(np.arange(batch), len(self._sources))]
        drawn = zip(self._sources, shares, strict=True)
        return joined_batch([source.draw_batch(step, share) for source, share in drawn if share])


class Teaching(NamedTuple):
    """What is meta-trained on, of one split or of several data sets; names as in `Split`."""

    source: EpisodeSource | JoinedSource
    alike: EpisodeSource | JoinedSource
    validation: Episode


def joined(splits: Sequence[Split]) -> Teaching:
    """Meta-training on several data sets, each standardised by itself, to equal shares."""
    return Teaching(
        JoinedSource([split.source for split in splits]),
        JoinedSource([split.alike for split in splits]),
        joined_batch([split.validation for split in splits]),
    )


def draw_split(entries: Entries, config: ProtocolConfig, split_seed: int, seed: int) -> Split:
    """Splits a matrix and draws the matrices that are scored.

    Args:
      entries: the whole data set.
      config: what the matrices look like, and how many are scored.
      split_seed: of the split and of the scored matrices.
      seed: of the episodes of meta-training.

    Raises:
      ValueError: as `split_parts`.
    """
    parts = split_parts(entries, split_seed)

    def scored(part: Entries, kind: int) -> Episode:
        source = EpisodeSource(part, config.episodes, split_seed * 3 + kind)
        return source.draw_batch(0, config.scored_matrices)

    validation, test = scored(parts.validation, _VALIDATION), scored(parts.test, _TEST)
    lengths = _lengths(validation, test)
    episodes = config.training_episodes or config.episodes
    return Split(
        parts,
        EpisodeSource(parts.train, episodes, seed * 3 + _TRAIN),
        EpisodeSource(parts.train, config.episodes, seed * 3 + _TRAIN),
        lengthened(validation, lengths),
        lengthened(test, lengths),
    )


def lengthened(part: Episode, lengths: tuple[int, int]) -> Episode:
    """The same batch, its lists padded to at least these lengths of support and query."""

    def padded(entries: Observations, length: int) -> Entries:
        assert isinstance(entries, Entries)
        missing = ((0, 0), (0, max(0, length - entries.rows.shape[1])))
        return dataclasses.replace(
            entries,
            rows=np.pad(entries.rows, missing, constant_values=entries.shape[0]),
            columns=np.pad(entries.columns, missing, constant_values=entries.shape[1]),
            values=np.pad(entries.values, missing),
        )

    return Episode(padded(part.support, lengths[0]), padded(part.query, lengths[1]))


def joined_batch(parts: Sequence[Episode]) -> Episode:
    """The episodes of all batches as one, of the largest shape and the longest lists."""
    lengths = _lengths(*parts)
    sides = zip(*(lengthened(part, lengths) for part in parts), strict=True)

    def one(batches: Sequence[Entries]) -> Entries:
        # Padding stands one past the end, wherever that is.
        shape = max(x.shape[0] for x in batches), max(x.shape[1] for x in batches)
        rows = [np.where(x.rows < x.shape[0], x.rows, shape[0]) for x in batches]
        columns = [np.where(x.columns < x.shape[1], x.columns, shape[1]) for x in batches]
        values = np.concatenate([x.values for x in batches])
        return Entries(np.concatenate(rows), np.concatenate(columns), values, shape)

    return Episode(*(one(cast(Sequence[Entries], side)) for side in sides))


def _lengths(*parts: Episode) -> tuple[int, int]:
    support, query = (
        max(side.values.shape[1] for side in sides) for sides in zip(*parts, strict=True)
    )
    return support, query


@functools.lru_cache(maxsize=8)
def _usual_lengths(source: EpisodeSource | JoinedSource, batch: int) -> tuple[int, int]:
    """Of the first 150 steps: each other length of a batch compiles the step again."""
    return _lengths(*(source.draw_batch(step, batch) for step in range(150)))


class Trained(NamedTuple):
    """The outcome of a meta-training: parameters, steps done, the best step and seconds."""

    params: Any
    steps: int
    best_step: int
    seconds: float


def meta_train(
    method: Method,
    split: Split | Teaching,
    config: training.TrainingConfig,
    seed: int,
    draw: Callable[[int], Episode] | None = None,
) -> Trained:
    """Meta-trains a method on one split, in memory; compilation counts in the seconds.

    Args:
      method: one that has something to learn.
      split: gives the episodes, and the validation matrices.
      config: of the training.
      seed: of the initial parameters.
      draw: ``draw(step)``, the batch of a step, in place of the split's.
    """
    assert method.init is not None
    start = time.perf_counter()
    if method.learn is not None:
        params = method.learn(split.alike.draw_batch(0, _MATRICES_TO_LEARN_FROM))
        return Trained(params, 0, 0, time.perf_counter() - start)
    params = jax.jit(method.init)(jax.random.key(seed))
    if draw is None:
        draw = functools.partial(_draw, split.source, config.batch)
    lengths = _usual_lengths(split.source, config.batch)
    state = training.meta_train(
        episode_loss(method.predict),
        training.init_state(params, training.make_optimizer(config)),
        lambda step: lengthened(draw(step), lengths),
        split.validation,
        config,
        lambda state, metrics: None,
    )
    params = jax.tree.map(np.asarray, state.best_params)
    seconds = time.perf_counter() - start
    return Trained(params, int(state.step), int(state.best_step), seconds)


def _draw(source: EpisodeSource | JoinedSource, batch: int, step: int) -> Episode:
    return source.draw_batch(step, batch)


def nested_supports(part: Episode, fractions: Sequence[float]) -> list[Episode]:
    """Cuts every matrix of a batch anew: a fixed query, and nested supports of the rest.

    A tenth of a matrix's observed entries, at least 5 of them, are query.

    Args:
      part: a batch of episodes; their entries, in the order drawn, are what is cut.
      fractions: shares of all observed entries that are support, each at least one entry and at
        most what the query leaves.

    Returns:
      A batch for each fraction, all with arrays of the same shapes.
    """
    both = [padding.unstack_entries(cast(Entries, side)) for side in part]
    everything = [
        Entries(
            np.concatenate([support.rows, query.rows]),
            np.concatenate([support.columns, query.columns]),
            np.concatenate([support.values, query.values]),
            support.shape,
        )
        for support, query in zip(*both, strict=True)
    ]
    counts = [len(matrix.rows) for matrix in everything]
    kept = [max(count - max(5, round(0.1 * count)), 1) for count in counts]

    def stack(slices, length):
        cut = [
            Entries(matrix.rows[part], matrix.columns[part], matrix.values[part], matrix.shape)
            for matrix, part in zip(everything, slices, strict=True)
        ]
        return padding.stack_entries(cut, everything[0].shape, padding.bucket_size(length))

    largest = max(counts)
    query = stack([slice(keep, None) for keep in kept], max(np.subtract(counts, kept)))
    cuts = [
        [
            slice(min(keep, max(round(fraction * count), 1)))
            for keep, count in zip(kept, counts, strict=True)
        ]
        for fraction in fractions
    ]
    return [Episode(stack(cut, largest), query) for cut in cuts]
