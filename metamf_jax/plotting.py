"""Plots as PNG files, drawn without a display."""

import os
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metamf_jax.types import Entries


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


def error_by_group(
    path: str | os.PathLike, groups: Sequence[str], errors: dict[str, list[tuple[float, float]]]
) -> None:
    """Bars of each method's (mean error, standard error) in each group, side by side."""
    figure, (axes,) = _figure(6.4, 4)
    width = 0.8 / len(errors)
    for number, (name, values) in enumerate(errors.items()):
        places = np.arange(len(groups)) + (number - (len(errors) - 1) / 2) * width
        means, bars = zip(*values, strict=True)
        axes.bar(places, means, width, yerr=bars, capsize=2, label=name)
    axes.set_xticks(np.arange(len(groups)), groups)
    lowest = min(mean for values in errors.values() for mean, _ in values)
    # From zero the differences would not be seen.
    axes.set_ylim(bottom=0.8 * lowest)
    axes.set(xlabel="size of the matrix", ylabel="query MSE (standardised units)")
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


def completed_matrix(
    path: str | os.PathLike,
    entries: Entries,
    rows: Callable[[int, int], tuple[np.ndarray, np.ndarray]],
    most: int = 300,
) -> None:
    """Observed cells, all cells, and standard errors of the fullest rows and columns, as images.

    Columns of different units are drawn in units of each column's observed deviation only where
    their deviations differ tenfold.

    Args:
      path: the file.
      entries: the observed cells.
      rows: ``rows(first, last) -> (values, errors)``, each [last - first, M].
      most: rows and columns drawn; the fullest where there are more.
    """
    places = [
        np.sort(np.argsort(-np.bincount(part, minlength=size), kind="stable")[:most])
        for part, size in zip((entries.rows, entries.columns), entries.shape, strict=True)
    ]
    drawn = [rows(n, n + 1) for n in places[0].tolist()]
    values, errors = (np.concatenate(part)[:, places[1]] for part in zip(*drawn, strict=True))
    at_row, at_column = (np.full(size, -1) for size in entries.shape)
    at_row[places[0]], at_column[places[1]] = np.arange(len(places[0])), np.arange(len(places[1]))
    inside = (at_row[entries.rows] >= 0) & (at_column[entries.columns] >= 0)
    index = at_row[entries.rows[inside]], at_column[entries.columns[inside]]
    seen = np.full(values.shape, np.nan)
    seen[index] = entries.values[inside]
    values[index], errors[index] = entries.values[inside], 0
    unit = ""
    deviations = values.std(axis=0)
    if deviations.max() > 10 * max(np.median(deviations), 1e-30) or (
        np.ptp(values.mean(axis=0)) > 10 * np.median(deviations)
    ):
        means, deviations = values.mean(axis=0), np.where(deviations > 0, deviations, 1)
        seen, values, errors = (
            (seen - means) / deviations,
            (values - means) / deviations,
            (errors / deviations),
        )
        unit = ", in deviations of each column"
    low, high = np.quantile(values, [0.01, 0.99])
    figure, all_axes = _figure(13.5, 4.5, 3)
    observed_share = len(entries.rows) / (entries.shape[0] * entries.shape[1])
    pictures = {
        f"observed ({observed_share:.1%} of all cells)": (seen, low, high, "viridis"),
        "completed": (values, low, high, "viridis"),
        "standard error": (errors, 0, None, "magma"),
    }
    for axes, (title, (picture, least, greatest, colors)) in zip(
        all_axes, pictures.items(), strict=True
    ):
        image = axes.imshow(
            picture, vmin=least, vmax=greatest, cmap=colors, interpolation="nearest", aspect="auto"
        )
        axes.set(title=title, xlabel="column", ylabel="row")
        axes.set_facecolor("0.92")
        figure.colorbar(image, ax=axes, label=f"value{unit}" if picture is not errors else "error")
    _save(figure, path)
