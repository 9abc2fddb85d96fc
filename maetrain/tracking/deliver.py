"""Brings a journal to MLflow, so that each of its entries stands there once, however often it is brought.

MLflow makes it easy: a point's key in its tables is all of (key, timestamp, step, run, value), and the journal knows
the timestamp; params, tags, artifacts and datasets have names; a run is found by its work, the journal's folder counted
in, and by the journal's id, both tags that it gets in the same call that makes it. So no record of what was sent is
needed to be exact: after an error or a crash the part under way is sent again. A file beside the journal, written when
the run's end has been sent, spares a rerun the sending.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mlflow.entities import LifecycleStage, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from data_shards.errors import InputError
from data_shards.formats.files import write_text
from data_shards.formats.names import below
from maetrain.tracking.journal import Entry, Opening, read_journal
from maetrain.tracking.mlflow_tracker import ATTEMPT_TAG, PARENT_TAG, dataset_input, param_text
from maetrain.tracking.patience import is_passing
from maetrain.tracking.work import WORK_TAG, Tracking, work_in


class Mark(NamedTuple):
    """What the file beside a delivered journal says. `end`: the bytes that were sent."""

    journal: str
    run_id: str
    end: int


class Delivery:
    """How far one journal has come. Every error leaves it such that `forward` can be called again."""

    def __init__(self, path: Path, tracking: Tracking, say: Callable[[str], None]) -> None:
        self.path, self.tracking, self.say = path, tracking, say
        self.restart()

    def restart(self) -> None:
        """Forgets the run in the store, which may be gone."""
        self.run_id: str | None = None
        self.is_finished = False
        self._opening: Opening | None = None
        self._end = 0
        self._seen: tuple[int, int, int] | None = None

    @property
    def is_behind(self) -> bool:
        return self._seen != self._stamp()

    def forward(self) -> bool:
        """Sends what the journal has more than at the last call; whether the run has ended.

        Raises what MLflow raises. InputError for a damaged journal.
        """
        stamp = self._stamp()
        if stamp == self._seen:
            return self.is_finished
        client = MlflowClient(self.tracking.uri)
        while part := read_journal(self.path, self._end, self._opening):
            if part.opening != self._opening:
                self._begin(client, part.opening)
            elif part.entries:
                self._send(client, part.entries)
                self._end = part.end
                if part.entries[-1]["op"] == "finish":
                    self._write_mark()
            else:
                break
        self._seen = stamp
        return self.is_finished

    def give_up(self) -> None:
        """Nobody writes this journal any more: a run without an end was killed."""
        if self.run_id and not self.is_finished:
            MlflowClient(self.tracking.uri).set_terminated(self.run_id, "KILLED")

    def _begin(self, client: MlflowClient, opening: Opening) -> None:
        """Finds the journal's run or makes it, and removes that of an earlier try: its points would stand twice."""
        self.restart()
        work, mark = work_in(self.path.parent, opening.work), self._read_mark()
        if mark and mark.journal == opening.id and (run := _known(client, mark.run_id, work)):
            self._end, self.is_finished = mark.end, True
        else:
            run = self._run_of(client, opening, work)
        if run.data.tags.get(PARENT_TAG) != self.tracking.parent_run_id:
            client.set_tag(run.info.run_id, PARENT_TAG, self.tracking.parent_run_id)
        self.run_id, self._opening = run.info.run_id, opening

    def _run_of(self, client: MlflowClient, opening: Opening, work: str) -> Run:
        experiment_id = self.tracking.experiment_id
        for run in client.search_runs([experiment_id], f"tags.`{WORK_TAG}` = '{work}'"):
            if run.data.tags.get(ATTEMPT_TAG) == opening.id:
                return run
            client.delete_run(run.info.run_id)
        tags = {WORK_TAG: work, ATTEMPT_TAG: opening.id, PARENT_TAG: self.tracking.parent_run_id}
        return client.create_run(experiment_id, opening.at_ms, tags, opening.name)

    def _send(self, client: MlflowClient, entries: list[Entry]) -> None:
        assert self.run_id is not None
        metrics, params, tags = list[Metric](), list[Param](), dict[str, str]()
        for entry in entries:
            if entry["op"] == "metrics":
                metrics += [Metric(k, v, entry["at_ms"], entry["step"]) for k, v in entry["metrics"].items()]
            elif entry["op"] == "params":
                params += [Param(k, param_text(v)) for k, v in entry["params"].items()]
            elif entry["op"] == "tags":
                tags |= entry["tags"]
        # MLflow's client cuts it into batches of the size that the store takes
        client.log_batch(self.run_id, metrics, params, [RunTag(k, v) for k, v in tags.items()])
        for entry in entries:
            if entry["op"] == "dataset":
                what = entry["name"], entry["digest"], entry["source"], entry["context"]
                client.log_inputs(self.run_id, [dataset_input(*what)])
            elif entry["op"] == "file":
                self._send_file(client, entry)
        if entries[-1]["op"] == "finish":
            client.set_terminated(self.run_id, entries[-1]["status"], entries[-1]["at_ms"])
            self.is_finished = True

    def _send_file(self, client: MlflowClient, entry: Entry) -> None:
        home = self.path.parent
        try:
            path = home / entry["path"]
            path.resolve().relative_to(home.resolve())
            below(home, entry["folder"] or "")
        except ValueError:
            raise InputError(
                f"{self.path}: names {entry['path']!r} for {entry['folder']!r}, outside its own folder or the run's; "
                "remove the journal and run that job again"
            ) from None
        if path.is_file():
            client.log_artifact(self.run_id, str(path), entry["folder"])
        else:
            self.say(f"{self.path}: {path} is gone; the run is logged without it")

    @property
    def _mark_path(self) -> Path:
        return self.path.with_name(f"{self.path.name}.delivered")

    def _read_mark(self) -> Mark | None:
        try:
            return Mark(**json.loads(self._mark_path.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def _write_mark(self) -> None:
        assert self._opening is not None and self.run_id is not None
        mark = Mark(self._opening.id, self.run_id, self._end)
        write_text(self._mark_path, json.dumps(mark._asdict()) + "\n")

    def _stamp(self) -> tuple[int, int, int] | None:
        """Another one whenever the journal grows or is replaced."""
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            return None
        return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _known(client: MlflowClient, run_id: str, work: str) -> Run | None:
    """None where the store has no such run, as another store, or that of other work, as after a folder was copied."""
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if is_passing(error):
            raise
        return None
    is_there = run.info.lifecycle_stage == LifecycleStage.ACTIVE
    return run if is_there and run.data.tags.get(WORK_TAG) == work else None
