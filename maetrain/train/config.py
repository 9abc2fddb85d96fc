"""Settings of one pretraining run."""

from pydantic import BaseModel, ConfigDict, Field, model_validator

from data_shards.order.partition import num_passes
from maetrain.models.config import NNFormerConfig, Triple
from maetrain.models.mae import MaeConfig


class PretrainConfig(BaseModel):
    """All that decides the curve of a pretraining run, and how often it is saved and logged."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    mae: MaeConfig = Field(MaeConfig(), description="masking and MAE decoder")
    crop_DHW: Triple = Field((32, 32, 32), description="crop, voxels along D, H, W; multiples of the total stride")
    steps: int = Field(200, ge=0, description="optimizer steps; 0 gives the random-weights control")
    global_batch: int = Field(8, ge=1, description="crops per optimizer step over all ranks")
    micro_batch: int = Field(4, ge=1, description="crops per rank and forward pass")
    learning_rate: float = Field(1e-3, gt=0, description="peak AdamW learning rate")
    warmup_steps: int = Field(20, ge=0, description="steps of linear warm-up before the cosine decay")
    weight_decay: float = Field(0.05, ge=0, description="AdamW weight decay")
    clip_norm: float = Field(1.0, ge=0, description="gradients are clipped to this norm; 0 = off")
    zero_stage: int = Field(
        2, ge=0, le=3, description="DeepSpeed ZeRO stage: 0 none, 1 optimizer, 2 + gradients, 3 + weights"
    )
    offload: bool = Field(False, description="master weights and AdamW state in CPU memory (ZeRO 1 to 3)")
    overlap_comm: bool = Field(
        True, description="gradients are reduced while the backward pass goes on (ZeRO 1 to 3, on GPUs)"
    )
    precision: str = Field("fp32", pattern="^(fp32|bf16)$", description="fp32, or bf16 with fp32 master weights")
    compile: bool = Field(
        False, description="torch.compile of the masked autoencoder: minutes at the start; nothing gained on CPUs"
    )
    mirror_DHW: tuple[bool, bool, bool] = Field((False, False, False), description="random flips along D, H, W")
    crops_per_volume: int = Field(1, ge=1, description="crops of a scan in a row, and of each scan in an epoch")
    min_foreground: float = Field(
        0.0, ge=0, le=1, description="share of a crop that should hold anatomy, best of 16 draws; 0 = anywhere"
    )
    max_damaged_share: float = Field(
        0.01, ge=0, le=1, description="share of a rank's samples that can't be read above which a run stops"
    )
    loader_workers: int = Field(0, ge=0, description="reader processes per rank; 0 = in the training process")
    checkpoint_every: int = Field(100, ge=1, description="steps between committed checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="committed checkpoints kept")
    max_failed_checkpoints: int = Field(3, ge=1, description="checkpoints in a row that may fail before a run stops")
    storage_timeout_s: float = Field(300, gt=0, description="how long a checkpoint's upload is tried again, seconds")
    max_skipped_steps: int = Field(
        3,
        ge=1,
        description="steps in a row with a non-finite loss or gradient, each skipped, before a run goes back to its "
        "last checkpoint and on in another order; at the next time it stops",
    )
    spike_mads: float = Field(
        12, gt=0, description="a loss this many median deviations above the median of the last 50 is logged with names"
    )
    stall_timeout_s: float = Field(
        900, ge=0, description="a rank without progress for so long writes its stacks and ends, seconds; 0 = off"
    )
    log_every: int = Field(5, ge=1, description="steps between logged points")
    seed: int = Field(0, ge=0, description="root of all random streams: weights, order, crops, masks, drop path")

    @model_validator(mode="after")
    def _consistent(self) -> "PretrainConfig":
        if self.precision == "bf16" and self.zero_stage == 0:
            raise ValueError("precision = bf16 keeps fp32 master weights in ZeRO: use zero_stage 1, 2 or 3")
        if self.compile and self.zero_stage == 3:
            raise ValueError("compile does not go with ZeRO 3, whose weights come and go: use zero_stage 1 or 2")
        if self.offload and self.zero_stage == 0:
            raise ValueError("offload moves what ZeRO has sharded: use zero_stage 1, 2 or 3")
        return self

    def accumulation(self, world_size: int) -> int:
        """Forward passes per rank and optimizer step; some have fewer crops than micro_batch where it doesn't divide.

        InputError for more ranks than crops.
        """
        return num_passes(self.global_batch, self.micro_batch, world_size)


class PretrainSetup(BaseModel):
    """A pretraining run complete: the network, the settings, and where data and results are."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: NNFormerConfig
    pretrain: PretrainConfig
    shards: str = Field(description="folder of a shard index")
    pool_subjects: tuple[str, ...] = Field(description="persons whose scans may be seen")
    run_dir: str = Field(description="folder of checkpoints and curve, seen by every rank, or s3://bucket/folder")
    fork: str | None = Field(None, description="run or checkpoint that a new run begins with")
    tracker_run_id: str | None = Field(None, description="run in the experiment tracker, kept in the checkpoints")
    profile: bool = Field(
        False, description="write a torch profiler trace of some steps of each rank to run_dir/profile"
    )
