"""The run of a piece of work, kept in a file beside its results until the driver brings it to MLflow.

This file imports no MLflow: a worker saves the three seconds, and never waits for a server.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from maetrain.tracking.journal import JournalTracker
from maetrain.train.wishes import Stopped


@contextmanager
def journaled(path: Path, name: str, work: str) -> Iterator[JournalTracker]:
    """The journal at `path`, begun anew; its run ends FAILED on errors, KILLED where it was stopped."""
    tracker = JournalTracker(path, name, work)
    try:
        yield tracker
    except BaseException as error:
        tracker.finish(status_after(error))
        raise
    tracker.finish()


def status_after(error: BaseException) -> str:
    return "KILLED" if isinstance(error, (KeyboardInterrupt, Stopped)) else "FAILED"
