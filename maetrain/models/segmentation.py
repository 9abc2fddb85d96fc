"""nnFormer for segmentation: encoder, decoder with skip attention, one head per supervised scale.

B batch, C channel, D H W voxels or tokens, E embedding, K classes
"""

from torch import Tensor, nn

from maetrain.models.blocks import SkipBlock, WindowBlock
from maetrain.models.config import NNFormerConfig, Triple, ceil_div
from maetrain.models.convolution import Expand, channels_first
from maetrain.models.encoder import Encoder, check_volume, run
from maetrain.models.init import init_weights
from maetrain.models.windows import size_DHW


class Upsample(nn.Module):
    """LayerNorm, transposed conv with kernel = stride: 2E -> E; brought to the skip's size where that is odd."""

    def __init__(self, width: int, stride: Triple) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * width)
        self.conv = Expand(2 * width, width, stride)

    def forward(self, deep_BDHWE: Tensor, size_DHW: Triple) -> Tensor:
        return self.conv(self.norm(deep_BDHWE), size_DHW)


class DecoderStage(nn.Module):
    """Upsample, one skip block, then window blocks, every second one shifted (all of them in the published code)."""

    def __init__(self, config: NNFormerConfig, stage: int) -> None:
        super().__init__()
        width, heads, window = config.width(stage), config.decoder_heads[stage], config.windows[stage]
        self.recompute = stage in config.recompute
        self.up = Upsample(width, config.down_strides[stage])
        self.skip_block = SkipBlock(width, heads, window, config.mlp_ratio, config.published)
        self.blocks = nn.ModuleList(
            WindowBlock(
                width,
                heads,
                window,
                shifted=i % 2 == 1 or config.published != "no",
                mlp_ratio=config.mlp_ratio,
                drop_path=0.0,
                published=config.published,
            )
            for i in range(1, config.decoder_depths[stage])
        )

    def forward(self, deep_BDHWE: Tensor, skip_BDHWE: Tensor) -> Tensor:
        up_BDHWE = self.up(deep_BDHWE, size_DHW(skip_BDHWE))
        x_BDHWE = run(self.skip_block, self.recompute, up_BDHWE, skip_BDHWE)
        for block in self.blocks:
            x_BDHWE = run(block, self.recompute, x_BDHWE)
        return x_BDHWE


class Head(nn.Module):
    """Tokens back to class logits of voxels: one transposed conv, kernel = stride = the stem's stride."""

    def __init__(self, width: int, num_classes: int, stride: Triple) -> None:
        super().__init__()
        self.conv = Expand(width, num_classes, stride)

    def forward(self, x_BDHWE: Tensor, size_DHW: Triple) -> Tensor:
        return channels_first(self.conv(x_BDHWE, size_DHW))


class NNFormer(nn.Module):
    """Volume in, logits per supervised scale out, full resolution first."""

    def __init__(self, config: NNFormerConfig, num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes
        self.encoder = Encoder(config)
        self.decoder = nn.ModuleList(DecoderStage(config, s) for s in range(config.num_stages - 1))
        self.heads = nn.ModuleList(
            Head(config.width(s), num_classes, config.stem_stride) for s in range(config.supervised_scales)
        )
        self.apply(init_weights)

    def forward(self, volume_BCDHW: Tensor) -> list[Tensor]:
        """(B, C, D, H, W) of any size -> [(B, K, D, H, W), then each coarser supervised scale]."""
        check_volume(volume_BCDHW, self.config)
        size = size_DHW(volume_BCDHW[:, 0])
        *skips, x_BDHWE = self.encoder.over_map(volume_BCDHW)
        maps: list[Tensor] = []
        for stage in reversed(range(len(self.decoder))):
            x_BDHWE = self.decoder[stage](x_BDHWE, skips[stage])
            maps.insert(0, x_BDHWE)
        logits = []
        for head, map_BDHWE in zip(self.heads, maps, strict=False):
            logits.append(head(map_BDHWE, size))
            size = ceil_div(size, self.config.down_strides[len(logits) - 1])
        return logits
