"""A run as one value: every setting of the way from archive to report."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from data_shards.build import BuildConfig
from data_shards.formats.index import ShardIndex
from data_shards.splits import Split
from data_shards.synthetic import SyntheticConfig
from maetrain.finetune.config import ARM, FinetuneConfig
from maetrain.finetune.plan import split_of
from maetrain.models.config import NNFormerConfig
from maetrain.train.config import PretrainConfig

# labelled persons of a job
Budget = Annotated[int, Field(ge=1, le=1_000_000)]
# arms that need no handover
SCRATCH, UNTRAINED = "scratch", "random-mae"


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SplitConfig(_Settings):
    """Which persons test, monitor and train; drawn once, before anything sees a scan."""

    test_share: float = Field(0.25, gt=0, lt=1, description="share of the labelled persons kept for the test set")
    monitor_subjects: int = Field(
        3,
        ge=1,
        description="persons whose Dice draws the convergence curves, and chooses the model that is served where a "
        "budget has no validation cases; no number in the report is chosen by it",
    )
    seed: int = Field(0, ge=0, description="seed of the split")

    def of(self, index: ShardIndex) -> Split:
        """That of an index's labelled persons. InputError where it has none."""
        return split_of(index, self.test_share, self.monitor_subjects, self.seed)


class SweepConfig(_Settings):
    """The grid of finetune jobs."""

    budgets: tuple[Budget, ...] = Field((1, 2, 4), min_length=1, description="labelled persons per job, rising")
    arms: tuple[Annotated[str, Field(pattern=ARM)], ...] = Field(
        ("scratch", "mae"),
        min_length=1,
        description="starts: scratch; random-mae, an encoder of zero pretraining steps; mae and others, from handovers",
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0, 1), min_length=1, description="one job per seed; seeds also order the persons"
    )
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (),
        description="peak learning rates of which each arm gets the best one, by trials at trial_budgets, which "
        "hold some of their budget's persons out to validate on; none = those of finetune",
    )
    trial_budgets: tuple[Budget, ...] = Field(
        (),
        description="budgets that trials are made at; none = the smallest from 4 persons on, else the largest. The "
        "rates chosen there serve all budgets and seeds, also smaller budgets without those persons' labels",
    )
    trial_seeds: int = Field(1, ge=1, description="seeds that trials are made with, the first ones")
    trial_share: float = Field(
        0.25,
        gt=0,
        le=0.5,
        description="share of a trial's persons that validate; finetune.validation_share where that is larger",
    )
    cpus_per_job: float = Field(1, gt=0, description="CPU cores a rank of a job holds; several jobs run at once")
    gpus_per_job: float = Field(0.5, ge=0, le=1, description="share of a GPU a rank holds where there are GPUs")
    ranks_per_job: int = Field(1, ge=1, description="processes that share a job's batches, each with its own GPU")
    job_timeout_s: float = Field(0, ge=0, description="a job that takes longer is ended and tried again; 0 = none")
    retries: int = Field(2, ge=0, description="further tries of a job whose worker died, hung or failed")
    tracking_patience_s: float = Field(
        60, ge=0, description="how long the end waits for a tracking store that does not answer, seconds"
    )
    shared_test_mib: int = Field(
        1024,
        ge=0,
        description="scored scans are decoded once, up to this size in all and to half of the smallest node's object "
        "store; each job reads the others, MiB",
    )
    max_test_cases: int = Field(0, ge=0, description="score only the first n test cases; 0 = all")

    @model_validator(mode="after")
    def _rising(self) -> "SweepConfig":
        for name, budgets in (("budgets", self.budgets), ("trial_budgets", self.trial_budgets)):
            if list(budgets) != sorted(set(budgets)):
                raise ValueError(f"{name} = {list(budgets)} must be rising numbers of persons")
        for name, values in (("arms", self.arms), ("seeds", self.seeds), ("learning_rates", self.learning_rates)):
            if twice := sorted({value for value in values if list(values).count(value) > 1}):
                raise ValueError(f"{name}: {twice[0]} stands there twice")
        if self.trial_seeds > len(self.seeds):
            raise ValueError(f"trial_seeds = {self.trial_seeds}, and seeds are {len(self.seeds)}: give more seeds")
        return self


class EvaluateConfig(_Settings):
    tolerance_mm: float = Field(1.0, gt=0, description="tolerance of surface Dice, mm")


class ClusterConfig(_Settings):
    """What to ask Ray for."""

    pretrain_workers: PositiveInt | tuple[PositiveInt, PositiveInt] = Field(
        2,
        description="ranks of the pretraining group; [fewest, most]: as many as there is room for, also while it runs",
    )
    gpus: int = Field(
        0,
        ge=0,
        description="GPUs to wait for before pretraining or a sweep starts, and to ask an autoscaler for; 0 = those "
        "there are, and CPUs where there are none",
    )
    gpu_wait_s: float = Field(900, gt=0, description="how long that waits before it gives up, seconds")
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

    @model_validator(mode="after")
    def _ranks_share_batches(self) -> "RunConfig":
        if self.finetune.batch % self.sweep.ranks_per_job:
            raise ValueError(
                f"finetune.batch = {self.finetune.batch} can't be shared by {self.sweep.ranks_per_job} ranks "
                "(sweep.ranks_per_job): make it a multiple"
            )
        return self
