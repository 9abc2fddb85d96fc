"""The way of a user of a cluster: plain `ray job submit` of shards, pretraining and sweep, as the manifests' jobs have
them; runs on a tracking server, its pages in a browser.

Real processes on loopback: a Ray head with token and job server, MLflow behind a login on PostgreSQL, its files on an
S3 server. Screenshots go to the test's folder, or to the one that SCREENSHOTS names: `docs/img/` has them from there.
"""

import base64
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

from tests.deploy.manifests import build, of_kind
from tests.integration.local_head import Local
from tests.integration.settings import TINY
from tests.maetrain.tracking.stores import free_port, postgres, wait_for

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [pytest.mark.deploy, pytest.mark.timeout(1800)]

ADMIN, PASSWORD = "boss", "correct horse battery"
BUCKET = "runs"
STEPS = 3000
CPUS = 16  # that the head says it has: a manifest's ranks ask for 8 each
SMALL = (*TINY, f"pretrain.steps={STEPS}", "pretrain.checkpoint_every=20")
# what a user sets by two clicks: the pages of training, and no chat beside them
AS_SEEN = """if (location.protocol.startsWith("http")) {
    localStorage.setItem("mlflow.workflowType_v1", '"machine_learning"');
    localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
    localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
}"""
HARMLESS = "ResizeObserver loop completed"  # Chromium's word for a layout that takes one more frame
FEW = ("sweep.seeds=[0,1]", "sweep.arms=[scratch,mae]", "sweep.cpus_per_job=8")  # two at a time
LOCAL, BASE = "overlays/local/jobs", "base/jobs"


@dataclass(frozen=True)
class Site:
    """What an operator has set up. `s3`: address of the store of artifacts."""

    head: Local
    tracking_uri: str
    s3: str

    def ray(self, *words: object, token: bool = True) -> subprocess.CompletedProcess[str]:
        ray = [str(Path(sys.executable).with_name("ray")), "job", *map(str, words)]
        env = self.head.env | (self.head.with_token if token else {"RAY_AUTH_MODE": "disabled"})
        where = {"RAY_ADDRESS": self.head.address}
        return subprocess.run(ray, env=env | where, cwd=self.head.home, capture_output=True, text=True, timeout=900)

    def command(self, folder: str, job: str, data: Path) -> list[str]:
        """The entrypoint of a RayJob of the manifests in `folder`, with our places for its own, made small."""
        (entrypoint,) = [
            manifest["spec"]["entrypoint"]
            for manifest in of_kind(build(folder), "RayJob")
            if manifest["metadata"]["name"] == job
        ]
        words = entrypoint.replace("/data/", f"{data}/").replace("http://mlflow:5000", self.tracking_uri).split()
        return [*words, *({"pretrain": SMALL, "sweep": (*SMALL, *FEW)}.get(job, ()))]

    def done(self, words: list[str]) -> str:
        """The log of a job that has to succeed."""
        job = self.ray("submit", "--", *words)
        assert job.returncode == 0 and "succeeded" in job.stdout, job.stdout + job.stderr
        return job.stdout

    def runs(self, experiment: str) -> list[Run]:
        found = MlflowClient(self.tracking_uri).get_experiment_by_name(experiment)
        assert found, experiment
        return list(MlflowClient(self.tracking_uri).search_runs([found.experiment_id]))


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory, patch: pytest.MonkeyPatch) -> Iterator[str]:
    port = free_port()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        patch.setenv(name, "testing")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    address = f"http://127.0.0.1:{port}"
    patch.setenv("MLFLOW_S3_ENDPOINT_URL", address)
    log = tmp_path_factory.mktemp("s3") / "log"
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log.open("w") as file, subprocess.Popen(words, stdout=file, stderr=file) as server:
        client = boto3.client("s3", endpoint_url=address)

        def answers() -> bool:
            try:
                client.create_bucket(Bucket=BUCKET)
            except Exception:
                return False
            return True

        wait_for(answers, "the S3 server", server)
        yield address
        server.kill()


@pytest.fixture(scope="module")
def site(s3: str, tmp_path_factory: pytest.TempPathFactory, patch: pytest.MonkeyPatch) -> Iterator[Site]:
    home, port = tmp_path_factory.mktemp("home"), free_port()
    (home / "word").write_text(f"{PASSWORD}\n")
    with postgres() as store:
        patch.setenv("MLFLOW_TRACKING_USERNAME", ADMIN)
        patch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
        head = Local(home)
        where = ["--store", store, "--artifacts", f"s3://{BUCKET}/maetrain", "--port", port]
        login = ["--auth", "--admin", ADMIN, "--password-file", home / "word"]
        try:
            up = head.maetrain("mlflow", "up", home / "mlflow", *where, *login, "--detach")
            assert up.returncode == 0, up.stdout + up.stderr
            head.up(CPUS)
            yield Site(head, f"http://127.0.0.1:{port}", s3)
        finally:
            head.down()
            head.maetrain("mlflow", "down", home / "mlflow")


@pytest.fixture(scope="module")
def data(site: Site, small_archive: Path) -> Path:
    """The claim `data` of the manifests, with scans in it."""
    (site.head.home / "data").mkdir()
    (site.head.home / "data" / "scans").symlink_to(small_archive)
    return site.head.home / "data"


@pytest.fixture(scope="module")
def shards(site: Site, data: Path) -> None:
    assert "15 volumes" in site.done(site.command(LOCAL, "shards", data))


@pytest.fixture(scope="module")
def pretrained(site: Site, data: Path, shards: None) -> None:
    """Stopped in the middle by `ray job stop`, and submitted again."""
    out, words = data / "runs" / "mae", site.command(LOCAL, "pretrain", data)
    begun = site.ray("submit", "--no-wait", "--submission-id", "mae-by-hand", "--", *words)
    assert begun.returncode == 0, begun.stdout + begun.stderr

    def trains() -> bool:
        return (out / "curve.jsonl").exists() and len((out / "curve.jsonl").read_text().splitlines()) >= 20

    wait_for(trains, "the job", limit_s=600)
    site.ray("stop", "mae-by-hand")
    assert len((out / "curve.jsonl").read_text().splitlines()) < STEPS
    log = site.done(words)
    assert re.search(r"resumed at step [1-9]", log), log


@pytest.fixture(scope="module")
def sweep(site: Site, data: Path, pretrained: None) -> Path:
    site.done(site.command(LOCAL, "sweep", data))
    return data / "sweeps" / "small"


def test_without_the_token_nothing_is_taken(site: Site) -> None:
    refused = site.ray("submit", "--", "maetrain", "--help", token=False)
    assert refused.returncode != 0 and "Authentication required" in refused.stdout + refused.stderr, refused
    assert MlflowClient(site.tracking_uri).search_experiments(), "while MLflow answers those with a login"


def test_a_stopped_pretraining_is_one_run_with_each_step_once(site: Site, pretrained: None) -> None:
    (run,) = [run for run in site.runs("maetrain") if run.data.tags.get("kind") == "pretrain"]
    points = MlflowClient(site.tracking_uri).get_metric_history(run.info.run_id, "loss")
    steps = [point.step for point in points]
    assert run.info.status == "FINISHED" and len(steps) == len(set(steps)) and max(steps) == STEPS


def test_every_run_is_on_the_server_and_every_file_in_the_bucket(site: Site, sweep: Path) -> None:
    runs = site.runs("maetrain")
    (parent,) = [run for run in runs if run.data.tags.get("kind") == "sweep"]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 3 * 2 * 2 and {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.tags["arm"] for run in children} == {"scratch", "mae"}
    listed = boto3.client("s3", endpoint_url=site.s3).list_objects_v2(Bucket=BUCKET)["Contents"]
    keys = [item["Key"] for item in listed]
    assert any(f"{parent.info.run_id}/artifacts/report/index.html" in key for key in keys), keys
    for run in children:
        assert any(f"{run.info.run_id}/artifacts/scores.csv" in key for key in keys)
    assert not list(sweep.rglob("mlartifacts")) and not (sweep / "mlflow.db").exists()


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    if not (CHROMIUM and DRIVER):
        pytest.skip("needs chromium and chromedriver (Debian: chromium, chromium-driver)")
    options = Options()
    options.binary_location = str(CHROMIUM)
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1500,1000"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    login = base64.b64encode(f"{ADMIN}:{PASSWORD}".encode()).decode()
    driver.execute_cdp_cmd("Network.enable", {})
    driver.execute_cdp_cmd("Network.setExtraHTTPHeaders", {"headers": {"Authorization": f"Basic {login}"}})
    driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": AS_SEEN})
    yield driver
    driver.quit()


def pages(site: Site) -> dict[str, tuple[str, list[str]]]:
    """name -> (page, words that have to be on it)"""
    runs = site.runs("maetrain")
    (parent,) = [run for run in runs if run.data.tags.get("kind") == "sweep"]
    alike = [run for run in runs if (run.data.tags.get("budget"), run.data.tags.get("seed")) == ("4", "0")]
    two = [f'"{run.info.run_id}"' for run in alike]
    experiment, run = parent.info.experiment_id, f"#/experiments/{parent.info.experiment_id}/runs/{parent.info.run_id}"
    return {
        "mlflow-experiments": ("#/experiments", ["maetrain"]),
        "mlflow-runs": (f"#/experiments/{experiment}/runs", [parent.info.run_name]),
        "mlflow-compare": (
            f'#/compare-runs?runs=[{",".join(two)}]&experiments=["{experiment}"]',
            ["test_dice", "Comparing"],
        ),
        "mlflow-sweep": (f"{run}/model-metrics", ["dice"]),
        "mlflow-report": (f"{run}/artifacts/report/index.html", ["index.html"]),
    }


def test_its_pages_open_without_an_error(site: Site, sweep: Path, browser: webdriver.Chrome, tmp_path: Path) -> None:
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path)
    for name, (page, words) in pages(site).items():
        browser.get("about:blank")
        browser.get(f"{site.tracking_uri}/{page}")
        deadline = time.monotonic() + 60
        while not all(word in browser.find_element("tag name", "body").text for word in words):
            assert time.monotonic() < deadline, f"{name}: {browser.find_element('tag name', 'body').text[:2000]}"
            time.sleep(0.5)
        time.sleep(3)  # what comes in after the first words
        browser.save_screenshot(str(folder / f"{name}.png"))
        severe = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        errors = [message for message in severe if HARMLESS not in message]
        assert not errors, f"{name}: {errors}"


def test_the_commands_of_the_base_run_too(site: Site, small_archive: Path) -> None:
    """Those of the local overlay have run already. The GPU overlay's differ in settings, which tests/deploy reads."""
    data = site.head.home / "base"
    data.mkdir()
    (data / "scans").symlink_to(small_archive)
    for job in ("shards", "pretrain", "sweep"):
        site.done([*site.command(BASE, job, data), *(["pretrain.steps=20"] if job == "pretrain" else [])])
    assert (data / "sweeps" / "hippocampus" / "report" / "index.html").is_file()
