"""Settings of a finetune job; the same for every arm but for the learning rates and what a handover needs."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from data_shards.loading.augment_config import AugmentConfig
from maetrain.checkpoint.handover import OtherChannels
from maetrain.models.config import Triple

ARM = r"^[a-z][a-z0-9-]*$"


class FinetuneConfig(BaseModel):
    """Optimizer steps, not epochs, are equal across budgets and arms (evaluation protocol)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    crop_DHW: Triple = Field((32, 32, 32), description="training crop, voxels along D, H, W")
    window_DHW: Triple = Field(
        (32, 32, 32),
        description="sliding window of inference, voxels along D, H, W; not given: as large as the crop. A larger one "
        "is faster and pads scans that are smaller, which no crop was in training",
    )
    steps: int = Field(150, ge=1, description="optimizer steps of every job")
    batch: int = Field(2, ge=1, description="crops per step")
    learning_rate: float = Field(
        3e-3, gt=0, description="peak AdamW learning rate from random weights, where sweep.learning_rates is empty"
    )
    pretrained_learning_rate: float = Field(
        3e-3, gt=0, description="peak AdamW learning rate from a handover, where sweep.learning_rates is empty"
    )
    pretrained_layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="from a handover: learning rate of each encoder block over that of the block above; 1 = off",
    )
    pretrained_channels: OtherChannels = Field(
        "refuse",
        description="from a handover for another number of input channels: mean or repeat of its first weights",
    )
    class_prior: bool = Field(
        True,
        description="heads start at how often each class occurs in the scans that train; false: at equal probabilities",
    )
    warmup_steps: int = Field(15, ge=0, description="steps of linear warm-up before the decay")
    schedule: Literal["cosine", "poly"] = Field(
        "cosine", description="decay of the learning rate: half a cosine, or (1 - progress)^0.9 as nnU-Net's"
    )
    ema_decay: float = Field(
        0.0, ge=0, lt=1, description="the result is a running mean of the weights that forgets at this rate; 0 = off"
    )
    weight_decay: float = Field(1e-2, ge=0, description="AdamW weight decay")
    clip_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of training: fp32, or bf16 autocast")
    foreground_share: float = Field(0.5, ge=0, le=1, description="share of crops centred on a labelled voxel")
    augment: AugmentConfig = Field(AugmentConfig(), description="augmentation of training crops")
    validation_share: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="share of a budget's own persons (scans, where there is one person) that validates instead of "
        "training; at least one where there are two, none where there is one",
    )
    keep: Literal["last", "best"] = Field(
        "last", description="weights that are scored: the last, or the best on the validation cases of the budget"
    )
    patience: int = Field(
        0, ge=0, description="measurements without a better validation Dice before a job ends early; 0 = never"
    )
    monitor_every: int = Field(
        30, ge=1, description="steps between Dice measurements on the monitor persons and the validation cases"
    )
    log_every: int = Field(5, ge=1, description="steps between logged loss points")

    @model_validator(mode="before")
    @classmethod
    def _window_of_the_crop(cls, given: Any) -> Any:
        if isinstance(given, dict) and "crop_DHW" in given:
            return {"window_DHW": given["crop_DHW"]} | given
        return given

    @model_validator(mode="after")
    def _has_voxels(self) -> "FinetuneConfig":
        for name in ("crop_DHW", "window_DHW"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} has an axis below 1: use whole numbers from 1")
        if (self.keep == "best" or self.patience) and not self.validation_share:
            raise ValueError("keep = best and patience need validation cases: set validation_share, for example 0.2")
        return self


class FinetuneJob(BaseModel):
    """One cell of the sweep."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    budget: int = Field(ge=1, description="labelled persons")
    arm: str = Field(pattern=ARM, description="scratch, mae, or another named start")
    seed: int = Field(ge=0)
    subjects: tuple[str, ...] = Field(description="the labelled persons, nested over budgets of one seed")
    handover: str | None = Field(None, description="folder of an encoder handover; none = random weights")
    learning_rate: float | None = Field(None, gt=0, description="peak; none = the setting for a start of its kind")
    is_trial: bool = Field(False, description="only its validation Dice counts, no test case is looked at")

    @property
    def name(self) -> str:
        cell = f"budget-{self.budget:03d}-{self.arm}-seed-{self.seed}"
        return f"trial-{cell}-lr-{self.learning_rate:g}" if self.is_trial else cell

    def peak(self, config: FinetuneConfig) -> float:
        """Its peak learning rate."""
        if self.learning_rate is not None:
            return self.learning_rate
        return config.pretrained_learning_rate if self.handover else config.learning_rate
