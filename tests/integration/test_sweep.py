"""A sweep as a user orders it: trials first, named arms, a control; killed at will and gone on with; on two ranks."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from mlflow.tracking import MlflowClient

from cluster.crew import JOURNAL
from cluster.session import Resources
from cluster.store import EXPERIMENT
from data_shards.build import BuildConfig, build
from data_shards.formats.index import ShardIndex
from maetrain.finetune.job import RESULT
from maetrain.tracking.journal import read_journal

from ..maetrain.tracking.stores import Server
from .settings import TINY

pytestmark = pytest.mark.runs

GRID = ("sweep.arms=[scratch,random-mae]", "sweep.budgets=[1,2]", "sweep.seeds=[0,1]")


@pytest.fixture(scope="module")
def index(small_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return build(small_archive, tmp_path_factory.mktemp("shards"), BuildConfig(format="zarr"))


def words(index: ShardIndex, archive: Path, out: Path, *more: str) -> list[str]:
    place = ["--shards", str(index.root), "--data", str(archive), "--out", str(out)]
    return ["sweep", "demo", *TINY, *GRID, *more, *place]


def results(out: Path, kind: str = "jobs") -> dict[str, dict]:
    found = {path.parent.name: json.loads(path.read_text()) for path in out.glob(f"{kind}/*/{RESULT}")}
    return {name.rsplit("-", 1)[0]: result for name, result in found.items()}


@pytest.fixture(scope="module")
def searched(
    index: ShardIndex, small_archive: Path, tmp_path_factory: pytest.TempPathFactory, ray_resources: Resources
) -> Path:
    """The folder of a sweep that searched for learning rates."""
    from cluster import cli

    out = tmp_path_factory.mktemp("sweep") / "out"
    more = ("sweep.learning_rates=[1e-3, 1e-30]", "sweep.trial_budgets=[2]")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["maetrain", *words(index, small_archive, out, *more)])
        cli.main()
    return out


def test_each_arm_trains_with_the_rate_its_trials_chose(searched: Path) -> None:
    trials, jobs = results(searched, "trials"), results(searched)
    assert len(trials) == 2 * 2 and len(jobs) == 2 * 2 * 2
    for arm in ("scratch", "random-mae"):
        dice = {t["learning_rate"]: t["validation_dice"][-1] for t in trials.values() if t["job"]["arm"] == arm}
        best = max(sorted(dice), key=lambda rate: dice[rate])
        assert {job["learning_rate"] for job in jobs.values() if job["job"]["arm"] == arm} == {best}


def test_trials_look_at_no_test_person_and_hold_out_one_of_their_own(searched: Path) -> None:
    for trial in results(searched, "trials").values():
        assert trial["test_dice"] is None and len(trial["validation_dice"]) == len(trial["monitor_steps"])
    for folder in (searched / "trials").iterdir():
        assert not (folder / "scores.csv").exists() and not (folder / "model").exists()
    with (searched / "report" / "scores.csv").open() as file:
        cells = {(row["budget"], row["arm"], row["seed"]) for row in csv.DictReader(file)}
    assert cells == {(b, a, s) for b in "12" for a in ("scratch", "random-mae") for s in "01"}


def test_the_report_says_which_rates_were_chosen_from_which(searched: Path) -> None:
    assert "chosen out of 0.001, 1e-30 on validation persons" in (searched / "report" / "index.html").read_text()


def test_the_control_takes_the_pretrained_way_with_weights_of_no_pretraining(searched: Path) -> None:
    (folder,) = (path for path in (searched / "jobs").iterdir() if path.name.startswith("budget-001-random-mae-seed-0"))
    fates = json.loads((folder / "transfer.json").read_text())
    assert fates["matched"] and all(name.startswith("encoder.") for name in fates["matched"]) and not fates["unused"]


def points_of(journal: Path) -> dict[str, list[tuple[int, float]]]:
    """Metric -> (step, value) of all its points, in order."""
    part, found = read_journal(journal), dict[str, list[tuple[int, float]]]()
    assert part is not None
    for entry in part.entries:
        for name, value in entry.get("metrics", {}).items():
            found.setdefault(name, []).append((entry["step"], value))
    return {name: sorted(points) for name, points in found.items()}


class Driver:
    """`maetrain` in a process of its own."""

    def __init__(self, log: Path, *command: str) -> None:
        self.log = log
        with log.open("a") as file:
            argv = [sys.executable, "-c", "from cluster.cli import main; main()", *command]
            self.process = subprocess.Popen(argv, stdout=file, stderr=file, start_new_session=True)

    def workers(self) -> list[psutil.Process]:
        """Ray's worker processes that finetune."""
        try:
            below = psutil.Process(self.process.pid).children(recursive=True)
            return [process for process in below if "Finetuner" in process.name() or "Finetuner" in _title(process)]
        except psutil.Error:
            return []

    def until(self, done: int, out: Path, timeout_s: float = 180) -> None:
        """Until so many jobs are finished."""
        ends = time.monotonic() + timeout_s
        while len(results(out)) < done:
            assert time.monotonic() < ends and self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL, and Ray's processes below it after it, as the end of a container would."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        for process in [psutil.Process(self.process.pid), *below]:
            with suppress(psutil.Error):
                process.kill()
        self.process.wait()


def _title(process: psutil.Process) -> str:
    return " ".join(process.cmdline())


@pytest.mark.long
@pytest.mark.timeout(900)
def test_what_is_killed_is_done_again_and_what_is_finished_is_not(
    index: ShardIndex, small_archive: Path, tmp_path: Path
) -> None:
    """Workers are killed at random, then the driver, then the same again: every job is there once, with its scores."""
    out, log = tmp_path / "out", tmp_path / "log"
    more = ("sweep.seeds=[0,1,2,3,4,5]", "sweep.retries=5", "finetune.steps=40")
    driver = Driver(log, *words(index, small_archive, out, *more))
    try:
        driver.until(3, out)
        for _ in range(3):
            for worker in driver.workers()[:1]:
                os.kill(worker.pid, signal.SIGKILL)
            time.sleep(4)
        driver.until(8, out)
        driver.kill()
        before = {path: path.stat().st_mtime_ns for path in out.glob(f"jobs/*/{RESULT}")}
        assert 8 <= len(before) < 24
        driver = Driver(log, "sweep", "--resume", "--out", str(out))
        assert driver.process.wait(300) == 0, log.read_text()
    finally:
        if driver.process.poll() is None:
            driver.kill()
    assert "tried again: its worker died" in log.read_text()
    after = {path: path.stat().st_mtime_ns for path in out.glob(f"jobs/*/{RESULT}")}
    assert len(after) == 24 and before.items() <= after.items(), "what was finished was not done again"
    with (out / "report" / "scores.csv").open() as file:
        rows = [(r["budget"], r["arm"], r["seed"], r["case"], r["class"]) for r in csv.DictReader(file)]
    assert len(rows) == len(set(rows)) and len({row[:3] for row in rows}) == 24


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_server_that_is_away_for_a_minute_in_mid_sweep_has_everything_in_the_end(
    index: ShardIndex, small_archive: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    (tmp_path / "server").mkdir()
    server = Server(tmp_path / "server")
    server.start()
    more = ("sweep.seeds=[0,1,2,3,4,5,6,7]", "finetune.steps=80", "--tracking-uri", server.uri)
    driver = Driver(log, *words(index, small_archive, out, *more))
    try:
        driver.until(4, out)
        server.kill()
        before = len(results(out))
        time.sleep(60)
        assert len(results(out)) > before, "nobody waited for it"
        server.start()
        assert driver.process.wait(400) == 0, log.read_text()
        client = MlflowClient(server.uri)
        (experiment,) = [found for found in client.search_experiments() if found.name == EXPERIMENT]
        runs = client.search_runs([experiment.experiment_id], "tags.kind = 'finetune'", max_results=1000)
        by_name = {run.info.run_name: run for run in runs}
        assert len(by_name) == len(runs) == 32 and {run.info.status for run in runs} == {"FINISHED"}
        for folder in (out / "jobs").iterdir():
            run = by_name[folder.name.rsplit("-", 1)[0]]
            written = points_of(folder / JOURNAL)
            assert "test_dice" in written and written.keys() <= run.data.metrics.keys()
            for name, points in written.items():
                logged = client.get_metric_history(run.info.run_id, name)
                assert sorted((point.step, point.value) for point in logged) == points
    finally:
        if driver.process.poll() is None:
            driver.kill()
        server.kill()


def test_a_job_that_fails_again_and_again_is_one_line_and_no_report(
    index: ShardIndex,
    small_archive: Path,
    tmp_path: Path,
    ray_resources: Resources,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from cluster import cli

    more = ("sweep.budgets=[2]", "sweep.seeds=[0]", "finetune.learning_rate=1e30")  # scratch alone learns at it
    monkeypatch.setattr(sys, "argv", ["maetrain", *words(index, small_archive, tmp_path / "out", *more)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert ended.value.code == 2 and last.startswith("maetrain: budget-002-scratch-seed-0 failed")
    assert "lower the learning rate" in last and "no report is written" in last
    assert [*results(tmp_path / "out")] == ["budget-002-random-mae-seed-0"], "the other one is done and kept"
    assert not (tmp_path / "out" / "report").exists()


def test_two_ranks_share_a_jobs_batches_and_its_test_cases(
    index: ShardIndex, small_archive: Path, tmp_path: Path, ray_resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cluster import cli

    grid = ("sweep.arms=[scratch]", "sweep.budgets=[2]", "sweep.seeds=[0]", "finetune.batch=4")
    found = []
    for ranks in (1, 2):
        out = tmp_path / str(ranks)
        more = (*grid, f"sweep.ranks_per_job={ranks}", "sweep.cpus_per_job=1")
        monkeypatch.setattr(sys, "argv", ["maetrain", *words(index, small_archive, out, *more)])
        cli.main()
        (result,) = results(out).values()
        with (out / "report" / "scores.csv").open() as file:
            found.append((result, sorted((r["case"], r["class"]) for r in csv.DictReader(file))))
        assert "Test persons are set apart" in (out / "report" / "report.md").read_text(), "without an encoder, too"
    (alone, cases), (shared, shared_cases) = found
    assert cases == shared_cases and len(cases) == len(set(cases))
    assert alone["monitor_dice"][0] == shared["monitor_dice"][0], "the same network on the same scans"
    assert alone["test_dice"] == pytest.approx(shared["test_dice"], abs=0.2)
