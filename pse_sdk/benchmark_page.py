"""One HTML page of a comparison: the table, and plots of quality against cost. Nothing in it comes from outside."""

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
    if comparison.quality:
        for metric, label in METRICS.items():
            scores = {row.name: comparison.quality.of(row).get(metric) for row in rows}
            heights[label] = {name: (score.value, score.half_width or 0.0) for name, score in scores.items() if score}
    else:
        heights["resident memory, MiB"] = {row.name: (row.resident_mib, 0.0) for row in rows if row.resident_mib}
    sizes = {row.name: row.n_parameters for row in rows}
    plots = [scatter_svg([Point(name, xs[name], y, spread, sizes[name]) for name, (y, spread) in ys.items()
                          if xs.get(name)], x_label, y_label)
             for y_label, ys in heights.items() for x_label, xs in costs.items()]
    return _PAGE.format(
        title=escape(title), style=STYLE + _STYLE, environment=escape(environment_line(comparison.environment)),
        plots="".join(plots), table=table_html(comparison_table(comparison.rows, comparison.quality)),
        method=escape(method_notes(comparison.plan, comparison.quality)))


def scatter_svg(points: Sequence[Point], x_label: str, y_label: str) -> str:
    """A plot as an SVG element: logarithmic to the right, linear upwards, each point named. No points, no plot."""
    if not points:
        return ""
    first, last = floor(log10(min(p.x for p in points))), ceil(log10(max(p.x for p in points)) + 1e-9)
    low, high = min(p.y - p.half_width for p in points), max(p.y + p.half_width for p in points)
    step = _tick_step(high - low)
    bottom, top = floor(low / step) * step, (floor(high / step) + 1) * step

    def across(x: float) -> float:
        return LEFT + (log10(x) - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        return HEIGHT - BOTTOM - (y - bottom) / (top - bottom) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for decade in range(first, last + 1):
        x = across(10.0**decade)
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>'
                     f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{10.0**decade:g}</text>')
    for i in range(round((top - bottom) / step) + 1):
        y = down(bottom + i * step)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
                     f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{round(bottom + i * step, 6):g}</text>')
    free = -1.0
    for point in sorted(points, key=lambda p: -p.y):        # from above, each name below the one before
        x, y = across(point.x), down(point.y)
        radius = 3 + (point.n_parameters or 0)**0.5 / 250
        free = max(free + 13, y + 4)
        kind = point.name.split()[0] if point.name.split()[0] in ("generalist", "peer") else "specialist"
        parts.append(f'<g class="{kind}"><path class="spread" d="M{x:.1f} {down(point.y - point.half_width):.1f}'
                     f'V{down(point.y + point.half_width):.1f}"/><circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"/>'
                     f'<text x="{x + radius + 4:.1f}" y="{free:.1f}">{escape(point.name)}</text></g>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}'
                 f'</text><text transform="translate(14 {HEIGHT / 2:.0f}) rotate(-90)" text-anchor="middle">'
                 f'{escape(y_label)}</text>')
    label = f"{y_label} against {x_label}"
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def _tick_step(span: float) -> float:
    """1, 2 or 5 times a power of ten, some five to a span."""
    rough = max(span, 1e-6) / 5
    power = 10.0**floor(log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)


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
<p class="hint">Up and to the left is better for quality; a circle's area grows with the parameters; bars are 95 %
intervals over users.</p>
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
circle{fill:currentColor;fill-opacity:.65}
.generalist{color:#2f6fd0}.specialist{color:#c8471f}.peer{color:#7d8594}
tbody tr:last-child td{font-weight:inherit}
pre{white-space:pre-wrap;color:var(--soft);font-size:.85rem}
"""
