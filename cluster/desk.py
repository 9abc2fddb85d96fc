"""Where driver, Ray Train's controller and ranks leave word for each other: one small actor on the driver's node."""

import time
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class _Desk:
    """Messages from the first rank, wishes for it, and how often the group has started without getting anywhere."""

    def __init__(self, max_failures: int) -> None:
        self.max_failures = max_failures
        self.messages: list[Any] = []
        self.refusal: str | None = None
        self.stopped: str | None = None
        self.wish: tuple[int, str, bool] = (0, "", False)
        self.futile = 0  # starts since a checkpoint was committed
        self.committed_step, self.committed_at = -1, 0.0

    def post(self, message: Any) -> None:
        self.messages.append(message)

    def collect(self) -> list[Any]:
        """All messages since the last call."""
        messages, self.messages = self.messages, []
        return messages

    def refuse(self, reason: str) -> None:
        """A mistake of the user's: no further start can mend it."""
        self.refusal = self.refusal or reason

    def stop(self, how: str) -> None:
        """The group has stopped because it was asked to."""
        self.stopped = how

    def endings(self) -> tuple[str | None, str | None]:
        """(refusal, how it stopped)."""
        return self.refusal, self.stopped

    def start(self) -> str | None:
        """A group is about to start; what speaks against it. The first start is no failure."""
        if self.refusal is None and self.futile > self.max_failures:
            self.refusal = (
                f"the group was started {self.futile} times in a row and ended each time before it had stored another "
                "checkpoint (cluster.max_failures): see Ray's log of the workers for what ended it"
            )
        if self.refusal is None:
            self.futile += 1
        return self.refusal

    def committed(self, step: int) -> None:
        self.committed_at = time.time()
        if step > self.committed_step:
            self.committed_step, self.futile = step, 0

    def ask(self, reason: str, stop: bool = False) -> float:
        """Wish for a checkpoint, and a stop behind it where `stop`; returns the time of asking."""
        self.wish = (self.wish[0] + 1, reason, stop or self.wish[2])
        return time.time()

    def asked(self) -> tuple[int, str, bool]:
        """(number of the newest wish, its reason, whether to stop)."""
        return self.wish

    def committed_time(self) -> float:
        """When the last checkpoint was committed, 0 = none yet."""
        return self.committed_at


def open_desk(max_failures: int) -> Any:
    """On the driver's node: the loss of another one must not take it along."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(_Desk).options(num_cpus=0, scheduling_strategy=here).remote(max_failures)
