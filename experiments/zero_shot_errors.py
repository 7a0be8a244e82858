"""Errors of learned priors on real rating matrices that nothing of was learned."""

import dataclasses
import functools

import jax
import numpy as np

from experiments import presets, protocol
from experiments.protocol import ProtocolConfig
from metamf_jax.data import sources
from metamf_jax.imputation import completion, pipeline, sampled, scaling
from metamf_jax.imputation.prior import LearnedPrior
from metamf_jax.meta_learning import padding
from metamf_jax.meta_learning.meta_loss import Episode, episode_loss, make_model
from metamf_jax.meta_learning.training import make_evaluate
from metamf_jax.types import Entries


def protocol_matrices(name: str, split: int, data_dir: str | None) -> Episode:
    """The test matrices of one split of a data set, as `compare_methods` has them."""
    settings = ProtocolConfig(dataset=name, preset="best", seed=0, **presets.COMPARE["best"])
    return protocol.draw_split(_entries(name, data_dir), settings, split, split).test


@functools.cache
def _entries(name: str, data_dir: str | None) -> Entries:
    return sources.load(name, data_dir).entries


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
    priors: dict[str, LearnedPrior],
    train: Entries,
    test: Entries,
    with_draws: bool,
    with_imputer: bool = False,
) -> dict[str, float]:
    """Mean squared errors of one cut by method, in units of its training cells' variance.

    Args:
      priors: by name; each answers alone.
      train, test: of the cut.
      with_draws: whether draws of the posterior answer too, and the mean of both.
      with_imputer: whether the whole imputer with each of the priors does.
    """
    rows, columns = np.asarray(test.rows), np.asarray(test.columns)
    answers = {name: answer(prior, train, test) for name, prior in priors.items()}
    if with_draws:
        found = sampled.fit(train, "matrix", learned=sampled.packaged_hyperprior())
        drawn = sampled.predict(found, rows, columns)[0]
        answers |= {f"{name} and draws": (each + drawn) / 2 for name, each in answers.items()}
        answers["draws"] = drawn
    for name, prior in priors.items() if with_imputer else ():
        completed = pipeline.complete(prior, train)
        answers[f"imputer with {name}"] = completion.predict(completed, rows, columns)[0]
    unit = float(train.values.var())
    return {
        name: float(((each - test.values) ** 2).mean()) / unit for name, each in answers.items()
    }
