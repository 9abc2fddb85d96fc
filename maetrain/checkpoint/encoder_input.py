"""What an encoder must be fed and what it gives, told to whoever writes the preprocessing in another library.

The same facts that `data_shards.preprocess.prepare` and the network's configuration hold, spelled out: a stranger has
only the contract. `nnformer_encoder.prepare` does the steps in numpy.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from data_shards.preprocess import PreprocessConfig
from maetrain.models.config import NNFormerConfig, Triple, product_DHW


class EncoderStage(BaseModel):
    """One of the encoder's outputs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: int = Field(description="channels of the map")
    stride_DHW: Triple = Field(description="voxels per token along D, H, W; sizes that don't divide round up")


class EncoderInput(BaseModel):
    """Axes, steps of preprocessing in their order, and the maps that come out, shallowest first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layout: Literal["B C D H W"] = "B C D H W"
    dtype: Literal["float32"] = "float32"
    orientation: Literal["RAS"] = Field("RAS", description="to which the file's axes are turned before anything else")
    axes_of_RAS: Triple = Field((2, 1, 0), description="which RAS axis D, H and W run along, towards S, A and R")
    steps: tuple[str, ...] = Field(description="what happens to a scan; `preprocess` has the same numbers for programs")
    stages: tuple[EncoderStage, ...]


def encoder_input(architecture: NNFormerConfig, preprocess: PreprocessConfig) -> EncoderInput:
    stages = tuple(
        EncoderStage(
            width=architecture.width(s),
            stride_DHW=product_DHW(*architecture.stem_strides, *architecture.down_strides[:s]),
        )
        for s in range(architecture.num_stages)
    )
    return EncoderInput(steps=tuple(_steps(preprocess)), stages=stages)


def _steps(preprocess: PreprocessConfig) -> list[str]:
    low, high = preprocess.clip_percentiles
    low_hu, high_hu = preprocess.ct_window_hu
    zscore = (
        f"of each channel, take the voxels above its minimum; clip the channel to their percentiles {low:g} and "
        f"{high:g}; subtract the mean and divide by the standard deviation (of the population) of those voxels, clipped"
    )
    ct = f"clip to {low_hu:g} .. {high_hu:g} HU and map that to -1 .. 1"
    intensity = {"zscore": zscore, "ct": ct, "auto": f"CT: {ct}; all others: {zscore}"}[preprocess.intensity]
    steps = ["turn the file's axes to the closest RAS axes", "transpose to D, H, W = RAS axes 2, 1, 0", intensity]
    if preprocess.crop_to_content:
        steps.append(
            "cut to the smallest box around the voxels that, before the step above, are above the minimum of their "
            f"channel (CT: and above {low_hu:g} HU) in any channel"
        )
    if preprocess.spacing_mm is not None:
        steps.append(
            f"resample to max(1, round(voxels * mm / wanted mm)) voxels along D, H, W, wanted {preprocess.spacing_mm} "
            "mm; the outer faces of the volume stay where they are. Linear where the grid gets finer (torch: "
            "interpolate, trilinear, align_corners=False); where coarser, a triangle as wide as the new voxel"
        )
    return steps
