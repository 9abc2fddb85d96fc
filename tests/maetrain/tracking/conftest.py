"""One store of each kind for the tests of this folder."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from maetrain.tracking import patience
from maetrain.tracking.mlflow_tracker import MlflowTracker, open_experiment
from maetrain.tracking.work import Tracking

from .stores import Server, postgres


@pytest.fixture(autouse=True)
def no_store_was_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test begins as a process does."""
    monkeypatch.setattr(patience, "_is_away", threading.Event())


@pytest.fixture(scope="session")
def sqlite_store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('sqlite') / 'mlflow.db'}"


@pytest.fixture(scope="session")
def postgres_store() -> Iterator[str]:
    with postgres() as uri:
        yield uri


@pytest.fixture(scope="session")
def server_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = Server(tmp_path_factory.mktemp("server"))
    try:
        server.start()
        yield server.uri
    finally:
        server.kill()


@pytest.fixture
def tracking(request: pytest.FixtureRequest, tmp_path: Path) -> Tracking:
    """An experiment of the test's own with a parent run, in the store it is parametrized with, or sqlite."""
    uri = request.getfixturevalue(getattr(request, "param", "sqlite_store"))
    artifacts = None if uri.startswith("http") else tmp_path / "artifacts"
    experiment_id = open_experiment(uri, tmp_path.name, artifacts)
    return Tracking(uri, experiment_id, MlflowTracker(uri, experiment_id, "parent").run_id)
