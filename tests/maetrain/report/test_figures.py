"""Charts: well-formed, complete, and calm about odd numbers."""

import math
import re
from xml.etree import ElementTree

import pytest

from maetrain.report.convergence import convergence
from maetrain.report.figures import (
    Series,
    budget_chart,
    convergence_chart,
    difference_chart,
    line_chart,
    nice_ticks,
    pretrain_charts,
)
from maetrain.report.inputs import Curve, PretrainCurve
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


def test_one_budget_and_one_person_still_make_charts() -> None:
    rows = make_rows(budgets=(3,), num_subjects=1)
    assert count(budget_chart(arm_curve(rows), STYLES), "circle") == 1
    assert count(difference_chart({"mae": compare(rows)}, STYLES), "circle") == 1


def test_the_difference_chart_shows_zero_and_every_budget() -> None:
    svg = difference_chart({"mae": compare(make_rows(budgets=(1, 2, 8)))}, STYLES)
    assert count(svg, "circle") == 3 and 'class="zero"' in svg
    assert difference_chart({}, STYLES) == ""


def test_points_that_are_no_numbers_are_left_out() -> None:
    svg = line_chart([Series("loss", 1, [1, 2, 3], [0.5, math.nan, 0.4])], "d", "x", "y")
    assert "nan" not in svg and count(svg, "circle") == 2
    assert line_chart([Series("loss", 1, [1], [math.nan])], "d", "x", "y") == ""
    assert pretrain_charts(PretrainCurve(steps=[1], loss=[math.inf])) == []


def test_names_are_escaped() -> None:
    svg = budget_chart([ArmPoint(1, "<b>&", 0.5, 0.4, 0.6, 3, 2)], {"<b>&": 0})
    assert "<b>" not in svg
    ElementTree.fromstring(svg)


def test_a_chart_of_several_arms_has_each_arms_own_marker_and_class() -> None:
    rows = make_rows(budgets=(1, 2), arms=("scratch", "mae", "large", "random-mae"))
    by_arm = {arm: compare(rows, "scratch", arm) for arm in ("mae", "large", "random-mae")}
    svg = difference_chart(by_arm, {"scratch": 0, "mae": 1, "large": 2, "random-mae": 3})
    assert count(svg, "circle") == 2 and all(f'<g class="c{style} d{style}">' in svg for style in (1, 2, 3))
    assert count(svg, "title") == 6 and "each arm" in svg


def test_the_convergence_chart_marks_the_dice_to_reach_once() -> None:
    curves = [
        Curve(budget=b, arm=arm, seed=s, steps=[0, 10], dice=[0.1, 0.6])
        for b in (1, 2)
        for arm in ("scratch", "mae", "large")
        for s in (0, 1)
    ]
    found = convergence(curves) + convergence(curves, arm="large")
    svg = convergence_chart(1, curves, found, {"scratch": 0, "mae": 1, "large": 2})
    assert svg.count("final scratch") == 1 and svg.count("faint") == 6
    assert convergence_chart(4, curves, found, STYLES) == ""


def drawn(svg: str) -> list[tuple[str, str]]:
    """(line class, letters and signs of the first marker's shape) of each line, without colour and place."""
    found = []
    for line in ElementTree.fromstring(svg).findall(".//g[@class]"):
        if line.find("path[@class='line']") is None:
            continue
        shapes = [g[-1] for g in line.findall("g") if g[-1].get("class") != "unmarked"]
        shape = ElementTree.tostring(shapes[0], encoding="unicode")
        found.append((line.attrib["class"].split()[1], re.sub(r"[\d.]+", "", shape)))
    return found


def test_twelve_arms_are_told_apart_without_colour_on_the_convergence_chart() -> None:
    arms = [f"arm-{i}" for i in range(12)]
    curves = [
        Curve(budget=1, arm=arm, seed=0, steps=list(range(30)), dice=[0.01 * i] * 30) for i, arm in enumerate(arms)
    ]
    looks = drawn(convergence_chart(1, curves, [], {arm: i for i, arm in enumerate(arms)}))
    assert len({marker for _, marker in looks}) == len(looks) == 12, "by the marker alone"
    assert len({line for line, _ in looks[:7]}) == 7 and looks[0][0] != looks[6][0], "not the line of its colour"


def test_a_long_curve_names_every_value_and_marks_a_few() -> None:
    curve = Curve(budget=1, arm="mae", seed=0, steps=list(range(40)), dice=[0.5] * 40)
    svg = convergence_chart(1, [curve], [], STYLES)
    assert count(svg, "title") == 40 and svg.count('class="unmarked"') == 32


@pytest.mark.parametrize("budgets", [(1, 4), (1, 2, 4, 8, 16, 32, 64), (1, 2, 4, 8, 12)])
@pytest.mark.parametrize("num_arms", [1, 3, 12])
def test_intervals_stay_beside_their_budget_and_inside_the_axes(num_arms: int, budgets: tuple[int, ...]) -> None:
    arms = [f"arm-{i}" for i in range(num_arms)]
    points = [ArmPoint(b, arm, 0.5, 0.4, 0.6, 9, 3) for b in budgets for arm in arms]
    svg = ElementTree.fromstring(budget_chart(points, {arm: i for i, arm in enumerate(arms)}))
    us = sorted(float(re.match(r"M([\d.]+)", bar.attrib["d"])[1]) for bar in svg.findall(".//path[@class='bar']"))
    assert us[0] >= 52 and us[-1] <= 480 - 16, "neither over the labels of the axis nor out of the chart"
    groups = [us[i : i + num_arms] for i in range(0, len(us), num_arms)]
    ticks = [float(t.attrib["x"]) for t in svg.findall(".//text[@class='tick'][@text-anchor='middle']")]
    assert [sum(group) / num_arms for group in groups] == pytest.approx(ticks, abs=0.1), "none among its neighbour's"
