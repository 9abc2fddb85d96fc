"""A run as one value: every setting of the way from archive to report."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from data_shards.build import BuildConfig
from data_shards.synthetic import SyntheticConfig
from maetrain.finetune.config import FinetuneConfig
from maetrain.models.config import NNFormerConfig
from maetrain.train.config import PretrainConfig


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SplitConfig(_Settings):
    """Which persons test, monitor and train; drawn once, before anything sees a scan."""

    test_share: float = Field(0.25, gt=0, lt=1, description="share of the labelled persons kept for the test set")
    monitor_subjects: int = Field(
        3, ge=1, description="persons whose Dice draws the convergence curves; never chosen by"
    )
    seed: int = Field(0, ge=0, description="seed of the split")


class SweepConfig(_Settings):
    """The grid of finetune jobs."""

    budgets: tuple[int, ...] = Field((1, 2, 4), min_length=1, description="labelled persons per job, rising")
    arms: tuple[str, ...] = Field(("scratch", "mae"), min_length=1, description="starts: scratch, mae")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0, 1), min_length=1, description="one job per seed; seeds also order the persons"
    )
    cpus_per_job: float = Field(1, gt=0, description="CPU cores a job holds; several jobs run at once")
    gpus_per_job: float = Field(0.5, ge=0, le=1, description="share of a GPU a job holds where there are GPUs")
    max_test_cases: int = Field(0, ge=0, description="score only the first n test cases; 0 = all")

    @model_validator(mode="after")
    def _rising(self) -> "SweepConfig":
        if list(self.budgets) != sorted(set(self.budgets)) or self.budgets[0] < 1:
            raise ValueError(f"budgets = {list(self.budgets)} must be rising numbers of persons, from 1")
        unknown = sorted({*self.arms} - {"scratch", "mae"})
        if unknown:
            raise ValueError(f"unknown arm {unknown[0]!r}: arms are scratch and mae")
        return self


class EvaluateConfig(_Settings):
    tolerance_mm: float = Field(1.0, gt=0, description="tolerance of surface Dice, mm")


class ClusterConfig(_Settings):
    """What to ask Ray for."""

    pretrain_workers: PositiveInt | tuple[PositiveInt, PositiveInt] = Field(
        2,
        description="ranks of the pretraining group; [fewest, most]: as many as there is room for, also while it runs",
    )
    cpus_per_worker: float = Field(1, gt=0, description="CPU cores a rank holds")
    max_failures: int = Field(
        3, ge=0, description="failures in a row, without a new checkpoint between them, before a pretraining gives up"
    )
    resize_check_s: float = Field(60, gt=0, description="how often a group of [fewest, most] looks for room, seconds")
    grace_s: float = Field(25, gt=0, description="time to store a checkpoint after SIGTERM or Ctrl-C, seconds")
    object_store_mib: int = Field(256, ge=80, description="shared memory of a local Ray node, MiB")

    @property
    def workers(self) -> tuple[int, int]:
        """(fewest, most) ranks."""
        return self.pretrain_workers if isinstance(self.pretrain_workers, tuple) else (self.pretrain_workers,) * 2

    @model_validator(mode="after")
    def _ordered(self) -> "ClusterConfig":
        if self.workers[0] > self.workers[1]:
            raise ValueError(f"pretrain_workers = {list(self.workers)}: give [fewest, most]")
        return self


class RunConfig(_Settings):
    """Everything. Shipped as YAML recipes, overridden by key=value on the command line."""

    title: str = Field("What pretraining bought", description="heading of the report")
    synthetic: SyntheticConfig = Field(SyntheticConfig(), description="the archive made when none is given")
    shards: BuildConfig = Field(BuildConfig(), description="preprocessing and shards")
    split: SplitConfig = Field(SplitConfig(), description="test, monitor and training persons")
    model: NNFormerConfig = Field(NNFormerConfig(), description="the nnFormer")
    pretrain: PretrainConfig = Field(PretrainConfig(), description="masked autoencoder pretraining")
    finetune: FinetuneConfig = Field(FinetuneConfig(), description="finetune jobs")
    sweep: SweepConfig = Field(SweepConfig(), description="the grid of jobs")
    evaluate: EvaluateConfig = Field(EvaluateConfig(), description="scores and statistics")
    cluster: ClusterConfig = Field(ClusterConfig(), description="resources")
