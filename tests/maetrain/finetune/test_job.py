"""A finished job leaves a model, scores and a result, and the result is there only when all is done."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_shards.archive.layout import read_archive
from data_shards.formats.index import ShardIndex
from data_shards.loading.labelled import load_labelled
from maetrain.evaluate.model_folder import load_model
from maetrain.evaluate.scores import ScoreRow, read_scores
from maetrain.evaluate.study import read_study
from maetrain.finetune import job as job_module
from maetrain.finetune import train
from maetrain.finetune.config import FinetuneConfig, FinetuneJob
from maetrain.finetune.job import RESULT, TRANSFER, JobResult, Protocol, class_means, read_result, run_job
from maetrain.models.segmentation import NNFormer
from maetrain.tracking.tracker import NullTracker
from maetrain.train.group import alone

from ..small import SMALL, hand_over

JOB = FinetuneJob(budget=2, arm="scratch", seed=0, subjects=("person_000", "person_001"))
WATCHED = ("person_004",)
CONFIG = FinetuneConfig(crop_DHW=(16, 16, 16), window_DHW=(16, 16, 16), steps=2, warmup_steps=0)


class Notes(NullTracker):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.seen: dict[str, float] = {}
        self.files: list[str] = []

    def metrics(self, metrics: object, step: int) -> None:
        self.seen |= dict(metrics)  # type: ignore[call-overload]

    def file(self, path: Path, folder: str | None = None) -> None:
        assert path.is_file()
        self.files.append(path.name)


def run(
    index: ShardIndex,
    archive: Path,
    folder: Path,
    tracker: NullTracker,
    job: FinetuneJob = JOB,
    config: FinetuneConfig = CONFIG,
) -> JobResult:
    cases = load_labelled(index, job.subjects)
    test = read_study([case for case in read_archive(archive).cases if case.subject == "person_005"], 3)
    protocol = Protocol.of(SMALL, config, index, 1.0, test)
    return run_job(
        job, protocol, cases, load_labelled(index, WATCHED), folder, tracker, alone(), {"hardware": "an abacus"}
    )


def test_a_job_leaves_model_scores_picture_and_result(
    small_index: ShardIndex, small_archive: Path, tmp_path: Path
) -> None:
    notes = Notes()
    assert read_result(tmp_path) is None
    result = run(small_index, small_archive, tmp_path, notes)
    rows = read_scores(tmp_path / "scores.csv")
    assert {(r.budget, r.arm, r.seed, r.subject) for r in rows} == {(2, "scratch", 0, "person_005")}
    assert {r.class_name for r in rows} == set(small_index.class_names[1:])
    assert result.test_dice == pytest.approx(np.mean([r.dice for r in rows]))
    assert read_result(tmp_path) == result and result.job == JOB and result.made_by == {"hardware": "an abacus"}
    network, contract = load_model(tmp_path / "model")
    trained = {v.voxel_sha256 for v in small_index.volumes if v.subject in {*JOB.subjects, *WATCHED}}
    assert set(contract.trained_on) == trained
    assert network.num_classes == 3 and contract.made_by == {"budget": "2", "arm": "scratch", "seed": "0"}
    assert set(notes.files) == {"overlay.png", "scores.csv"}
    assert notes.seen["test_dice"] == pytest.approx(result.test_dice)


def test_a_job_from_a_handover_leaves_every_tensors_fate(
    small_index: ShardIndex, small_archive: Path, tmp_path: Path
) -> None:
    handover, notes = hand_over(tmp_path / "handover", []), Notes()
    pretrained = JOB.model_copy(update={"arm": "mae", "handover": str(handover)})
    run(small_index, small_archive, tmp_path / "job", notes, pretrained)
    fates = json.loads((tmp_path / "job" / TRANSFER).read_text())
    own = set(NNFormer(SMALL, 3).state_dict())
    assert {*fates["matched"], *fates["new"]} == own and fates["unused"] == []
    assert set(fates["matched"]) == {name for name in own if name.startswith("encoder.")}
    assert TRANSFER in notes.files


@pytest.mark.parametrize(("keep", "kept_step"), [("last", 2), ("best", 1)])
def test_the_last_and_the_best_weights_are_kept_and_the_chosen_ones_scored(
    small_index: ShardIndex,
    small_archive: Path,
    tmp_path: Path,
    keep: str,
    kept_step: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched: list[dict] = []

    def dice_on(network: NNFormer, *_: object) -> float:
        """Called for the monitor and then for the validation persons, after 0, 1 and 2 steps."""
        watched.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        return (0.0, 0.1, 0.0, 0.9, 0.0, 0.2)[len(watched) - 1]

    monkeypatch.setattr(train, "dice_on", dice_on)
    config = CONFIG.model_copy(update={"validation_share": 0.5, "keep": keep, "monitor_every": 1})
    result = run(small_index, small_archive, tmp_path, NullTracker(), config=config)
    assert result.validation_dice == [0.1, 0.9, 0.2] and result.kept_step == kept_step
    other = {"last": "best", "best": "last"}[keep]
    saved = {name: load_model(tmp_path / name)[0].state_dict() for name in ("model", f"model-{other}")}
    for weights, step in zip(saved.values(), (kept_step, 3 - kept_step), strict=True):
        assert all(weights[name].equal(watched[2 * step][name]) for name in weights)
    assert any(not saved["model"][name].equal(saved[f"model-{other}"][name]) for name in saved["model"])


@pytest.mark.parametrize("left", ['{"job": 1}', "not JSON", "null"])
def test_a_result_of_another_version_is_none(tmp_path: Path, left: str) -> None:
    (tmp_path / RESULT).write_text(left)
    assert read_result(tmp_path) is None


def test_a_job_that_breaks_off_while_scoring_is_not_finished(
    small_index: ShardIndex, small_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(job_module, "write_scores", broken)
    with pytest.raises(OSError, match="disk full"):
        run(small_index, small_archive, tmp_path, NullTracker())
    assert not (tmp_path / RESULT).exists() and read_result(tmp_path) is None


def test_class_means_have_names_that_a_tracker_takes() -> None:
    rows = [
        ScoreRow(1, "mae", 0, case, case, name, dice, 2.0, 0.5)
        for case, name, dice in (("a", "left/right (%)", 0.2), ("b", "left/right (%)", 0.4), ("a", "tail", 0.9))
    ]
    means = class_means(rows)
    assert means["test_dice"] == pytest.approx(0.5) and means["test_hd95_mm"] == 2.0
    assert means["test_dice left_right ___"] == pytest.approx(0.3) and means["test_dice tail"] == 0.9
