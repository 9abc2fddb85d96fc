"""Charts of the page: small SVGs that take their colours from it.

They are written by hand rather than by matplotlib because they then follow the page: text and grid use its colours in
light and dark, letters grow on a phone, every point names its values on hover, and a chart is a few kB. How arms
differ: `styles`.

Coordinates: x, y in the units of the data, u, v in those of the SVG (v grows downwards).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from maetrain.report.convergence import Convergence, on_one_grid
from maetrain.report.inputs import Curve, PretrainCurve
from maetrain.report.statistics import ArmPoint, BudgetComparison
from maetrain.report.styles import OPEN, css_class, marked, marker_name
from maetrain.report.verdict import verdict
from maetrain.report.wording import interval_text, persons, signed

_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 16.0, 32.0, 44.0


@dataclass(frozen=True)
class Series:
    """One line: style 0.. picks colour and marker; lows, highs (may be empty) its interval at each point."""

    name: str
    style: int
    xs: Sequence[float]
    ys: Sequence[float]
    lows: Sequence[float] = field(default=())
    highs: Sequence[float] = field(default=())
    has_markers: bool = True
    is_faint: bool = False


def line_chart(
    series: Sequence[Series],
    description: str,
    x_label: str,
    y_label: str,
    x_ticks: Sequence[float] | None = None,
    is_log_x: bool = False,
    y_limits: tuple[float, float] = (-math.inf, math.inf),
    size: tuple[int, int] = (480, 300),
    marks: Sequence[tuple[float, str]] = (),
) -> str:
    """SVG of lines over two axes; '' when no point is finite.

    x_ticks: where to label x (default: round numbers). is_log_x: x > 0. y_limits: bounds that the padded axis
    never passes. marks: horizontal lines (y, label). description: what a screen reader says.
    """
    points = [(x, y) for s in series for x, y in zip(s.xs, s.ys, strict=True) if math.isfinite(y)]
    if not points:
        return ""
    ys = [y for _, y in points] + [y for y, _ in marks]
    ys += [v for s in series for v in (*s.lows, *s.highs) if math.isfinite(v)]
    pad = 0.08 * (max(ys) - min(ys)) or 0.05
    y_ticks = nice_ticks(max(min(ys) - pad, y_limits[0]), min(max(ys) + pad, y_limits[1]))
    xs = sorted({x for x, _ in points})
    x_ticks = list(x_ticks) if x_ticks is not None else [t for t in nice_ticks(xs[0], xs[-1], 4) if t <= xs[-1]]
    width, height = size
    warp: Callable[[float], float] = math.log if is_log_x else float
    beside = _beside([warp(x) for x in xs], sum(bool(s.lows) for s in series), width - _LEFT - _RIGHT)
    inset = max(18.0, beside * len(series) / 2 + 6) if is_log_x else 0.0
    to_u = _scale((warp(xs[0]), warp(xs[-1])), (_LEFT + inset, width - _RIGHT - inset))
    to_v = _scale((y_ticks[0], y_ticks[-1]), (height - _BOTTOM, _TOP))
    parts = [_axes(width, height, y_ticks, to_v, x_label, y_label)]
    for x in x_ticks:
        parts.append(
            f'<text class="tick" x="{to_u(warp(x)):.1f}" y="{height - _BOTTOM + 17}" {_MIDDLE}>{number(x)}</text>'
        )
    for y, label in marks:
        parts.append(f'<path class="mark" d="M{_LEFT} {to_v(y):.1f}H{width - _RIGHT}"/>')
        parts.append(f'<text class="tick" x="{_LEFT + 2}" y="{to_v(y) - 5:.1f}">{escape(label)}</text>')
    for i, one in enumerate(series):
        dodge = beside * (i - (len(series) - 1) / 2) if one.lows else 0.0
        parts.append(_line(one, lambda x, dodge=dodge: to_u(warp(x)) + dodge, to_v))  # type: ignore[misc]
    return _svg(width, height, description, parts)


def budget_chart(points: Sequence[ArmPoint], styles: Mapping[str, int], height: int = 300) -> str:
    """The label-efficiency curve: mean Dice with interval against labelled persons, one line an arm."""
    series = []
    for arm, style in styles.items():
        own = [p for p in points if p.arm == arm]
        xs, ys = [float(p.budget) for p in own], [p.mean for p in own]
        series.append(Series(arm, style, xs, ys, [p.low for p in own], [p.high for p in own]))
    text = "; ".join(f"{p.arm} with {p.budget}: {p.mean:.3f}" for p in points)
    return line_chart(
        series,
        f"Mean Dice on the test persons against labelled persons. {text}",
        "labelled persons (log scale)",
        "mean Dice, 95 % interval",
        x_ticks=sorted({float(p.budget) for p in points}),
        is_log_x=True,
        y_limits=(0.0, 1.0),
        size=(480, height),
    )


def difference_height(by_arm: Mapping[str, Sequence[BudgetComparison]]) -> int:
    """Of a chart with a row a budget and in it a bar an arm."""
    num_budgets = len({c.budget for found in by_arm.values() for c in found})
    return max(300, int(_TOP + (22 + 13 * len(by_arm)) * num_budgets + _BOTTOM))


def difference_chart(by_arm: Mapping[str, Sequence[BudgetComparison]], styles: Mapping[str, int]) -> str:
    """A row a budget and in it a bar an arm: difference from the baseline, with interval, around no difference."""
    comparisons = [c for found in by_arm.values() for c in found]
    if not comparisons:
        return ""
    arms = list(by_arm)
    budgets = sorted({c.budget for c in comparisons})
    ends = [0.0] + [v for c in comparisons for v in (c.difference, c.low, c.high) if math.isfinite(v)]
    pad = 0.08 * (max(ends) - min(ends)) or 0.02
    ticks = nice_ticks(min(ends) - pad, max(ends) + pad, 4)
    width, height = 480, difference_height(by_arm)
    row = (height - _TOP - _BOTTOM) / len(budgets)
    to_u = _scale((ticks[0], ticks[-1]), (_LEFT, width - _RIGHT))
    bottom = height - _BOTTOM
    parts = [f'<text class="label" x="{_LEFT}" y="14">labelled persons</text>']
    for tick in ticks:
        u, kind = to_u(tick), "zero" if abs(tick) < 1e-12 else "grid"
        parts.append(f'<path class="{kind}" d="M{u:.1f} {_TOP}V{bottom}"/>')
        parts.append(f'<text class="tick" x="{u:.1f}" y="{bottom + 17}" {_MIDDLE}>{number(tick)}</text>')
    for i, budget in enumerate(budgets):
        parts.append(f'<text class="tick" x="{_LEFT - 10}" y="{_TOP + row * (i + 0.5) + 4}" {_END}>{budget}</text>')
    for c in comparisons:
        style, below = styles[c.arm], 13.0 * (arms.index(c.arm) - (len(arms) - 1) / 2)
        v, u = _TOP + row * (budgets.index(c.budget) + 0.5) + below, to_u(c.difference)
        words = f"{c.arm}, {c.budget} labelled: {signed(c.difference)}, 95 % interval {interval_text(c)}, {verdict(c)}"
        bar = f'<path class="bar" d="M{to_u(c.low):.1f} {v}H{to_u(c.high):.1f}"/>' if math.isfinite(c.low) else ""
        shape = marker(marker_name(style), u, v)
        parts.append(f'<g class="{css_class(style)}"><title>{escape(words)}</title>{bar}{shape}</g>')
    what = arms[0] if len(arms) == 1 else "each arm"
    label = f"difference in Dice, {what} \N{MINUS SIGN} {comparisons[0].baseline_arm}"
    parts.append(
        f'<text class="label" x="{(width + _LEFT - _RIGHT) / 2}" y="{height - 6}" {_MIDDLE}>{escape(label)}</text>'
    )
    rows = "; ".join(f"{c.arm} with {c.budget}: {signed(c.difference)} ({interval_text(c)})" for c in comparisons)
    return _svg(width, height, f"Difference in Dice per number of labelled persons. {rows}", parts)


def convergence_chart(
    budget: int, curves: Sequence[Curve], found: Sequence[Convergence], styles: Mapping[str, int]
) -> str:
    """Validation Dice of one budget against steps: per arm the mean over seeds, each seed faint behind it."""
    series = []
    for name, style in styles.items():
        own = [c for c in curves if c.budget == budget and c.arm == name and c.steps]
        if len(own) > 1:
            series += [Series(name, style, c.steps, c.dice, has_markers=False, is_faint=True) for c in own]
        if own:
            steps_N, dice_SN = on_one_grid(own)
            series.append(Series(name, style, steps_N.tolist(), dice_SN.mean(axis=0).tolist()))
    marks = [(c.target_dice, f"final {c.baseline_arm}") for c in found if c.budget == budget]
    text = f"Validation Dice against optimizer steps with {persons([budget])}"
    limits = (0.0, 1.0)
    return line_chart(
        series, text, "optimizer steps", "validation Dice", y_limits=limits, size=(400, 260), marks=marks[:1]
    )


def pretrain_charts(curve: PretrainCurve) -> list[str]:
    """Loss and, when recorded, volumes a second against pretraining steps; [] when there is no curve."""
    steps = [float(s) for s in curve.steps]
    panels = [
        ("reconstruction loss", "Reconstruction loss on hidden voxels", curve.loss),
        ("crops a second", "Throughput", curve.volumes_per_s),
    ]
    charts = []
    for label, what, values in panels:
        if finite := [v for v in values if math.isfinite(v)]:
            series = [Series(label, 1, steps, values, has_markers=False)]
            text = f"{what} against pretraining steps, from {number(finite[0])} to {number(finite[-1])}"
            charts.append(
                line_chart(series, text, "pretraining steps", label, y_limits=(0.0, math.inf), size=(400, 250))
            )
    return charts


def marker(kind: str, u: float, v: float, r: float = 4.2) -> str:
    """One marker centred on (u, v), about as heavy in each of its shapes."""
    if kind.startswith(OPEN):
        return f'<g class="open">{marker(kind.removeprefix(OPEN), u, v, r)}</g>'
    if kind == "circle":
        return f'<circle cx="{u:.1f}" cy="{v:.1f}" r="{r}"/>'
    if kind == "square":
        return f'<rect x="{u - r * 0.9:.1f}" y="{v - r * 0.9:.1f}" width="{r * 1.8:.1f}" height="{r * 1.8:.1f}"/>'
    if kind in ("triangle", "down"):
        up = 1 if kind == "triangle" else -1
        return f'<path d="M{u:.1f} {v - up * r * 1.2:.1f}l{r * 1.15:.1f} {up * r * 2:.1f}h{-r * 2.3:.1f}z"/>'
    if kind == "plus":
        return f'<path class="thick" d="M{u - r:.1f} {v:.1f}h{2 * r:.1f}M{u:.1f} {v - r:.1f}v{2 * r:.1f}"/>'
    if kind == "cross":
        a = f"{r * 1.7:.1f}"
        return f'<path class="thick" d="M{u - r * 0.85:.1f} {v - r * 0.85:.1f}l{a} {a}m0 -{a}l-{a} {a}"/>'
    d = f"{r * 1.3:.1f}"
    return f'<path d="M{u:.1f} {v - r * 1.3:.1f}l{d} {d} -{d} {d} -{d} -{d}z"/>'


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers at a step of 1, 2 or 5 times a power of ten that reach from low to high or past them."""
    if not high > low:
        low, high = low - 0.05, high + 0.05
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def number(value: float) -> str:
    """Short text of a tick: 0.05, 1200, 12k."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}") if abs(value) < 1000 else f"{value:.0f}"


_MIDDLE, _END = 'text-anchor="middle"', 'text-anchor="end"'


def _scale(data: tuple[float, float], svg: tuple[float, float]) -> Callable[[float], float]:
    span = data[1] - data[0]
    if span == 0:
        return lambda value: (svg[0] + svg[1]) / 2
    return lambda value: svg[0] + (value - data[0]) / span * (svg[1] - svg[0])


def _beside(places: Sequence[float], num_intervals: int, span: float) -> float:
    """Distance at which several intervals of one x stand side by side: 7, less where they would reach the next x.

    places: of the x, rising; span: length of the axis in the SVG.
    """
    gaps = [(b - a) / (places[-1] - places[0]) for a, b in zip(places, places[1:], strict=False)]
    return min(7.0, 0.7 * span * min(gaps, default=1.0) / max(num_intervals, 1))


def _axes(
    width: int, height: int, y_ticks: Sequence[float], to_v: Callable[[float], float], x_label: str, y_label: str
) -> str:
    parts = [f'<text class="label" x="0" y="14">{escape(y_label)}</text>']
    for tick in y_ticks:
        v = to_v(tick)
        parts.append(f'<path class="grid" d="M{_LEFT} {v:.1f}H{width - _RIGHT}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{v + 4:.1f}" {_END}>{number(tick)}</text>')
    middle = (width + _LEFT - _RIGHT) / 2
    parts.append(f'<text class="label" x="{middle}" y="{height - 6}" {_MIDDLE}>{escape(x_label)}</text>')
    return "".join(parts)


def _line(one: Series, to_u: Callable[[float], float], to_v: Callable[[float], float]) -> str:
    finite = [i for i, y in enumerate(one.ys) if math.isfinite(y)]
    path = "L".join(f"{to_u(one.xs[i]):.1f} {to_v(one.ys[i]):.1f}" for i in finite)
    faint = " faint" if one.is_faint else ""
    parts = [f'<g class="{css_class(one.style)}{faint}"><path class="line" d="M{path}"/>']
    first, every = marked(len(finite), one.style) if one.has_markers else (0, 1)
    for place, i in enumerate(finite if one.has_markers else ()):
        u, v = to_u(one.xs[i]), to_v(one.ys[i])
        words, bar = f"{one.name}, {number(one.xs[i])}: {one.ys[i]:.3f}", ""
        if one.lows and math.isfinite(one.lows[i]):
            low, high = one.lows[i], one.highs[i]
            words += f" (95 % interval {low:.3f} to {high:.3f})"
            bar = f'<path class="bar" d="M{u:.1f} {to_v(low):.1f}V{to_v(high):.1f}"/>'
        is_marked = place % every == first
        shape = (
            marker(marker_name(one.style), u, v)
            if is_marked
            else f'<circle class="unmarked" cx="{u:.1f}" cy="{v:.1f}" r="5"/>'
        )
        parts.append(f"<g><title>{escape(words)}</title>{bar}{shape}</g>")
    return "".join([*parts, "</g>"])


def _svg(width: int, height: int, description: str, parts: Sequence[str]) -> str:
    label = escape(description, quote=True)
    return f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
