"""The nnFormer encoder: an overlapping convolutional stem, then stages of window blocks with strided convs between.

Any input size: strides that don't divide round up, as a padded convolution does. The outputs, one
layer-normed map per stage, are the decoder's skips and the masked autoencoder's features.

The same weights also run over a masked autoencoder's visible units alone (`over_units`). Stem and downsampling overlap
by a voxel on each side; at a unit's face they see zeros, as at the border of a crop, so nothing of a hidden unit is
computed or leaks, and work and memory scale with the visible share (the logits of attention in windows larger than a
unit alone are those of the whole map, where that is cheaper).

B batch, C channel, D H W voxels or tokens, E embedding, V visible units, K blocks of the encoder or a stage
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from data_shards.errors import InputError
from maetrain.models.blocks import WindowBlock
from maetrain.models.config import NNFormerConfig, Triple
from maetrain.models.convolution import Conv, channels_first, channels_last
from maetrain.models.windows import VisibleUnits


def check_volume(volume_BCDHW: Tensor, config: NNFormerConfig) -> None:
    """InputError for what is no (B, C, D, H, W) of floating-point numbers, C as in `config`, no axis empty."""
    shape = tuple(volume_BCDHW.shape)
    if len(shape) != 5 or not all(shape):
        raise InputError(f"a volume of shape {shape}: give (batch, channels, D, H, W), each at least 1")
    if not volume_BCDHW.is_floating_point():
        raise InputError(f"a volume of {volume_BCDHW.dtype}: give floating-point intensities, float32 as a rule")
    if (got := shape[1]) != (want := config.in_channels):
        raise InputError(
            f"the volume has {got} channels, the network was made for {want}: give {want}, or set "
            f"model.in_channels={got}"
        )


def run(part: Callable[..., Tensor], recompute: bool, *inputs: Tensor | VisibleUnits | None) -> Tensor:
    """`part(*inputs)`; with `recompute` its activations are dropped and computed again in the backward pass."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(part, *inputs, use_reentrant=False)
    return part(*inputs)


class StemBlock(nn.Module):
    """conv 3^3 with stride, GELU, LayerNorm, conv 3^3; `activated` adds GELU and LayerNorm behind."""

    def __init__(self, in_width: int, width: int, stride: Triple, activated: bool) -> None:
        super().__init__()
        self.conv1 = Conv(in_width, width, (3, 3, 3), stride, (1, 1, 1))
        self.norm1 = nn.LayerNorm(width)
        self.conv2 = Conv(width, width, (3, 3, 3), (1, 1, 1), (1, 1, 1))
        self.norm2 = nn.LayerNorm(width) if activated else None

    def forward(self, x_BDHWE: Tensor) -> Tensor:
        x_BDHWE = self.conv2(self.norm1(F.gelu(self.conv1(x_BDHWE))))
        return x_BDHWE if self.norm2 is None else self.norm2(F.gelu(x_BDHWE))


class Stem(nn.Module):
    """(B, C, D, H, W) voxels -> (B, D', H', W', E) tokens."""

    def __init__(self, config: NNFormerConfig) -> None:
        super().__init__()
        half, full = config.embed_dim // 2, config.embed_dim
        self.block1 = StemBlock(config.in_channels, half, config.stem_strides[0], activated=True)
        self.block2 = StemBlock(half, full, config.stem_strides[1], activated=False)
        self.norm = nn.LayerNorm(full)

    def forward(self, volume_BCDHW: Tensor) -> Tensor:
        x_BDHWC = channels_last(volume_BCDHW.contiguous(memory_format=torch.channels_last_3d))
        return self.norm(self.block2(self.block1(x_BDHWC)))


class Downsample(nn.Module):
    """GELU, LayerNorm, conv with stride: E -> 2E. Kernel 3 along axes with a stride, 1 along those without."""

    def __init__(self, config: NNFormerConfig, stage: int) -> None:
        super().__init__()
        width, stride = config.width(stage), config.down_strides[stage]
        d, h, w = (3 if s > 1 else 1 for s in stride)
        padding = (0 if config.drops_odd_depth(stage) else d // 2, h // 2, w // 2)
        self.norm = nn.LayerNorm(width)
        self.conv = Conv(width, 2 * width, (d, h, w), stride, padding)

    def forward(self, x_BDHWE: Tensor) -> Tensor:
        return self.conv(self.norm(F.gelu(x_BDHWE)))


class Stage(nn.Module):
    """Window blocks, every second one shifted."""

    def __init__(self, config: NNFormerConfig, stage: int, drop_paths: list[float]) -> None:
        super().__init__()
        self.recompute = stage in config.recompute
        self.blocks = nn.ModuleList(
            WindowBlock(
                config.width(stage),
                config.num_heads[stage],
                config.windows[stage],
                shifted=i % 2 == 1,
                mlp_ratio=config.mlp_ratio,
                drop_path=rate,
                published=config.published,
            )
            for i, rate in enumerate(drop_paths)
        )

    def forward(self, x_BDHWE: Tensor, seen: VisibleUnits | None = None, draws_K2B: Tensor | None = None) -> Tensor:
        for i, block in enumerate(self.blocks):
            draws_2B = (None, None) if draws_K2B is None else draws_K2B[i].unbind()
            x_BDHWE = run(block, self.recompute, x_BDHWE, seen, *draws_2B)
        return x_BDHWE


class Encoder(nn.Module):
    """Volume in, one normed token map per stage out, shallowest first."""

    def __init__(self, config: NNFormerConfig) -> None:
        super().__init__()
        self.config = config
        rates = torch.linspace(0, config.drop_path, sum(config.depths), device="cpu").tolist()
        per_stage = [rates[sum(config.depths[:s]) : sum(config.depths[: s + 1])] for s in range(config.num_stages)]
        self.stem = Stem(config)
        self.stages = nn.ModuleList(Stage(config, s, r) for s, r in enumerate(per_stage))
        self.downs = nn.ModuleList(Downsample(config, s) for s in range(config.num_stages - 1))
        self.norms = nn.ModuleList(nn.LayerNorm(config.width(s)) for s in range(config.num_stages))

    def forward(self, volume_BCDHW: Tensor) -> list[Tensor]:
        """(B, C, D, H, W) -> [(B, E * 2**s, D_s, H_s, W_s) for each stage s]. InputError for what is no such volume."""
        check_volume(volume_BCDHW, self.config)
        return [channels_first(feats_BDHWE) for feats_BDHWE in self.over_map(volume_BCDHW)]

    def over_map(self, volume_BCDHW: Tensor) -> list[Tensor]:
        """As `forward`, channels last: (B, D_s, H_s, W_s, E * 2**s). Drop path by torch's own generator."""
        draws_K2B = None
        if self.has_drop_path:
            draws_K2B = torch.rand(self.num_blocks, 2, len(volume_BCDHW), device=volume_BCDHW.device)
        return self.run_stages(self.run_stem(volume_BCDHW), draws_K2B=draws_K2B)

    def over_units(self, units_MCDHW: Tensor, seen: VisibleUnits, draws_K2B: Tensor | None = None) -> list[Tensor]:
        """Visible units alone: (B * V, C, d, h, w) voxels, sample by sample -> [(B * V, d_s, h_s, w_s, E * 2**s)]."""
        return self.run_stages(self.run_stem(units_MCDHW), seen, draws_K2B)

    @property
    def num_blocks(self) -> int:
        return sum(self.config.depths)

    @property
    def has_drop_path(self) -> bool:
        """Whether branches are dropped now: in training alone."""
        return self.training and self.config.drop_path > 0

    def run_stem(self, volume_BCDHW: Tensor) -> Tensor:
        return run(self.stem, "stem" in self.config.recompute, volume_BCDHW)

    def run_stages(
        self, x_BDHWE: Tensor, seen: VisibleUnits | None = None, draws_K2B: Tensor | None = None
    ) -> list[Tensor]:
        """Everything behind the stem; the dense masked autoencoder puts its mask token in between.

        `draws_K2B` decides what drop path drops, see `draw_drops_K2B`; None = nothing.
        """
        feats = []
        draws_of_stages = [None] * len(self.stages) if draws_K2B is None else draws_K2B.split(self.config.depths)
        for s, (stage, norm) in enumerate(zip(self.stages, self.norms, strict=True)):
            if s > 0:
                x_BDHWE = self.downs[s - 1](x_BDHWE)
            x_BDHWE = stage(x_BDHWE, seen, draws_of_stages[s])
            feats.append(norm(x_BDHWE))
        return feats
