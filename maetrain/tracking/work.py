"""Runs in the tracker that belong to pieces of work: one piece, one run, also over restarts."""

from dataclasses import dataclass
from pathlib import Path

from maetrain.checkpoint.fingerprint import fingerprint
from maetrain.tracking.mlflow_tracker import find_run, set_parent

WORK_TAG = "maetrain.work"


def work_in(folder: Path, work: str) -> str:
    """The WORK_TAG of a piece of work whose results lie in `folder`: equal work in another folder has another run."""
    return fingerprint({"work": work, "folder": str(folder.resolve())})


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
