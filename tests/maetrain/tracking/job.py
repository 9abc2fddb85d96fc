"""What one of many processes does that log at once. A module of its own, so that they import no pytest."""

import time
import traceback
from pathlib import Path
from threading import Barrier

from maetrain.tracking.mlflow_tracker import MlflowTracker
from maetrain.tracking.work import Tracking

STEPS = 200


def job(tracking: Tracking, number: int, folder: Path, all_are_there: Barrier) -> None:
    all_are_there.wait(300)
    try:
        tags = {"number": str(number)}
        tracker = MlflowTracker(
            tracking.uri, tracking.experiment_id, f"job {number}", parent_run_id=tracking.parent_run_id, tags=tags
        )
        tracker.FLUSH_EVERY_S = 0.3
        tracker.params({"seed": number, "arm": "mae"})
        tracker.dataset(f"data {number % 3}", "ab" * 32, "shards/", "finetune")
        for step in range(STEPS):
            tracker.metrics({"loss": number + step / 1024}, step)
            time.sleep(0.005)
        tracker.tags({"budget": "2"})
        path = folder / f"of-{number}.txt"
        path.write_text(str(number))
        tracker.file(path, "tables")
        tracker.finish()
    except BaseException:
        (folder / f"error-{number}").write_text(traceback.format_exc())
        raise
