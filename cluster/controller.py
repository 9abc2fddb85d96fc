"""What Ray Train's controller is told to do around its own decisions. Its callback classes are not public API: this is
the one file that imports them.
"""

import signal
import time
from types import FrameType
from typing import Any

import ray
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerCallback
from ray.train.v2._internal.execution.controller.state import ResizingState
from ray.train.v2.api.callback import UserCallback

from maetrain.train.wishes import Wishes

PROCESS_WISHES = Wishes()  # of a rank's process, set by its SIGTERM


def callbacks(desk: Any, grace_s: float) -> list[Any]:
    """What goes into Ray's RunConfig. `grace_s`: how long a resize waits for a checkpoint, seconds.

    Of a callback that is a UserCallback and another kind as well Ray would ask the former's part alone.
    """
    return [ReasonCallback(desk), GroupCallback(desk, grace_s), SigtermCallback()]


class ReasonCallback(UserCallback):
    """Says why a group ended."""

    def __init__(self, desk: Any) -> None:
        self.desk = desk

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for rank, error in sorted(worker_exceptions.items()):
            lines = str(error).strip().splitlines() or [type(error).__name__]
            # a traceback says it in its last line, a lost process in its first
            reason = lines[-1] if "Traceback" in str(error) else lines[0]
            self.desk.post.remote(f"rank {rank} ended: {reason[:200]}")


class GroupCallback(ControllerCallback):
    """No restart after a user's mistake; a checkpoint before a planned change of size."""

    def __init__(self, desk: Any, grace_s: float) -> None:
        self.desk, self.grace_s = desk, grace_s

    def before_controller_execute_failure_decision(self, failure_decision: Any) -> None:
        refusal, _ = ray.get(self.desk.endings.remote())
        if refusal:
            raise RuntimeError(refusal)  # ends the run: an error of a callback is not retried

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """A resize ends the group without a word to it, so it is asked here, and waited for."""
        if not isinstance(current_state, ResizingState):
            return
        asked_at = ray.get(self.desk.ask.remote("the group is to be resized"))
        while time.time() < asked_at + self.grace_s:
            if ray.get(self.desk.committed_time.remote()) > asked_at:
                return
            time.sleep(0.1)


class SigtermCallback(WorkerCallback):
    """A rank that gets a SIGTERM asks for a checkpoint instead of dying at once."""

    def after_init_train_context(self) -> None:
        def ask(_number: int, _frame: FrameType | None) -> None:
            PROCESS_WISHES.save = "SIGTERM at a rank"

        signal.signal(signal.SIGTERM, ask)  # Ray calls this in the main thread, as signals need
