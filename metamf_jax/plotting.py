"""Plots as PNG files, drawn without a display."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator, StrMethodFormatter

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
      counts: [B] support entries of each matrix.
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
    axes.set(xlabel="size of the matrix", ylabel="query MSE (standardised units)")
    axes.legend(fontsize=8)
    _save(figure, path)


def error_by_method(
    path: str | os.PathLike, errors: dict[str, tuple[float, float]], reference: str
) -> None:
    """Each method's (mean error, standard error), the best on top; a line at the reference's."""
    figure, (axes,) = _figure(6.4, max(2.4, 1.2 + 0.22 * len(errors)))
    names = sorted(errors, key=lambda name: -errors[name][0])
    means, bars = np.array([errors[name] for name in names]).T
    colors = ["C1" if name == reference else "C0" for name in names]
    axes.scatter(means, np.arange(len(names)), c=colors, s=18, zorder=3)
    axes.errorbar(
        means, np.arange(len(names)), xerr=np.nan_to_num(bars), fmt="none", ecolor="0.5", capsize=2
    )
    if reference in errors:
        axes.axvline(errors[reference][0], color="C1", linestyle="--", linewidth=1)
    axes.set_yticks(np.arange(len(names)), names, fontsize=8)
    axes.set(xlabel="query MSE (standardised units)", ylim=(-0.7, len(names) - 0.3))
    axes.grid(axis="x", alpha=0.3)
    _save(figure, path)


def error_curves(
    path: str | os.PathLike,
    series: dict[str, list[tuple[float, float, float]]],
    label: str,
    log: bool,
) -> None:
    """Each method's points (x, mean error, standard error) joined; ``log`` scales the x axis."""
    figure, (axes,) = _figure(6.4, 4)
    for name, points in series.items():
        x, mean, error = np.array(points).T
        axes.errorbar(x, mean, error, label=name, marker="o", markersize=4, capsize=2)
    if log:
        axes.set_xscale("log")
        ticks = sorted({point[0] for points in series.values() for point in points})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    axes.set(xlabel=label, ylabel="query MSE (standardised units)")
    axes.legend(fontsize=8)
    _save(figure, path)


def error_grid(
    path: str | os.PathLike, errors: dict[tuple[str, str], float], rows: str, columns: str
) -> None:
    """A table of errors as a coloured grid, keyed by (row, column); the axes' labels follow."""
    names = [list(dict.fromkeys(key[axis] for key in errors)) for axis in (0, 1)]
    grid = np.array([[errors[row, column] for column in names[1]] for row in names[0]])
    figure, (axes,) = _figure(2.5 + 1.1 * len(names[1]), 1.5 + 0.6 * len(names[0]))
    image = axes.imshow(grid, cmap="viridis_r", aspect="auto")
    middle = (grid.min() + grid.max()) / 2
    for (row, column), value in np.ndenumerate(grid):
        color = "white" if value > middle else "black"
        axes.text(column, row, f"{value:.3f}", ha="center", va="center", color=color)
    axes.set_xticks(np.arange(len(names[1])), names[1])
    axes.set_yticks(np.arange(len(names[0])), names[0])
    axes.set(xlabel=columns, ylabel=rows)
    figure.colorbar(image, ax=axes, label="query MSE")
    _save(figure, path)


def factor_planes(path: str | os.PathLike, sides: dict[str, np.ndarray]) -> None:
    """Prior means and adapted factors on a plane, an arrow from each to the other.

    Args:
      path: the file.
      sides: for each panel [n, 5]: the prior's x and y, the adapted factor's, and a value for the
        colour.
    """
    figure, all_axes = _figure(11, 4.6, len(sides))
    for axes, (name, points) in zip(all_axes, sides.items(), strict=True):
        start, end, value = points[:, :2], points[:, 2:4], points[:, 4]
        axes.quiver(
            *start.T, *(end - start).T, angles="xy", scale_units="xy", scale=1, color="0.8",
            width=0.003,
        )  # fmt: skip
        axes.scatter(*start.T, c=value, cmap="coolwarm", marker="x", label="prior mean")
        image = axes.scatter(*end.T, c=value, cmap="coolwarm", edgecolors="0.3", label="adapted")
        axes.set(title=name, xlabel="first principal axis", ylabel="second")
        axes.legend(fontsize=8)
        figure.colorbar(image, ax=axes, label="mean of its observed values")
    _save(figure, path)


def precisions(path: str | os.PathLike, sides: dict[str, np.ndarray]) -> None:
    """Learned precisions against numbers of observations: medians and quartiles.

    Args:
      path: the file.
      sides: for each line [n, 4]: observations, median, first and third quartile.
    """
    figure, (axes,) = _figure(6.4, 4)
    for name, points in sides.items():
        axes.plot(points[:, 0], points[:, 1], marker="o", markersize=4, label=name)
        axes.fill_between(points[:, 0], points[:, 2], points[:, 3], alpha=0.2)
    axes.set(
        xlabel="observed cells of a row or column", ylabel="learned precision (median, quartiles)"
    )
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


@dataclasses.dataclass(frozen=True)
class Panel:
    """One set of axes with curves.

    Attributes:
      title: what is shown.
      x_label: with its unit.
      y_label: with its unit.
      curves: (x, y) by name; panels of a figure give one name one colour.
      levels: horizontal dotted lines, in the colour of the curve of that name.
      x_scale: `linear`, `log` or `log2`, which is marked at the points themselves.
      y_scale: likewise.
    """

    title: str
    x_label: str
    y_label: str
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    levels: Mapping[str, float] = dataclasses.field(default_factory=dict)
    x_scale: str = "linear"
    y_scale: str = "linear"


def panels(path: str | os.PathLike, contents: Sequence[Panel], title: str = "") -> None:
    """Panels of curves side by side, each with its legend."""
    figure, all_axes = _figure(0.6 + 4.6 * len(contents), 4, len(contents))
    names = list(dict.fromkeys(name for panel in contents for name in panel.curves))
    for axes, panel in zip(all_axes, contents, strict=True):
        marked = set()
        for name, (x, y) in panel.curves.items():
            number = names.index(name)
            # After ten the colours come again, with dashes.
            (line,) = axes.plot(x, y, label=name, marker="o", markersize=3, linewidth=1.4)
            line.set(color=f"C{number % 10}", linestyle="--" if number >= 10 else "-")
            marked.update(x)
        for name, level in panel.levels.items():
            axes.axhline(level, color=f"C{names.index(name) % 10}", linestyle=":", linewidth=1)
        for axis, scale in (("x", panel.x_scale), ("y", panel.y_scale)):
            if scale != "linear":
                base = {"base": 2} if scale == "log2" else {}
                getattr(axes, f"set_{axis}scale")("log", **base)
            if scale == "log":
                # 0.9 and not 9 x 10^-1; between the powers of ten only where there is room.
                low, high = getattr(axes, f"get_{axis}lim")()
                plain = StrMethodFormatter("{x:g}")
                getattr(axes, f"{axis}axis").set_major_formatter(plain)
                getattr(axes, f"{axis}axis").set_minor_formatter(
                    plain if high < 10 * low else NullFormatter()
                )
                if high < 3 * low:  # Between 1 and 2 a logarithmic axis has no marks.
                    getattr(axes, f"{axis}axis").set_major_locator(MaxNLocator(6))
                    getattr(axes, f"{axis}axis").set_minor_locator(NullLocator())
        if panel.x_scale == "log2":
            axes.set_xticks(sorted(marked), [f"{x:g}" for x in sorted(marked)], minor=False)
            axes.minorticks_off()
        axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
        axes.grid(color="0.9", linewidth=0.6)
        axes.legend(fontsize=8)
    if title:
        figure.suptitle(title, fontsize=10)
    _save(figure, path)


def pictures(path: str | os.PathLike, rows: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Grey pictures of 0..1 side by side, a row of them for each name.

    Args:
      path: the file.
      rows: by name, pictures [H, W] by title; all rows have as many. NaN is shown in red.
    """
    columns = max(map(len, rows.values()))
    figure = Figure(figsize=(2.1 * columns + 0.4, 2.5 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, (name, row) in zip(grid, rows.items(), strict=True):
        line[0].set_ylabel(name)
        for axes, (title, picture) in zip(line, row.items(), strict=True):
            axes.set_facecolor("firebrick")
            axes.imshow(picture, vmin=0, vmax=1, cmap="gray", interpolation="nearest")
            axes.set_title(title, fontsize=9)
            axes.set_xticks([])
            axes.set_yticks([])
    _save(figure, path)


def completed_matrix(
    path: str | os.PathLike,
    entries: Entries,
    rows: Callable[[int, int], tuple[np.ndarray, np.ndarray]],
    most: int = 300,
) -> None:
    """Observed entries, all cells, and standard errors of the fullest rows and columns, as images.

    Columns of different units are drawn in units of each column's observed deviation only where
    their deviations differ tenfold.

    Args:
      path: the file.
      entries: the observed ones.
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
