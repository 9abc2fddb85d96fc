"""The main job as a user runs it: from an archive to the report, again, and with one setting changed."""

import csv
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from cluster import cli
from cluster.session import Resources
from maetrain.checkpoint.handover import read_handover

from .settings import TINY

pytestmark = pytest.mark.runs

Command = Callable[..., str]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "out"


@pytest.fixture
def maetrain(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The console script in this process, so that it uses the shared Ray session; returns what it printed."""

    def call(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["maetrain", *map(str, words)])
        capsys.readouterr()
        cli.main()
        return " ".join(capsys.readouterr().out.split())

    return call


@pytest.fixture(scope="module")
def first_run(out: Path, small_archive: Path, ray_resources: Resources) -> Path:
    """The demo itself; every test below reads what it left."""
    from cluster.demo import run_demo
    from maetrain.recipes.load import load_recipe

    return run_demo(load_recipe("demo", TINY), small_archive, out, None)


def test_every_budget_arm_and_seed_is_scored(first_run: Path) -> None:
    with (first_run.parent / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["budget", "arm", "seed", "case", "subject", "class", "dice", "hd95_mm", "surface_dice"]
    jobs = {(row["budget"], row["arm"], row["seed"]) for row in rows}
    assert jobs == {(b, a, s) for b in "124" for a in ("scratch", "mae") for s in "01"}
    scored = {job: {(r["case"], r["class"]) for r in rows if (r["budget"], r["arm"], r["seed"]) == job} for job in jobs}
    assert len({frozenset(cases) for cases in scored.values()}) == 1, "every job is scored on the same cases"


def test_no_test_person_was_trained_on(first_run: Path, out: Path) -> None:
    with (first_run.parent / "scores.csv").open() as file:
        tested = {row["subject"] for row in csv.DictReader(file)}
    (pool_file,) = out.glob("pretrain/mae-*/handover/pool.json")
    pool = {scan["subject"] for scan in json.loads(pool_file.read_text())}
    results = [json.loads(path.read_text()) for path in out.glob("jobs/*/result.json")]
    finetuned = {subject for result in results for subject in result["job"]["subjects"]}
    assert tested and pool and finetuned and finetuned <= pool
    assert not tested & (pool | finetuned)


def test_budgets_are_nested(first_run: Path, out: Path) -> None:
    jobs = [json.loads(path.read_text())["job"] for path in out.glob("jobs/*/result.json")]
    for seed in (0, 1):
        by_budget = {job["budget"]: job["subjects"] for job in jobs if job["seed"] == seed}
        assert by_budget[1] == by_budget[4][:1] and by_budget[2] == by_budget[4][:2]


def test_the_report_stands_on_its_own(first_run: Path) -> None:
    page = first_run.read_text()
    assert "<svg" in page and "data:image/png;base64," in page
    assert 'src="http' not in page and 'href="http' not in page
    summary = json.loads((first_run.parent / "summary.json").read_text())
    assert [c["budget"] for c in summary["comparisons"]] == [1, 2, 4]


def test_mlflow_holds_a_parent_a_pretraining_and_a_child_a_job(first_run: Path, out: Path) -> None:
    client = MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "maetrain"]
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    (parent,) = [r for r in runs if r.data.tags.get("kind") == "demo"]
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 13 and all(r.info.status == "FINISHED" for r in runs)
    (pretrain,) = [r for r in children if r.data.tags["kind"] == "pretrain"]
    steps = [m.step for m in client.get_metric_history(pretrain.info.run_id, "loss")]
    assert steps and len(steps) == len(set(steps))
    assert "system/cpu_utilization_percentage" in pretrain.data.metrics
    (index_file,) = out.glob("shards/zarr-*/index.json")
    assert pretrain.inputs.dataset_inputs[0].dataset.digest in index_hash(index_file)
    assert any(a.path == "reconstructions" for a in client.list_artifacts(pretrain.info.run_id))
    for budget in (1, 2, 4):
        point = [m for m in client.get_metric_history(parent.info.run_id, "test_dice_mae") if m.step == budget]
        assert len(point) == 1
    one = client.search_runs(
        [experiment.experiment_id], "tags.budget = '2' and tags.arm = 'mae' and tags.seed = '1'", max_results=10
    )
    assert len(one) == 1 and "test_dice" in one[0].data.metrics
    assert {a.path for a in client.list_artifacts(parent.info.run_id, "report")} >= {"report/budget_curve.png"}


def index_hash(index_file: Path) -> str:
    from data_shards.formats.index import ShardIndex

    return ShardIndex.load(index_file.parent).sha256


def test_a_second_run_redoes_nothing(
    first_run: Path, out: Path, small_archive: Path, ray_resources: Resources, maetrain: Command
) -> None:
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/*/stage.json")}
    said = maetrain("demo", "demo", *TINY, "--data", small_archive, "--out", out)
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/*/stage.json")} == before
    assert said.count(": kept (") == 3 and "redone" not in said and "all 12 jobs kept" in said


def test_a_changed_setting_redoes_what_depends_on_it_and_says_so(
    first_run: Path, out: Path, small_archive: Path, ray_resources: Resources, maetrain: Command
) -> None:
    before = set(out.glob("*/*/stage.json"))
    said = maetrain("demo", "demo", *TINY, "finetune.steps=5", "--data", small_archive, "--out", out)
    new = {path.parent.parent.name for path in set(out.glob("*/*/stage.json")) - before}
    assert new == {"jobs"}
    assert said.count(": kept (") == 3 and "redone, because of finetune.steps: 4 -> 5" in said


def test_the_verbs_work_alone(
    first_run: Path, out: Path, small_archive: Path, maetrain: Command, tmp_path: Path
) -> None:
    job = sorted(out.glob("jobs/budget-004-mae-seed-0-*"))[0]
    image = sorted((small_archive / "imagesTr").iterdir())[0]
    maetrain("predict", job / "model", image, tmp_path / "seg.nii.gz")
    segmented, scan = nibabel.load(tmp_path / "seg.nii.gz"), nibabel.load(image)
    assert segmented.shape == scan.shape and np.array_equal(segmented.affine, scan.affine)

    said = maetrain("evaluate", job / "model", small_archive, "--out", tmp_path / "scores.csv")
    assert "15 cases" in said and (tmp_path / "scores.csv").is_file()

    (run,) = out.glob("pretrain/mae-*")
    maetrain("export", run, tmp_path / "encoder")
    contract = json.loads((tmp_path / "encoder" / "contract.json").read_text())
    assert contract["step"] == 6 and contract["crop_DHW"] == [16, 16, 16]

    page = (out / "report" / "index.html").read_bytes()
    os.remove(out / "report" / "index.html")
    maetrain("report", out)
    assert (out / "report" / "index.html").read_bytes() == page

    for folder in out.glob("shards/*"):
        assert "whole" in maetrain("shards", "verify", folder, "--deep")
        assert "12" in maetrain("shards", "show", folder, "--sheet", tmp_path / "sheet.png")


def test_pretrain_and_sweep_by_hand_meet_the_demo(
    first_run: Path, out: Path, small_archive: Path, ray_resources: Resources, maetrain: Command, tmp_path: Path
) -> None:
    (shards,) = out.glob("shards/webdataset-*")
    (run,) = out.glob("pretrain/mae-*")
    settings = (*TINY, "sweep.budgets=[2]", "sweep.seeds=[1]", "sweep.arms=[scratch,mae,again]")
    encoders = ("--handover", run / "handover", "--handover", f"again={run / 'handover'}")
    places = ("--shards", shards, "--data", small_archive, "--out", tmp_path / "sweep")
    maetrain("sweep", "demo", *settings, *encoders, *places)
    by_hand = [json.loads(p.read_text()) for p in tmp_path.glob("sweep/jobs/*/result.json")]
    in_demo = {
        result["job"]["arm"]: result["test_dice"]
        for result in (json.loads(p.read_text()) for p in out.glob("jobs/budget-002-*-seed-1-*/result.json"))
        if result["monitor_steps"][-1] == 4
    }
    dice = {r["job"]["arm"]: r["test_dice"] for r in by_hand}
    assert dice.pop("again") == dice["mae"] and dice == in_demo, "an arm's name is nothing to its jobs"
    report = (tmp_path / "sweep/report/report.md").read_text()
    assert "again against scratch" in report
    assert "\npretrain:" not in report, "these settings made no encoder here"
    assert "\npretrain:" in (first_run.parent / "report.md").read_text()
    step = read_handover(run / "handover").step
    assert f"again: {run.name} ({step} steps of crops of 16 x 16 x 16 voxels, pool of " in report
