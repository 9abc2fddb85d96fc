"""nnFormer as a masked autoencoder, in two ways.

`visible`: only visible units go through the encoder, from their voxels on; hidden ones enter as mask tokens of the
decoder. At 75 % hidden this computes and keeps a quarter of what `dense` does. `dense`: hidden voxels are blanked,
their stem tokens replaced by a learned token, and the full grid is computed, as masked image modelling with windowed
networks usually does. Neither lets the content of a hidden voxel into the encoder.

B batch, C channel, D H W voxels, G mask units, V visible and M hidden ones, E embedding, P values in a unit,
K blocks of the encoder
"""

from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from data_shards.errors import InputError
from maetrain.losses.reconstruction import hidden_mse, normalise_units
from maetrain.masking.content import has_content_BDHW
from maetrain.masking.units import (
    MaskUnitGrid,
    Sampling,
    Triple,
    cut_units,
    pick_units,
    sample_hidden_BG,
    split_units,
    spread_units,
    to_units,
)
from maetrain.models.blocks import draw_drops_K2B
from maetrain.models.config import NNFormerConfig, nearest_divisor
from maetrain.models.encoder import Encoder, check_volume
from maetrain.models.init import init_weights
from maetrain.models.mae_decoder import MaeDecoder
from maetrain.models.windows import VisibleUnits, size_DHW, tokens_by_unit


class MaeConfig(BaseModel):
    """Masking and the light decoder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Literal["visible", "dense"] = Field(
        "visible", description="visible: the encoder computes visible units only; dense: the full grid, hidden blanked"
    )
    ratio: float = Field(0.7, gt=0, lt=1, description="share of mask units hidden; 0.6-0.75 is best in the literature")
    sampling: Sampling = Field("random", description="hidden units: random, or block (boxes of neighbours)")
    unit_DHW: Triple | None = Field(
        None,
        description="mask unit, voxels along D, H, W, a multiple of the encoder's total stride; none = that stride",
    )
    normalise_target: bool = Field(False, description="predict each unit at mean 0, variance 1 instead of its voxels")
    ignore_flat: float | None = Field(
        None,
        ge=0,
        description="voxels whose 3^3 neighbourhood varies by no more than this (normalised intensity) don't count in "
        "the loss: air, padding, blanked faces; none = all count",
    )
    decoder_dim: int = Field(96, ge=12, multiple_of=12, description="width of the MAE decoder")
    decoder_depth: int = Field(2, ge=1, description="transformer blocks in the MAE decoder")
    decoder_heads: int = Field(4, ge=1, description="attention heads in the MAE decoder")

    def unit_of(self, config: NNFormerConfig) -> Triple:
        """The mask unit for an encoder. InputError where it is no multiple of the total stride."""
        unit_DHW = self.unit_DHW or config.total_stride
        for axis, unit, stride in zip("DHW", unit_DHW, config.total_stride, strict=True):
            if unit < stride or unit % stride:
                near = max(round(unit / stride), 1) * stride
                raise InputError(
                    f"mae.unit_DHW = {unit_DHW} is no multiple of the network's total stride {config.total_stride} on "
                    f"axis {axis}; use {near} there"
                )
        return unit_DHW


class MaeOutput(NamedTuple):
    """`pred_BMP`: values of the hidden units `hidden_BM`, in the order of `to_units`."""

    loss: Tensor
    pred_BMP: Tensor
    hidden_BM: Tensor
    is_hidden_BG: Tensor


def rebuilt_units(output: MaeOutput, target_BGP: Tensor, normalised: bool) -> Tensor:
    """(B, G, P): hidden units as predicted (`normalised`: back at their mean and spread), visible ones as they are."""
    B, M, P = output.pred_BMP.shape
    pred_BMP = output.pred_BMP
    if normalised:
        hidden_BMP = pick_units(target_BGP, output.hidden_BM)
        pred_BMP = pred_BMP * hidden_BMP.std(-1, keepdim=True, correction=0) + hidden_BMP.mean(-1, keepdim=True)
    return target_BGP.scatter(1, output.hidden_BM[..., None].expand(B, M, P), pred_BMP)


class MaskedAutoencoder(nn.Module):
    """Hide units of a crop, encode the rest, predict the hidden voxels."""

    def __init__(self, config: NNFormerConfig, mae: MaeConfig) -> None:
        super().__init__()
        if mae.decoder_dim % mae.decoder_heads:
            raise InputError(
                f"mae.decoder_heads = {mae.decoder_heads} does not divide mae.decoder_dim = {mae.decoder_dim}: use "
                f"{nearest_divisor(mae.decoder_dim, mae.decoder_heads)}"
            )
        if mae.mode == "visible" and config.published != "no":
            raise InputError(
                f"model.published = {config.published} repeats what the published code does to whole maps, "
                "which mae.mode=visible has none of: set model.published=no, or mae.mode=dense"
            )
        self.config, self.mae, self.unit_DHW = config, mae, mae.unit_of(config)
        self.encoder = Encoder(config)
        # it stands for a hidden unit in the decoder, or for a hidden token behind the dense encoder's stem
        self.mask_token_E = nn.Parameter(torch.zeros(mae.decoder_dim if mae.mode == "visible" else config.embed_dim))
        self.decoder = MaeDecoder(config, self.unit_DHW, mae.decoder_dim, mae.decoder_depth, mae.decoder_heads)
        self.apply(init_weights)
        nn.init.trunc_normal_(self.mask_token_E, std=0.02)

    def forward(self, volume_BCDHW: Tensor, seeds_B: Tensor, counts_BDHW: Tensor | None = None) -> MaeOutput:
        """`seeds_B`: one int64 seed per sample, of its mask and, in training, of its drop path: so neither depends on
        the batch. `counts_BDHW`: bool, voxels that may count in the loss.

        InputError where the crop is no multiple of the unit, or the ratio leaves no hidden or no visible unit.
        """
        check_volume(volume_BCDHW, self.config)
        if len(seeds_B) != len(volume_BCDHW):
            raise InputError(f"{len(seeds_B)} mask seeds for {len(volume_BCDHW)} samples: give one for each")
        grid = MaskUnitGrid(size_DHW(volume_BCDHW[:, 0]), self.unit_DHW)
        is_hidden_BG = sample_hidden_BG(grid, seeds_B, self.mae.ratio, self.mae.sampling)
        visible_BV, hidden_BM = (index.to(volume_BCDHW.device) for index in split_units(is_hidden_BG))
        is_hidden_BG = is_hidden_BG.to(volume_BCDHW.device)
        draws_K2B = None
        if self.encoder.has_drop_path:
            draws_K2B = draw_drops_K2B(seeds_B, self.encoder.num_blocks).to(volume_BCDHW.device)
        loss, pred_BMP = self.reconstruct(
            volume_BCDHW, is_hidden_BG, visible_BV, hidden_BM, grid, counts_BDHW, draws_K2B
        )
        return MaeOutput(loss, pred_BMP, hidden_BM, is_hidden_BG)

    def reconstruct(
        self,
        volume_BCDHW: Tensor,
        is_hidden_BG: Tensor,
        visible_BV: Tensor,
        hidden_BM: Tensor,
        grid: MaskUnitGrid,
        counts_BDHW: Tensor | None,
        draws_K2B: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Loss and prediction for a given mask and drop path. Nothing random, no transfer: for `torch.compile`."""
        units_BGCDHW = cut_units(volume_BCDHW, grid)
        if self.mae.mode == "visible":
            visible_BVE = self.decoder.join(self.encode_visible(units_BGCDHW, visible_BV, grid, draws_K2B))
            B, V, E = visible_BVE.shape
            tokens_BGE = self.mask_token_E.to(visible_BVE.dtype).expand(B, grid.num_units, E)
            tokens_BGE = tokens_BGE.scatter(1, visible_BV[..., None].expand(B, V, E), visible_BVE)
        else:
            tokens_BGE = self.decoder.join(self.encode_dense(volume_BCDHW, is_hidden_BG, grid, draws_K2B))
        pred_BMP = self.decoder(tokens_BGE, grid.grid_DHW, hidden_BM)
        target_BMP = pick_units(units_BGCDHW, hidden_BM).flatten(2)
        if self.mae.normalise_target:
            target_BMP = normalise_units(target_BMP)
        return hidden_mse(pred_BMP, target_BMP, self.counts_BMP(volume_BCDHW, hidden_BM, grid, counts_BDHW)), pred_BMP

    def encode_visible(
        self, units_BGCDHW: Tensor, visible_BV: Tensor, grid: MaskUnitGrid, draws_K2B: Tensor | None = None
    ) -> list[Tensor]:
        """[(B, V, c_s, E_s) for each stage s], from the voxels of the visible units alone."""
        units_BVCDHW = pick_units(units_BGCDHW, visible_BV)
        seen = VisibleUnits(grid.grid_DHW, visible_BV)
        feats = self.encoder.over_units(units_BVCDHW.flatten(0, 1), seen, draws_K2B)
        return [feats_MDHWE.view(*visible_BV.shape, -1, feats_MDHWE.shape[-1]) for feats_MDHWE in feats]

    def encode_dense(
        self, volume_BCDHW: Tensor, is_hidden_BG: Tensor, grid: MaskUnitGrid, draws_K2B: Tensor | None = None
    ) -> list[Tensor]:
        """[(B, G, c_s, E_s) for each stage s]: hidden voxels blank, hidden stem tokens the mask token."""
        is_hidden_B1DHW = spread_units(is_hidden_BG, grid, grid.unit_DHW)[:, None]
        tokens_BDHWE = self.encoder.run_stem(volume_BCDHW.masked_fill(is_hidden_B1DHW, 0.0))
        is_hidden_BDHW1 = spread_units(is_hidden_BG, grid, self.decoder.join.cells[0])[..., None]
        tokens_BDHWE = torch.where(is_hidden_BDHW1, self.mask_token_E.to(tokens_BDHWE.dtype), tokens_BDHWE)
        feats = self.encoder.run_stages(tokens_BDHWE, draws_K2B=draws_K2B)
        return [tokens_by_unit(*stage) for stage in zip(feats, self.decoder.join.cells, strict=True)]

    def counts_BMP(
        self, volume_BCDHW: Tensor, hidden_BM: Tensor, grid: MaskUnitGrid, counts_BDHW: Tensor | None
    ) -> Tensor | None:
        """Which values of the hidden units count in the loss; None = all."""
        if self.mae.ignore_flat is not None:
            content_BDHW = has_content_BDHW(volume_BCDHW, self.mae.ignore_flat)
            counts_BDHW = content_BDHW if counts_BDHW is None else counts_BDHW & content_BDHW
        if counts_BDHW is None:
            return None
        counts_BCDHW = counts_BDHW[:, None].expand(volume_BCDHW.shape)
        return pick_units(to_units(counts_BCDHW, grid), hidden_BM)
