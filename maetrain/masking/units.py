"""Mask units: which blocks of a crop the encoder does not see.

A unit is one token of the encoder's deepest stage (its total stride, in voxels), or a block of such tokens: smaller
units would mix hidden and visible voxels in one deep token. Units are drawn per sample from the sample's own seed,
the same number for every sample, so that visible and hidden units are rectangular tensors.

B batch, C channel, D H W voxels, G mask units of a crop, V visible and M hidden (masked) ones of them, P values in a
unit (C * unit voxels)
"""

from dataclasses import dataclass
from math import ceil, prod
from typing import Literal

import torch
from torch import Tensor

from data_shards.errors import InputError

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class MaskUnitGrid:
    """A crop of `crop_DHW` voxels in units of `unit_DHW` voxels."""

    crop_DHW: Triple
    unit_DHW: Triple

    def __post_init__(self) -> None:
        for axis, crop, unit in zip("DHW", self.crop_DHW, self.unit_DHW, strict=True):
            if crop % unit or crop < unit:
                below, above = max(crop // unit, 1) * unit, (crop // unit + 1) * unit
                near = f"{below}" if below == above else f"{below} or {above}"
                raise InputError(
                    f"crop {self.crop_DHW} is not a multiple of mask unit {self.unit_DHW} on axis {axis}: "
                    f"{crop} % {unit} = {crop % unit}; use {near}, or a model with another total stride"
                )

    @property
    def grid_DHW(self) -> Triple:
        return tuple(c // u for c, u in zip(self.crop_DHW, self.unit_DHW, strict=True))  # type: ignore[return-value]

    @property
    def num_units(self) -> int:
        return prod(self.grid_DHW)

    def num_hidden(self, ratio: float) -> int:
        """round(ratio * G); InputError where that leaves no hidden or no visible unit."""
        hidden = round(ratio * self.num_units)
        if self.num_units == 1:
            enough = next((n for n in range(2, 100) if 0 < round(ratio * n) < n), 2)  # 2 goes with a middling ratio
            raise InputError(
                f"crop {self.crop_DHW} is a single mask unit: at least one must stay hidden and one visible; use a "
                f"crop of {enough * self.unit_DHW[0]} along D, or a network with a smaller total stride"
            )
        if not 0 < hidden < self.num_units:
            low, high = f"{1 / self.num_units:.2g}", f"{1 - 1 / self.num_units:.{len(str(self.num_units)) + 1}g}"
            raise InputError(
                f"mask ratio {ratio} hides {hidden} of the {self.num_units} units of crop {self.crop_DHW}: "
                f"at least one must stay hidden and one visible; use {low} to {high} or a larger crop"
            )
        return hidden


Sampling = Literal["random", "block"]


def sample_hidden_BG(grid: MaskUnitGrid, seeds_B: Tensor, ratio: float, sampling: Sampling = "random") -> Tensor:
    """Hide exactly round(ratio * G) units of every sample; 0 < ratio < 1.

    Returns bool (B, G), True = hidden, on the CPU. Drawn from each sample's own seed, so neither the
    device, the batch it lands in, nor the number of ranks changes its mask.
    """
    num_hidden = grid.num_hidden(ratio)
    draw = _random_G if sampling == "random" else _blocks_G
    rows = [draw(grid, num_hidden, torch.Generator().manual_seed(seed)) for seed in seeds_B.tolist()]
    return torch.stack(rows)


def _random_G(grid: MaskUnitGrid, num_hidden: int, generator: torch.Generator) -> Tensor:
    is_hidden_G = torch.zeros(grid.num_units, dtype=torch.bool)
    is_hidden_G[torch.randperm(grid.num_units, generator=generator)[:num_hidden]] = True
    return is_hidden_G


def _blocks_G(grid: MaskUnitGrid, num_hidden: int, generator: torch.Generator) -> Tensor:
    """Boxes of up to half the grid's side, one after another; the last one is cut to the exact count.

    After the blockwise masking of BEiT (Bao et al. 2022, arXiv:2106.08254).
    """

    def draw(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    is_hidden_DHW = torch.zeros(grid.grid_DHW, dtype=torch.bool)
    while (missing := num_hidden - int(is_hidden_DHW.sum())) > 0:
        sides = [1 + draw(max(ceil(n / 2), 1)) for n in grid.grid_DHW]
        starts = [draw(n - side + 1) for n, side in zip(grid.grid_DHW, sides, strict=True)]
        box = torch.zeros_like(is_hidden_DHW)
        box[tuple(slice(start, start + side) for start, side in zip(starts, sides, strict=True))] = True
        fresh = (box & ~is_hidden_DHW).flatten().nonzero()[:missing, 0]
        is_hidden_DHW.view(-1)[fresh] = True
    return is_hidden_DHW.flatten()


def split_units(is_hidden_BG: Tensor) -> tuple[Tensor, Tensor]:
    """Places of the visible and of the hidden units, (B, V) and (B, M), rising. Every row hides the same number."""
    order_BG = is_hidden_BG.to(torch.uint8).argsort(dim=1, stable=True)
    num_hidden = int(is_hidden_BG[0].sum())
    return order_BG[:, :-num_hidden], order_BG[:, -num_hidden:]


def pick_units(units_BG: Tensor, index_BU: Tensor) -> Tensor:
    """(B, G, ...) -> (B, U, ...): of each sample its units `index_BU`."""
    B, G = units_BG.shape[:2]
    flat = (index_BU + torch.arange(B, device=index_BU.device)[:, None] * G).flatten()
    return units_BG.flatten(0, 1).index_select(0, flat).unflatten(0, tuple(index_BU.shape))


def spread_units(is_hidden_BG: Tensor, grid: MaskUnitGrid, cells_DHW: Triple) -> Tensor:
    """(B, G) -> (B, D, H, W): each unit repeated over its cells, `cells_DHW` per unit (voxels, or tokens)."""
    map_BDHW = is_hidden_BG.view(-1, *grid.grid_DHW)
    for dim, cells in enumerate(cells_DHW, start=1):
        map_BDHW = map_BDHW.repeat_interleave(cells, dim)
    return map_BDHW


def cut_units(volume_BCDHW: Tensor, grid: MaskUnitGrid) -> Tensor:
    """(B, C, D, H, W) -> (B, G, C, d, h, w), the units one after another."""
    B, C = volume_BCDHW.shape[:2]
    (a, b, c), (d, h, w) = grid.grid_DHW, grid.unit_DHW
    blocks = volume_BCDHW.reshape(B, C, a, d, b, h, c, w).permute(0, 2, 4, 6, 1, 3, 5, 7)
    return blocks.reshape(B, a * b * c, C, d, h, w)


def to_units(volume_BCDHW: Tensor, grid: MaskUnitGrid) -> Tensor:
    """(B, C, D, H, W) -> (B, G, P), the values of each unit side by side."""
    return cut_units(volume_BCDHW, grid).flatten(2)


def from_units(units_BGP: Tensor, grid: MaskUnitGrid) -> Tensor:
    """The inverse of `to_units`: (B, G, P) -> (B, C, D, H, W)."""
    (a, b, c), (d, h, w) = grid.grid_DHW, grid.unit_DHW
    blocks = units_BGP.view(units_BGP.shape[0], a, b, c, -1, d, h, w)
    return blocks.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(units_BGP.shape[0], -1, a * d, b * h, c * w)
