"""One piece of work has one run, also over restarts, and a run that broke off says so. A real sqlite store."""

import threading

import pytest
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from cluster.tracked import tracked
from maetrain.tracking import patience
from maetrain.tracking.mlflow_tracker import PARENT_TAG, MlflowTracker, open_experiment
from maetrain.tracking.work import WORK_TAG, Tracking
from maetrain.train.wishes import Stopped


@pytest.fixture(autouse=True)
def no_store_was_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_is_away", threading.Event())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Tracking:
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    return Tracking(uri, open_experiment(uri, "tests", folder / "artifacts"), "")


def runs_of(tracking: Tracking, work: str) -> list[Run]:
    return list(MlflowClient(tracking.uri).search_runs([tracking.experiment_id], f"tags.`{WORK_TAG}` = '{work}'"))


def test_the_run_of_a_piece_of_work_is_reopened(root: Tracking) -> None:
    with tracked(root, "job", "work-1") as tracker:
        tracker.metrics({"loss": 2.0}, 1)
    with tracked(root, "job", "work-1") as again:
        assert again.run_id == tracker.run_id
        assert MlflowClient(root.uri).get_run(again.run_id).info.status == "RUNNING"
        again.metrics({"loss": 1.0}, 2)
    (run,) = runs_of(root, "work-1")
    assert run.info.status == "FINISHED"
    points = MlflowClient(root.uri).get_metric_history(run.info.run_id, "loss")
    assert [(p.step, p.value) for p in points] == [(1, 2.0), (2, 1.0)]


def test_a_resumed_run_knows_how_far_it_was_logged(root: Tracking) -> None:
    with tracked(root, "pretrain", "work-10") as tracker:
        assert tracker.last_step("loss") == 0
        tracker.metrics({"loss": 2.0}, 5)
        tracker.metrics({"loss": 1.5}, 10)
    with tracked(root, "pretrain", "work-10") as again:
        assert again.last_step("loss") == 10


def test_other_work_gets_another_run(root: Tracking) -> None:
    with tracked(root, "job", "work-2") as one, tracked(root, "job", "work-3") as two:
        assert one.run_id != two.run_id


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("broken"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (Stopped("by SIGTERM"), "KILLED")],
)
def test_an_end_before_time_marks_the_run_keeps_its_points_and_goes_on(
    root: Tracking, error: BaseException, status: str
) -> None:
    work = f"broken-{type(error).__name__}"
    with pytest.raises(type(error)), tracked(root, "job", work) as tracker:
        tracker.metrics({"loss": 3.0}, 1)
        raise error
    (run,) = runs_of(root, work)
    assert run.info.status == status and run.data.metrics == {"loss": 3.0}
    with tracked(root, "job", work):
        pass
    (run,) = runs_of(root, work)
    assert run.info.status == "FINISHED"


def away(*_: object, **__: object) -> None:
    raise MlflowException("no answer")


def test_a_store_that_is_away_at_the_end_is_said_once_and_no_error(
    root: Tracking, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(patience, "PATIENCE_S", 0.0)
    with monkeypatch.context() as patch:
        with tracked(root, "job", "work-11") as tracker:
            tracker.metrics({"loss": 1.0}, 1)
            patch.setattr(MlflowClient, "log_batch", away)
        said = " ".join(capsys.readouterr().out.split())
        assert said.count("the MLflow store does not answer (no answer): the same command logs") == 1
    with tracked(root, "job", "work-11"):
        pass
    (run,) = runs_of(root, "work-11")
    assert run.info.status == "FINISHED"


def test_a_store_that_was_said_to_be_away_is_not_said_again(
    root: Tracking, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(patience, "PATIENCE_S", 0.0)
    with tracked(root, "job", "work-12"):
        monkeypatch.setattr(MlflowClient, "set_terminated", away)
        patience.give_up()
    assert "does not answer" not in capsys.readouterr().out


def test_a_store_that_is_away_does_not_hide_what_went_wrong(root: Tracking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PATIENCE_S", 0.0)
    with pytest.raises(ValueError, match="broken"), tracked(root, "job", "work-13"):
        monkeypatch.setattr(MlflowClient, "set_terminated", away)
        raise ValueError("broken")


def test_kept_work_moves_to_the_newest_parent(root: Tracking) -> None:
    first, second = (MlflowTracker(root.uri, root.experiment_id, name).run_id for name in ("first", "second"))
    with tracked(Tracking(root.uri, root.experiment_id, first), "job", "work-4"):
        pass
    Tracking(root.uri, root.experiment_id, second).adopt("work-4")
    Tracking(root.uri, root.experiment_id, second).adopt("work nobody has done")
    (run,) = runs_of(root, "work-4")
    assert run.data.tags[PARENT_TAG] == second


def test_a_reopened_run_moves_to_the_newest_parent(root: Tracking) -> None:
    for name in ("first", "second"):
        parent = MlflowTracker(root.uri, root.experiment_id, name).run_id
        with tracked(Tracking(root.uri, root.experiment_id, parent), "job", "work-5"):
            pass
    (run,) = runs_of(root, "work-5")
    assert run.data.tags[PARENT_TAG] == parent
