"""How long a rank waits for the others: the time inside torch's collectives, which on CPUs (gloo) block.

On GPUs collectives run beside the computation and cannot be told from it here; there a step's wait is the one at its
end, for the slowest rank.
"""

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

_NAMES = (
    "all_gather", "all_gather_into_tensor", "all_reduce", "barrier", "broadcast", "reduce", "reduce_scatter",
    "reduce_scatter_tensor",
)  # fmt: skip


class CommClock:
    def __init__(self) -> None:
        self._seconds = 0.0

    def timed(self, collective: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(collective)
        def call(*words: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return collective(*words, **named)
            finally:
                self._seconds += time.perf_counter() - started

        return call

    def take_s(self) -> float:
        """Seconds since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


@contextmanager
def comm_clock(device: torch.device) -> Iterator[CommClock]:
    """Gives a clock of the collectives that DeepSpeed and we call from here on; it stands still on GPUs."""
    clock = CommClock()
    if device.type != "cpu":
        yield clock
        return
    before = {name: getattr(dist, name) for name in _NAMES}
    try:
        for name, collective in before.items():
            setattr(dist, name, clock.timed(collective))
        yield clock
    finally:
        for name, collective in before.items():
            setattr(dist, name, collective)
