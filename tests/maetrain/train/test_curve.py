"""A curve comes back with every digit, and its text grows with it."""

import json
import math
from pathlib import Path

import pytest

from maetrain.train.curve import Curve, StepInfo

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


def test_points_added_one_by_one_read_the_same() -> None:
    curve = Curve(POINTS[:2])
    for point in POINTS[2:]:
        curve.append(point)
    assert curve.text() == Curve(POINTS).text() and curve == POINTS


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_null_in_strict_json(loss: float) -> None:
    curve = Curve([StepInfo(1, loss)])
    assert json.loads(curve.text(), parse_constant=pytest.fail)["loss"] is None
    assert math.isnan(Curve.parse(curve.text())[0].loss)


@pytest.mark.parametrize("text", ["[1]\n", '{"stop": 1}\n', "x\n"])
def test_what_is_no_curve_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Curve.parse(text)
