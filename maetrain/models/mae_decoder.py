"""The masked autoencoder's decoder: light, and without a high-resolution skip (design decision 4).

It works on mask units. Every stage's tokens of a unit are squeezed and joined into one token, so that no map at full
resolution can turn the task into copying; a few transformer blocks mix the tokens of all units, and hidden ones become
voxels again in two steps. One linear layer from token to voxels would have more weights than the encoder: 50 M for
units of 32^3 voxels in 4 channels.

B batch, C channel, G mask units, V visible and M hidden ones, U either V or G, c cells (tokens) of a unit,
E embedding of the decoder, P values in a unit
"""

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maetrain.masking.units import Triple, pick_units
from maetrain.models.blocks import Mlp
from maetrain.models.config import NNFormerConfig, product_DHW


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
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, G, E)
        x_BGE = x_BGE + self.proj(mixed)
        return x_BGE + self.mlp(self.norm2(x_BGE))


class Join(nn.Module):
    """All stages' tokens of a unit -> one token. Cells of shallow stages are squeezed to few channels first."""

    def __init__(self, config: NNFormerConfig, unit_DHW: Triple, width: int) -> None:
        super().__init__()
        strides = [product_DHW(config.stem_stride, *config.down_strides[:s]) for s in range(config.num_stages)]
        self.cells: list[Triple] = [
            tuple(u // s for u, s in zip(unit_DHW, stride, strict=True))  # type: ignore[misc]
            for stride in strides
        ]
        squeezed = [min(config.width(s), 8 * 2**s) for s in range(config.num_stages)]
        self.squeeze = nn.ModuleList(nn.Linear(config.width(s), n) for s, n in enumerate(squeezed))
        self.join = nn.ModuleList(nn.Linear(prod(c) * n, width) for c, n in zip(self.cells, squeezed, strict=True))

    def forward(self, feats: list[Tensor]) -> Tensor:
        """[(B, U, c_s, E_s) for each stage s] -> (B, U, E)."""
        parts = [
            join(squeeze(feats_BUcE).flatten(2))
            for feats_BUcE, squeeze, join in zip(feats, self.squeeze, self.join, strict=True)
        ]
        return torch.stack(parts).sum(0)


def coarse_cells(voxels: int) -> int:
    """Cells along one axis of a unit that a token becomes first, a divisor near the root: 32 -> 4, 8 -> 2."""
    return next(n for n in (4, 3, 2, 1) if voxels % n == 0 and n * n <= voxels)


class ToVoxels(nn.Module):
    """Token -> a coarse grid of cells -> the voxels of each cell."""

    def __init__(self, unit_DHW: Triple, channels: int, width: int) -> None:
        super().__init__()
        self.coarse_DHW: Triple = tuple(coarse_cells(u) for u in unit_DHW)  # type: ignore[assignment]
        self.fine_DHW: Triple = tuple(u // n for u, n in zip(unit_DHW, self.coarse_DHW, strict=True))  # type: ignore[assignment]
        inner = max(width // 4, 32)
        self.to_cells = nn.Linear(width, prod(self.coarse_DHW) * inner)
        self.norm = nn.LayerNorm(inner)
        self.to_voxels = nn.Linear(inner, channels * prod(self.fine_DHW))

    def forward(self, x_BME: Tensor) -> Tensor:
        """(B, M, E) -> (B, M, P), values ordered as `to_units` does: channel, then D, H, W."""
        B, M, _ = x_BME.shape
        cells = self.norm(F.gelu(self.to_cells(x_BME).view(B, M, *self.coarse_DHW, -1)))
        voxels = self.to_voxels(cells).view(B, M, *self.coarse_DHW, -1, *self.fine_DHW)
        return voxels.permute(0, 1, 5, 2, 6, 3, 7, 4, 8).reshape(B, M, -1)


class MaeDecoder(nn.Module):
    """Features of units -> voxels of the hidden ones."""

    def __init__(self, config: NNFormerConfig, unit_DHW: Triple, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.width = width
        self.join = Join(config, unit_DHW, width)
        self.blocks = nn.ModuleList(GlobalBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.to_voxels = ToVoxels(unit_DHW, config.in_channels, width)

    def forward(self, tokens_BGE: Tensor, grid_DHW: Triple, hidden_BM: Tensor) -> Tensor:
        """Joined tokens of all units, mask tokens among them -> (B, M, P)."""
        positions_GE = sincos_positions_GE(grid_DHW, self.width, tokens_BGE.device)
        x_BGE = tokens_BGE + positions_GE.to(tokens_BGE.dtype)
        for block in self.blocks:
            x_BGE = block(x_BGE)
        return self.to_voxels(self.norm(pick_units(x_BGE, hidden_BM)))
