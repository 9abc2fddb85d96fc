"""Figures as PNG: they are written, also where there is little to draw, and names are not taken for mathematics."""

import math
from pathlib import Path

import pytest
from matplotlib import image
from matplotlib.figure import Figure

from maetrain.report.inputs import Curve, PretrainCurve
from maetrain.report.pngs import budget_png, convergence_png, difference_png, pretrain_png
from maetrain.report.statistics import ArmPoint, arm_curve, compare

from .builders import make_rows

STYLES = {"scratch": 0, "mae": 1}


@pytest.mark.parametrize("num_subjects", [1, 6])
@pytest.mark.parametrize("budgets", [(3,), (1, 2, 8)])
def test_figures_of_few_and_many_are_written(tmp_path: Path, num_subjects: int, budgets: tuple[int, ...]) -> None:
    rows = make_rows(budgets=budgets, num_subjects=num_subjects)
    curves = [
        Curve(budget=b, arm=arm, seed=s, steps=[0, 5], dice=[0.1, 0.5])
        for b in budgets
        for arm in STYLES
        for s in (0, 1)
    ]
    budget_png(tmp_path / "a.png", arm_curve(rows), STYLES)
    difference_png(tmp_path / "b.png", {"mae": compare(rows)}, "scratch", STYLES)
    convergence_png(tmp_path / "c.png", curves, STYLES)
    pretrain_png(tmp_path / "d.png", PretrainCurve(steps=[1, 2], loss=[0.5, float("nan")]))
    for name in "abcd":
        assert image.imread(tmp_path / f"{name}.png").std() > 0, "not a blank page"


def test_arms_are_drawn_in_their_own_colours(tmp_path: Path) -> None:
    rows = make_rows(budgets=(1, 4), num_subjects=4)
    budget_png(tmp_path / "two.png", arm_curve(rows), {"scratch": 0, "mae": 1})
    budget_png(tmp_path / "others.png", arm_curve(rows), {"scratch": 2, "mae": 3})
    assert (tmp_path / "two.png").read_bytes() != (tmp_path / "others.png").read_bytes()


@pytest.mark.parametrize("num_arms", [2, 12])
def test_no_interval_hides_another_and_the_legend_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_arms: int
) -> None:
    written: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: written.append(figure))
    arms, budgets = [f"arm-{i}" for i in range(num_arms)], (1, 2, 8, 12)
    points = [ArmPoint(b, arm, 0.5, 0.4, 0.6, 9, 3) for b in budgets for arm in arms]
    budget_png(tmp_path / "a.png", points, {arm: i for i, arm in enumerate(arms)})
    (figure,), ((axes,),) = written, [f.axes for f in written]
    xs = sorted(x for bars in axes.containers for x in bars.lines[0].get_xdata())
    assert len(set(xs)) == len(xs) == num_arms * len(budgets)
    groups = [xs[i : i + num_arms] for i in range(0, len(xs), num_arms)]
    assert [math.prod(group) ** (1 / num_arms) for group in groups] == pytest.approx(budgets), "round their budget"
    assert axes.get_legend() is None and len(figure.legends[0].get_texts()) == num_arms


def test_names_full_of_mathematics_do_not_break_the_figures(tmp_path: Path) -> None:
    evil = r"$\broken{$"
    rows = make_rows(budgets=(1,), arms=("scratch", evil), num_subjects=3)
    curves = [Curve(budget=1, arm=evil, seed=0, steps=[0, 5], dice=[0.1, 0.5])]
    styles = {"scratch": 0, evil: 1}
    budget_png(tmp_path / "a.png", arm_curve(rows), styles)
    difference_png(tmp_path / "b.png", {evil: compare(rows, "scratch", evil)}, evil, styles)
    convergence_png(tmp_path / "c.png", curves, styles)


def test_a_name_that_begins_with_an_underscore_is_in_the_legend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: written.append(figure))
    rows = make_rows(budgets=(1,), arms=("scratch", "_mae"), num_subjects=3)
    budget_png(tmp_path / "a.png", arm_curve(rows), {"scratch": 0, "_mae": 1})
    assert [text.get_text().strip() for text in written[0].legends[0].get_texts()] == ["scratch", "_mae"]


def test_an_arm_of_a_later_panel_is_in_the_legend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: written.append(figure))
    jobs = [(1, "scratch"), (2, "mae"), (4, "scratch"), (4, "late $")]
    curves = [Curve(budget=b, arm=arm, seed=0, steps=[0, 5], dice=[0.1, 0.5]) for b, arm in jobs]
    convergence_png(tmp_path / "c.png", curves, {"scratch": 0, "late $": 2, "mae": 1, "never run": 3})
    (legend,) = written[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["scratch", r"late \$", "mae"]
    assert [line.get_marker() for line in legend.get_lines()] == ["s", "^", "o"]
