"""The shape of an nnFormer, as one value.

Published variants and our own small ones differ in nothing but these numbers (Zhou et al., IEEE TIP 2023,
arXiv:2109.03201; table of variants in docs). Resolution is not among them: it is read from the input.
"""

from math import prod
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Triple = tuple[int, int, int]


def product_DHW(*strides: Triple) -> Triple:
    """The stride of several strided steps after one another; (1, 1, 1) for none."""
    D, H, W = (prod(axis) for axis in zip((1, 1, 1), *strides, strict=True))
    return D, H, W


def ceil_div(size_DHW: Triple, stride_DHW: Triple) -> Triple:
    D, H, W = (-(-size // stride) for size, stride in zip(size_DHW, stride_DHW, strict=True))
    return D, H, W


def nearest_divisor(width: int, wanted: int) -> int:
    """The number nearest to `wanted` that divides `width`, the lower one of two."""
    return min((n for n in range(1, width + 1) if width % n == 0), key=lambda n: abs(n - wanted))


class NNFormerConfig(BaseModel):
    """Encoder and decoder of one nnFormer. Lists run from the shallowest stage to the deepest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    in_channels: int = Field(1, ge=1, description="image channels (contrasts) per volume")
    embed_dim: int = Field(24, ge=2, multiple_of=2, description="width E of the first stage; doubles at every stage")
    depths: tuple[int, ...] = Field((2, 2, 2), min_length=2, description="window blocks per encoder stage")
    num_heads: tuple[int, ...] = Field((2, 4, 8), description="attention heads per encoder stage")
    windows: tuple[Triple, ...] = Field(
        ((4, 4, 4), (4, 4, 4), (8, 8, 8)), description="attention window per stage, tokens along D, H, W"
    )
    stem_strides: tuple[Triple, Triple] = Field(
        ((2, 2, 2), (1, 1, 1)), description="strides of the stem's two blocks, voxels along D, H, W"
    )
    down_strides: tuple[Triple, ...] = Field(
        ((2, 2, 2), (2, 2, 2)), description="stride of each downsampling between stages, tokens along D, H, W"
    )
    decoder_depths: tuple[int, ...] = Field((2, 2), description="blocks per decoder stage, shallow to deep, >= 1")
    decoder_heads: tuple[int, ...] = Field((2, 4), description="attention heads per decoder stage, shallow to deep")
    mlp_ratio: float = Field(4.0, gt=0, description="hidden width of an MLP over its input width")
    drop_path: float = Field(0.2, ge=0, lt=1, description="stochastic depth of the last encoder block; rises from 0")
    supervised_scales: int = Field(1, ge=1, description="scales with a segmentation head, 1 = full resolution only")
    recompute: tuple[Literal["stem"] | int, ...] = Field(
        (),
        description="parts whose activations are computed again in the backward pass to save memory: stem, 0, 1, ...",
    )
    published: Literal["no", "cubic", "acdc"] = Field(
        "no",
        description="repeat the published code's windows and bias index, faults included, so that its weights give its "
        "outputs: cubic for Synapse and Tumor, acdc (models/published.py)",
    )

    @property
    def num_stages(self) -> int:
        return len(self.depths)

    @property
    def stem_stride(self) -> Triple:
        """Voxels per token of the first stage along D, H, W."""
        return product_DHW(*self.stem_strides)

    @property
    def total_stride(self) -> Triple:
        """Voxels per token of the deepest stage along D, H, W: the mask unit."""
        return product_DHW(*self.stem_strides, *self.down_strides)

    def width(self, stage: int) -> int:
        """Channels of stage `stage`, 0 = shallowest."""
        return self.embed_dim * 2**stage

    def map_sizes(self, crop_DHW: Triple) -> list[Triple]:
        """Tokens of every stage along D, H, W for a crop; an axis that a stride does not divide rounds up."""
        size = ceil_div(crop_DHW, self.stem_stride)
        sizes = [size]
        for stage, stride in enumerate(self.down_strides):
            if self.drops_odd_depth(stage):
                size = (size[0] - 1, *size[1:])
            size = ceil_div(size, stride)
            sizes.append(size)
        return sizes

    def drops_odd_depth(self, stage: int) -> bool:
        """Whether the downsampling behind `stage` has no padding along D: the published ACDC network's deepest one."""
        return self.published == "acdc" and stage == len(self.down_strides) - 1

    def encoder_settings(self) -> dict:
        """The fields that shape the encoder; a change of any other leaves a pretrained encoder as it is."""
        return self.model_dump(
            mode="json", exclude={"decoder_depths", "decoder_heads", "supervised_scales", "recompute"}
        )

    @model_validator(mode="after")
    def _consistent(self) -> "NNFormerConfig":
        stages = self.num_stages
        for name, want in (
            ("num_heads", stages),
            ("windows", stages),
            ("down_strides", stages - 1),
            ("decoder_depths", stages - 1),
            ("decoder_heads", stages - 1),
        ):
            got = len(getattr(self, name))
            if got != want:
                raise ValueError(f"{name} has {got} entries, but depths has {stages} stages: give {want}")
        for name in ("windows", "stem_strides", "down_strides"):
            for place, triple in enumerate(getattr(self, name)):
                if min(triple) < 1:
                    raise ValueError(f"{name}[{place}] = {triple} has an axis below 1: use whole numbers from 1")
        for name in ("depths", "decoder_depths"):
            for stage, blocks in enumerate(getattr(self, name)):
                if blocks < 1:
                    raise ValueError(f"{name}[{stage}] = {blocks}: every stage needs at least 1 block")
        for where, heads_per_stage in (("num_heads", self.num_heads), ("decoder_heads", self.decoder_heads)):
            for stage, heads in enumerate(heads_per_stage):
                width = self.width(stage)
                if heads < 1 or width % heads:
                    raise ValueError(
                        f"{where}[{stage}] = {heads} does not divide the width {width} of stage {stage}: use "
                        f"{nearest_divisor(width, heads)}"
                    )
        if unknown := [part for part in self.recompute if part != "stem" and part not in range(stages)]:
            raise ValueError(f"recompute names {unknown[0]!r}: use stem or a stage from 0 to {stages - 1}")
        if self.supervised_scales > stages - 1:
            raise ValueError(f"supervised_scales = {self.supervised_scales}, but the decoder has {stages - 1} scales")
        return self
