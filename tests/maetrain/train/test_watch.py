"""Skipped steps lead back once, then to a stop; spikes stand out against their own past."""

import math

import pytest

from maetrain.train.state import RunState
from maetrain.train.watch import Verdict, Watch, is_spike


def verdicts(watch: Watch, skipped: str, first: int = 1) -> str:
    """One letter a step: x = skipped; the answer: g o(n), B(ack), S(top)."""
    letters = {Verdict.GO_ON: "g", Verdict.GO_BACK: "B", Verdict.STOP: "S"}
    return "".join(letters[watch.see(first + i, letter == "x")] for i, letter in enumerate(skipped))


@pytest.mark.parametrize(
    ("skipped", "expected"),
    [
        ("......", "gggggg"),
        ("xx.xx.xx.", "ggggggggg"),
        ("xxx", "ggB"),
        (".xxx.xx.xxx", "gggBgggggg" + "S"),
        ("xxxxxx", "ggBggS"),
    ],
    ids=["all well", "never three in a row", "three in a row", "again before a commit", "at once again"],
)
def test_three_in_a_row_go_back_once_and_then_stop(skipped: str, expected: str) -> None:
    assert verdicts(Watch(3, RunState()), skipped) == expected


def test_trouble_behind_a_later_checkpoint_is_new_trouble() -> None:
    watch = Watch(2, RunState())
    assert verdicts(watch, ".xx", first=9) == "ggB"
    watch.committed(10)  # the one it went back to
    assert watch.state.went_back_at == 11
    watch.committed(12)
    assert verdicts(watch, "xx", first=13) == "gB"
    assert watch.state.order == 2


def test_going_back_changes_the_order_and_keeps_count() -> None:
    watch = Watch(2, RunState(num_skipped=5, updates=7))
    verdicts(watch, "..xx")
    assert (watch.state.order, watch.state.num_skipped, watch.state.updates) == (1, 7, 9)


def test_a_restart_between_remembers_that_it_went_back() -> None:
    first = Watch(1, RunState())
    assert verdicts(first, "x") == "B"
    assert verdicts(Watch(1, first.state), "x") == "S"


FLAT = [1.0, 1.1, 0.9, 1.05, 0.95] * 5


@pytest.mark.parametrize(
    ("loss", "before", "expected"),
    [
        (1.2, FLAT, False),
        (3.0, FLAT, True),
        (0.1, FLAT, False),
        (3.0, FLAT[:19], False),
        (1.001, [1.0] * 20, False),
        (1.1, [1.0] * 20, True),
        (math.nan, FLAT, False),
    ],
    ids=["in the spread", "far above", "below", "too few to tell", "noise of a flat curve", "spike of one", "nan"],
)
def test_a_spike_stands_out_against_the_steps_before(loss: float, before: list[float], expected: bool) -> None:
    assert is_spike(loss, before, mads=12) is expected
