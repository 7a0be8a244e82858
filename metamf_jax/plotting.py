"""Plots as PNG files, drawn without a display."""

import os
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def _figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def _save(figure: Figure, path: str | os.PathLike) -> None:
    figure.savefig(path, dpi=150)


def learning_curve(
    path: str | os.PathLike,
    steps: Sequence[float],
    train_loss: Sequence[float],
    validation_mse: Sequence[float],
    best_step: int,
    levels: dict[str, float],
) -> None:
    """Meta-loss and validation error against steps; ``levels`` are baselines' validation errors."""
    figure, (axes,) = _figure(6.4, 4)
    axes.plot(steps, train_loss, color="0.6", label="meta-training episodes")
    axes.plot(steps, validation_mse, color="C0", label="validation matrices")
    for number, (name, level) in enumerate(levels.items()):
        axes.axhline(level, color=f"C{number + 1}", linestyle="--", linewidth=1, label=name)
    axes.axvline(best_step, color="C0", linestyle=":", linewidth=1, label="parameters kept")
    axes.set(xlabel="meta-training step", ylabel="query MSE (standardised units)")
    axes.legend(fontsize=8)
    _save(figure, path)


def error_against_observations(
    path: str | os.PathLike, counts: np.ndarray, errors: dict[str, np.ndarray]
) -> None:
    """Mean error, with its standard error, of matrices grouped by their number of observations.

    Args:
      path: the file.
      counts: [B] support cells of each matrix.
      errors: each method's errors [B].
    """
    figure, (axes,) = _figure(6.4, 4)
    groups = min(6, len(counts))
    bounds = np.unique(np.quantile(counts, np.linspace(0, 1, groups + 1)))
    group = np.clip(np.searchsorted(bounds, counts, side="right") - 1, 0, max(len(bounds) - 2, 0))
    present = np.unique(group)
    for number, (name, values) in enumerate(errors.items()):
        members = [values[group == g] for g in present]
        axes.errorbar(
            # Methods stand side by side where their bars would cover each other.
            [counts[group == g].mean() * (1 + 0.006 * number) for g in present],
            [m.mean() for m in members],
            [m.std(ddof=1) / np.sqrt(len(m)) if len(m) > 1 else 0 for m in members],
            label=name,
            marker="o",
            markersize=4,
            capsize=2,
        )
    axes.set(xlabel="observed (support) cells of a matrix", ylabel="query MSE (standardised units)")
    axes.legend(fontsize=8)
    _save(figure, path)


def imputed_matrix(
    path: str | os.PathLike,
    truth: np.ndarray,
    observed: np.ndarray,
    prior_mean: np.ndarray,
    imputed: np.ndarray,
) -> None:
    """One test matrix: all known cells, the observed ones, the prior's mean, the imputation.

    Args:
      path: the file.
      truth: [N, M], NaN where unknown.
      observed: [N, M] bool, the support.
      prior_mean: [N, M], ``u0 . v0``.
      imputed: [N, M], ``u . v``.
    """
    figure, all_axes = _figure(13, 3.8, 4)
    low, high = np.nanquantile(truth, [0.02, 0.98])
    pictures = {
        f"known cells ({np.isfinite(truth).sum()})": truth,
        f"observed ({observed.sum()})": np.where(observed, truth, np.nan),
        "prior mean": prior_mean,
        "imputed": imputed,
    }
    image = None
    for axes, (title, picture) in zip(all_axes, pictures.items(), strict=True):
        image = axes.imshow(picture, vmin=low, vmax=high, cmap="viridis", interpolation="nearest")
        axes.set(title=title, xlabel="column", ylabel="row")
        axes.set_facecolor("0.92")
    assert image is not None
    figure.colorbar(image, ax=all_axes, label="value", shrink=0.8)
    _save(figure, path)
