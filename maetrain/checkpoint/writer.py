"""Writes parts of checkpoints beside the training: what a step waits for is the copy out of the training's tensors.

One thread a rank, one task at a time. A storage that does not answer is tried again until a time limit; the training
goes on meanwhile.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

Result = TypeVar("Result")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0


class Lost(OSError):
    """What no further try can get over."""


def persistently(
    action: Callable[[], Result], timeout_s: float, hear: Callable[[OSError], None] = lambda _: None
) -> Result:
    """`action()`, again after each OSError but Lost, after pauses of up to 5 s; its last error after `timeout_s`.

    `hear` is told of those it gets over.
    """
    give_up_at, pause_s = time.monotonic() + timeout_s, _FIRST_PAUSE_S
    while True:
        try:
            return action()
        except OSError as error:
            if isinstance(error, Lost) or time.monotonic() + pause_s > give_up_at:
                raise
            hear(error)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


class Background(Generic[Result]):
    """One task at a time in a thread of its own."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._task: Future[Result] | None = None
        self.trouble: str | None = None  # what the last try of the task failed on, where it is tried again

    def start(self, action: Callable[[], Result]) -> None:
        """Runs `action`, persistently. The task before must have been taken."""
        assert self._task is None
        self.trouble = None
        self._task = self._thread.submit(persistently, action, self.timeout_s, self._hear)

    def _hear(self, error: OSError) -> None:
        self.trouble = _one_line(error)

    @property
    def is_done(self) -> bool:
        return self._task is not None and self._task.done()

    @property
    def error(self) -> str | None:
        """What a task that is done failed with. A mistake of our own is raised, not told."""
        if not self.is_done:
            return None
        assert self._task is not None
        error = self._task.exception()
        if error is not None and not isinstance(error, OSError):
            raise error
        return None if error is None else _one_line(error)

    def wait(self, timeout_s: float) -> None:
        """Until the task is done, if there is one, but no longer than `timeout_s`."""
        if self._task is not None:
            wait([self._task], timeout_s)

    def take(self) -> Result | None:
        """The result of the task that is done, None if it failed; then another may start."""
        assert self._task is not None and self._task.done()
        task, self._task = self._task, None
        return task.result() if task.exception() is None else None


def _one_line(error: OSError) -> str:
    return " ".join(str(error).split())
