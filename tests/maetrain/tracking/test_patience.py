"""What passes is waited for, what doesn't is said at once, and MLflow's own waiting is off unless a user wants it."""

import errno
import socket
import subprocess
import sys

import pytest
import requests
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import OperationalError

from maetrain.tracking import patience
from maetrain.tracking.mlflow_tracker import MlflowTracker
from maetrain.tracking.patience import StoreAway, first_line, is_passing, patiently, within
from maetrain.tracking.work import Tracking

from .stores import free_port


def http_error(status: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(response=response)


@pytest.mark.parametrize(
    ("error", "passes", "remark"),
    [
        (MlflowException("database is locked", TEMPORARILY_UNAVAILABLE), True, "sqlite's writer"),
        (MlflowException("API request failed with exception"), True, "no answer"),
        (RestException({"error_code": "TEMPORARILY_UNAVAILABLE", "message": "locked"}), True, "through a server"),
        (RestException({"error_code": "REQUEST_LIMIT_EXCEEDED", "message": "slower"}), True, "a server's limit"),
        (MlflowException("UNIQUE constraint failed: datasets.name", BAD_REQUEST), True, "another was faster"),
        (MlflowException("(psycopg.errors.UniqueViolation) dataset_pk", BAD_REQUEST), True, "another was faster"),
        (OperationalError("SELECT 1", {}, Exception("too many clients already")), True, "PostgreSQL's connections"),
        (ConnectionResetError(), True, "a line cut"),
        (TimeoutError(), True, "no answer in time"),
        (socket.gaierror(-2, "Name or service not known"), True, "a name server that is away"),
        (OSError(errno.EHOSTUNREACH, "No route to host"), True, "a cable"),
        (requests.ConnectionError(), True, "no answer of the artifact store"),
        (requests.Timeout(), True, "a slow artifact store"),
        (requests.exceptions.ChunkedEncodingError(), True, "cut in the middle of an answer"),
        (OSError(errno.ENOSPC, "No space left on device"), False, "this machine's disk is full"),
        (FileNotFoundError(errno.ENOENT, "No such file"), False, "a file of this machine"),
        (PermissionError(errno.EACCES, "Permission denied"), False, "a folder of this machine"),
        (requests.exceptions.InvalidURL(), False, "a URI that is none"),
        (http_error(503), True, "the artifact store is busy"),
        (http_error(429), True, "the artifact store's limit"),
        (http_error(403), False, "no right to write artifacts"),
        (MlflowException("a name must not hold ?", INVALID_PARAMETER_VALUE), False, "it will say so again"),
        (MlflowException("FOREIGN KEY constraint failed", BAD_REQUEST), False, "it will say so again"),
        (RestException({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "run"}), False, "the run is gone"),
        (KeyError("a mistake of ours"), False, "no answer of a store"),
    ],
)
def test_what_passes_is_told_from_what_does_not(error: Exception, passes: bool, remark: str) -> None:
    assert is_passing(error) is passes, remark


def test_a_call_is_made_again_until_it_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(patience.time, "sleep", pauses.append)
    answers = iter([ConnectionError(), ConnectionError(), ConnectionError(), 7])

    def call(first: int, second: int) -> int:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer + first + second

    assert patiently(call, 1, second=2) == 10
    assert len(pauses) == 3 and 0.05 <= pauses[0] <= 0.15 and pauses[2] > pauses[0]


def test_patience_ends_and_a_lasting_error_is_raised_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PATIENCE_S", 0.3)
    calls: list[Exception] = []

    def fail(error: Exception) -> None:
        calls.append(error)
        raise error

    with pytest.raises(StoreAway, match=r"the MLflow store does not answer \(cut\): the same command"):
        patiently(fail, ConnectionError("cut"))
    assert len(calls) > 1
    calls.clear()
    with pytest.raises(ValueError):
        patiently(fail, ValueError())
    assert len(calls) == 1


def test_a_store_waited_for_in_vain_is_asked_once_until_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience.time, "sleep", lambda _: None)
    calls: list[str] = []

    def call(fails: int) -> int:
        calls.append("")
        if len(calls) <= fails:
            raise ConnectionError
        return len(calls)

    with pytest.raises(StoreAway):
        within(0.0, call, 99)
    calls.clear()
    with pytest.raises(StoreAway):
        patiently(call, 99)
    assert len(calls) == 1
    calls.clear()
    assert patiently(call, 0) == 1
    calls.clear()
    assert patiently(call, 2) == 3


def test_what_is_said_of_an_error_holds_no_password() -> None:
    error = MlflowException("API request to http://me:se@cret@host:5000/api/2.0/x failed with\nmore")
    assert first_line(error) == "API request to http://me:***@host:5000/api/2.0/x failed with"
    assert first_line(ConnectionError()) == "ConnectionError"
    assert len(first_line(ValueError("x" * 999))) == 200


def test_a_database_that_is_away_is_tried_once_by_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.store.db import utils

    monkeypatch.setattr(utils.time, "sleep", lambda _: pytest.fail("MLflow waits by itself"))
    with pytest.raises(OperationalError) as error:
        MlflowClient(f"postgresql://me@127.0.0.1:{free_port()}/x").get_experiment("1")
    assert is_passing(error.value)


def test_mlflow_itself_notices_a_server_that_is_away_at_once_unless_the_user_says_otherwise() -> None:
    code = (
        "import maetrain.tracking.patience, os\n"
        "from mlflow import environment_variables as mlflow\n"
        "print(mlflow.MLFLOW_HTTP_REQUEST_MAX_RETRIES.get(), mlflow.MLFLOW_HTTP_REQUEST_TIMEOUT.get(),"
        "sorted(k for k in os.environ if 'HTTP_REQUEST' in k))"
    )
    for env, said in (({}, "0 20 []"), ({"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "5"}, "5 20 ['MLFLOW_HTTP_REQUEST_MAX_R")):
        done = subprocess.run([sys.executable, "-c", code], env={"PATH": "", **env}, capture_output=True, text=True)
        assert done.stdout.startswith(said), done.stderr


def test_a_server_that_is_away_is_an_error_that_passes() -> None:
    with pytest.raises(MlflowException, match="Max retries") as error:
        MlflowClient(f"http://127.0.0.1:{free_port()}").get_experiment("1")
    assert is_passing(error.value)


def test_points_wait_in_the_buffer_while_the_store_is_away_and_come_with_their_own_time(
    tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = MlflowTracker(tracking.uri, tracking.experiment_id, "away")
    tracker.FLUSH_EVERY_S = 0.0
    real, is_away = MlflowClient.log_batch, True

    def log_batch(*args: object, **kwargs: object) -> None:
        if is_away:
            raise MlflowException("no answer")
        real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    for step in range(3):
        tracker.metrics({"loss": float(step)}, step)
    client = MlflowClient(tracking.uri)
    assert client.get_metric_history(tracker.run_id, "loss") == []
    is_away = False
    tracker.finish()
    assert sorted(p.step for p in client.get_metric_history(tracker.run_id, "loss")) == [0, 1, 2]


def test_a_run_whose_making_was_not_answered_is_made_once(tracking: Tracking, monkeypatch: pytest.MonkeyPatch) -> None:
    real, answers = MlflowClient.create_run, iter([False, True])

    def create_run(*args: object, **kwargs: object) -> object:
        run = real(*args, **kwargs)  # type: ignore[arg-type]
        if not next(answers):
            raise MlflowException("the line was cut")
        return run

    monkeypatch.setattr(MlflowClient, "create_run", create_run)
    tracker = MlflowTracker(tracking.uri, tracking.experiment_id, "asked twice", tags={"a": "b"})
    runs = MlflowClient(tracking.uri).search_runs([tracking.experiment_id], "tags.a = 'b'")
    assert [run.info.run_id for run in runs] == [tracker.run_id]
