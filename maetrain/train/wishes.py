"""What the outside asks of a running loop: to save now, or to save and stop. Set by signals and other threads."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(Exception):
    """The run stopped because it was asked to; its checkpoint is committed. `signal_number`: how it was asked."""

    def __init__(self, message: str, signal_number: int = signal.SIGTERM) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class Wishes:
    """The reasons given, None = no wish. One rank's wish is enough: the loop agrees on it over all ranks."""

    def __init__(self) -> None:
        self.save: str | None = None
        self.stop: str | None = None

    def flags(self) -> list[float]:
        return [float(self.save is not None), float(self.stop is not None)]


@contextmanager
def sigterm_stops(wishes: Wishes) -> Iterator[None]:
    """A SIGTERM, as clusters send it some seconds before they take a machine away, becomes the wish to stop.

    Only the main thread of a process can do so; in another one nothing happens.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(_number: int, _frame: FrameType | None) -> None:
        wishes.stop = "SIGTERM"

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
