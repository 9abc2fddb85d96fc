"""Figures as PNG: they are written, also where there is little to draw, and names are not taken for mathematics."""

from pathlib import Path

import pytest
from matplotlib import image

from maetrain.report.inputs import Curve, PretrainCurve
from maetrain.report.pngs import budget_png, convergence_png, difference_png, pretrain_png
from maetrain.report.statistics import arm_curve, compare

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


def test_names_full_of_mathematics_do_not_break_the_figures(tmp_path: Path) -> None:
    evil = r"$\broken{$"
    rows = make_rows(budgets=(1,), arms=("scratch", evil), num_subjects=3)
    curves = [Curve(budget=1, arm=evil, seed=0, steps=[0, 5], dice=[0.1, 0.5])]
    styles = {"scratch": 0, evil: 1}
    budget_png(tmp_path / "a.png", arm_curve(rows), styles)
    difference_png(tmp_path / "b.png", {evil: compare(rows, "scratch", evil)}, evil, styles)
    convergence_png(tmp_path / "c.png", curves, styles)
