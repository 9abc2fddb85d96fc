"""One finetune job from start to scores: train, save, score on the test persons, track.

All its results lie in one folder; `result.json` is written last, so a job is finished exactly when it is there.

    model/  scores.csv  overlay.png  result.json  transfer.json (from a handover: every tensor's name and fate)
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from data_shards.archive.layout import ArchiveCase
from data_shards.formats.files import write_text
from data_shards.formats.index import ShardIndex
from data_shards.loading.labelled import LabelledCase
from maetrain.evaluate.model_folder import ModelContract, save_model
from maetrain.evaluate.pictures import overlay
from maetrain.evaluate.scores import ScoreRow, write_scores
from maetrain.evaluate.test_set import score_cases
from maetrain.finetune.config import FinetuneConfig, FinetuneJob
from maetrain.finetune.train import finetune
from maetrain.models.config import NNFormerConfig
from maetrain.tracking.tracker import Tracker

RESULT, TRANSFER = "result.json", "transfer.json"


class JobResult(BaseModel):
    """What the report needs of a job beside its scores."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    job: FinetuneJob
    monitor_steps: list[int]
    monitor_dice: list[float]
    test_dice: float = Field(description="mean over test cases and foreground classes")
    seconds: float
    handover: str = Field("", description="how the encoder's weights were matched")


def read_result(folder: Path) -> JobResult | None:
    """None while the job is not finished."""
    path = folder / RESULT
    return JobResult.model_validate(json.loads(path.read_text())) if path.is_file() else None


def run_job(
    job: FinetuneJob,
    model: NNFormerConfig,
    config: FinetuneConfig,
    index: ShardIndex,
    train_cases: Sequence[LabelledCase],
    monitor_cases: Sequence[LabelledCase],
    test_cases: Sequence[ArchiveCase],
    tolerance_mm: float,
    folder: Path,
    tracker: Tracker,
) -> JobResult:
    """Trains, scores, and leaves everything in `folder`."""
    started = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trained = finetune(job, model, config, len(index.class_names), train_cases, monitor_cases, device, tracker.metrics)
    contract = ModelContract(
        architecture=model,
        class_names=index.class_names,
        channel_names=index.channel_names,
        window_DHW=config.window_DHW,
        preprocess=index.preprocess,
        made_by={"budget": str(job.budget), "arm": job.arm, "seed": str(job.seed)},
    )
    save_model(folder / "model", trained.network, contract)
    if trained.handover:
        write_text(folder / TRANSFER, trained.handover.to_json())
        tracker.file(folder / TRANSFER)
    picture = folder / "overlay.png"

    def draw_first(case: ArchiveCase, image: np.ndarray, label: np.ndarray, predicted: np.ndarray) -> None:
        if case is test_cases[0]:
            overlay(picture, image[0], label, predicted, list(index.class_names))

    known = {volume.case: volume.voxel_sha256 for volume in index.volumes}
    scores = score_cases(
        trained.network,
        test_cases,
        index.class_names,
        index.preprocess,
        config.window_DHW,
        tolerance_mm,
        known,
        draw_first,
    )
    rows = [ScoreRow.of(score, job.budget, job.arm, job.seed) for score in scores]
    write_scores(folder / "scores.csv", rows)
    tracker.metrics(class_means(rows), config.steps)
    tracker.file(picture, "overlays")
    tracker.file(folder / "scores.csv")
    result = JobResult(
        job=job,
        monitor_steps=trained.monitor_steps,
        monitor_dice=trained.monitor_dice,
        test_dice=float(np.mean([row.dice for row in rows])),
        seconds=time.perf_counter() - started,
        handover=trained.handover.line() if trained.handover else "",
    )
    write_text(folder / RESULT, result.model_dump_json(indent=1))
    return result


def class_means(rows: Sequence[ScoreRow]) -> dict[str, float]:
    """Mean test scores, over all and per class, named for the tracker."""
    means = {
        f"test_{kind}": float(np.mean([getattr(row, kind) for row in rows]))
        for kind in ("dice", "hd95_mm", "surface_dice")
    }
    for name in sorted({row.class_name for row in rows}):
        safe = "".join(c if c.isalnum() or c in " ._-" else "_" for c in name)
        means[f"test_dice {safe}"] = float(np.mean([row.dice for row in rows if row.class_name == name]))
    return means
