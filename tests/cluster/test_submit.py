"""`maetrain submit` and `maetrain jobs` against a job server that answers over HTTP: what is sent, and each mistake
in one line before anything is sent."""

import io
import re
import shlex
import socket
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohttp
import click
import pytest
import ray
from ray.job_submission import JobSubmissionClient

from cluster import jobs
from cluster.commands.submit import submit as submit_group
from cluster.commands.train import pretrain, sweep
from tests.cluster.job_server import JobServer, job, serving
from tests.cluster.typed import Run, forbid_ray, mistake, typed
from tests.command_line import parsed

PRETRAIN = ("submit", "pretrain", "small", "--shards", "/data/shards", "--out", "/data/runs/mae", "--no-wait")


@pytest.fixture
def server() -> Iterator[JobServer]:
    with serving(JobServer()) as server:
        yield server


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, tmp_path: Path) -> Run:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    forbid_ray(monkeypatch, "a submission starts no Ray here")
    monkeypatch.chdir(tmp_path)
    return typed(monkeypatch, capfd)


def sent(server: JobServer) -> dict[str, Any]:
    (body,) = server.submitted
    return body


def test_a_verb_goes_out_with_all_its_arguments(server: JobServer, run: Run) -> None:
    words = (*PRETRAIN, "pretrain.steps=7", "--tracking-uri", "http://mlflow:5000", "--profile", "--fork", "s3://b/run")
    code, stdout, stderr = run(*words, "--address", server.address)
    assert (code, stderr) == (0, "")
    body = sent(server)
    assert body["submission_id"] == "mae-1" and body["metadata"] == {"maetrain.out": "/data/runs/mae"}
    assert "mae-1" in stdout and f"maetrain jobs logs mae-1 --address {server.address}" in stdout
    typed = parsed(shlex.split(body["entrypoint"]))
    direct = "maetrain pretrain small pretrain.steps=7 --shards /data/shards --out /data/runs/mae --profile --fork"
    direct += " s3://b/run --tracking-uri http://mlflow:5000 --address auto"
    assert typed == parsed(direct.split())
    assert body["runtime_env"]["env_vars"] == {
        "MAETRAIN_SENT_BY": version("maetrain"),
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
    }
    assert "working_dir" not in body["runtime_env"] and not server.uploads


def test_the_stop_waits_longer_than_the_checkpoint_may_take(server: JobServer, run: Run) -> None:
    run(*PRETRAIN, "cluster.grace_s=100.5", "--address", server.address)
    assert float(sent(server)["runtime_env"]["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) >= 100.5 + 30


def test_shards_and_sweeps_go_out_too(server: JobServer, run: Run) -> None:
    run(
        "submit",
        "shards",
        "/a b",
        "/o",
        "shards.format=zarr",
        "--format",
        "zarr",
        "--no-wait",
        "--address",
        server.address,
    )
    sweep = ["submit", "sweep", "small", "--shards", "/s", "--data", "/d", "--handover", "mae=/h", "--handover"]
    sweep += ["/h2", "--out", "/o2", "--no-wait", "--address", server.address]
    run(*sweep)
    run("submit", "sweep", "--resume", "--out", "/o3", "--no-wait", "--address", server.address)
    build, whole, resumed = (shlex.split(body["entrypoint"]) for body in server.submitted)
    assert parsed(build) == parsed(
        ["maetrain", "shards", "build", "/a b", "/o", "shards.format=zarr", "--format", "zarr", "--address", "auto"]
    )
    assert [w for w in whole if w != "auto"] == [
        *("maetrain", "sweep", "small", "--shards", "/s", "--data", "/d", "--handover", "mae=/h", "--handover", "/h2"),
        *("--out", "/o2", "--address"),
    ]
    assert resumed == ["maetrain", "sweep", "--out", "/o3", "--resume", "--address", "auto"]
    assert [body["submission_id"] for body in server.submitted] == ["o-1", "o2-1", "o3-1"]


@pytest.mark.parametrize("command", [pretrain, sweep])
def test_a_job_takes_every_option_of_its_verb(command: click.Command) -> None:
    assert command.name
    theirs = {p.name for p in submit_group.commands[command.name].params}
    assert {p.name for p in command.params} - {"setup_only"} <= theirs


def test_variables_are_passed_by_value_and_secrets_by_name(
    server: JobServer, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hush")
    words = (*PRETRAIN, "--address", server.address)
    mistake(run(*words, "--env", "MLFLOW_TRACKING_PASSWORD"), "--cluster-env MLFLOW_TRACKING_PASSWORD")
    mistake(run(*words, "--tracking-uri", "http://me:hush@mlflow"), "MLFLOW_TRACKING_PASSWORD", "--env-file")
    assert not server.submitted
    run(*words, "--env", "NCCL_DEBUG", "--cluster-env", "MLFLOW_TRACKING_PASSWORD", "--env-file", "/run/secrets.env")
    body = sent(server)
    assert body["runtime_env"]["env_vars"]["NCCL_DEBUG"] == "INFO"
    assert "hush" not in str(body) and "/run/secrets.env" in body["entrypoint"]
    assert "MLFLOW_TRACKING_PASSWORD" in body["entrypoint"]


def test_a_recipe_of_ones_own_goes_along_alone(server: JobServer, run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("pretrain: {steps: 3}\n")
    (tmp_path / "scan.nii.gz").write_bytes(b"voxels")
    code, _, _ = run(*("mine.yaml" if w == "small" else w for w in PRETRAIN), "--address", server.address)
    (package,) = server.uploads
    assert code == 0 and zipfile.ZipFile(io.BytesIO(package)).namelist() == ["mine.yaml"]
    assert sent(server)["entrypoint"].startswith("maetrain pretrain ./mine.yaml ")
    assert sent(server)["runtime_env"]["working_dir"].startswith("gcs://")


def test_a_source_tree_brings_its_own_program(server: JobServer, run: Run, tmp_path: Path) -> None:
    for name in ("cluster/cli.py", "recipes/mine.yaml", "scans/case.nii.gz"):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_text("{}")
    words = ["tree/recipes/mine.yaml" if w == "small" else w for w in PRETRAIN]
    code, _, _ = run(*words, "--working-dir", "tree", "--address", server.address)
    names = {name for name in zipfile.ZipFile(io.BytesIO(server.uploads[0])).namelist() if not name.endswith("/")}
    assert code == 0 and names == {"cluster/cli.py", "recipes/mine.yaml"}
    body = sent(server)
    assert body["entrypoint"].startswith("python -m cluster pretrain ./recipes/mine.yaml ")
    assert "MAETRAIN_SENT_BY" not in body["runtime_env"]["env_vars"]


def test_a_source_tree_that_is_too_large_is_not_sent(server: JobServer, run: Run, tmp_path: Path) -> None:
    with (tmp_path / "core.bin").open("wb") as file:
        file.truncate(101 * 2**20)
    mistake(run(*PRETRAIN, "--working-dir", ".", "--address", server.address), "101 MiB", "100 MiB", "core.bin")
    mistake(
        run(*("/x/m.yaml" if w == "small" else w for w in PRETRAIN), "--address", server.address),
        "/x/m.yaml",
        "no such",
    )
    assert not server.submitted and not server.uploads


def test_a_recipe_outside_the_source_tree_is_told(server: JobServer, run: Run, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "mine.yaml").write_text("{}")
    words = [*("mine.yaml" if w == "small" else w for w in PRETRAIN), "--working-dir", "tree"]
    mistake(run(*words, "--address", server.address), "mine.yaml is not in --working-dir")


@pytest.mark.parametrize(
    ("wrong", "parts"),
    [
        (("smal",), ("unknown recipe 'smal'", "small")),
        (("small", "pretrain.step=3"), ("pretrain.step", "did you mean 'steps'")),
        (("small", "cluster.pretrain_workers=[8,4]"), ("pretrain_workers",)),
        (("small", "--shrads", "/x"), ("--shrads",)),
    ],
)
def test_a_wrong_command_is_told_without_asking_the_cluster(
    run: Run, wrong: tuple[str, ...], parts: tuple[str]
) -> None:
    words = ["submit", "pretrain", *wrong, "--shards", "/s", "--out", "/o", "--address", "http://127.0.0.1:1"]
    mistake(run(*words), *parts)


def test_a_sweep_without_an_order_is_told(run: Run) -> None:
    mistake(run("submit", "sweep", "small", "--out", "/o", "--address", "http://127.0.0.1:1"), "--shards and --data")
    mistake(run("submit", "sweep", "small", "--resume", "--out", "/o", "--address", "http://127.0.0.1:1"), "--resume")


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("pretrain", ("small", "--shards", "shards", "--out", "/o")),
        ("pretrain", ("small", "--shards", "/s", "--out", "runs/mae")),
        ("pretrain", ("small", "--shards", "/s", "--out", "x=/y")),
        ("sweep", ("small", "--shards", "/s", "--data", "/d", "--out", "/o", "--handover", "mae=runs/mae/handover")),
        ("shards", ("scans", "/o")),
        ("pretrain", ("small", "--shards", "/s", "--out", "/o", "--env-file", "secrets.env")),
    ],
)
def test_a_path_of_this_folder_is_refused(run: Run, verb: str, words: tuple[str, ...]) -> None:
    mistake(run("submit", verb, *words, "--address", "http://127.0.0.1:1"), "give a whole path")


def test_an_address_where_nobody_is_is_told(run: Run) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    mistake(run(*PRETRAIN, "--address", address), address, "refused", "8265")
    mistake(run(*PRETRAIN, "--address", "http://no-such-host.invalid:8265"), "no-such-host.invalid")
    mistake(run(*PRETRAIN, "--address", "10.0.0.1:6379"), "http://HEAD:8265")


def test_a_host_that_swallows_what_it_is_sent_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_REACH_S", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        mistake(run(*PRETRAIN, "--address", f"http://127.0.0.1:{silent.getsockname()[1]}"), "no answer", "timed out")


def test_another_service_is_told_from_a_job_server(run: Run) -> None:
    class Other(JobServer):
        def answer(self, *_: Any) -> tuple[int, Any]:
            return 404, "<html>not here</html>"

    class NoJson(JobServer):
        def answer(self, *_: Any) -> tuple[int, Any]:
            return 200, "<html>welcome</html>"

    for kind in (Other, NoJson):
        with serving(kind()) as server:
            mistake(run(*PRETRAIN, "--address", server.address), server.address, "job server")


@pytest.mark.parametrize(("token", "part"), [(None, "wants a token"), ("wrong", "does not take this token")])
def test_without_the_right_token_nothing_is_sent(
    run: Run, monkeypatch: pytest.MonkeyPatch, token: str | None, part: str
) -> None:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    monkeypatch.setattr("ray.dashboard.modules.dashboard_sdk.get_auth_headers_if_auth_enabled", lambda _: dict(headers))
    with serving(JobServer(token="right")) as server:
        mistake(run(*PRETRAIN, "--address", server.address), part, "RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN_PATH")
        assert not server.submitted
        headers["Authorization"] = "Bearer right"
        assert run(*PRETRAIN, "--address", server.address)[0] == 0
        assert len(server.submitted) == 1


def test_a_cluster_of_another_ray_is_told(run: Run) -> None:
    with serving(JobServer(ray_version="2.9.3")) as server:
        mistake(run(*PRETRAIN, "--address", server.address), "Ray 2.9.3", ray.__version__, "pip install")
        assert not server.submitted
    major, minor, _ = ray.__version__.split(".")
    with serving(JobServer(ray_version=f"{major}.{minor}.99")) as server:
        assert run(*PRETRAIN, "--address", server.address)[0] == 0


@pytest.mark.parametrize(
    "other",
    [
        job("mae-4", "RUNNING", "whatever", metadata={"maetrain.out": "/data/runs/mae"}),
        job("mae-4", "PENDING", "whatever", metadata={"maetrain.out": "/data/runs/mae"}),
        job("by-hand", "RUNNING", "maetrain pretrain small --shards /s --out /data/runs//mae/ --address auto"),
    ],
)
def test_two_jobs_on_one_run_are_refused(server: JobServer, run: Run, other: dict[str, Any]) -> None:
    server.jobs = [other]
    name = other["submission_id"]
    mistake(run(*PRETRAIN, "--address", server.address), name, f"maetrain jobs stop {name}", "/data/runs/mae")
    assert not server.submitted


def test_a_head_that_has_just_come_up_is_asked_again(
    server: JobServer, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_ASK_EVERY_S", 0.01)
    server.refusals = 2
    assert run(*PRETRAIN, "--address", server.address)[0] == 0
    assert sent(server)["submission_id"] == "mae-1"
    monkeypatch.setattr(jobs, "_AGENT_S", 0.05)
    server.refusals = 1000
    mistake(run(*PRETRAIN, "--address", server.address), "No available agent")


def test_a_run_goes_on_under_the_next_number(server: JobServer, run: Run) -> None:
    done = {"metadata": {"maetrain.out": "/data/runs/mae"}}
    server.jobs = [job("mae-1", "STOPPED", "x", **done), job("mae-2", "FAILED", "x", **done)]
    server.jobs.append(job("other-7", "RUNNING", "x", metadata={"maetrain.out": "/data/runs/other"}))
    run(*PRETRAIN, "--address", server.address)
    assert sent(server)["submission_id"] == "mae-3"


def test_the_address_of_the_command_counts_more_than_the_environment(
    server: JobServer, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    assert run(*PRETRAIN, "--address", server.address)[0] == 0
    monkeypatch.setenv("RAY_ADDRESS", server.address)
    assert run(*PRETRAIN)[0] == 0
    assert len(server.submitted) == 2


def test_jobs_are_listed_and_their_end_is_an_exit_code(server: JobServer, run: Run) -> None:
    why = "Job entrypoint command failed with exit code 2, last available logs (truncated to 20,000 chars):\nlong log"
    server.jobs = [
        job("b-1", "FAILED", "maetrain b", message=why, driver_exit_code=2, start_time=2),
        job("a-1", "SUCCEEDED", "maetrain a", start_time=1),
        job("c-1", "RUNNING", "maetrain c", start_time=3),
    ]
    at = ("--address", server.address)
    code, stdout, _ = run("jobs", "list", *at)
    assert code == 0 and [line.split(":")[0] for line in stdout.splitlines()] == ["a-1", "b-1", "c-1"]
    assert "long log" not in stdout and "exit code 2" in stdout
    assert [run("jobs", "status", name, *at)[0] for name in ("a-1", "b-1", "c-1")] == [0, 2, 0]
    mistake(run("jobs", "stop", "x-1", *at), "x-1", "maetrain jobs list")


def test_ctrl_c_leaves_the_job_and_says_how_to_stop_it(
    server: JobServer, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def interrupted(*_: object) -> Any:
        yield "a line\n"
        raise KeyboardInterrupt

    monkeypatch.setattr(JobSubmissionClient, "tail_job_logs", interrupted)
    code, stdout, stderr = run(*(w for w in PRETRAIN if w != "--no-wait"), "--address", server.address)
    assert (code, stderr) == (130, "") and "a line\n" in stdout
    assert re.search(r"goes on without you.*maetrain jobs stop mae-1 --address http", stdout)


@pytest.mark.parametrize(
    "error", [RuntimeError("WebSocket connection closed with code 1006"), aiohttp.ClientError("cut"), OSError("reset")]
)
def test_a_lost_connection_is_not_taken_for_the_end_of_the_job(
    server: JobServer, run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def cut(*_: object) -> Any:
        yield "a line\n"
        raise error

    monkeypatch.setattr(JobSubmissionClient, "tail_job_logs", cut)
    outcome = run(*(w for w in PRETRAIN if w != "--no-wait"), "--address", server.address)
    mistake(outcome, "the connection is lost", str(error), "mae-1 goes on without you", "maetrain jobs logs mae-1")
    assert "a line\n" in outcome[1]


@pytest.mark.parametrize(
    "words",
    [
        ("pretrain", "small", "--shards", "/data/set=1/shards", "--out", "s3://runs/set=1/x"),
        ("sweep", "small", "--shards", "/s", "--data", "/d", "--out", "/o", "--handover", "mae=/data/set=1/handover"),
        ("sweep", "small", "--shards", "/s", "--data", "/d", "--out", "/o", "--handover", "/data/set=1/handover"),
    ],
)
def test_a_whole_path_may_have_an_equals_sign(server: JobServer, run: Run, words: tuple[str, ...]) -> None:
    assert run("submit", *words, "--no-wait", "--address", server.address)[0] == 0
    assert words[-1] in sent(server)["entrypoint"]


def test_a_recipe_that_would_stay_here_is_told(server: JobServer, run: Run, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "train.py").touch()
    (tmp_path / "runs" / "mine.yaml").write_text("{}")
    words = [*("runs/mine.yaml" if w == "small" else w for w in PRETRAIN), "--working-dir", "."]
    mistake(run(*words, "--address", server.address), "runs/mine.yaml does not go along", "another folder")
    assert not server.submitted and not server.uploads


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("sweep", ("--resume", "--out", "s3://b/sweep")),
        ("sweep", ("small", "--shards", "/s", "--data", "s3://b/scans", "--out", "/o")),
        ("sweep", ("small", "--shards", "/s", "--data", "/d", "--out", "/o", "--elsewhere", "clinic=s3://b/scans")),
        ("shards", ("s3://b/scans", "/o")),
        ("pretrain", ("small", "--shards", "/s", "--out", "/o", "--env-file", "s3://b/env")),
    ],
)
def test_a_bucket_is_refused_where_the_verb_takes_none(run: Run, verb: str, words: tuple[str, ...]) -> None:
    mistake(run("submit", verb, *words, "--address", "http://127.0.0.1:1"), "s3://b/", "a bucket can't be given here")
