"""Curves reach MLflow while jobs run, and nothing is lost or doubled when the store is away meanwhile."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.store.db.utils import sql
from mlflow.tracking import MlflowClient

from maetrain.tracking.courier import Courier
from maetrain.tracking.journal import JournalTracker, read_journal
from maetrain.tracking.mlflow_tracker import MlflowTracker, open_experiment
from maetrain.tracking.work import WORK_TAG, Tracking, work_in

from .stores import Server, free_port, wait_for

WRITER = """
import sys, time
from pathlib import Path
from maetrain.tracking.journal import JournalTracker
journal, stop = map(Path, sys.argv[1:])
tracker = JournalTracker(journal, journal.stem, journal.stem)
tracker.params({"seed": 1})
step = 0
while not stop.exists():
    tracker.metrics({"loss": 1 / (step + 1), "step_s": 0.05}, step)
    step += 1
    time.sleep(0.05)
tracker.finish()
"""


def written(journal: Path) -> list[tuple[int, float, int]]:
    part = read_journal(journal)
    assert part is not None
    return [(e["step"], e["metrics"]["loss"], e["at_ms"]) for e in part.entries if e["op"] == "metrics"]


def runs_of(tracking: Tracking, journal: Path) -> list[Run]:
    query = f"tags.`{WORK_TAG}` = '{work_in(journal.parent, journal.stem)}'"
    return list(MlflowClient(tracking.uri).search_runs([tracking.experiment_id], query))


def logged(tracking: Tracking, journal: Path) -> list[tuple[int, float, int]]:
    """The points of the one run of this journal; none where there is no run yet."""
    client, runs = MlflowClient(tracking.uri), runs_of(tracking, journal)
    assert len(runs) < 2
    history = [point for run in runs for point in client.get_metric_history(run.info.run_id, "loss")]
    return sorted((point.step, point.value, point.timestamp) for point in history)


def status(tracking: Tracking, journal: Path) -> str:
    (run,) = runs_of(tracking, journal)
    return run.info.status


def journal(path: Path, steps: int = 5, ends: bool = True) -> Path:
    tracker = JournalTracker(path, path.stem, path.stem)
    for step in range(steps):
        tracker.metrics({"loss": float(step)}, step)
    if ends:
        tracker.finish()
    return path


@pytest.mark.runs
@pytest.mark.timeout(900)
def test_a_server_that_is_killed_in_mid_sweep_gets_everything_once_and_nobody_waits(tmp_path: Path) -> None:
    server = Server(tmp_path)
    journals = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    writers: list[subprocess.Popen[bytes]] = []
    told: list[str] = []
    try:
        server.start()
        experiment_id = open_experiment(server.uri, "tests")
        parent = MlflowTracker(server.uri, experiment_id, "parent")
        tracking = Tracking(server.uri, experiment_id, parent.run_id)
        courier = Courier(tracking, every_s=0.3, say=told.append)
        for path in journals:
            courier.watch(path)
            writers.append(subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(tmp_path / "stop")]))
        wait_for(lambda: all(len(logged(tracking, path)) > 5 for path in journals), "curves while jobs run")
        server.kill()
        wait_for(lambda: any("does not answer" in line for line in told), "word of the server's end")
        before = [len(written(path)) for path in journals]
        wait_for(lambda: all(len(written(p)) > n + 20 for p, n in zip(journals, before, strict=True)), "more points")
        server.start()
        wait_for(lambda: "the MLflow store answers again" in told, "word of the server's return")
        (tmp_path / "stop").touch()
        assert [writer.wait(60) for writer in writers] == [0, 0]
        assert courier.close(patience_s=120) == []
        for path in journals:
            assert logged(tracking, path) == written(path)
            assert status(tracking, path) == "FINISHED"
        assert [line.split(" (")[0] for line in told].count("the MLflow store does not answer") == 1, told
    finally:
        (tmp_path / "stop").touch()
        for writer in writers:
            writer.wait(60)
        server.kill()


def test_what_a_store_did_not_take_is_returned_and_delivered_by_the_next_sweep(
    tracking: Tracking, tmp_path: Path
) -> None:
    nobody = Tracking(f"http://127.0.0.1:{free_port()}", "1", "2" * 32)
    told: list[str] = []
    courier = Courier(nobody, every_s=0.05, say=told.append)
    paths = [journal(tmp_path / f"left-{n}") for n in range(5)]
    for path in [*paths, tmp_path / "never-begun"]:
        courier.watch(path)
    assert sorted(courier.close(patience_s=0.5)) == paths
    assert len(told) == 1 and "logged later" in told[0]
    again = Courier(tracking, every_s=0.05)
    for path in paths:
        again.watch(path)
    assert again.close(patience_s=60) == []
    assert all(logged(tracking, path) == written(path) for path in paths)


def test_a_store_that_is_busy_for_a_while_loses_nothing(
    tracking: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = journal(tmp_path / "busy")
    # MLflow's 20 s of waiting for a lock, made short
    text = sql.text
    monkeypatch.setattr(sql, "text", lambda query: text(query.replace("busy_timeout = 20000", "busy_timeout = 50")))
    told: list[str] = []
    other = sqlite3.connect(tracking.uri.removeprefix("sqlite:///"))
    other.execute("BEGIN EXCLUSIVE")
    courier = Courier(tracking, every_s=0.05, say=told.append)
    courier.watch(path)
    wait_for(lambda: any("locked" in line for line in told), "word of the lock")
    other.rollback()
    assert courier.close(patience_s=60) == [] and logged(tracking, path) == written(path)


def test_the_end_of_the_sweep_waits_for_a_store_that_comes_back(
    tracking: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = True

    def comes_back(line: str) -> None:
        nonlocal away
        away = False

    real = MlflowClient.create_run

    def create_run(*args: object) -> object:
        if away:
            raise MlflowException("no answer")
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(MlflowClient, "create_run", create_run)
    courier = Courier(tracking, every_s=1000, say=comes_back)
    courier.watch(journal(tmp_path / "waited"))
    assert courier.close(patience_s=60) == [] and len(logged(tracking, tmp_path / "waited")) == 5


def test_a_run_without_an_end_was_killed(tracking: Tracking, tmp_path: Path) -> None:
    courier = Courier(tracking, every_s=0.05)
    path = journal(tmp_path / "killed", ends=False)
    with path.open("a") as file:
        file.write('{"op": "metrics", "st')
    courier.watch(path)
    assert courier.close(patience_s=60) == []
    assert status(tracking, path) == "KILLED" and len(logged(tracking, path)) == 5


def test_a_job_that_is_tried_again_replaces_its_run(tracking: Tracking, tmp_path: Path) -> None:
    courier = Courier(tracking, every_s=0.05)
    path = journal(tmp_path / "retried", steps=7)
    courier.watch(path)
    wait_for(lambda: len(logged(tracking, path)) == 7, "the first try")
    courier.watch(path)
    journal(path, steps=3)
    assert courier.close(patience_s=60) == [] and logged(tracking, path) == written(path)
    assert len(written(path)) == 3


def test_a_journal_that_the_store_refuses_is_told_returned_and_holds_up_no_other(
    tracking: Tracking, tmp_path: Path
) -> None:
    told: list[str] = []
    courier = Courier(tracking, every_s=0.05, say=told.append)
    bad = JournalTracker(tmp_path / "bad", "bad", "bad")
    bad.metrics({"what?!": 1.0}, 1)
    bad.finish()
    courier.watch(bad.path)
    good = journal(tmp_path / "good")
    courier.watch(good)
    wait_for(lambda: logged(tracking, good) == written(good), "the other journal")
    assert courier.close(patience_s=60) == [bad.path]
    assert told[0].startswith(f"{bad.path}: ") and "what?!" in told[0]


def test_a_run_deleted_by_hand_in_mid_sweep_is_whole_in_the_end(tracking: Tracking, tmp_path: Path) -> None:
    told: list[str] = []
    courier = Courier(tracking, every_s=0.05, say=told.append)
    tracker = JournalTracker(tmp_path / "deleted", "deleted", "deleted")
    tracker.metrics({"loss": 1.0}, 1)
    courier.watch(tracker.path)
    wait_for(lambda: len(logged(tracking, tracker.path)) == 1, "the first point")
    for run in runs_of(tracking, tracker.path):
        MlflowClient(tracking.uri).delete_run(run.info.run_id)
    tracker.metrics({"loss": 2.0}, 2)
    wait_for(lambda: bool(told), "word of the refusal")
    tracker.finish()
    assert courier.close(patience_s=60) == [] and logged(tracking, tracker.path) == written(tracker.path)
