"""HTML pages of a table and plots, such as of quality against cost. Nothing in them comes from outside."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

from .benchmark import EMPTY
from .benchmark_report import METRICS, Comparison, comparison_table, method_notes
from .page import STYLE, table_html
from .tables import environment_line

WIDTH, HEIGHT = 520, 340
LEFT, RIGHT, TOP, BOTTOM = 56, 130, 16, 44      # of a plot's frame; names stand to the right of their points
N_COLOURS = 6                                   # of series


@dataclass(frozen=True)
class Point:
    """A denoiser in a plot."""

    name: str
    x: float                            # above zero: the axis is logarithmic
    y: float
    half_width: float = 0.0             # of the interval of `y`
    n_parameters: int | None = None     # the area of the circle


def comparison_page(title: str, comparison: Comparison) -> str:
    """The page as one string. Quality is plotted against cost where it is known, else memory against it."""
    rows = [row for row in comparison.rows if row.name != EMPTY]
    costs = {"CPU time for a second of audio, us": {row.name: row.cpu_us_per_second for row in rows},
             "millions of multiply-accumulates a second":
                 {row.name: row.macs_per_second / 1e6 for row in rows if row.macs_per_second}}
    heights: dict[str, dict[str, tuple[float, float]]] = {}
    if comparison.quality and not comparison.quality.missing(rows):
        for metric, label in METRICS.items():
            scores = {row.name: comparison.quality.of(row).get(metric) for row in rows}
            heights[label] = {name: (score.value, score.half_width or 0.0) for name, score in scores.items() if score}
    else:
        heights["resident memory, MiB"] = {row.name: (row.resident_mib, 0.0) for row in rows if row.resident_mib}
    sizes = {row.name: row.n_parameters for row in rows}
    plots = [scatter_svg([Point(name, xs[name], y, spread, sizes[name]) for name, (y, spread) in ys.items()
                          if xs.get(name)], x_label, y_label)
             for y_label, ys in heights.items() for x_label, xs in costs.items()]
    return plots_page(title, environment_line(comparison.environment), _HINT, plots,
                      comparison_table(comparison.rows, comparison.quality),
                      method_notes(comparison.plan, comparison.quality))


def plots_page(title: str, environment: str, hint: str, plots: Sequence[str], table: Sequence[Sequence[str]],
               method: str) -> str:
    """A page of SVG elements, with a hint of how to read them above and a table and notes below. Texts are escaped."""
    return _PAGE.format(title=escape(title), style=STYLE + _STYLE, environment=escape(environment), hint=escape(hint),
                        plots="".join(plots), table=table_html(table), method=escape(method))


def scatter_svg(points: Sequence[Point], x_label: str, y_label: str, *, linear: bool = False,
                joined: bool = False) -> str:
    """A plot as an SVG element: logarithmic to the right, or `linear`; linear upwards. No points, no plot.

    Points of one name are a series: of one colour, `joined` by a line if asked for, named once, at the last of them.
    """
    if not points:
        return ""
    scale = float if linear else log10
    x_ticks = _ticks(min(p.x for p in points), max(p.x for p in points)) if linear else _decades(points)
    y_ticks = _ticks(min(p.y - p.half_width for p in points), max(p.y + p.half_width for p in points))
    first, last = scale(x_ticks[0]), scale(x_ticks[-1])
    bottom, top = y_ticks[0], y_ticks[-1]

    def across(x: float) -> float:
        return LEFT + (scale(x) - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        return HEIGHT - BOTTOM - (y - bottom) / (top - bottom) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in x_ticks:
        x = across(tick)
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>'
                     f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{tick:g}</text>')
    for tick in y_ticks:
        y = down(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
                     f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{round(tick, 6):g}</text>')
    series: dict[str, list[Point]] = {}
    for point in sorted(points, key=lambda p: p.x):
        series.setdefault(point.name, []).append(point)
    kinds = {name: _kind(name) if len(series) == len(points) else f"series{i % N_COLOURS}"
             for i, name in enumerate(sorted(series))}
    for name, own in series.items():
        if joined and len(own) > 1:
            line = "L".join(f"{across(p.x):.1f} {down(p.y):.1f}" for p in own)
            parts.append(f'<path class="{kinds[name]} line" d="M{line}"/>')
    free = -1.0
    for point in sorted(points, key=lambda p: -p.y):        # from above, each name below the one before
        x, y = across(point.x), down(point.y)
        radius = 3 + (point.n_parameters or 0)**0.5 / 250
        text = ""
        if point is series[point.name][-1]:
            free = max(free + 13, y + 4)
            text = f'<text x="{x + radius + 4:.1f}" y="{free:.1f}">{escape(point.name)}</text>'
        parts.append(f'<g class="{kinds[point.name]}"><path class="spread" d="M{x:.1f} '
                     f'{down(point.y - point.half_width):.1f}V{down(point.y + point.half_width):.1f}"/>'
                     f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"/>{text}</g>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}'
                 f'</text><text transform="translate(14 {HEIGHT / 2:.0f}) rotate(-90)" text-anchor="middle">'
                 f'{escape(y_label)}</text>')
    label = f"{y_label} against {x_label}"
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def _kind(name: str) -> str:
    first = name.split()[0]
    return first if first in ("generalist", "peer") else "specialist"


def _decades(points: Sequence[Point]) -> list[float]:
    first, last = floor(log10(min(p.x for p in points))), ceil(log10(max(p.x for p in points)) + 1e-9)
    return [10.0**decade for decade in range(first, last + 1)]


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from at or below `low` to above `high`."""
    step = _tick_step(high - low)
    return [i * step for i in range(floor(low / step), floor(high / step) + 2)]


def _tick_step(span: float) -> float:
    """1, 2 or 5 times a power of ten, some five to a span."""
    rough = max(span, 1e-6) / 5
    power = 10.0**floor(log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)


_HINT = """Up and to the left is better for quality; a circle's area grows with the parameters; bars are 95 %
intervals over users."""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<header><h1>{title}</h1><p>{environment}</p></header>
<p class="hint">{hint}</p>
<div class="plots">{plots}</div>
{table}
<pre>{method}</pre>
</main>
</body>
</html>
"""

_STYLE = """
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(28rem,100%),1fr));gap:1rem}
svg{width:100%;background:var(--card);border:1px solid var(--line);border-radius:12px}
svg text{font-size:11px;fill:var(--ink)}
.grid{stroke:var(--line)}
.spread{stroke:currentColor;opacity:.5}
.line{fill:none;stroke:currentColor;stroke-width:1.5}
circle{fill:currentColor;fill-opacity:.65}
.generalist{color:#2f6fd0}.specialist{color:#c8471f}.peer{color:#7d8594}
.series0{color:#c8471f}.series1{color:#2f6fd0}.series2{color:#2c8a4b}.series3{color:#9146b8}.series4{color:#a97c00}
.series5{color:#7d8594}
tbody tr:last-child td{font-weight:inherit}
pre{white-space:pre-wrap;color:var(--soft);font-size:.85rem}
"""
