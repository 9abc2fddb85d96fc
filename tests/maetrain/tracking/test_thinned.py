"""However long a run, a series stays short, and keeps its shape and its end."""

from collections import defaultdict
from collections.abc import Mapping

import pytest

from maetrain.tracking.thinned import thinned


def logged(steps: range, last_step: int, most_points: int) -> dict[str, list[int]]:
    series = defaultdict(list)

    def log(metrics: Mapping[str, float], step: int) -> None:
        for name in metrics:
            series[name].append(step)

    keep = thinned(log, last_step, most_points)
    for step in steps:
        keep({"loss": 1.0} | ({"dice": 0.5} if step % 50 == 0 else {}), step)
    return series


@pytest.mark.parametrize(
    ("last_step", "most_points", "remark"),
    [
        (0, 2, "one step"),
        (9, 11, "each step has a part of its own"),
        (10, 11, "one step more than parts"),
        (1000, 11, "many steps a part"),
        (99_999, 1000, "a long run"),
    ],
)
def test_no_series_has_more_points_than_stated_and_they_lie_evenly(
    last_step: int, most_points: int, remark: str
) -> None:
    loss = logged(range(last_step + 1), last_step, most_points)["loss"]
    assert len(loss) <= most_points, remark
    assert loss[0] == 0 and loss[-1] == last_step
    widest = -(-(last_step + 1) // (most_points - 1))
    assert all(1 <= later - earlier <= widest for earlier, later in zip(loss, loss[1:], strict=False))


def test_a_short_run_keeps_every_point_and_a_rare_series_too() -> None:
    assert logged(range(1, 501), 500, 1000)["loss"] == list(range(1, 501))
    assert logged(range(1, 5001), 5000, 150)["dice"] == list(range(50, 5001, 50))


def test_steps_behind_the_end_add_no_more_than_the_last_part_has() -> None:
    assert len(logged(range(10_000), 100, 11)["loss"]) <= 11


def test_the_same_steps_give_the_same_points_wherever_a_run_starts_over() -> None:
    assert logged(range(1000), 999, 37) == logged(range(1000), 999, 37)
