"""The nnFormer encoder: an overlapping convolutional stem, then stages of window blocks with strided convs between.

Any input size: strides that don't divide round up, as a padded convolution does. The outputs, one
layer-normed map per stage, are the decoder's skips and the masked autoencoder's features.

B batch, C channel, D H W voxels or tokens, E embedding
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maetrain.models.blocks import WindowBlock
from maetrain.models.config import NNFormerConfig, Triple


def channels_last(map_BEDHW: Tensor) -> Tensor:
    return map_BEDHW.permute(0, 2, 3, 4, 1)


def channels_first(map_BDHWE: Tensor) -> Tensor:
    return map_BDHWE.permute(0, 4, 1, 2, 3)


class StemBlock(nn.Module):
    """conv 3^3 with stride, GELU, LayerNorm, conv 3^3; `activated` adds GELU and LayerNorm behind."""

    def __init__(self, in_width: int, width: int, stride: Triple, activated: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_width, width, 3, stride, padding=1)
        self.norm1 = nn.LayerNorm(width)
        self.conv2 = nn.Conv3d(width, width, 3, 1, padding=1)
        self.norm2 = nn.LayerNorm(width) if activated else None

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        x = channels_first(self.norm1(channels_last(F.gelu(self.conv1(x_BCDHW)))))
        x = self.conv2(x)
        if self.norm2 is not None:
            x = channels_first(self.norm2(channels_last(F.gelu(x))))
        return x


class Stem(nn.Module):
    """(B, C, D, H, W) voxels -> (B, D', H', W', E) tokens."""

    def __init__(self, config: NNFormerConfig) -> None:
        super().__init__()
        half, full = config.embed_dim // 2, config.embed_dim
        self.block1 = StemBlock(config.in_channels, half, config.stem_strides[0], activated=True)
        self.block2 = StemBlock(half, full, config.stem_strides[1], activated=False)
        self.norm = nn.LayerNorm(full)

    def forward(self, volume_BCDHW: Tensor) -> Tensor:
        x = volume_BCDHW.contiguous(memory_format=torch.channels_last_3d)
        return self.norm(channels_last(self.block2(self.block1(x))))


class Downsample(nn.Module):
    """GELU, LayerNorm, conv 3^3 with stride: E -> 2E."""

    def __init__(self, width: int, stride: Triple) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv3d(width, 2 * width, 3, stride, padding=1)

    def forward(self, x_BDHWE: Tensor) -> Tensor:
        return channels_last(self.conv(channels_first(self.norm(F.gelu(x_BDHWE)))))


class Stage(nn.Module):
    """Window blocks, every second one shifted."""

    def __init__(self, config: NNFormerConfig, stage: int, drop_paths: list[float]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            WindowBlock(
                config.width(stage),
                config.num_heads[stage],
                config.windows[stage],
                shifted=i % 2 == 1,
                mlp_ratio=config.mlp_ratio,
                drop_path=rate,
            )
            for i, rate in enumerate(drop_paths)
        )

    def forward(self, x_BDHWE: Tensor) -> Tensor:
        for block in self.blocks:
            x_BDHWE = block(x_BDHWE)
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
        self.downs = nn.ModuleList(Downsample(config.width(s), st) for s, st in enumerate(config.down_strides))
        self.norms = nn.ModuleList(nn.LayerNorm(config.width(s)) for s in range(config.num_stages))

    def forward(self, volume_BCDHW: Tensor) -> list[Tensor]:
        """(B, C, D, H, W) -> [(B, D_s, H_s, W_s, E * 2**s) for each stage s]."""
        return self.run_stages(self.stem(volume_BCDHW))

    def run_stages(self, x_BDHWE: Tensor) -> list[Tensor]:
        """Everything behind the stem; the masked autoencoder puts its mask token in between."""
        feats = []
        for s, (stage, norm) in enumerate(zip(self.stages, self.norms, strict=True)):
            if s > 0:
                x_BDHWE = self.downs[s - 1](x_BDHWE)
            x_BDHWE = stage(x_BDHWE)
            feats.append(norm(x_BDHWE))
        return feats
