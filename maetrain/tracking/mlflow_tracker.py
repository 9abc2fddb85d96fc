"""Runs in MLflow, written by the process that does the work.

Only the client API is used, never the global "active run", so that one process can write several runs and a
worker can write a child of a run that another process opened (tag mlflow.parentRunId). Metrics are buffered and sent in
batches: sqlite, the default store, has one writer at a time. While the store is away they stay in the buffer, and only
the end of the run waits for it.
"""

import json
import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from data_shards.errors import InputError
from maetrain.tracking.patience import FIRST_S, StoreAway, first_line, is_passing, patiently, within
from maetrain.tracking.tracker import flatten
from maetrain.tracking.uri import without_secrets

# MLflow tells of every table it makes
logging.getLogger("mlflow").setLevel(logging.WARNING)

PARENT_TAG = "mlflow.parentRunId"
ATTEMPT_TAG = "maetrain.attempt"  # a word of its own for every run that is made, known before it is
KIND = {"mlflow.experimentKind": "custom_model_development"}


def open_experiment(tracking_uri: str, name: str, artifacts: Path | None = None) -> str:
    """The id of experiment `name`, made if it is not there. First use of a sqlite store creates its tables.

    InputError, after some seconds, where no store answers at this URI.
    """
    try:
        return within(FIRST_S, _open_experiment, tracking_uri, name, artifacts)
    except (StoreAway, MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        why = first_line(error.__cause__ or error if isinstance(error, StoreAway) else error)
        raise InputError(
            f"--tracking-uri {without_secrets(tracking_uri)}: no MLflow store to work with ({why}); start it, or give "
            "another: http://HOST:PORT, postgresql://USER@HOST/NAME, sqlite:///FILE"
        ) from None


def _open_experiment(tracking_uri: str, name: str, artifacts: Path | None) -> str:
    client = MlflowClient(tracking_uri)
    if found := client.get_experiment_by_name(name):
        if found.lifecycle_stage != LifecycleStage.ACTIVE:
            raise InputError(
                f"--tracking-uri {without_secrets(tracking_uri)}: somebody deleted its experiment {name!r}; bring it "
                f"back by `mlflow experiments restore -x {found.experiment_id}`, or give another store"
            )
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
    query = f"tags.`{tag}` = '{value}'"
    runs = patiently(patiently(MlflowClient, tracking_uri).search_runs, [experiment_id], query, max_results=1)
    return runs[0].info.run_id if runs else None


def set_parent(tracking_uri: str, run_id: str, parent_run_id: str) -> None:
    patiently(patiently(MlflowClient, tracking_uri).set_tag, run_id, PARENT_TAG, parent_run_id)


class MlflowTracker:
    """One MLflow run: made new with `tags`, or reopened when `run_id` is given. Several threads may log."""

    FLUSH_EVERY_S = 5.0
    BATCH = 900  # the store takes at most 1000 metrics a call

    def __init__(
        self,
        tracking_uri: str,
        experiment_id: str,
        run_name: str,
        run_id: str | None = None,
        parent_run_id: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self.client = patiently(MlflowClient, tracking_uri)
        all_tags = {**(tags or {}), **({PARENT_TAG: parent_run_id} if parent_run_id else {})}
        if run_id is None:
            self.run_id = patiently(self._made, experiment_id, run_name, {ATTEMPT_TAG: uuid4().hex, **all_tags})
        else:
            self.run_id = run_id
            patiently(self.client.update_run, run_id, status="RUNNING")
            self.tags(all_tags)
        self._buffer: list[Metric] = []
        self._flushed = time.monotonic()
        self._lock = threading.Lock()

    def _made(self, experiment_id: str, run_name: str, tags: dict[str, str]) -> str:
        """A second call finds the run of a first whose answer was lost."""
        query = f"tags.`{ATTEMPT_TAG}` = '{tags[ATTEMPT_TAG]}'"
        if found := self.client.search_runs([experiment_id], query, max_results=1):
            return found[0].info.run_id
        return self.client.create_run(experiment_id, tags=tags, run_name=run_name).info.run_id

    def tags(self, tags: Mapping[str, str]) -> None:
        patiently(self.client.log_batch, self.run_id, tags=[RunTag(k, v) for k, v in tags.items()])

    def params(self, params: Mapping[str, object]) -> None:
        """A parameter that the run has already keeps its first value, as MLflow demands."""
        have = patiently(self.client.get_run, self.run_id).data.params
        flat = flatten(params)
        new = [Param(k, param_text(v)) for k, v in flat.items() if k not in have]
        patiently(self.client.log_batch, self.run_id, params=new)

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        now_ms = int(time.time() * 1000)
        with self._lock:
            self._buffer += [Metric(name, float(value), now_ms, step) for name, value in metrics.items()]
            if len(self._buffer) >= self.BATCH or time.monotonic() - self._flushed > self.FLUSH_EVERY_S:
                try:
                    self._flush()
                except Exception as error:
                    if not is_passing(error):
                        raise
                self._flushed = time.monotonic()

    def last_step(self, metric: str) -> int:
        return max(self.points(metric), default=0)

    def points(self, metric: str) -> dict[int, float]:
        """step -> value in the store, the newest where a step has several."""
        history = patiently(self.client.get_metric_history, self.run_id, metric)
        return {point.step: point.value for point in sorted(history, key=lambda point: point.timestamp)}

    def file(self, path: Path, folder: str | None = None) -> None:
        patiently(self.client.log_artifact, self.run_id, str(path), folder)

    def dataset(self, name: str, digest: str, source: str, context: str) -> None:
        patiently(self.client.log_inputs, self.run_id, [dataset_input(name, digest, source, context)])

    def finish(self, status: str = "FINISHED") -> None:
        with self._lock:
            patiently(self._flush)
        patiently(self.client.set_terminated, self.run_id, status)

    def _flush(self) -> None:
        """What was sent before an error is not sent again; if it was, the store would know it (see deliver.py)."""
        while self._buffer:
            self.client.log_batch(self.run_id, metrics=self._buffer[: self.BATCH])
            del self._buffer[: self.BATCH]


def param_text(value: object) -> str:
    """A parameter's value as MLflow shows it, cut to what the store takes."""
    return (value if isinstance(value, str) else json.dumps(value))[:6000]


def dataset_input(name: str, digest: str, source: str, context: str) -> DatasetInput:
    # MLflow caps a digest at 36 characters; the whole hash stands in the profile
    entity = Dataset(name, digest[:36], "local", json.dumps({"uri": source}), profile=json.dumps({"sha256": digest}))
    return DatasetInput(entity, [InputTag("mlflow.data.context", context)])
