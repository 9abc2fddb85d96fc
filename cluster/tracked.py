"""The run of a piece of work in the tracker, written straight to MLflow; `journaled` is the way without a store."""

from collections.abc import Iterator
from contextlib import contextmanager

from cluster.journaled import status_after
from maetrain.tracking.mlflow_tracker import MlflowTracker, find_run, remove_run
from maetrain.tracking.work import WORK_TAG, Tracking

__all__ = ["WORK_TAG", "Tracking", "tracked"]


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
    tags = {WORK_TAG: work}
    tracker = MlflowTracker(tracking.uri, tracking.experiment_id, name, known, tracking.parent_run_id, tags)
    try:
        yield tracker
    except BaseException as error:
        tracker.finish(status_after(error))
        raise
    tracker.finish()
