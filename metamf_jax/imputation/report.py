"""A page on a completed table: what its columns are, how well cells are found, what was imputed.

One HTML file that needs nothing else: pictures are inline SVG.
"""

import html
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from metamf_jax.imputation import columns, frames, mixed
from metamf_jax.imputation.columns import Column
from metamf_jax.imputation.mixed import MixedConfig

# A tenth of the observed cells is held out; shorter chains tell enough of them.
_HELD_OUT = 0.1
_SHORT = MixedConfig(burn_in=30, num_draws=40)
_BINS, _MOST_BARS, _MOST_PATTERNS = 16, 12, 12
_WIDTH, _HEIGHT = 260, 90
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 62em; color: #222 }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em }
table { border-collapse: collapse } td, th { padding: .25em .8em .25em 0; text-align: left }
td.number, th.number { text-align: right } thead { border-bottom: 1px solid #999 }
.better { color: #17663b } .worse { color: #9a2a1f }
.plots { display: flex; flex-wrap: wrap; gap: 1.2em } figure { margin: 0 }
figcaption { font-size: .9em } svg text { font: 10px system-ui, sans-serif; fill: #555 }
.observed { fill: #b9bec6 } .imputed { fill: #2b6cb0 } .missing { fill: #2b6cb0 }
.there { fill: #e4e7eb }
"""


class Check(NamedTuple):
    """A column's held-out cells.

    Attributes:
      count: how many.
      error: root mean square error, or of levels the share that is answered wrongly.
      simple: the same of the column's mean, or its commonest level.
      inside: the share of numbers within their 90% intervals; NaN of levels.
    """

    count: int
    error: float
    simple: float
    inside: float


def check(values: np.ndarray, described: Sequence[Column], seed: int = 0) -> list[Check]:
    """Holds out a part of the observed cells and imputes them.

    Args:
      values: [N, M], numbers and places of levels, NaN where missing.
      described: what the columns are.
      seed: of the choice and the draws.
    """
    rng = np.random.default_rng(seed)
    held = ~np.isnan(values) & (rng.random(values.shape) < _HELD_OUT)
    # Of each column enough must be left.
    held &= (~np.isnan(values)).sum(axis=0) >= 10
    left = np.where(held, np.nan, values)
    found = mixed.answer(mixed.fit(left, described, _SHORT), left)
    told = []
    for m, column in enumerate(described):
        rows = held[:, m]
        if not rows.any():
            told.append(Check(0, np.nan, np.nan, np.nan))
            continue
        true, answer, known = values[rows, m], found.values[rows, m], left[~np.isnan(left[:, m]), m]
        if column.levels is None:
            error = np.sqrt(((answer - true) ** 2).mean())
            simple = np.sqrt(((known.mean() - true) ** 2).mean())
            inside = (np.abs(answer - true) <= 1.645 * found.errors[rows, m]).mean()
        else:
            commonest = np.bincount(known.astype(int)).argmax()
            error, simple = (answer != true).mean(), (commonest != true).mean()
            inside = np.nan
        told.append(Check(int(rows.sum()), float(error), float(simple), float(inside)))
    return told


def page(
    title: str,
    table: pa.Table,
    described: Sequence[Column],
    imputations: Sequence[np.ndarray],
    checks: Sequence[Check],
) -> str:
    """The page.

    Args:
      title: such as the name of the file.
      table: as it was given, N rows and M columns.
      described: what its columns are.
      imputations: [N, M] each, numbers and places of levels; of these the blanks are shown.
      checks: of `check`.
    """
    values = frames.encode(table, described)
    missing, arrays = np.isnan(values), [column.combine_chunks() for column in table.columns]
    lines = [
        "<!doctype html>",
        f'<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>',
        f"<style>{_STYLE}</style>",
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{len(values)} rows, {len(described)} columns, {missing.sum()} missing cells "
        f"({missing.mean():.1%}).</p>",
        "<h2>Columns</h2>",
        "<p>Errors are of held-out observed cells: root mean square errors of numbers, shares of "
        "wrong levels; beside them those of the column's mean or commonest level. The last column "
        "is how many of these cells lie in their 90% intervals.</p>",
        *_columns(described, missing, checks),
        "<h2>Observed and imputed</h2>",
        "<p>Shares of the observed cells (grey) and of the draws of the missing ones (blue). They "
        "need not be alike: cells that are missing for what else is known of their row may differ."
        "</p>",
        '<div class="plots">',
    ]
    for m, column in enumerate(described):
        if missing[:, m].any() and not missing[:, m].all():
            drawn = np.concatenate([each[missing[:, m], m] for each in imputations])
            picture = _distribution(column, arrays[m], values[~missing[:, m], m], drawn)
            lines.append(_figure(column.name, picture))
    return "\n".join([*lines, "</div>", *_patterns(described, missing), "</html>", ""])


def _columns(described, missing, checks) -> list[str]:
    names = "column", "type", "missing", "held out", "error", "of the mean or mode", "in interval"
    heads = "".join(
        f"<th{'' if i < 2 else ' class=number'}>{name}</th>" for i, name in enumerate(names)
    )
    lines = [f"<table><thead><tr>{heads}</tr></thead><tbody>"]
    for m, (column, found) in enumerate(zip(described, checks, strict=True)):
        better = "better" if found.error < found.simple else "worse"
        error = "{:.1%}" if column.levels is not None else "{:.4g}"
        cells = [f"<td>{html.escape(str(column.name))}</td><td>{column.type}</td>"]
        cells += [f"<td class=number>{missing[:, m].mean():.1%}</td>"]
        if found.count:
            cells += [
                f"<td class=number>{found.count}</td>",
                f'<td class="number {better}">{error.format(found.error)}</td>',
                f"<td class=number>{error.format(found.simple)}</td>",
                f"<td class=number>{'' if np.isnan(found.inside) else f'{found.inside:.0%}'}</td>",
            ]
        else:
            cells += ["<td></td>"] * 4
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return [*lines, "</tbody></table>"]


def _figure(name: Any, picture: str) -> str:
    return f"<figure>{picture}<figcaption>{html.escape(str(name))}</figcaption></figure>"


def _distribution(column: Column, like: pa.Array, observed: np.ndarray, drawn: np.ndarray) -> str:
    """Bars of both, side by side."""
    if column.levels is None:
        ends = np.array([min(observed.min(), drawn.min()), max(observed.max(), drawn.max())])
        if ends[0] == ends[1]:
            ends += np.array([-0.5, 0.5])
        edges = np.linspace(ends[0], ends[1], _BINS + 1)
        shares = [np.histogram(x, edges)[0] / len(x) for x in (observed, drawn)]
        low, high = (_label(x) for x in columns.decode(column, ends, like[:0]).to_pylist())
        labels = [low, *[""] * (_BINS - 2), high]
    else:
        count = len(column.levels)
        shares = [np.bincount(x.astype(int), minlength=count) / len(x) for x in (observed, drawn)]
        shown = np.sort(np.argsort(-shares[0], kind="stable")[:_MOST_BARS])
        shares = [x[shown] for x in shares]
        labels = [_label(x) for x in column.levels.take(pa.array(shown)).to_pylist()]
    step, top = _WIDTH / len(labels), max(x.max() for x in shares)
    parts = [f'<svg width="{_WIDTH}" height="{_HEIGHT + 14}" role="img">']
    for i, label in enumerate(labels):
        for k, kind in enumerate(("observed", "imputed")):
            tall = _HEIGHT * shares[k][i] / top
            parts.append(
                f'<rect class="{kind}" x="{step * (i + 0.08 + 0.42 * k):.1f}" '
                f'y="{_HEIGHT - tall:.1f}" width="{0.42 * step:.1f}" height="{tall:.1f}"/>'
            )
        last = column.levels is None and i == len(labels) - 1
        place = f'x="{_WIDTH}" text-anchor="end"' if last else f'x="{step * (i + 0.08):.1f}"'
        # What fits below a bar.
        fits = label if column.levels is None else label[: max(1, int(step / 5.5))]
        parts.append(f'<text {place} y="{_HEIGHT + 11}">{html.escape(fits)}</text>')
    return "".join([*parts, "</svg>"])


def _label(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _patterns(described: Sequence[Column], missing: np.ndarray) -> list[str]:
    """The commonest patterns of missing cells, a line each."""
    patterns, counts = np.unique(missing, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_MOST_PATTERNS]
    side = 14
    lines = [
        "<h2>Which cells are missing together</h2>",
        f"<p>The commonest of {len(patterns)} patterns; columns in the order of the table above, "
        "missing ones blue.</p>",
    ]
    for g in order:
        squares = "".join(
            f'<rect class="{"missing" if lost else "there"}" x="{m * side}" y="0" '
            f'width="{side - 2}" height="{side - 2}"><title>{html.escape(str(column.name))}'
            "</title></rect>"
            for m, (column, lost) in enumerate(zip(described, patterns[g], strict=True))
        )
        lines.append(
            f'<div><svg width="{side * len(described)}" height="{side}">{squares}</svg> '
            f"{counts[g]} rows</div>"
        )
    return lines
