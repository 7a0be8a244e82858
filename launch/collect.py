"""Makes one CSV, one Markdown table and one HTML page of a sweep's results.

    python -m launch.collect --workdir=runs/scaling

``results.csv`` has a line for each point with all its flags and numbers; ``results.md`` the flags
that differ and the metrics that the sweep names; ``results.html`` the same as a table that a click
on a heading sorts, with plots, in one file that needs no network. Points that failed or are missing
are listed too. It can be called while the sweep runs.
"""

import collections
import csv
import dataclasses
import fnmatch
import html
import io
import json
import math
import pathlib
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import app, flags

from launch.points import Plot, Point, Sweep
from metamf_jax.runs.files import write_text

_RESOURCES = ("seconds", "compile_seconds", "peak_memory_bytes")
# More columns than that are no table to read; the CSV has all.
_MOST_METRICS = 8
# Such as a mean and its standard error.
_LONGEST_LIST = 3


def write_description(sweep: Sweep, workdir: pathlib.Path) -> None:
    """Leaves in the workdir what `collect` needs to know of the sweep."""
    told = {
        "title": sweep.title or sweep.binary,
        "binary": sweep.binary,
        "metrics": list(sweep.metrics),
        "plots": [dataclasses.asdict(plot) for plot in sweep.plots],
    }
    write_text(workdir / "sweep.json", json.dumps(told, indent=2) + "\n")


def read_points(workdir: pathlib.Path) -> list[Point]:
    """The points of a sweep, in the order of the sweep file.

    Raises:
      ValueError: the folder holds no sweep.
    """
    paths = list((workdir / "points").glob("*/point.json"))
    if not paths:
        raise ValueError(f"{workdir} holds no sweep: there is no {workdir / 'points'}/*/point.json")
    found = []
    for path in paths:
        held = json.loads(path.read_text(encoding="utf-8"))
        point = Point(held["binary"], held["flags"], path.parent)
        found.append((held.get("number", 0), point.name, point))
    return [point for _, _, point in sorted(found, key=lambda each: each[:2])]


def flat(tree: Any, name: str = "") -> dict[str, Any]:
    """Numbers and strings of nested dictionaries by their dotted paths; of short lists by index."""
    if isinstance(tree, str | int | float) and not isinstance(tree, bool):
        return {name: tree}
    items = tree.items() if isinstance(tree, Mapping) else []
    if isinstance(tree, list) and len(tree) <= _LONGEST_LIST:
        items = enumerate(tree)
    found = {}
    for key, value in items:
        found.update(flat(value, f"{name}.{key}" if name else str(key)))
    return found


def value_like(row: Mapping[str, Any], pattern: str) -> Any:
    """The first value of a row whose name fits, as ``results.table.*.mse.0`` may in any row."""
    return next((row[name] for name in row if fnmatch.fnmatchcase(name, pattern)), None)


def make_rows(points: Sequence[Point]) -> list[dict[str, Any]]:
    """One dictionary a point: name, state, flags, resources, results."""
    rows = []
    for point in points:
        row: dict[str, Any] = {"point": point.name, "state": point.state()}
        for name, value in point.flags.items():
            listed = isinstance(value, list | tuple)
            row[name] = (" ".join(map(str, value)) or "none") if listed else value
        summary = point.summary()
        if summary is not None:
            row.update({name: summary.get(name) for name in _RESOURCES})
            row.update(flat({"results": summary["results"]}))
        failure = point.failure()
        if failure is not None and row["state"] == "failed":
            row["failure"] = f"code {failure['code']}: {failure['message']}"
        rows.append(row)
    return rows


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def varying(points: Sequence[Point]) -> list[str]:
    """The flags that are not the same in all points."""
    names = dict.fromkeys(name for point in points for name in point.flags)
    return [n for n in names if len({str(point.flags.get(n)) for point in points}) > 1]


def _metrics(rows: Sequence[Mapping[str, Any]], asked: Sequence[str]) -> list[str]:
    there = _columns(rows)
    if asked:
        return [name for name in asked if any(value_like(row, name) is not None for row in rows)]
    numbers = [
        name
        for name in there
        if name.startswith("results.")
        and any(isinstance(row.get(name), int | float) for row in rows)
    ]
    return numbers[:_MOST_METRICS]


def _written(value: Any) -> str:
    if value is None:
        return ""
    # Bytes would make the widest column.
    long = isinstance(value, float) or (isinstance(value, int) and abs(value) >= 10**7)
    return f"{value:.5g}" if long else str(value)


def markdown(title: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """A table, and below it what failed or is missing."""
    titles = [column.removeprefix("results.") for column in columns]
    lines = [f"# {title}", "", f"| {' | '.join(titles)} |", "| --- " * len(titles) + "|"]
    for row in rows:
        if row["state"] == "done":
            cells = [_written(row.get(column)).replace("|", "\\|") for column in columns]
            lines.append(f"| {' | '.join(cells)} |")
    others = [row for row in rows if row["state"] != "done"]
    if others:
        lines += ["", f"Not done: {len(others)} of {len(rows)} points.", ""]
    for row in others:
        lines.append(f"- {row['point']}: {row.get('failure', row['state'])}")
    return "\n".join(lines) + "\n"


def _series(plot: Plot, rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[Any, list[float]]]:
    """Values of y by x for each value of ``by``; several where points differ in other flags."""
    series: dict[str, dict[Any, list[float]]] = collections.defaultdict(
        lambda: collections.defaultdict(list)
    )
    for row in rows:
        x, y = row.get(plot.x), value_like(row, plot.y)
        if x is not None and isinstance(y, int | float) and math.isfinite(y):
            name = "" if plot.by is None else f"{plot.by} {row.get(plot.by)}"
            series[name][x].append(y)
    return series


def draw(plot: Plot, rows: Sequence[Mapping[str, Any]]) -> str:
    """The plot as SVG; empty where no point has both numbers.

    Lines join the means; every point is a dot.
    """
    series = _series(plot, rows)
    if not series:
        return ""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure((6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    places = list(dict.fromkeys(x for values in series.values() for x in values))
    words = not all(isinstance(x, int | float) for x in places)
    if words:
        axes.set_xticks(range(len(places)), [str(x) for x in places], rotation=30, ha="right")
    else:
        places.sort()
    for number, (name, values) in enumerate(sorted(series.items())):
        xs = [x for x in places if x in values]
        at = {x: places.index(x) if words else x for x in xs}
        color, mark = f"C{number % 10}", "osD^v"[number % 5]
        # Dashes over a line show both where two series coincide.
        line = ("-", "--", "-.", ":")[number % 4]
        means = [statistics.fmean(values[x]) for x in xs]
        # Words have no order that a line could follow: a bar stands at each mean.
        axes.plot([at[x] for x in xs], means, "_" if words else line, color=color, lw=1.5, ms=16)
        for x in xs:
            axes.plot([at[x]] * len(values[x]), values[x], mark, color=color, ms=4, alpha=0.7)
        axes.plot([], [], mark + ("" if words else line), color=color, ms=4, label=name)
    if plot.log_x and not words:
        axes.set_xscale("log", base=2)
        axes.set_xticks(places, [str(x) for x in places], minor=False)
    axes.set(xlabel=plot.x, ylabel=plot.y.removeprefix("results."))
    axes.grid(alpha=0.3)
    if plot.by is not None:
        axes.legend(fontsize=8)
    text = io.StringIO()
    # Without a date and with fixed names the page is the same each time.
    with matplotlib.rc_context({"svg.hashsalt": "sweep", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 84em; padding: 0 1em; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3em .7em; text-align: right; border-bottom: 1px solid #8884; }
th { cursor: pointer; vertical-align: bottom; user-select: none; }
td { white-space: nowrap; }
th[aria-sort=ascending]::after { content: " \\25b2"; }
th[aria-sort=descending]::after { content: " \\25bc"; }
td.word, th.word { text-align: left; }
.plots { display: flex; flex-wrap: wrap; gap: 1em; }
.plots svg { background: white; max-width: 100%; height: auto; }
.failed { color: #c33; }
"""

_SCRIPT = """
for (const head of document.querySelectorAll("th")) {
  head.tabIndex = 0;
  const sort = () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const body = head.closest("table").tBodies[0], n = head.cellIndex;
    const key = row => row.cells[n].dataset.value;
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");  // blanks last, both ways
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return down ? -order : order;
    });
    body.append(...rows);
  };
  head.addEventListener("click", sort);
  head.addEventListener("keydown", event => { if (event.key === "Enter") sort(); });
}
"""


def page(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    drawings: Sequence[str],
) -> str:
    """The HTML page."""
    numeric = {
        column: all(isinstance(row.get(column), int | float | None) for row in rows)
        for column in columns
    }

    def cell(column: str, value: Any) -> str:
        kind = "" if numeric[column] else ' class="word"'
        exact = "" if value is None else html.escape(str(value))
        return f'<td{kind} data-value="{exact}">{html.escape(_written(value))}</td>'

    def head(column: str) -> str:
        kind = "" if numeric[column] else ' class="word"'
        name = html.escape(column.removeprefix("results."))
        # Where a narrow column may break it.
        return f"<th{kind}>{name.replace('_', '_<wbr>')}</th>"

    heads = "".join(map(head, columns))
    done = [row for row in rows if row["state"] == "done"]
    body = "\n".join(
        f"<tr>{''.join(cell(column, row.get(column)) for column in columns)}</tr>" for row in done
    )
    others = "".join(
        f"<li><code>{html.escape(row['point'])}</code>: "
        f"{html.escape(row.get('failure', row['state']))}</li>"
        for row in rows
        if row["state"] != "done"
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
<p>Done: {len(done)} of {len(rows)} points. A click on a heading sorts.</p>
{f'<ul class="failed">{others}</ul>' if others else ""}
<div class="table"><table>
<thead><tr>{heads}</tr></thead>
<tbody>
{body}
</tbody>
</table></div>
<h2>Plots</h2>
<div class="plots">
{"".join(f"<div>{drawing}</div>" for drawing in drawings) or "The sweep names none."}
</div>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def collect(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Writes the three files and returns the rows.

    Raises:
      ValueError: the folder holds no sweep.
    """
    points = read_points(workdir)
    told = json.loads((workdir / "sweep.json").read_text(encoding="utf-8"))
    rows = make_rows(points)
    table = io.StringIO()
    writer = csv.DictWriter(table, _columns(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(workdir / "results.csv", table.getvalue())
    metrics = _metrics(rows, told["metrics"])
    for row in rows:
        row.update({name: value_like(row, name) for name in metrics if "*" in name})
    # The table has those that are done: what they have in common is no column.
    done = [point for point, row in zip(points, rows, strict=True) if row["state"] == "done"]
    shown = [*varying(done or points), *metrics]
    write_text(workdir / "results.md", markdown(told["title"], shown, rows))
    plots = [Plot(**plot) for plot in told["plots"]]
    drawings = [drawing for plot in plots if (drawing := draw(plot, rows))]
    more = [name for name in _RESOURCES if any(name in row for row in rows)]
    write_text(workdir / "results.html", page(told["title"], [*shown, *more], rows, drawings))
    return rows


def main(argv: Sequence[str]) -> None:
    workdir = pathlib.Path(flags.FLAGS.workdir)
    try:
        rows = collect(workdir)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    print((workdir / "results.md").read_text(encoding="utf-8"))
    print(f"{len(rows)} points: {workdir / 'results.csv'}, results.md, results.html")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of the sweep.", required=True)
    app.run(main)
