"""Runs in a real sqlite store: what is logged is there afterwards."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow.tracking import MlflowClient

from data_shards.errors import InputError
from maetrain.tracking import patience
from maetrain.tracking.mlflow_tracker import PARENT_TAG, MlflowTracker, find_run, open_experiment

from .stores import free_port

Store = tuple[str, str]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    return uri, open_experiment(uri, "tests", folder / "artifacts")


def test_an_experiment_is_made_once(store: Store) -> None:
    assert open_experiment(store[0], "tests") == store[1]


def test_a_deleted_experiment_is_named_with_the_command_that_brings_it_back(store: Store) -> None:
    client = MlflowClient(store[0])
    gone = open_experiment(store[0], "gone")
    client.delete_experiment(gone)
    with pytest.raises(InputError, match=f"deleted its experiment 'gone'; .*`mlflow experiments restore -x {gone}`"):
        open_experiment(store[0], "gone")
    client.restore_experiment(gone)
    assert open_experiment(store[0], "gone") == gone


@pytest.mark.parametrize(
    ("uri", "why", "remark"),
    [
        ("http://me:secret@127.0.0.1:{port}", "API request to http://me:.*@127.0.0.1", "nothing listens there"),
        ("postgresql://me:secret@127.0.0.1:{port}/x", "Connection refused|connection failed", "no database there"),
        ("htp://me:secret@mlflow:5000", "unsupported URI", "a typo in the scheme"),
        ("sqlite://me:secret@x", "Invalid SQLite URL|near|URL", "a slash too few"),
        ("{folder}/mlruns", "filesystem tracking backend", "a path without a scheme"),
        ("sqlite:////proc/nowhere/x.db", "No such file|nowhere", "a folder that can't be made"),
    ],
)
def test_a_wrong_uri_is_one_line_with_the_way_out(
    uri: str, why: str, remark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=lambda: sum(waited), sleep=waited.append))
    uri = uri.format(port=free_port(), folder=tmp_path)
    with pytest.raises(InputError, match=f"--tracking-uri .*({why}).*give another: http://HOST") as error:
        open_experiment(uri, "tests")
    assert "secret" not in str(error.value) and "\n" not in str(error.value), remark
    assert sum(waited) < 15


def test_metrics_come_back_with_their_steps(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MlflowTracker, "BATCH", 7)  # so that 30 points need several calls, the last one cut
    tracker = MlflowTracker(*store, "metrics")
    for step in range(30):
        tracker.metrics({"loss": 1 / (step + 1)}, step)
    tracker.finish()
    points = MlflowClient(store[0]).get_metric_history(tracker.run_id, "loss")
    assert sorted((p.step, p.value) for p in points) == [(step, 1 / (step + 1)) for step in range(30)]
    assert MlflowClient(store[0]).get_run(tracker.run_id).info.status == "FINISHED"


def test_parameters_are_flat_and_keep_their_first_value(store: Store) -> None:
    tracker = MlflowTracker(*store, "params")
    tracker.params({"pretrain": {"steps": 5, "mae": {"ratio": 0.7}}, **{f"p{i:03}": i for i in range(120)}})
    tracker.params({"pretrain": {"steps": 6}, "later": "x" * 7000})
    params = MlflowClient(store[0]).get_run(tracker.run_id).data.params
    assert (params["pretrain.steps"], params["pretrain.mae.ratio"], params["p119"]) == ("5", "0.7", "119")
    assert len(params["later"]) == 6000
    tracker.finish()


def test_files_and_the_dataset_with_its_whole_hash_are_kept(store: Store, tmp_path: Path) -> None:
    tracker = MlflowTracker(*store, "files")
    (tmp_path / "curve.csv").write_text("1,2\n")
    tracker.file(tmp_path / "curve.csv", "report")
    tracker.dataset("Hippocampus", "ab" * 32, "shards/", "pretrain")
    tracker.finish()
    client = MlflowClient(store[0])
    assert [a.path for a in client.list_artifacts(tracker.run_id, "report")] == ["report/curve.csv"]
    (used,) = client.get_run(tracker.run_id).inputs.dataset_inputs
    assert used.dataset.name == "Hippocampus" and "ab" * 32 in used.dataset.profile
    assert [(t.key, t.value) for t in used.tags] == [("mlflow.data.context", "pretrain")]


def test_a_child_knows_its_parent_and_a_run_is_found_by_its_tag(store: Store) -> None:
    parent = MlflowTracker(*store, "parent")
    child = MlflowTracker(*store, "child", parent_run_id=parent.run_id)
    child.tags({"work": "abc"})
    assert MlflowClient(store[0]).get_run(child.run_id).data.tags[PARENT_TAG] == parent.run_id
    assert find_run(*store, "work", "abc") == child.run_id
    assert find_run(*store, "work", "abd") is None
