"""Many processes log to one database at once, and nothing is lost. Sqlite has one writer, PostgreSQL 100 connections.

They are forked from a process that has imported MLflow and opened nothing, since 64 imports take 4 s of CPU each. The
large number is run with `make test-long`.
"""

import multiprocessing
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from maetrain.tracking.mlflow_tracker import PARENT_TAG
from maetrain.tracking.work import Tracking

from .job import STEPS, job


@pytest.mark.runs
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("tracking", ["sqlite_store", "postgres_store"], indirect=True)
@pytest.mark.parametrize("num_processes", [8, pytest.param(64, marks=pytest.mark.long)])
def test_processes_that_log_at_once_lose_nothing(tracking: Tracking, tmp_path: Path, num_processes: int) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([job.__module__])
    all_are_there = context.Barrier(num_processes)
    processes = [
        context.Process(target=job, args=(tracking, number, tmp_path, all_are_there)) for number in range(num_processes)
    ]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.kill()
    errors = [path.read_text() for path in tmp_path.glob("error-*")]
    assert {process.exitcode for process in processes} == {0} and not errors, errors[0][-3000:]
    client = MlflowClient(tracking.uri)
    query = f"tags.`{PARENT_TAG}` = '{tracking.parent_run_id}'"
    runs = client.search_runs([tracking.experiment_id], query, max_results=1000)
    assert sorted(run.data.tags["number"] for run in runs) == sorted(map(str, range(num_processes)))
    for run in runs:
        number = run.data.tags["number"]
        assert run.info.status == "FINISHED" and run.data.tags["budget"] == "2"
        assert run.data.params == {"seed": number, "arm": "mae"}
        points = client.get_metric_history(run.info.run_id, "loss")
        assert sorted((p.step, p.value) for p in points) == [(n, int(number) + n / 1024) for n in range(STEPS)]
        assert [used.dataset.name for used in run.inputs.dataset_inputs] == [f"data {int(number) % 3}"]
        stored = Path(client.download_artifacts(run.info.run_id, f"tables/of-{number}.txt", str(tmp_path)))
        assert stored.read_text() == number
