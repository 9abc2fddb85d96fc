"""Ctrl-C and SIGTERM at the driver: first a checkpoint and a stop, then, if that takes too long or at once, the end."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from cluster.console import say


@contextmanager
def gentle_stop(ask: Callable[[str], None], grace_s: float) -> Iterator[Callable[[], int]]:
    """`ask` hears the reason at the first signal; KeyboardInterrupt at a second Ctrl-C, or `grace_s` after the first.

    Another SIGTERM hastens nothing: a pod that goes gets one from Ray, one from its drain and one from Kubernetes.
    Gives the number of the first signal. Outside the main thread no signal is taken.
    """
    first: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: signal.SIGTERM
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        if first and number == signal.SIGTERM:
            return
        if first:
            raise KeyboardInterrupt
        first.append(number)
        name = signal.Signals(number).name
        say(f"  {name}: a checkpoint, then a stop, within {grace_s:g} s; Ctrl-C again to stop at once")
        signal.setitimer(signal.ITIMER_REAL, grace_s)
        # not in here: the main thread may be in the middle of a call to Ray
        threading.Thread(target=ask, args=(name,), daemon=True).start()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    try:
        yield lambda: first[0] if first else signal.SIGTERM
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
