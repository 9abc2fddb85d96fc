"""The report's figures as PNG on white: for Markdown, the tracker and slides.

By matplotlib, since nothing of a page's colours or letters is to be followed here. A name from a file may hold $ signs,
which matplotlib would read as mathematics, so they are escaped, or begin with _, which would hide it from a legend.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from maetrain.report.convergence import on_one_grid
from maetrain.report.inputs import Curve, PretrainCurve
from maetrain.report.statistics import ArmPoint, BudgetComparison
from maetrain.report.styles import marked, matplotlib_style
from maetrain.report.wording import persons

_COLUMNS = 3  # panels beside each other
_LEGEND: dict[str, Any] = {"loc": "outside lower center", "ncols": 3, "frameon": False, "fontsize": 9}


def budget_png(path: Path, points: Sequence[ArmPoint], styles: Mapping[str, int]) -> None:
    """The label-efficiency curve: mean Dice with interval against labelled persons."""
    figure, ((axes,),) = _panels(1, (6.4, 4.2))
    for i, (arm, style) in enumerate(styles.items()):
        own = [p for p in points if p.arm == arm]
        below, above = [p.mean - p.low for p in own], [p.high - p.mean for p in own]
        _bars(axes, [p.budget * _beside(i, len(styles)) for p in own], [p.mean for p in own], below, above, arm, style)
    _budget_axis(axes, sorted({p.budget for p in points}))
    axes.set_ylabel("mean Dice on the test persons, 95 % interval")
    _finish(figure, path, axes)


def difference_png(
    path: Path, by_arm: Mapping[str, Sequence[BudgetComparison]], baseline: str, styles: Mapping[str, int]
) -> None:
    """Difference of each arm from the baseline, with interval, against labelled persons."""
    figure, ((axes,),) = _panels(1, (6.4, 4.2))
    for i, (arm, found) in enumerate(by_arm.items()):
        xs, ys = [c.budget * _beside(i, len(by_arm)) for c in found], [c.difference for c in found]
        below, above = [c.difference - c.low for c in found], [c.high - c.difference for c in found]
        _bars(axes, xs, ys, below, above, arm, styles[arm])
    _budget_axis(axes, sorted({c.budget for found in by_arm.values() for c in found}))
    axes.axhline(0, color="#444444", linewidth=0.8)
    axes.set_ylabel(_plain(f"difference in Dice from {baseline}, 95 % interval"))
    _finish(figure, path, axes)


def convergence_png(path: Path, curves: Sequence[Curve], styles: Mapping[str, int]) -> None:
    """Validation Dice against steps, a panel a budget: per arm the mean over seeds, each seed thin."""
    budgets = sorted({curve.budget for curve in curves})
    figure, rows = _panels(len(budgets), (3.2, 2.6))
    panels = [axes for row in rows for axes in row]
    lines: dict[str, Line2D] = {}
    for axes, budget in zip(panels, budgets, strict=False):
        for arm, style in styles.items():
            own = [c for c in curves if c.budget == budget and c.arm == arm and c.steps]
            if not own:
                continue
            look = matplotlib_style(style)
            for curve in own if len(own) > 1 else ():
                axes.plot(curve.steps, curve.dice, color=look["color"], linewidth=0.6, alpha=0.4)
            steps_N, dice_SN = on_one_grid(own)
            means_N, markers = dice_SN.mean(axis=0), marked(len(steps_N), style)
            (line,) = axes.plot(steps_N, means_N, linewidth=1.6, markersize=4, markevery=markers, **look)
            lines.setdefault(arm, line)
        axes.set_title(persons([budget]), fontsize=9)
        axes.set_xlabel("optimizer steps", fontsize=9)
        axes.set_ylabel("validation Dice", fontsize=9)
    for axes in panels[len(budgets) :]:
        axes.set_axis_off()
    arms = [arm for arm in styles if arm in lines]
    names = [_plain(arm) for arm in arms]
    figure.legend([lines[arm] for arm in arms], names, **_LEGEND)
    _finish(figure, path)


def pretrain_png(path: Path, curve: PretrainCurve) -> None:
    """Loss of the pretraining against its steps."""
    figure, ((axes,),) = _panels(1, (6.4, 3.2))
    axes.plot(curve.steps, curve.loss, color=matplotlib_style(1)["color"], linewidth=1.6)
    axes.set_xlabel("pretraining steps")
    axes.set_ylabel("reconstruction loss")
    _finish(figure, path, axes)


def _panels(num: int, size_inch: tuple[float, float]) -> tuple[Figure, list[list[Axes]]]:
    columns = min(num, _COLUMNS) or 1
    lines = math.ceil(num / columns) or 1
    figure = Figure(figsize=(size_inch[0] * columns, size_inch[1] * lines), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(lines, columns, squeeze=False).tolist()


def _bars(
    axes: Axes,
    xs: Sequence[float],
    ys: Sequence[float],
    below: Sequence[float],
    above: Sequence[float],
    arm: str,
    style: int,
) -> None:
    lengths = [[max(0.0, v) if math.isfinite(v) else 0.0 for v in side] for side in (below, above)]
    axes.errorbar(
        xs, ys, yerr=lengths, capsize=3, linewidth=1.6, markersize=6, label=_plain(arm), **matplotlib_style(style)
    )


def _beside(i: int, num_arms: int) -> float:
    """Factor that moves arm i on a log axis: intervals of a budget stand side by side, within half an octave."""
    return float(2.0 ** (min(0.1, 0.5 / num_arms) * (i - (num_arms - 1) / 2)))


def _budget_axis(axes: Axes, budgets: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(budgets, [str(b) for b in budgets])
    axes.minorticks_off()
    axes.set_xlabel("labelled persons (log scale)")


def _finish(figure: Figure, path: Path, legend_of: Axes | None = None) -> None:
    for axes in figure.axes:
        axes.grid(axis="y", color="#dddddd", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    if legend_of and legend_of.get_legend_handles_labels()[0]:
        figure.legend(*legend_of.get_legend_handles_labels(), **_LEGEND)
    figure.savefig(path)


def _plain(name: str) -> str:
    return f"{' ' * name.startswith('_')}{name}".replace("$", r"\$")
