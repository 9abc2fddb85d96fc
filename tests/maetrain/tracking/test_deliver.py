"""A journal stands in the store once, however often it is brought and wherever that broke off. Real stores."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from cluster.tracked import tracked
from data_shards.errors import InputError
from maetrain.tracking import journal
from maetrain.tracking.deliver import Delivery
from maetrain.tracking.journal import JournalTracker
from maetrain.tracking.mlflow_tracker import PARENT_TAG, MlflowTracker, open_experiment
from maetrain.tracking.work import WORK_TAG, Tracking, work_in

EVERY_STORE = pytest.mark.parametrize("tracking", ["sqlite_store", "postgres_store", "server_store"], indirect=True)


def deliver(path: Path, tracking: Tracking, say: Callable[[str], None] = print) -> bool:
    """As a process of its own would that finds the journal."""
    return Delivery(path, tracking, say).forward()


def write(path: Path, steps: int = 12, ends: bool = True, loss: float = 0.1) -> JournalTracker:
    tracker = JournalTracker(path, "k2-mae-s0", f"work of {path.name}")
    tracker.tags({"arm": "mae", "budget": "2"})
    tracker.params({"finetune": {"steps": steps}, "rates": (1e-3, 1e-4)})
    for step in range(steps):
        tracker.metrics({"loss": loss / (step + 1), "dice": 1 / 3}, step)
    tracker.metrics({"strange": math.nan}, steps)
    (path.parent / "scores.csv").write_text("dice\n0.5\n")
    tracker.file(path.parent / "scores.csv", "tables")
    tracker.dataset("Hippocampus", "ab" * 32, "shards/", "finetune")
    if ends:
        tracker.finish()
    return tracker


def work_of(path: Path) -> str:
    return work_in(path.parent, f"work of {path.name}")


def runs(tracking: Tracking, path: Path) -> list[Run]:
    query = f"tags.`{WORK_TAG}` = '{work_of(path)}'"
    return list(MlflowClient(tracking.uri).search_runs([tracking.experiment_id], query))


def everything(tracking: Tracking, path: Path) -> dict[str, Any]:
    """All that the store has of the one run of a journal."""
    client = MlflowClient(tracking.uri)
    (run,) = runs(tracking, path)
    points = {k: client.get_metric_history(run.info.run_id, k) for k in run.data.metrics}
    return {
        "status": run.info.status,
        "name": run.info.run_name,
        "times": (run.info.start_time, run.info.end_time),
        "params": run.data.params,
        "tags": {k: v for k, v in run.data.tags.items() if not k.startswith("mlflow.")},
        "points": {k: sorted((p.step, repr(p.value), p.timestamp) for p in v) for k, v in points.items()},
        "files": [a.path for a in client.list_artifacts(run.info.run_id, "tables")],
        "datasets": [d.dataset.name for d in run.inputs.dataset_inputs],
        "parent": run.data.tags[PARENT_TAG],
    }


@EVERY_STORE
def test_a_journal_brought_twice_stands_there_once_as_it_was_written(tracking: Tracking, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    write(path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert deliver(path, tracking)
    once = everything(tracking, path)
    (tmp_path / "journal.jsonl.delivered").unlink()
    assert deliver(path, tracking)
    assert everything(tracking, path) == once
    wanted = [(e["step"], repr(e["metrics"]["loss"]), e["at_ms"]) for e in lines if "loss" in e.get("metrics", ())]
    assert once["points"]["loss"] == wanted and len(wanted) == 12
    assert [(step, value) for step, value, _ in once["points"]["strange"]] == [(12, "nan")]
    assert once["params"] == {"finetune.steps": "12", "rates": "[0.001, 0.0001]"}
    assert once["tags"] == {"arm": "mae", "budget": "2"} | {
        WORK_TAG: work_of(path),
        "maetrain.attempt": lines[0]["id"],
    }
    assert (once["status"], once["name"], once["parent"]) == ("FINISHED", "k2-mae-s0", tracking.parent_run_id)
    assert once["times"] == (lines[0]["at_ms"], lines[-1]["at_ms"])
    assert once["files"] == ["tables/scores.csv"] and once["datasets"] == ["Hippocampus"]


@EVERY_STORE
def test_logging_the_same_batch_again_adds_no_point(tracking: Tracking) -> None:
    """What all else stands on: a point's key in MLflow's tables is the whole point."""
    from mlflow.entities import Metric

    client = MlflowClient(tracking.uri)
    batch = [Metric("loss", 1 / (n + 3), 1_700_000_000_000 + n, n) for n in range(5)]
    for points in (batch, batch, batch[2:] + [Metric("loss", 0.5, 1_700_000_000_009, 9)]):
        client.log_batch(tracking.parent_run_id, metrics=points)
    steps = [point.step for point in client.get_metric_history(tracking.parent_run_id, "loss")]
    assert sorted(steps) == [0, 1, 2, 3, 4, 9]


CALLS = ("create_run", "log_batch", "log_artifact", "log_inputs", "set_terminated")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
def test_a_delivery_that_breaks_off_goes_on_in_another_process(
    tracking: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, is_done: bool
) -> None:
    """Broken off before the store does what it is asked, or when it has, and its answer is lost."""
    monkeypatch.setattr(journal, "MOST_BYTES", 700)  # several parts, so several batches
    path = tmp_path / f"{call}.jsonl"
    write(path)
    real: Callable[..., Any] = getattr(MlflowClient, call)
    asked = 0

    def fails_at_second(client: MlflowClient, *args: Any) -> Any:
        nonlocal asked
        asked += 1
        fails = asked == (2 if call == "log_batch" else 1)
        answer = real(client, *args) if is_done or not fails else None
        if fails:
            raise MlflowException("the line was cut")
        return answer

    monkeypatch.setattr(MlflowClient, call, fails_at_second)
    with pytest.raises(MlflowException, match="cut"):
        deliver(path, tracking)
    assert deliver(path, tracking)
    broken = everything(tracking, path)
    assert [len(broken["points"][name]) for name in ("loss", "dice", "strange")] == [12, 12, 1]
    assert len(broken["params"]) == 2 and broken["files"] and broken["datasets"] and broken["status"] == "FINISHED"


def test_a_journal_is_followed_while_it_grows(tracking: Tracking, tmp_path: Path) -> None:
    path = tmp_path / "growing.jsonl"
    assert not deliver(path, tracking)
    tracker = write(path, ends=False)
    assert not deliver(path, tracking)
    now = everything(tracking, path)
    assert now["status"] == "RUNNING" and len(now["points"]["loss"]) == 12
    tracker.metrics({"loss": 0.0}, 99)
    tracker.finish("KILLED")
    assert deliver(path, tracking)
    now = everything(tracking, path)
    assert now["status"] == "KILLED" and len(now["points"]["loss"]) == 13


def test_a_delivered_journal_is_not_sent_again_but_moves_to_the_newest_parent(
    tracking: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kept.jsonl"
    write(path)
    deliver(path, tracking)
    before = everything(tracking, path)
    mark = json.loads((tmp_path / "kept.jsonl.delivered").read_text())
    assert (mark["run_id"], mark["end"]) == (runs(tracking, path)[0].info.run_id, path.stat().st_size)
    newer = MlflowTracker(tracking.uri, tracking.experiment_id, "newer").run_id
    for call in CALLS:
        monkeypatch.setattr(MlflowClient, call, lambda *_: pytest.fail("sent again"))
    assert deliver(path, Tracking(tracking.uri, tracking.experiment_id, newer))
    assert everything(tracking, path) == before | {"parent": newer}


@pytest.mark.parametrize("how", ["deleted", "other store"])
def test_a_store_that_does_not_know_the_run_gets_it_again(tracking: Tracking, tmp_path: Path, how: str) -> None:
    path = tmp_path / "again.jsonl"
    write(path)
    deliver(path, tracking)
    before = everything(tracking, path)
    if how == "deleted":
        MlflowClient(tracking.uri).delete_run(runs(tracking, path)[0].info.run_id)
    else:
        uri = f"sqlite:///{tmp_path}/other.db"
        experiment_id = open_experiment(uri, "tests", tmp_path / "other")
        tracking = Tracking(uri, experiment_id, MlflowTracker(uri, experiment_id, "parent").run_id)
    assert deliver(path, tracking)
    assert everything(tracking, path) == before | {"parent": tracking.parent_run_id}


def test_a_job_that_starts_over_has_one_run_with_its_own_points(tracking: Tracking, tmp_path: Path) -> None:
    path = tmp_path / "over.jsonl"
    with pytest.raises(ValueError), tracked(tracking, "k2-mae-s0", work_of(path)) as tracker:
        tracker.metrics({"loss": 9.0}, 0)  # by the way without a journal
        raise ValueError
    write(path, steps=3, ends=False, loss=7.0)
    deliver(path, tracking)
    write(path, steps=2, loss=5.0)
    deliver(path, tracking)
    now = everything(tracking, path)
    assert [(step, value) for step, value, _ in now["points"]["loss"]] == [(0, "5.0"), (1, "2.5")]


def test_equal_work_in_two_folders_has_two_runs_and_a_copied_folder_gets_its_own(
    tracking: Tracking, tmp_path: Path
) -> None:
    one, two, copied = (tmp_path / name / "journal.jsonl" for name in ("one", "two", "copied"))
    for path, loss in ((one, 7.0), (two, 5.0)):
        path.parent.mkdir()
        write(path, loss=loss)
        deliver(path, tracking)
    shutil.copytree(one.parent, copied.parent)
    newer = MlflowTracker(tracking.uri, tracking.experiment_id, "newer").run_id
    deliver(copied, Tracking(tracking.uri, tracking.experiment_id, newer))
    first = [everything(tracking, path)["points"]["loss"][0][1] for path in (one, two, copied)]
    assert first == ["7.0", "5.0", "7.0"]
    parents = [everything(tracking, path)["parent"] for path in (one, two, copied)]
    assert parents == [tracking.parent_run_id, tracking.parent_run_id, newer]
    write(two, steps=1, loss=3.0)
    deliver(two, tracking)
    assert [len(everything(tracking, path)["points"]["loss"]) for path in (one, two)] == [12, 1]


def test_a_delivered_journal_that_is_replaced_is_delivered(tracking: Tracking, tmp_path: Path) -> None:
    path = tmp_path / "retried.jsonl"
    delivery = Delivery(path, tracking, print)
    write(path, loss=7.0)
    assert delivery.forward()
    write(path, steps=2, loss=5.0)
    assert delivery.is_behind and delivery.forward() and not delivery.is_behind
    assert len(everything(tracking, path)["points"]["loss"]) == 2


def test_a_file_that_is_gone_is_told_and_the_rest_delivered(tracking: Tracking, tmp_path: Path) -> None:
    path = tmp_path / "gone.jsonl"
    write(path)
    (tmp_path / "scores.csv").unlink()
    told: list[str] = []
    assert deliver(path, tracking, told.append)
    assert everything(tracking, path)["status"] == "FINISHED"
    assert len(told) == 1 and "scores.csv is gone" in told[0]


def test_more_than_one_call_takes_is_sent_in_several(tracking: Tracking, tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    tracker = JournalTracker(path, "job", f"work of {path.name}")
    tracker.params({f"p{n}": n for n in range(230)})
    tracker.tags({f"t{n}": str(n) for n in range(130)})
    for step in range(1900):
        tracker.metrics({"loss": float(step)}, step)
    tracker.finish()
    deliver(path, tracking)
    (run,) = runs(tracking, path)
    history = MlflowClient(tracking.uri).get_metric_history(run.info.run_id, "loss")
    assert sorted(p.step for p in history) == list(range(1900))
    assert len(run.data.params) == 230 and run.data.tags["t129"] == "129"


def test_a_damaged_journal_is_one_line(tracking: Tracking, tmp_path: Path) -> None:
    path = tmp_path / "damaged.jsonl"
    write(path)
    path.write_text(path.read_text().replace('{"op": "dataset"', "\x00" * 16))
    with pytest.raises(InputError, match="damaged.*run that job again"):
        deliver(path, tracking)


def test_one_filter_gives_any_slice_of_the_jobs(tracking: Tracking, tmp_path: Path) -> None:
    for budget in (1, 2):
        for arm in ("scratch", "mae"):
            for seed in range(2):
                tracker = JournalTracker(
                    tmp_path / f"{budget}{arm}{seed}", f"k{budget}-{arm}-s{seed}", f"{budget}{arm}{seed}"
                )
                tracker.tags({"budget": str(budget), "arm": arm, "seed": str(seed)})
                tracker.metrics({"dice": budget / 10 + seed / 100}, 1)
                tracker.finish()
                deliver(tracker.path, tracking)
    client = MlflowClient(tracking.uri)

    def names(query: str) -> set[str]:
        return {run.info.run_name for run in client.search_runs([tracking.experiment_id], query)}

    assert names("tags.arm = 'mae' AND tags.budget = '2'") == {"k2-mae-s0", "k2-mae-s1"}
    assert names("tags.seed = '1' AND metrics.dice > 0.15") == {"k2-mae-s1", "k2-scratch-s1"}
    assert len(names(f"tags.`{PARENT_TAG}` = '{tracking.parent_run_id}'")) == 8
