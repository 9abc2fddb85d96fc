"""Ends a rank that makes no progress, with the stacks of all its threads in a file.

When one rank hangs, the others wait for it in a collective: all run into their time limit, all leave their stacks, and
whoever started the group starts it again. The timer is a C thread of the interpreter: it fires even when the rank hangs
with the global lock held. The process ends at once then, with exit code 1.
"""

import faulthandler
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def stall_guard(timeout_s: float, folder: Path, name: str) -> Iterator[Callable[[], None]]:
    """Gives `alive`, to be called at each sign of progress; `timeout_s` 0 = no guard. Stacks: `folder`/`name`.txt."""
    if not timeout_s:
        yield lambda: None
        return
    folder.mkdir(parents=True, exist_ok=True)
    path, armed = folder / f"{name}.txt", -1.0
    with path.open("w") as file:

        def alive() -> None:
            nonlocal armed
            if time.monotonic() - armed > min(1.0, timeout_s / 10):  # arming starts a thread
                armed = time.monotonic()
                faulthandler.dump_traceback_later(timeout_s, exit=True, file=file)

        alive()
        try:
            yield alive
        finally:
            faulthandler.cancel_dump_traceback_later()
            path.unlink(missing_ok=True)


def tell_stalls(folder: Path, say: Callable[[str], None]) -> None:
    """Tells once of each file of stacks that earlier attempts left."""
    for path in sorted(folder.glob("*.txt")) if folder.is_dir() else []:
        if path.stat().st_size:
            kept = path.rename(path.with_suffix(".stacks"))
            say(f"a rank stalled and was ended; the stacks of its threads are in {kept}")
