"""`maetrain mlflow up`, `status`, `down` for real: MLflow's server answers, keeps runs and files, and ends whole."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import psutil
import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from moto.server import ThreadedMotoServer

from cluster import mlflow_process
from cluster.detached import Detached, start_session
from cluster.mlflow_plan import ServerPlan
from cluster.mlflow_process import LOG, RECORD, Running, attend, find, start
from data_shards.errors import InputError
from maetrain.tracking.mlflow_tracker import MlflowTracker, open_experiment
from tests.maetrain.tracking.stores import free_port, postgres, wait_for

pytestmark = [pytest.mark.runs, pytest.mark.timeout(900)]

VERB = [sys.executable, "-c", "from cluster.cli import main; main()", "mlflow"]
PASSWORD = "correct horse battery"


def processes_of(session: int) -> list[psutil.Process]:
    """Those that run."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def verb(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **variables}
    return subprocess.run([*VERB, *map(str, words)], env=env, capture_output=True, text=True)


@pytest.fixture(autouse=True)
def nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(mlflow_process, "START_S", 600.0)  # the machine may be busy
    yield
    if (running := find(tmp_path / "server")) is not None:
        running.end(grace_s=15)


def a_run_with_a_file(uri: str, tmp_path: Path) -> str:
    """Logs one as every verb does; returns what the server gives back of its file."""
    (tmp_path / "curve.txt").write_text("0.5 0.25")
    tracker = MlflowTracker(uri, open_experiment(uri, "maetrain"), "run")
    tracker.metrics({"loss": 0.25}, 7)
    tracker.file(tmp_path / "curve.txt", "made")
    tracker.finish()
    client = MlflowClient(uri)
    run = client.get_run(tracker.run_id)
    assert run.data.metrics == {"loss": 0.25} and run.info.artifact_uri.startswith("mlflow-artifacts:/")
    return Path(client.download_artifacts(tracker.run_id, "made/curve.txt", str(tmp_path))).read_text()


def test_in_the_foreground_it_keeps_a_run_and_ctrl_c_ends_all_its_processes(tmp_path: Path) -> None:
    folder, port = tmp_path / "server", free_port()
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # tests that run in the background ignore it, and hand that on
    up = subprocess.Popen(
        [*VERB, "up", folder, "--port", str(port)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert up.stdout
    first = up.stdout.readline()
    assert first.startswith(f"MLflow: http://127.0.0.1:{port} "), first
    assert up.stdout.readline() == f"  --tracking-uri http://127.0.0.1:{port}\n"
    assert a_run_with_a_file(f"http://127.0.0.1:{port}", tmp_path) == "0.5 0.25"
    assert len(list((folder / "artifacts").rglob("curve.txt"))) == 1
    running = find(folder)
    assert running and len(processes_of(running.session)) >= 3  # mlflow, uvicorn, its workers
    second = verb("up", folder)
    assert second.returncode == 2 and f"runs already, at http://127.0.0.1:{port}" in second.stderr
    up.send_signal(signal.SIGINT)
    assert up.wait(120) == 0 and "Traceback" not in up.stdout.read()
    assert not processes_of(running.session) and not (folder / RECORD).exists()


@pytest.mark.deploy
def test_detached_on_postgresql_and_s3_it_asks_for_a_login_and_is_ended_by_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, port, s3 = tmp_path / "server", free_port(), ThreadedMotoServer(port=0)
    s3.start()
    try:
        endpoint = f"http://127.0.0.1:{s3.get_host_and_port()[1]}"
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "testing")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", endpoint)
        bucket = boto3.resource("s3", endpoint_url=endpoint).create_bucket(Bucket="runs")
        (tmp_path / "word").write_text(f"{PASSWORD}\n")
        with postgres() as store:
            login = ["--auth", "--admin", "boss", "--password-file", tmp_path / "word"]
            where = ["--store", store, "--artifacts", "s3://runs/of", "--port", port]
            up = verb("up", folder, *where, *login, "--detach")
            assert up.returncode == 0, up.stderr
            running = find(folder)
            assert running
            told = verb("status", folder)
            assert told.returncode == 0 and "MLflow answers at" in told.stdout
            assert all(PASSWORD not in " ".join(process.cmdline()) for process in processes_of(running.session))

            for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
                monkeypatch.delenv(name, raising=False)
            with pytest.raises(MlflowException, match="(?i)not authenticated"):
                MlflowClient(running.uri).search_experiments()
            monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "boss")
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "password1234")
            with pytest.raises(MlflowException, match="(?i)not authenticated"):
                MlflowClient(running.uri).search_experiments()
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
            assert a_run_with_a_file(running.uri, tmp_path) == "0.5 0.25"
            assert [item.key.startswith("of/") for item in bucket.objects.all()] == [True]
            assert not (folder / "mlflow.db").exists()
            accounts = (folder / "accounts.db").stat().st_mode
            assert accounts & 0o077 == 0, "others on the machine can read the accounts"

            down = verb("down", folder)
            assert down.returncode == 0 and "has ended" in down.stdout
            assert not processes_of(running.session)
            told = verb("status", folder)
            assert told.returncode == 1 and "no MLflow server runs" in told.stdout
            assert verb("down", folder).returncode == 0
    finally:
        s3.stop()


def plan_in(folder: Path) -> ServerPlan:
    folder.mkdir(exist_ok=True)
    return ServerPlan(folder, f"sqlite:///{folder}/mlflow.db", str(folder / "artifacts"), port=free_port())


def test_a_server_that_ends_while_it_starts_is_told_by_its_last_line(tmp_path: Path) -> None:
    """A database that another version of MLflow has made."""
    plan = plan_in(tmp_path / "server")
    (plan.folder / LOG).write_text("a line of an earlier start\n")
    with sqlite3.connect(plan.folder / "mlflow.db") as database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        database.execute("CREATE TABLE experiments (experiment_id INTEGER)")
        database.execute("INSERT INTO alembic_version VALUES ('000000000000')")
    with pytest.raises(
        InputError, match=r"MLflow ended while it started: .*000000000000.*server\.log tells more"
    ) as told:
        start(plan, None)
    assert "earlier start" not in str(told.value) and not (plan.folder / RECORD).exists()


STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
)
PARENT = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {STUBBORN!r}]); "


def group_of(code: str, folder: Path) -> Running:
    """A stand-in for the server."""
    process = subprocess.Popen(
        [sys.executable, "-c", code], start_new_session=True, stdout=(folder / LOG).open("wb"), stderr=subprocess.STDOUT
    )
    wait_for(lambda: "deaf" in (folder / LOG).read_text(), "the process", process if "sleep(600)" in code else None)
    return Running(process.pid, psutil.Process(process.pid).create_time(), "http://127.0.0.1:9")


def test_processes_that_are_deaf_to_sigterm_or_have_lost_their_parent_end_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_process, "END_S", 0.5)
    running = group_of(PARENT + "time.sleep(1); raise SystemExit('the last word')", tmp_path)
    (tmp_path / RECORD).touch()
    with pytest.raises(InputError, match="MLflow ended: the last word"):
        attend(running, tmp_path)
    assert not processes_of(running.session) and not (tmp_path / RECORD).exists()


def test_a_server_that_down_has_ended_is_no_error_where_it_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_process, "END_S", 0.5)
    running = group_of(PARENT + "time.sleep(1)", tmp_path)
    attend(running, tmp_path)  # no record: `down` removes it first
    assert not processes_of(running.session)


def test_another_process_with_the_same_number_is_not_taken_for_the_server(tmp_path: Path) -> None:
    own = psutil.Process()
    record = '{{"session": {}, "started_s": {}, "uri": "http://127.0.0.1:9"}}'
    (tmp_path / RECORD).write_text(record.format(own.pid, own.create_time() - 60))
    assert find(tmp_path) is None
    (tmp_path / RECORD).write_text(record.format(own.pid, own.create_time()))
    assert find(tmp_path) == Running(own.pid, own.create_time(), "http://127.0.0.1:9")
    (tmp_path / RECORD).write_text("half a rec")
    assert find(tmp_path) is None


def test_a_server_that_does_not_answer_in_time_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_process, "START_S", 0.0)
    plan = plan_in(tmp_path / "server")
    started: list[Detached] = []
    monkeypatch.setattr(
        mlflow_process, "start_session", lambda *a, **k: started.append(start_session(*a, **k)) or started[0]
    )
    with pytest.raises(InputError, match=r"does not answer 0 s after its start; .*server\.log tells why"):
        start(plan, None)
    assert started and not processes_of(started[0].session)
