"""A curve comes back with every digit, and a resumed run's has each step once."""

from pathlib import Path

from maetrain.train.curve import Curve, CurvePoint

POINTS = Curve(CurvePoint(step, 1 / (step + 2), 10.0 * step) for step in range(1, 6))


def test_a_curve_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    POINTS.save(tmp_path / "curve.jsonl")
    assert Curve.load(tmp_path / "curve.jsonl") == POINTS
    assert len((tmp_path / "curve.jsonl").read_text().splitlines()) == 5


def test_a_run_without_a_curve_starts_an_empty_one(tmp_path: Path) -> None:
    assert Curve.load(tmp_path / "curve.jsonl") == []


def test_a_resumed_run_keeps_the_points_up_to_its_checkpoint() -> None:
    assert [point.step for point in POINTS.until(3)] == [1, 2, 3]
    assert POINTS.until(0) == [] and POINTS.until(99) == POINTS
