"""nnFormer as a masked autoencoder.

Dense training: hidden voxels are blanked, their stem tokens replaced by a learned token, and the full grid
is computed. The decoder is light and works on mask units only: every stage's features of a unit are
projected into one token, so no high-resolution skip can turn the task into copying (design decision 4).

B batch, C channel, D H W voxels, G mask units, E embedding of the decoder, P values in a unit
"""

from math import prod
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from data_shards.errors import InputError
from maetrain.losses.reconstruction import hidden_mse, normalise_units
from maetrain.masking.units import MaskUnitGrid, Triple, sample_hidden_BG, spread_units, to_units
from maetrain.models.blocks import Mlp
from maetrain.models.config import NNFormerConfig, product_DHW
from maetrain.models.encoder import Encoder
from maetrain.models.init import init_weights
from maetrain.models.windows import size_DHW


class MaeConfig(BaseModel):
    """Masking and the light decoder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ratio: float = Field(0.7, gt=0, lt=1, description="share of mask units hidden; 0.6-0.75 is best in the literature")
    normalise_target: bool = Field(False, description="predict each unit at mean 0, variance 1 instead of its voxels")
    decoder_dim: int = Field(96, ge=12, multiple_of=12, description="width of the MAE decoder")
    decoder_depth: int = Field(2, ge=1, description="transformer blocks in the MAE decoder")
    decoder_heads: int = Field(4, ge=1, description="attention heads in the MAE decoder")


class MaeOutput(NamedTuple):
    loss: Tensor
    pred_BGP: Tensor
    is_hidden_BG: Tensor


def sincos_positions_GE(grid_DHW: Triple, width: int, device: torch.device) -> Tensor:
    """Fixed sine-cosine positions (G, E), a third of the width for each axis; works for any grid."""
    per_axis = width // 3
    frequencies = 1.0 / 100.0 ** (torch.arange(per_axis // 2, device=device) / (per_axis // 2))
    axes = [torch.arange(n, device=device, dtype=torch.float32) for n in grid_DHW]
    coords_G3 = torch.cartesian_prod(*axes).view(-1, 3)
    angles_G3F = coords_G3[:, :, None] * frequencies
    return torch.cat([angles_G3F.sin(), angles_G3F.cos()], dim=-1).flatten(1)


class GlobalBlock(nn.Module):
    """Pre-norm transformer block over all mask units of a crop."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = Mlp(width, 4.0)

    def forward(self, x_BGE: Tensor) -> Tensor:
        B, G, E = x_BGE.shape
        qkv = self.qkv(self.norm1(x_BGE)).view(B, G, 3, self.heads, E // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, G, E)
        x_BGE = x_BGE + self.proj(mixed)
        return x_BGE + self.mlp(self.norm2(x_BGE))


class MaeDecoder(nn.Module):
    """Features of all stages -> voxels of every mask unit."""

    def __init__(self, config: NNFormerConfig, mae: MaeConfig) -> None:
        super().__init__()
        self.unit_DHW = config.total_stride
        # tokens of each stage along the axes of one unit, for example 4, 2, 1
        self.cells: list[Triple] = [product_DHW(*config.down_strides[stage:]) for stage in range(config.num_stages)]
        self.fuse = nn.ModuleList(
            nn.Linear(config.width(s) * prod(c), mae.decoder_dim) for s, c in enumerate(self.cells)
        )
        self.blocks = nn.ModuleList(GlobalBlock(mae.decoder_dim, mae.decoder_heads) for _ in range(mae.decoder_depth))
        self.norm = nn.LayerNorm(mae.decoder_dim)
        self.predict = nn.Linear(mae.decoder_dim, config.in_channels * prod(self.unit_DHW))

    def forward(self, feats: list[Tensor], grid: MaskUnitGrid) -> Tensor:
        """[(B, D_s, H_s, W_s, E_s)] -> (B, G, P)."""
        positions_GE = sincos_positions_GE(grid.grid_DHW, self.norm.normalized_shape[0], feats[0].device)
        x_BGE = positions_GE[None].to(feats[0].dtype)
        for feats_BDHWE, cells, fuse in zip(feats, self.cells, self.fuse, strict=True):
            stage_grid = MaskUnitGrid(size_DHW(feats_BDHWE), cells)
            x_BGE = x_BGE + fuse(to_units(feats_BDHWE.permute(0, 4, 1, 2, 3), stage_grid))
        for block in self.blocks:
            x_BGE = block(x_BGE)
        return self.predict(self.norm(x_BGE))


class MaskedAutoencoder(nn.Module):
    """Hide units of a crop, encode the rest, predict the hidden voxels."""

    def __init__(self, config: NNFormerConfig, mae: MaeConfig) -> None:
        super().__init__()
        if mae.decoder_dim % mae.decoder_heads:
            raise InputError(
                f"mae.decoder_heads = {mae.decoder_heads} does not divide mae.decoder_dim = {mae.decoder_dim}"
            )
        self.config, self.mae = config, mae
        self.encoder = Encoder(config)
        self.mask_token_E = nn.Parameter(torch.zeros(config.embed_dim))
        self.decoder = MaeDecoder(config, mae)
        self.apply(init_weights)
        nn.init.trunc_normal_(self.mask_token_E, std=0.02)

    def forward(self, volume_BCDHW: Tensor, seeds_B: Tensor) -> MaeOutput:
        """`seeds_B`: one int64 mask seed per sample. InputError where the crop is no multiple of the unit."""
        grid = MaskUnitGrid(size_DHW(volume_BCDHW[:, 0]), self.config.total_stride)
        is_hidden_BG = sample_hidden_BG(grid, seeds_B, self.mae.ratio).to(volume_BCDHW.device)
        feats = self.encode(volume_BCDHW, is_hidden_BG, grid)
        pred_BGP = self.decoder(feats, grid)
        target_BGP = to_units(volume_BCDHW, grid)
        if self.mae.normalise_target:
            target_BGP = normalise_units(target_BGP)
        return MaeOutput(hidden_mse(pred_BGP, target_BGP, is_hidden_BG), pred_BGP, is_hidden_BG)

    def encode(self, volume_BCDHW: Tensor, is_hidden_BG: Tensor, grid: MaskUnitGrid) -> list[Tensor]:
        """Blank hidden voxels, replace hidden stem tokens by the mask token, compute the full grid."""
        is_hidden_B1DHW = spread_units(is_hidden_BG, grid, grid.unit_DHW)[:, None]
        tokens_BDHWE = self.encoder.stem(volume_BCDHW.masked_fill(is_hidden_B1DHW, 0.0))
        is_hidden_BDHW1 = spread_units(is_hidden_BG, grid, self.decoder.cells[0])[..., None]
        tokens_BDHWE = torch.where(is_hidden_BDHW1, self.mask_token_E.to(tokens_BDHWE.dtype), tokens_BDHWE)
        return self.encoder.run_stages(tokens_BDHWE)
