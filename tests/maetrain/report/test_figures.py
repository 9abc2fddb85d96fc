"""Charts: well-formed, complete, and calm about odd numbers."""

import math
from pathlib import Path
from xml.etree import ElementTree

import pytest

from maetrain.report.figures import (
    Series,
    budget_chart,
    budget_png,
    difference_chart,
    line_chart,
    nice_ticks,
    pretrain_charts,
)
from maetrain.report.inputs import PretrainCurve
from maetrain.report.statistics import ArmPoint, arm_curve, compare

from .builders import make_rows

STYLES = {"scratch": 0, "mae": 1}


def count(svg: str, tag: str) -> int:
    return len(ElementTree.fromstring(svg).findall(f".//{tag}"))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.62, 0.71, [0.62, 0.64, 0.66, 0.68, 0.7, 0.72]),
        (-0.013, 0.02, [-0.02, -0.01, 0.0, 0.01, 0.02]),
        (0.0, 400.0, [0.0, 100.0, 200.0, 300.0, 400.0]),
    ],
)
def test_ticks_are_round_and_enclose_the_data(low: float, high: float, expected: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(expected)


def test_ticks_exist_for_a_single_value() -> None:
    ticks = nice_ticks(0.5, 0.5)
    assert ticks[0] < 0.5 < ticks[-1]


def test_the_budget_chart_has_a_marker_for_every_point() -> None:
    svg = budget_chart(arm_curve(make_rows(budgets=(1, 2, 8))), STYLES)
    assert (count(svg, "circle"), count(svg, "rect"), count(svg, "title")) == (3, 3, 6)


def test_one_budget_and_one_person_still_make_charts(tmp_path: Path) -> None:
    rows = make_rows(budgets=(3,), num_subjects=1)
    assert count(budget_chart(arm_curve(rows), STYLES), "circle") == 1
    assert count(difference_chart(compare(rows)), "circle") == 1
    budget_png(tmp_path / "curve.png", arm_curve(rows), STYLES)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_difference_chart_shows_zero_and_every_budget() -> None:
    svg = difference_chart(compare(make_rows(budgets=(1, 2, 8))))
    assert count(svg, "circle") == 3 and 'class="zero"' in svg
    assert difference_chart([]) == ""


def test_points_that_are_no_numbers_are_left_out() -> None:
    svg = line_chart([Series("loss", 1, [1, 2, 3], [0.5, math.nan, 0.4])], "d", "x", "y")
    assert "nan" not in svg and count(svg, "circle") == 2
    assert line_chart([Series("loss", 1, [1], [math.nan])], "d", "x", "y") == ""
    assert pretrain_charts(PretrainCurve(steps=[1], loss=[math.inf])) == []


def test_names_are_escaped() -> None:
    svg = budget_chart([ArmPoint(1, "<b>&", 0.5, 0.4, 0.6, 3, 2)], {"<b>&": 0})
    assert "<b>" not in svg
    ElementTree.fromstring(svg)


def test_a_name_full_of_mathematics_does_not_break_the_png(tmp_path: Path) -> None:
    budget_png(tmp_path / "curve.png", [ArmPoint(1, r"$\broken{$", 0.5, 0.4, 0.6, 3, 2)], {r"$\broken{$": 0})
    assert (tmp_path / "curve.png").is_file()
