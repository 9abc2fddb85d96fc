"""A head with job server and token on loopback, as `maetrain cluster up --local` starts it, and jobs on it."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests

from tests.integration.local_head import Local, session_of
from tests.integration.settings import TINY
from tests.maetrain.tracking.stores import free_port, wait_for

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    local = Local(tmp_path_factory.mktemp("home"))
    try:
        told = local.up()
        assert local.address in told and str(local.token_path) in told
        yield local
    finally:
        local.down()


@pytest.fixture(scope="module")
def shards(local: Local, small_archive: Path) -> Path:
    shards = local.home / "shards"
    done = local.submit("shards", small_archive, shards, "--format", "zarr")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "shards-1: SUCCEEDED" in done.stdout and "15 volumes" in done.stdout
    return shards


def test_the_head_is_closed_to_those_without_the_token(local: Local) -> None:
    assert local.token_path.stat().st_mode & 0o777 == 0o600
    assert requests.get(f"{local.address}/api/jobs/", timeout=10).status_code == 401
    for env, part in (
        ({}, "wants a token"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64}, "does not take this token"),
    ):
        refused = local.maetrain("jobs", "list", "--address", local.address, env=env)
        assert refused.returncode == 2 and part in refused.stderr and len(refused.stderr.splitlines()) == 1, refused


def test_the_job_server_listens_on_loopback_alone(local: Local) -> None:
    """Others of Ray's ports are open to the network, whatever address the node has; they want the token."""
    listening = [
        connection.laddr
        for pid in local.session()
        for connection in psutil.Process(pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert {place.ip for place in listening if place.port == local.port} == {"127.0.0.1"}


def test_a_second_head_is_refused_and_the_first_is_shown(local: Local) -> None:
    second = local.maetrain("cluster", "up", "--local", "--port", free_port(), "--ray-port", free_port())
    assert second.returncode == 2 and f"runs already at {local.address}" in second.stderr
    status = local.maetrain("cluster", "status", "--local")
    assert status.returncode == 0 and local.address in status.stdout and "2.0 CPU" in status.stdout, status.stdout


def test_a_run_is_stopped_with_a_checkpoint_and_goes_on_under_its_name(local: Local, shards: Path) -> None:
    out = local.home / "runs" / "mae"
    settings = [*TINY, "cluster.pretrain_workers=1", "pretrain.checkpoint_every=100000"]
    words = ("pretrain", "demo", *settings, "pretrain.steps=100000", "--shards", shards, "--out", out, "--no-wait")
    at = ("--address", local.address)
    first = local.submit(*words)
    assert first.returncode == 0, first.stderr
    second = local.submit(*words)
    assert second.returncode == 2 and "mae-1" in second.stderr and len(second.stderr.splitlines()) == 1
    end = time.monotonic() + 240
    while not (out / "curve.jsonl").exists():
        assert time.monotonic() < end, local.maetrain("jobs", "logs", "mae-1", "--no-wait", *at).stdout
        time.sleep(0.5)
    stopped = local.maetrain("jobs", "stop", "mae-1", *at)
    assert (stopped.returncode, stopped.stdout) == (0, "mae-1: STOPPED\n"), stopped.stderr
    log = local.maetrain("jobs", "logs", "mae-1", "--no-wait", *at).stdout
    assert "SIGTERM: a checkpoint, then a stop" in log and "stopped" in log, log

    again = local.submit(*words)
    assert again.returncode == 0 and "mae-2" in again.stdout
    assert "resumed at step" in local.until("mae-2", "resumed at step")
    local.maetrain("jobs", "stop", "mae-2", *at)


def test_a_sweep_is_stopped_and_does_the_rest_under_its_name(local: Local, small_archive: Path, shards: Path) -> None:
    out = local.home / "sweeps" / "small"
    grid = ("sweep.arms=[scratch,random-mae]", "sweep.seeds=[0]", "sweep.cpus_per_job=2")
    words = ("sweep", "demo", *TINY, *grid, "--shards", shards, "--data", small_archive, "--out", out)

    def results() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in out.glob("jobs/*/result.json")}

    first = local.submit(*words, "--no-wait")
    assert first.returncode == 0 and "small-1" in first.stdout, first.stdout + first.stderr
    wait_for(results, "the first job of the sweep", limit_s=240)
    local.maetrain("jobs", "stop", "small-1", "--address", local.address)
    kept = results()
    assert 0 < len(kept) < 6 and not (out / "report").exists()

    done = local.submit(*words)
    assert done.returncode == 0 and "small-2: SUCCEEDED" in done.stdout, done.stdout + done.stderr
    assert len(results()) == 6 and kept.items() <= results().items()
    assert (out / "report" / "index.html").is_file()


def test_what_a_job_fails_of_is_its_exit_code(local: Local) -> None:
    failed = local.submit("pretrain", "demo", "--shards", "/nowhere", "--out", local.home / "runs" / "bad")
    assert failed.returncode == 2 and "maetrain: /nowhere" in failed.stdout and "bad-1: FAILED" in failed.stdout


def test_secrets_reach_the_driver_and_can_not_be_read(local: Local, small_archive: Path) -> None:
    """A salt, without which nothing is hashed."""
    file = local.home / "secrets.env"
    file.write_text("MAETRAIN_SALT=hush-of-the-file\n")
    file.chmod(0o600)
    out = local.home / "hashed"
    hashed = ("shards", small_archive, out, "shards.privacy.names=hash")
    done = local.submit(*hashed, "--env-file", file, "--cluster-env", "A_SECRET")
    missing = local.submit(*hashed, "--cluster-env", "NOT_THERE")
    assert done.returncode == 0, done.stdout
    assert missing.returncode != 0 and "NOT_THERE: is set neither in the environment of the head" in missing.stdout
    token = {"Authorization": f"Bearer {local.token_path.read_text()}"}
    shown = requests.get(f"{local.address}/api/jobs/", headers=token, timeout=10).text
    assert "hashed-1" in shown and "hush" not in shown
    logs = local.maetrain("jobs", "logs", "hashed-1", "--address", local.address).stdout
    assert "hush" not in logs


def test_the_source_tree_runs_instead_of_the_installed(local: Local, small_archive: Path) -> None:
    tree = local.home / "tree"
    (tree / "cluster").mkdir(parents=True)
    (tree / "cluster" / "__init__.py").touch()
    (tree / "cluster" / "cli.py").write_text("def main():\n    print('this is the tree')\n")
    (tree / "cluster" / "__main__.py").write_text("from cluster.cli import main\n\nmain()\n")
    done = local.submit("shards", small_archive, local.home / "other", "--working-dir", tree)
    assert done.returncode == 0 and "this is the tree" in done.stdout, done.stdout + done.stderr


def test_plain_ray_job_submit_works_beside(local: Local, shards: Path) -> None:
    ray = str(Path(sys.executable).with_name("ray"))
    command = [ray, "job", "submit", "--address", local.address, "--", "maetrain", "shards", "verify", str(shards)]
    env = local.env | local.with_token
    done = subprocess.run(command, env=env, cwd=local.home, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "all shards are whole" in done.stdout, done.stdout + done.stderr


@pytest.fixture
def islander(local: Local) -> Iterator[Path]:
    """A second node for which this folder is a disk of its own."""
    if os.geteuid() != 0:
        pytest.skip("needs root for a mount of its own")
    folder = local.home / "not-shared"
    folder.mkdir()
    gcs_port = json.loads((local.home / ".maetrain" / "head" / "head.json").read_text())["gcs_port"]
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address=127.0.0.1:{gcs_port}", "--num-cpus=1"]
    start += ["--block", "--disable-usage-stats"]
    island = f"mount -t tmpfs none {folder} && exec {shlex.join(start)}"
    with (local.home / "node.log").open("w") as log:
        node = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", island],
            env=local.env | local.with_token,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        end = time.monotonic() + 120
        while "3.0 CPU" not in (shown := local.maetrain("cluster", "status", "--local").stdout):
            assert time.monotonic() < end and node.poll() is None, shown + (local.home / "node.log").read_text()
        yield folder
    finally:
        for pid in psutil.pids():
            if session_of(pid) == node.pid:
                os.kill(pid, signal.SIGKILL)
        node.wait(timeout=30)


def test_a_node_that_does_not_share_the_folder_is_named_before_the_work(
    local: Local, islander: Path, small_archive: Path
) -> None:
    out = islander / "shards"
    done = local.submit("shards", small_archive, out)
    assert done.returncode == 2, done.stdout
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("maetrain: ")]
    assert re.match(rf"maetrain: node .*: {out} is not the folder that the driver sees", line), line
    assert not list(out.iterdir())


def test_down_ends_all_of_it(local: Local) -> None:
    """The last of this module."""
    before = local.session()
    assert len(before) > 3
    down = local.maetrain("cluster", "down", "--local")
    assert down.returncode == 0 and "has ended" in down.stdout
    assert not [pid for pid in before if session_of(pid) is not None and psutil.Process(pid).status() != "zombie"]
    assert local.maetrain("cluster", "status", "--local").returncode == 1
    assert local.maetrain("cluster", "down", "--local").stdout == "no head runs here\n"
