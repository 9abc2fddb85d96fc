"""A curve comes back with every digit; a run that goes on holds only what it needs of it."""

import json
import math
from pathlib import Path

import pytest

from maetrain.train.curve import Curve, RunningCurve, StepInfo, first_lines, log_spacing, points_at

POINTS = [StepInfo(step, 1 / (step + 2), 1e-3 / step, step_s=0.1, num_skipped=step) for step in range(1, 6)]


def test_a_curve_comes_back_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "curve.jsonl").write_text(Curve(POINTS).text())
    read = Curve.load(tmp_path / "curve.jsonl")
    assert [point.line() for point in read] == [point.line() for point in POINTS]
    assert [(point.step, point.loss, point.num_skipped) for point in read] == [
        (p.step, p.loss, p.num_skipped) for p in POINTS
    ]
    assert len(Curve(POINTS).text().splitlines()) == 5


def test_a_run_without_a_curve_starts_an_empty_one(tmp_path: Path) -> None:
    assert Curve.load(tmp_path / "curve.jsonl") == [] and Curve().text() == ""


def test_the_first_rank_holds_what_the_next_commit_and_the_window_need() -> None:
    curve = RunningCurve(window=2, lines=[])
    for point in POINTS:
        curve.append(point)
    assert curve.points == POINTS and first_lines(curve.lines or [], 3) == Curve(POINTS[:3]).text()
    assert curve.points_after(3) == POINTS[3:]
    curve.committed(2)
    assert curve.points == POINTS[2:]
    curve.committed(5)
    assert curve.points == POINTS[3:] and curve.points_after(5) == []
    assert "".join(curve.lines or []) == Curve(POINTS).text(), "all of it goes into each checkpoint"


def test_other_ranks_hold_the_window() -> None:
    curve = RunningCurve(window=2, points=POINTS[:1])
    for point in POINTS[1:]:
        curve.append(point)
    assert curve.points == POINTS[3:] and curve.lines is None


def test_a_long_curve_gives_the_tracker_few_points() -> None:
    lines = [StepInfo(step, 0.5).line() for step in range(1, 24)]
    assert [point.step for point in points_at(lines, 5)] == [5, 10, 15, 20, 23]
    assert [point.step for point in points_at(lines, 1)] == list(range(1, 24))
    assert [point.step for point in points_at(lines[:20], 5)] == [5, 10, 15, 20] and points_at([], 5) == []
    assert [log_spacing(steps, 5) for steps in (0, 200, 25_000, 25_001)] == [5, 5, 5, 6]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_null_in_strict_json(loss: float) -> None:
    curve = Curve([StepInfo(1, loss)])
    assert json.loads(curve.text(), parse_constant=pytest.fail)["loss"] is None
    assert math.isnan(Curve.parse(curve.text())[0].loss)


@pytest.mark.parametrize("text", ["[1]\n", '{"stop": 1}\n', "x\n"])
def test_what_is_no_curve_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Curve.parse(text)
