"""The run of a piece of work in the tracker, written straight to MLflow; `journaled` is the way without a store."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from cluster.console import say
from cluster.journaled import status_after
from maetrain.tracking.mlflow_tracker import MlflowTracker, find_run
from maetrain.tracking.patience import StoreAway, has_given_up
from maetrain.tracking.work import WORK_TAG, Tracking


@contextmanager
def tracked(tracking: Tracking, name: str, work: str) -> Iterator[MlflowTracker]:
    """The run of the piece of work with hash `work`; FAILED on errors, KILLED where it was stopped.

    A run that an earlier try left is reopened. A store that is away at the end is said, and no error.
    """
    known = find_run(tracking.uri, tracking.experiment_id, WORK_TAG, work)
    tags = {WORK_TAG: work}
    tracker = MlflowTracker(tracking.uri, tracking.experiment_id, name, known, tracking.parent_run_id, tags)
    try:
        yield tracker
    except BaseException as error:
        with suppress(StoreAway):
            tracker.finish(status_after(error))
        raise
    is_known = has_given_up()
    try:
        tracker.finish()
    except StoreAway as away:
        if not is_known:
            say(f"  {away}")
