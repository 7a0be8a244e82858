"""Imputes a matrix never seen from priors that were meta-learned on others."""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np

from metamf_jax.imputation.prior import LearnedPrior
from metamf_jax.meta_learning import episodes, meta_loss
from metamf_jax.meta_learning.episodes import Standardization
from metamf_jax.types import Entries, Factors


class Imputation(NamedTuple):
    """Factors of one matrix, in standardised units, and how to leave those.

    Attributes:
      factors: NumPy arrays; ``u`` [N, K], ``v`` [M, K].
      standardization: ``value = mean + deviation * (u . v)``.
      own_scale: whether the standardisation is the matrix's own, not the training data's.
      solver: the step form that found the factors.
    """

    factors: Factors
    standardization: Standardization
    own_scale: bool
    solver: str


def impute(prior: LearnedPrior, entries: Entries) -> Imputation:
    """Finds the factors of a matrix from its observed cells.

    Values inside the range that the prior was trained on are standardised as there; others with
    their own mean and deviation. A matrix of more rows or columns than the training episodes had is
    solved by exact ridge sweeps where the prior was trained with plain gradient steps, which
    diverge on large matrices.

    Args:
      prior: of a run of ``experiments.train``.
      entries: [E] observed cells, NumPy arrays.

    Raises:
      ValueError: no cell is observed; all values are equal and outside of the trained range; or the
        factors came out non-finite.
    """
    if not len(entries.rows):
        raise ValueError("the matrix has no observed cell: nothing to impute from")
    assert prior.trained_on is not None
    low, high = prior.trained_on.value_range
    values = np.asarray(entries.values)
    own_scale = bool(values.min() < low or values.max() > high)
    standardization = (
        episodes.fit_standardization(values) if own_scale else prior.trained_on.standardization
    )
    config = prior.config
    sides = prior.trained_on.sides
    larger = entries.shape[0] > sides[0] or entries.shape[1] > sides[1]
    if larger and config.inner.step_form == "plain":
        config = dataclasses.replace(
            config, inner=dataclasses.replace(config.inner, step_form="ridge")
        )
    model = meta_loss.make_model(config)
    observed = episodes.standardize(entries, standardization)
    factors, _ = jax.jit(model.adapt)(prior.params, observed)
    factors = Factors(np.asarray(factors.u), np.asarray(factors.v))
    if not (np.isfinite(factors.u).all() and np.isfinite(factors.v).all()):
        raise ValueError(
            f"the factors of this {entries.shape[0]} x {entries.shape[1]} matrix with "
            f"{len(entries.rows)} cells came out non-finite ({config.inner.step_form} steps)"
        )
    return Imputation(factors, standardization, own_scale, config.inner.step_form)


def predict(imputation: Imputation, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Values at cells ``(rows, columns)``, each [P] and inside the matrix; float32 [P]."""
    u, v = imputation.factors
    fitted = np.einsum("pk,pk->p", u[rows], v[columns])
    return imputation.standardization.mean + imputation.standardization.deviation * fitted


def predict_rows(imputation: Imputation, first: int, last: int) -> np.ndarray:
    """All values of rows ``first .. last - 1``; float32 [last - first, M]."""
    u, v = map(np.asarray, imputation.factors)
    mean, deviation = imputation.standardization
    return mean + np.float32(deviation) * (u[first:last] @ v.T)
