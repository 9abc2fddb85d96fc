"""Runs in the tracker that belong to pieces of work: one piece, one run, also over restarts."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from maetrain.tracking.mlflow_tracker import MlflowTracker, find_run, remove_run, set_parent
from maetrain.train.wishes import Stopped

WORK_TAG = "maetrain.work"


@dataclass(frozen=True)
class Tracking:
    """Where children log: their parent's store, experiment and run. Crosses process borders."""

    uri: str
    experiment_id: str
    parent_run_id: str

    def adopt(self, work: str) -> None:
        """The run of a piece of work that was kept belongs to the newest parent that stands on it."""
        if run_id := find_run(self.uri, self.experiment_id, WORK_TAG, work):
            set_parent(self.uri, run_id, self.parent_run_id)


@contextmanager
def tracked(tracking: Tracking, name: str, work: str, resumes: bool = True) -> Iterator[MlflowTracker]:
    """The run of the piece of work with hash `work`; FAILED on errors, KILLED where it was stopped.

    A run that an earlier try left is reopened, or, where work starts over (`resumes` false), replaced: its points would
    stand twice.
    """
    known = find_run(tracking.uri, tracking.experiment_id, WORK_TAG, work)
    if known and not resumes:
        remove_run(tracking.uri, known)
        known = None
    tracker = MlflowTracker(tracking.uri, tracking.experiment_id, name, known, tracking.parent_run_id)
    tracker.tags({WORK_TAG: work})
    try:
        yield tracker
    except BaseException as error:
        tracker.finish("KILLED" if isinstance(error, (KeyboardInterrupt, Stopped)) else "FAILED")
        raise
    tracker.finish()
