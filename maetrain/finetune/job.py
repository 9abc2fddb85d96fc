"""One finetune job from start to scores: train, save, score on the test persons, track.

All its results lie in one folder; `result.json` is written last, so a job is finished exactly when it is there.

    model/  scores.csv  overlay.png  result.json  transfer.json (from a handover: every tensor's name and fate)
    model-best/ or model-last/ (with validation cases: the weights that were not scored)
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, Field

from data_shards.formats.files import write_text
from data_shards.formats.index import ShardIndex
from data_shards.labels import Labels
from data_shards.loading.labelled import LabelledCase
from data_shards.preprocess import PreprocessConfig
from maetrain.checkpoint.commit import read_model
from maetrain.evaluate.metrics import CaseScore
from maetrain.evaluate.model_folder import ModelContract, save_model
from maetrain.evaluate.pictures import overlay
from maetrain.evaluate.scores import ScoreRow, write_scores
from maetrain.evaluate.study import Study
from maetrain.evaluate.test_set import LabelledScan, ScanSource, score_scans
from maetrain.finetune.config import FinetuneConfig, FinetuneJob
from maetrain.finetune.train import Fitted, finetune
from maetrain.finetune.validation import hold_out
from maetrain.models.config import NNFormerConfig
from maetrain.models.segmentation import NNFormer
from maetrain.tracking.thinned import thinned
from maetrain.tracking.tracker import Tracker
from maetrain.train.group import RankInfo

RESULT, TRANSFER = "result.json", "transfer.json"


@dataclass(frozen=True)
class Protocol:
    """What all jobs of a comparison share: equal for every arm, or the comparison would be none.

    `elsewhere`: name -> labelled scans of another study, which are scored like the test scans.
    """

    model: NNFormerConfig
    finetune: FinetuneConfig
    labels: Labels
    channel_names: tuple[str, ...]
    preprocess: PreprocessConfig
    tolerance_mm: float
    test_scans: Sequence[ScanSource]
    elsewhere: Mapping[str, Sequence[ScanSource]]

    @classmethod
    def of(
        cls,
        model: NNFormerConfig,
        finetune: FinetuneConfig,
        index: ShardIndex,
        tolerance_mm: float,
        test: Study,
        elsewhere: Mapping[str, Study] | None = None,
    ) -> "Protocol":
        """On the data of `index`."""
        data = (index.labels, index.preprocess)
        return cls(
            model=model,
            finetune=finetune,
            labels=index.labels,
            channel_names=index.channel_names,
            preprocess=index.preprocess,
            tolerance_mm=tolerance_mm,
            test_scans=test.sources(*data),
            elsewhere={name: study.sources(*data) for name, study in (elsewhere or {}).items()},
        )


class JobResult(BaseModel):
    """What the report needs of a job beside its scores."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    job: FinetuneJob
    monitor_steps: list[int]
    monitor_dice: list[float]
    validation_dice: list[float] = Field([], description="at the same steps; empty without validation cases")
    test_dice: float | None = Field(description="mean over test cases and foreground classes; none for a trial")
    learning_rate: float = Field(description="peak")
    steps: int = Field(description="optimizer steps taken")
    kept_step: int = Field(description="step of the weights that were scored")
    training_s: float
    scoring_s: float
    seconds: float = Field(description="from start to result")
    handover: str = Field("", description="how the encoder's weights were matched")
    made_by: dict[str, str] = Field({}, description="commit and hardware of the process that did it")

    @property
    def kept_dice(self) -> float:
        """Of the weights that were scored, on the validation cases, or where there are none on the monitor persons."""
        return (self.validation_dice or self.monitor_dice)[self.monitor_steps.index(self.kept_step)]


def read_result(folder: Path) -> JobResult | None:
    """None while the job is not finished, or where another version of this program wrote its result."""
    path = folder / RESULT
    try:
        return read_model(path, JobResult) if path.is_file() else None
    except ValueError:
        return None


def run_job(
    job: FinetuneJob,
    protocol: Protocol,
    cases: Sequence[LabelledCase],
    monitor_cases: Sequence[LabelledCase],
    folder: Path,
    tracker: Tracker,
    who: RankInfo,
    made_by: Mapping[str, str] | None = None,
) -> JobResult:
    """Trains on `cases`, all those of the job's persons, scores, and leaves everything in `folder`.

    `made_by`: commit and hardware, for the result. Every rank of a group calls it and gets the result; the first one
    writes and tracks.
    """
    started = time.perf_counter()
    config = protocol.finetune
    train_cases, validation_cases = hold_out(cases, job.subjects, config.validation_share)
    trained, handover = finetune(
        job,
        protocol.model,
        config,
        protocol.labels,
        train_cases,
        monitor_cases,
        who,
        thinned(tracker.metrics, config.steps),
        validation_cases,
    )
    kept_step = _keep(trained, job, protocol, [*cases, *monitor_cases], folder, who)
    if handover and who.is_first:
        write_text(folder / TRANSFER, handover.to_json())
        tracker.file(folder / TRANSFER)
    between = time.perf_counter()
    test_dice = None if job.is_trial else _score(trained.network, job, protocol, folder, tracker, who)
    ended = time.perf_counter()
    result = JobResult(
        job=job,
        monitor_steps=trained.monitor_steps,
        monitor_dice=trained.monitor_dice,
        validation_dice=trained.validation_dice,
        test_dice=test_dice,
        learning_rate=job.peak(config),
        steps=trained.steps,
        kept_step=kept_step,
        training_s=between - started,
        scoring_s=ended - between,
        seconds=time.perf_counter() - started,
        handover=handover.line() if handover else "",
        made_by=dict(made_by or {}),
    )
    if who.is_first:
        write_text(folder / RESULT, result.model_dump_json(indent=1))
    return result


def _keep(
    trained: Fitted[NNFormer],
    job: FinetuneJob,
    protocol: Protocol,
    cases: Sequence[LabelledCase],
    folder: Path,
    who: RankInfo,
) -> int:
    """Leaves in the network the weights that shall be scored, on the disk those and the others; returns their step."""
    contract = ModelContract(
        architecture=protocol.model,
        class_names=protocol.labels.class_names,
        meaning=protocol.labels.meaning,
        channel_names=protocol.channel_names,
        window_DHW=protocol.finetune.window_DHW,
        preprocess=protocol.preprocess,
        trained_on=tuple(sorted(case.voxel_sha256 for case in cases)),
        made_by={"budget": str(job.budget), "arm": job.arm, "seed": str(job.seed)},
    )

    def save(name: str) -> None:
        if who.is_first and not job.is_trial:
            save_model(folder / name, trained.network, contract)

    network, best = trained.network, trained.best
    if best is None:
        save("model")
        return trained.steps
    last = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
    ways = {"last": (last, trained.steps), "best": (best.weights, best.step)}
    kept, other = protocol.finetune.keep, "last" if protocol.finetune.keep == "best" else "best"
    network.load_state_dict(ways[other][0])
    save(f"model-{other}")
    network.load_state_dict(ways[kept][0])
    save("model")
    return ways[kept][1]


def _score(
    network: NNFormer, job: FinetuneJob, protocol: Protocol, folder: Path, tracker: Tracker, who: RankInfo
) -> float:
    """Scores of the test cases, and of those from elsewhere, in files of their own; returns the mean test Dice."""
    picture = folder / "overlay.png"

    def draw_first(scan: LabelledScan, predicted_XYZ: np.ndarray) -> None:
        if who.is_first and not picture.exists():  # whose first scan is the first of all
            overlay(picture, scan.image_CXYZ[0], scan.label_XYZ, predicted_XYZ, list(protocol.labels.class_names))

    if who.is_first:
        picture.unlink(missing_ok=True)
    rows = _rows(network, job, protocol, protocol.test_scans, who, draw_first)
    means = class_means(rows)
    others = {name: _rows(network, job, protocol, scans, who) for name, scans in protocol.elsewhere.items()}
    if who.is_first:
        write_scores(folder / "scores.csv", rows)
        for name, found in others.items():
            write_scores(folder / "elsewhere" / f"{name}.csv", found)
            means[f"elsewhere_dice {name}"] = float(np.mean([row.dice for row in found]))
        tracker.metrics(means, protocol.finetune.steps)
        tracker.file(picture, "overlays")
        tracker.file(folder / "scores.csv")
    return means["test_dice"]


def _rows(
    network: NNFormer,
    job: FinetuneJob,
    protocol: Protocol,
    scans: Sequence[ScanSource],
    who: RankInfo,
    on_scan: Callable[[LabelledScan, np.ndarray], None] = lambda *_: None,
) -> list[ScoreRow]:
    """The ranks share the scans; every rank gets all rows."""
    scores: list[CaseScore] = score_scans(
        network,
        scans[who.rank :: who.world_size],
        protocol.labels,
        protocol.finetune.window_DHW,
        protocol.tolerance_mm,
        on_scan,
    )
    if who.world_size > 1:
        parts: list[list[CaseScore]] = [[] for _ in range(who.world_size)]
        dist.all_gather_object(parts, scores)
        scores = [score for part in parts for score in part]
    return [ScoreRow.of(score, job.budget, job.arm, job.seed) for score in scores]


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
