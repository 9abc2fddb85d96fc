"""Runs in MLflow: the one file of this package that knows it.

Only the client API is used, never the global "active run", so that one process can write several runs and a
worker can write a child of a run that another process opened (tag mlflow.parentRunId). Metrics are buffered and sent in
batches: sqlite, the default store, has one writer at a time.
"""

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from maetrain.tracking.tracker import flatten

# MLflow tells of every table it makes
logging.getLogger("mlflow").setLevel(logging.WARNING)

PARENT_TAG = "mlflow.parentRunId"
KIND = {"mlflow.experimentKind": "custom_model_development"}


def open_experiment(tracking_uri: str, name: str, artifacts: Path | None = None) -> str:
    """The id of experiment `name`, made if it is not there. First use of a sqlite store creates its tables."""
    client = MlflowClient(tracking_uri)
    if found := client.get_experiment_by_name(name):
        return found.experiment_id
    try:
        # the tag opens the experiment in the UI's view for trained models, not the one for language models
        return client.create_experiment(name, artifacts.resolve().as_uri() if artifacts else None, KIND)
    except MlflowException:
        if found := client.get_experiment_by_name(name):  # another process was faster
            return found.experiment_id
        raise


def find_run(tracking_uri: str, experiment_id: str, tag: str, value: str) -> str | None:
    """The newest run whose tag has this value."""
    runs = MlflowClient(tracking_uri).search_runs([experiment_id], f"tags.`{tag}` = '{value}'", max_results=1)
    return runs[0].info.run_id if runs else None


def set_parent(tracking_uri: str, run_id: str, parent_run_id: str) -> None:
    MlflowClient(tracking_uri).set_tag(run_id, PARENT_TAG, parent_run_id)


def remove_run(tracking_uri: str, run_id: str) -> None:
    """Out of every list and search; MLflow keeps it among the deleted ones."""
    MlflowClient(tracking_uri).delete_run(run_id)


class MlflowTracker:
    """One MLflow run: made new, or reopened when `run_id` is given."""

    FLUSH_EVERY_S = 5.0
    BATCH = 900  # the store takes at most 1000 metrics a call

    def __init__(
        self,
        tracking_uri: str,
        experiment_id: str,
        run_name: str,
        run_id: str | None = None,
        parent_run_id: str | None = None,
    ) -> None:
        self.client = MlflowClient(tracking_uri)
        if run_id is None:
            parent = {PARENT_TAG: parent_run_id} if parent_run_id else {}
            run_id = self.client.create_run(experiment_id, tags=parent, run_name=run_name).info.run_id
        else:
            self.client.update_run(run_id, status="RUNNING")
            if parent_run_id:
                set_parent(tracking_uri, run_id, parent_run_id)
        self.run_id = run_id
        self._buffer: list[Metric] = []
        self._flushed = time.monotonic()

    def tags(self, tags: Mapping[str, str]) -> None:
        self.client.log_batch(self.run_id, tags=[RunTag(k, v) for k, v in tags.items()])

    def params(self, params: Mapping[str, object]) -> None:
        """A parameter that the run has already keeps its first value, as MLflow demands."""
        have = self.client.get_run(self.run_id).data.params
        flat = {k: _text(v) for k, v in flatten(params).items()}
        new = [Param(k, v) for k, v in flat.items() if k not in have]
        for start in range(0, len(new), 100):
            self.client.log_batch(self.run_id, params=new[start : start + 100])

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        now_ms = int(time.time() * 1000)
        self._buffer += [Metric(name, float(value), now_ms, step) for name, value in metrics.items()]
        if len(self._buffer) >= self.BATCH or time.monotonic() - self._flushed > self.FLUSH_EVERY_S:
            self._flush()

    def last_step(self, metric: str) -> int:
        return max((point.step for point in self.client.get_metric_history(self.run_id, metric)), default=0)

    def file(self, path: Path, folder: str | None = None) -> None:
        self.client.log_artifact(self.run_id, str(path), folder)

    def dataset(self, name: str, digest: str, source: str, context: str) -> None:
        # MLflow caps a digest at 36 characters; the whole hash stands in the profile
        entity = Dataset(
            name, digest[:36], "local", json.dumps({"uri": source}), profile=json.dumps({"sha256": digest})
        )
        self.client.log_inputs(self.run_id, [DatasetInput(entity, [InputTag("mlflow.data.context", context)])])

    def finish(self, status: str = "FINISHED") -> None:
        self._flush()
        self.client.set_terminated(self.run_id, status)

    def _flush(self) -> None:
        for start in range(0, len(self._buffer), self.BATCH):
            self.client.log_batch(self.run_id, metrics=self._buffer[start : start + self.BATCH])
        self._buffer, self._flushed = [], time.monotonic()


def _text(value: object) -> str:
    """A parameter's value as MLflow shows it, cut to what the store takes."""
    return (value if isinstance(value, str) else json.dumps(value))[:6000]
