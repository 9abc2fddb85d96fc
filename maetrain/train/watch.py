"""Decides what to do about losses that go wrong: pure, numbers in, verdicts out.

A step with a non-finite loss or gradient is skipped by the engine, on all ranks. Too many in a row, and the run goes
back to its last checkpoint and on in another order of samples; if that fails, too, before a later checkpoint, it stops.
"""

import statistics
from collections.abc import Sequence
from enum import Enum

from maetrain.train.state import RunState

SPIKE_WINDOW = 50  # steps a loss is compared with


class Verdict(Enum):
    GO_ON = "go on"
    GO_BACK = "go back"
    STOP = "stop"


class Watch:
    """`max_skipped`: steps in a row that may be skipped."""

    def __init__(self, max_skipped: int, state: RunState) -> None:
        self.max_skipped, self.state = max_skipped, state
        self.in_a_row = 0

    def see(self, step: int, was_skipped: bool) -> Verdict:
        """After each step. At GO_BACK `state` is that of the run that goes on, in its new order."""
        if not was_skipped:
            self.in_a_row = 0
            self.state = self.state.model_copy(update={"updates": self.state.updates + 1})
            return Verdict.GO_ON
        self.in_a_row += 1
        self.state = self.state.model_copy(update={"num_skipped": self.state.num_skipped + 1})
        if self.in_a_row < self.max_skipped:
            return Verdict.GO_ON
        if self.state.went_back_at is not None:
            return Verdict.STOP
        self.in_a_row = 0
        self.state = self.state.model_copy(update={"order": self.state.order + 1, "went_back_at": step})
        return Verdict.GO_BACK

    def back_at(self, saved: RunState) -> None:
        """The run stands where it was saved with this state."""
        self.state = self.state.model_copy(update={"updates": saved.updates})

    def committed(self, step: int) -> None:
        """A checkpoint behind the place of trouble: the next trouble is another one."""
        if self.state.went_back_at is not None and step > self.state.went_back_at:
            self.state = self.state.model_copy(update={"went_back_at": None})


def is_spike(loss: float, before: Sequence[float], mads: float) -> bool:
    """True where `loss` lies more than `mads` median absolute deviations above the median of `before` (20 or more).

    A deviation counts as at least a thousandth of the median: on a flat curve nothing would be normal.
    """
    if len(before) < 20:
        return False
    median = statistics.median(before)
    deviation = statistics.median(abs(value - median) for value in before)
    return loss > median + mads * max(deviation, 1e-3 * abs(median))
