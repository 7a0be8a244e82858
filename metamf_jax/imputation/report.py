"""A page on a completed table: what its columns are, how well cells are found, what was imputed.

One HTML file that needs nothing else: pictures are inline SVG, each with its content in words.
"""

import html
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from metamf_jax.imputation import columns, frames, mixed
from metamf_jax.imputation.columns import Column
from metamf_jax.imputation.mixed import Mixed, MixedConfig

# A tenth of the observed cells is held out; shorter chains tell enough of them.
_HELD_OUT = 0.1
_SHORT = MixedConfig(burn_in=30, num_draws=40)
_BINS, _MOST_BARS, _MOST_PATTERNS, _MOST_NAMES = 16, 12, 12, 8
_WIDTH, _HEIGHT = 280, 90
# Of bars that lie: the height of a level, and the room of its name, of so many letters.
_LINE, _NAME_WIDTH, _NAME = 22, 100, 16
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
# All pairs of text and ground have a contrast of 4.5 or more, grey and blue of 3 to the ground.
_STYLE = """
:root { color-scheme: light dark; --text: #222; --ground: #fff; --quiet: #555; --line: #d5d8dd;
  --observed: #868e99; --imputed: #1d63b8; --there: #e4e7eb; --better: #17663b; --worse: #9a2a1f }
@media (prefers-color-scheme: dark) { :root { --text: #e6e6e6; --ground: #16181c; --quiet: #a9afb8;
  --line: #3a3f47; --observed: #8a919c; --imputed: #62a8f5; --there: #353a42; --better: #6fcf97;
  --worse: #ff9a8d } }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0; color: var(--text);
  background: var(--ground) }
main { max-width: 60em; margin: 0 auto; padding: 1.5em 1em 3em }
h1 { font-size: 1.6em; line-height: 1.2; margin: 0 0 .3em; overflow-wrap: anywhere }
h2 { font-size: 1.2em; margin: 2em 0 .3em } h3 { font-size: 1em; margin: 0 0 .3em }
p { margin: .3em 0 1em; max-width: 46em }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .94em }
td, th { padding: .3em 1em .3em 0; text-align: left; vertical-align: baseline }
thead th { vertical-align: bottom; color: var(--quiet); font-weight: 600 }
tbody tr { border-top: 1px solid var(--line) }
tbody th { font-weight: 600; min-width: 6em; max-width: 16em; overflow-wrap: anywhere }
.type { white-space: nowrap }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.better { color: var(--better) } .worse { color: var(--worse) }
.plots { display: grid; gap: 1.8em 2.2em;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 17.5em), 1fr)) }
figure { margin: 0 } figcaption { font-weight: 600; margin-bottom: .4em; overflow-wrap: anywhere }
svg { display: block; max-width: 100%; height: auto }
svg text { font: 11px system-ui, sans-serif; fill: var(--quiet) }
.observed { fill: var(--observed); background: var(--observed) }
.imputed, .missing { fill: var(--imputed); background: var(--imputed) }
.there { fill: var(--there) } .ground { stroke: var(--line) }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 2px }
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


def check(
    values: np.ndarray, described: Sequence[Column], seed: int = 0, fitted: Mixed | None = None
) -> list[Check]:
    """Holds out a part of the observed cells and imputes them.

    Args:
      values: [N, M], numbers and places of levels, NaN where missing.
      described: what the columns are.
      seed: of the choice and the draws.
      fitted: what answers, if not a fit of the cells that are left.
    """
    rng = np.random.default_rng(seed)
    held = ~np.isnan(values) & (rng.random(values.shape) < _HELD_OUT)
    # Of each column enough must be left.
    held &= (~np.isnan(values)).sum(axis=0) >= 10
    left = np.where(held, np.nan, values)
    if fitted is None:
        fitted = mixed.fit(left, described, _SHORT)
    found = mixed.answer(fitted, left)
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
    fitted: str | None = None,
) -> str:
    """The page.

    Args:
      title: such as the name of the file.
      table: as it was given, N rows and M columns.
      described: what its columns are.
      imputations: [N, M] each, numbers and places of levels; of these the blanks are shown.
      checks: of `check`.
      fitted: the name of a fit that answered, if it was not one of this table.
    """
    values = frames.encode(table, described)
    missing, arrays = np.isnan(values), [column.combine_chunks() for column in table.columns]
    by = ""
    if fitted is not None:
        by = (
            f" Answered by {html.escape(fitted)}: if these rows were fitted, their errors were not "
            "held out from it and are too small."
        )
    lines = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}: what was imputed</title><style>{_STYLE}</style></head>",
        f"<body><main><h1>{html.escape(title)}</h1>",
        f"<p>{len(values):,} rows, {len(described):,} columns, {missing.sum():,} missing cells "
        f"({missing.mean():.1%}).{by}</p>",
        "<h2>Columns</h2>",
        "<p>Errors are of held-out observed cells: root mean square errors of numbers, shares of "
        "wrong levels (how many there are stands with the type); beside them those of the column's "
        "mean or commonest level. The last column is how many of these cells lie in their 90% "
        "intervals. Where few are held out, either error may be the larger by chance.</p>",
        *_columns(described, arrays, missing, checks),
        *_distributions(described, arrays, values, imputations),
        *_patterns(described, missing),
    ]
    return "\n".join([*lines, "</main></body></html>", ""])


def _columns(described, arrays, missing, checks) -> list[str]:
    names = "column", "type", "missing", "held out", "error", "mean or mode", "in interval"
    heads = "".join(
        f'<th scope="col"{"" if i < 2 else " class=number"}>{name}</th>'
        for i, name in enumerate(names)
    )
    lines = [f"{_wide('Columns')}<table><thead><tr>{heads}</tr></thead><tbody>"]
    for m, (column, found) in enumerate(zip(described, checks, strict=True)):
        cells = [f'<th scope="row">{html.escape(str(column.name))}</th>']
        cells += [f"<td class=type>{_type(column, arrays[m].type)}</td>"]
        cells += [f"<td class=number>{missing[:, m].mean():.1%}</td>"]
        if found.count:
            error, simple = (
                f"{x:.1%}" if column.levels is not None else _amount(x, arrays[m].type)
                for x in (found.error, found.simple)
            )
            kind = "better" if found.error < found.simple else ""
            if found.error > found.simple:
                # Not by the colour alone.
                kind, error = "worse", f"{error}, worse"
            cells += [
                f"<td class=number>{found.count}</td>",
                f'<td class="number {kind}">{error}</td>',
                f"<td class=number>{simple}</td>",
                f"<td class=number>{'' if np.isnan(found.inside) else f'{found.inside:.0%}'}</td>",
            ]
        else:
            cells += ["<td></td>"] * 4
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return [*lines, "</tbody></table></div>"]


def _type(column: Column, of_cells: Any) -> str:
    """The type, and how many levels."""
    if column.levels is None:
        return "time" if pa.types.is_temporal(of_cells) else column.type
    return f"{column.type}, {len(column.levels)}"


def _distributions(described, arrays, values, imputations) -> list[str]:
    """A picture of each column with both observed and missing cells."""
    figures = []
    for m, (column, array) in enumerate(zip(described, arrays, strict=True)):
        lost = np.isnan(values[:, m])
        if lost.any() and not lost.all():
            observed, drawn = values[~lost, m], np.concatenate([x[lost, m] for x in imputations])
            picture = _levels if column.levels is not None else _histogram
            name = html.escape(str(column.name))
            figures.append(
                f"<figure><figcaption>{name}</figcaption>"
                f"{picture(column, array, observed, drawn)}</figure>"
            )
    if not figures:
        return []
    return [
        "<h2>Observed and imputed</h2>",
        '<p>Shares of the <span class="key observed"></span> observed cells and of the draws of '
        'the <span class="key imputed"></span> missing ones. They need not be alike: cells that '
        "are missing for what else is known of their row may differ. Percentages are those of the "
        "draws.</p>",
        '<div class="plots">',
        *figures,
        "</div>",
    ]


def _histogram(column: Column, like: pa.Array, observed: np.ndarray, drawn: np.ndarray) -> str:
    """Bars of both, side by side."""
    ends = np.array([min(observed.min(), drawn.min()), max(observed.max(), drawn.max())])
    shown = [_label(x) for x in columns.decode(column, ends, like[:0]).to_pylist()]
    if ends[0] == ends[1]:
        ends = ends + np.array([-0.5, 0.5])
    edges = np.linspace(ends[0], ends[1], _BINS + 1)
    shares = [np.histogram(x, edges)[0] / len(x) for x in (observed, drawn)]
    step, top = _WIDTH / _BINS, max(x.max() for x in shares)
    parts = []
    for i in range(_BINS):
        for k, kind in enumerate(("observed", "imputed")):
            tall = _HEIGHT * shares[k][i] / top
            x = step * (i + 0.06 + 0.44 * k)
            parts.append(_bar(kind, x, _HEIGHT - tall, 0.44 * step, tall))
    parts += [
        f'<line class="ground" x1="0" x2="{_WIDTH}" y1="{_HEIGHT}" y2="{_HEIGHT}"/>',
        f'<text x="0" y="{_HEIGHT + 14}">{html.escape(shown[0])}</text>',
        f'<text x="{_WIDTH}" y="{_HEIGHT + 14}" text-anchor="end">{html.escape(shown[1])}</text>',
    ]
    means = columns.decode(column, np.array([observed.mean(), drawn.mean()]), like[:0])
    told = [_label(x) for x in means.to_pylist()]
    words = f"{column.name}: mean of observed cells {told[0]}, of imputed ones {told[1]}"
    return _picture(words, _HEIGHT + 18, parts)


def _levels(column: Column, like: pa.Array, observed: np.ndarray, drawn: np.ndarray) -> str:
    """Bars of both, one below the other, for the commonest levels."""
    assert column.levels is not None
    count = len(column.levels)
    shares = [np.bincount(x.astype(int), minlength=count) / len(x) for x in (observed, drawn)]
    shown = np.sort(np.argsort(-shares[0], kind="stable")[:_MOST_BARS])
    names = [_label(x) for x in column.levels.take(pa.array(shown)).to_pylist()]
    top, room = max(x[shown].max() for x in shares), _WIDTH - _NAME_WIDTH - 34
    parts, words = [], []
    for i, (level, name) in enumerate(zip(shown, names, strict=True)):
        y = i * _LINE
        short = name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"
        parts.append(f'<text x="0" y="{y + 14}">{html.escape(short)}</text>')
        for k, kind in enumerate(("observed", "imputed")):
            wide = float(room * shares[k][level] / top)
            parts.append(_bar(kind, _NAME_WIDTH, y + 2 + 9 * k, wide, 8))
        told = [f"{x[level]:.0%}" for x in shares]
        widest = room * max(x[level] for x in shares) / top
        x = _NAME_WIDTH + widest + 5
        parts.append(f'<text x="{x:.1f}" y="{y + 14}">{told[1]}</text>')
        words.append(f"{name} {told[0]} of the observed and {told[1]} of the imputed cells")
    left = count - len(shown)
    if left:
        y = len(shown) * _LINE + 12
        parts.append(f'<text x="0" y="{y}">and {left} rarer levels</text>')
    height = len(shown) * _LINE + (18 if left else 0)
    return _picture(f"{column.name}: {'; '.join(words)}", height, parts)


def _bar(kind: str, x: float, y: float, width: float, height: float) -> str:
    return (
        f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'
    )


def _picture(words: str, height: int, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" role="img" '
        f'aria-label="{html.escape(words)}">{"".join(parts)}</svg>'
    )


def _wide(words: str) -> str:
    """Opens what is scrolled sideways where it is too wide, by keys too."""
    return f'<div class="wide" role="region" aria-label="{words}" tabindex="0">'


def _label(value: Any) -> str:
    """A cell, in few letters."""
    if isinstance(value, float):
        return f"{value:,.0f}" if 1e3 <= abs(value) < 1e7 else f"{value:.4g}"
    return str(value).removesuffix(" 00:00:00")


def _amount(value: float, type_: Any) -> str:
    """A difference of cells, in their unit; of times in days, hours or seconds."""
    if not pa.types.is_temporal(type_):
        return _label(float(value))
    per_unit = 86400.0 if pa.types.is_date32(type_) else 1e-3
    seconds = value * _SECONDS.get(getattr(type_, "unit", ""), per_unit)
    for name, size in (("days", 86400.0), ("hours", 3600.0)):
        if seconds >= size:
            return f"{seconds / size:.4g} {name}"
    return f"{seconds:.4g} s"


def _patterns(described: Sequence[Column], missing: np.ndarray) -> list[str]:
    """The commonest patterns of missing cells, a line each."""
    patterns, counts = np.unique(missing, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_MOST_PATTERNS]
    side = max(2, min(14, 420 // len(described)))
    which = f"All {len(patterns)}" if len(patterns) == len(order) else "The commonest"
    of = "" if len(patterns) == len(order) else f" of {len(patterns):,}"
    lines = [
        "<h2>Which cells are missing together</h2>",
        f"<p>{which}{of} patterns; a square for each column, in the order of the table above, "
        '<span class="key missing"></span> where it is missing.</p>',
        f'{_wide("Patterns")}<table><thead><tr><th scope="col" class="number">rows</th>'
        '<th scope="col" class="number">share</th><th scope="col">pattern</th>'
        '<th scope="col">missing</th></tr></thead><tbody>',
    ]
    for g in order:
        squares = "".join(
            f'<rect class="{"missing" if lost else "there"}" x="{m * side}" y="0" '
            f'width="{0.86 * side:.1f}" height="12"/>'
            for m, lost in enumerate(patterns[g])
        )
        names = [str(c.name) for c, lost in zip(described, patterns[g], strict=True) if lost]
        told = ", ".join(names[:_MOST_NAMES]) or "nothing"
        if len(names) > _MOST_NAMES:
            told += f" and {len(names) - _MOST_NAMES} more"
        lines.append(
            f'<tr><td class="number">{counts[g]:,}</td>'
            f'<td class="number">{counts[g] / len(missing):.1%}</td>'
            f'<td><svg width="{side * len(described)}" height="12" aria-hidden="true">{squares}'
            f"</svg></td><td>{html.escape(told)}</td></tr>"
        )
    return [*lines, "</tbody></table></div>"]
