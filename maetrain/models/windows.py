"""Cutting a token map into attention windows, and saying which token may see which.

A map of any size is padded to whole windows; padded tokens are seen by nobody. Shifted windows wrap around
the map's border, and tokens that were not neighbours before the wrap don't see each other.
Everything here depends on sizes only, so it is computed once per size and kept on the device.

B batch, D H W tokens, E embedding, N windows of a map, T tokens of a window
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from maetrain.models.config import Triple


class WindowPlan(NamedTuple):
    """How one map is cut: effective window and shift per axis, and the size padded to whole windows."""

    size_DHW: Triple
    window_DHW: Triple
    shift_DHW: Triple
    padded_DHW: Triple

    @property
    def needs_mask(self) -> bool:
        return any(self.shift_DHW) or self.padded_DHW != self.size_DHW


def size_DHW(map_BDHW: Tensor) -> Triple:
    """The extent of dimensions 1 to 3, as plain numbers."""
    _, D, H, W = map_BDHW.shape[:4]
    return int(D), int(H), int(W)


def plan_windows(size_DHW: Triple, window_DHW: Triple, shifted: bool) -> WindowPlan:
    """An axis not longer than its window is covered whole, without a shift; the others shift by half a window."""
    window = tuple(min(w, s) for w, s in zip(window_DHW, size_DHW, strict=True))
    shift = tuple(w // 2 if shifted and s > w else 0 for w, s in zip(window, size_DHW, strict=True))
    padded = tuple(-(-s // w) * w for w, s in zip(window, size_DHW, strict=True))
    return WindowPlan(tuple(size_DHW), window, shift, padded)  # type: ignore[arg-type]


def to_windows(tokens_BDHWE: Tensor, plan: WindowPlan) -> Tensor:
    """(B, D, H, W, E) -> (B * N, T, E), padded with zeros and shifted as planned."""
    if plan.padded_DHW != plan.size_DHW:
        pad = [p - s for p, s in zip(plan.padded_DHW, plan.size_DHW, strict=True)]
        tokens_BDHWE = F.pad(tokens_BDHWE, (0, 0, 0, pad[2], 0, pad[1], 0, pad[0]))
    if any(plan.shift_DHW):
        tokens_BDHWE = torch.roll(tokens_BDHWE, [-s for s in plan.shift_DHW], dims=(1, 2, 3))
    B, D, H, W, E = tokens_BDHWE.shape
    d, h, w = plan.window_DHW
    blocks = tokens_BDHWE.view(B, D // d, d, H // h, h, W // w, w, E)
    return blocks.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, d * h * w, E)


def from_windows(windows_NTE: Tensor, plan: WindowPlan) -> Tensor:
    """The inverse of `to_windows`: (B * N, T, E) -> (B, D, H, W, E), padding cut off."""
    D, H, W = plan.padded_DHW
    d, h, w = plan.window_DHW
    E = windows_NTE.shape[-1]
    blocks = windows_NTE.view(-1, D // d, H // h, W // w, d, h, w, E)
    tokens = blocks.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(-1, D, H, W, E)
    if any(plan.shift_DHW):
        tokens = torch.roll(tokens, list(plan.shift_DHW), dims=(1, 2, 3))
    if plan.padded_DHW != plan.size_DHW:
        D, H, W = plan.size_DHW
        tokens = tokens[:, :D, :H, :W]
    return tokens


@lru_cache(maxsize=256)
def visibility_mask_NTT(plan: WindowPlan, device: torch.device) -> Tensor:
    """Bool (N, T, T), True = the row's token may attend to the column's token.

    Two tokens see each other when both are real and the wrap of the shift did not bring them together.
    A padded token sees itself, so that no row of the softmax is empty; its output is cut off later.
    """
    region_DHW = torch.zeros(plan.padded_DHW, dtype=torch.long)
    for axis, (size, padded, window, shift) in enumerate(
        zip(plan.size_DHW, plan.padded_DHW, plan.window_DHW, plan.shift_DHW, strict=True)
    ):
        # Positions after the roll; those that wrapped around come from the first `shift` tokens of the map.
        source = (torch.arange(padded) + shift) % padded
        wrapped = torch.arange(padded) >= padded - shift if shift else torch.zeros(padded, dtype=torch.bool)
        is_padding = source >= size
        label = wrapped.long() + 2 * is_padding.long()
        shape = [1, 1, 1]
        shape[axis] = padded
        region_DHW = region_DHW * 4 + label.view(shape)
        assert window <= padded
    unshifted = plan._replace(size_DHW=plan.padded_DHW, shift_DHW=(0, 0, 0))
    region_NT = to_windows(region_DHW[None, ..., None], unshifted)[..., 0]
    same_NTT = region_NT[:, :, None] == region_NT[:, None, :]
    # a base-4 digit of 2 or 3 marks padding on that axis
    is_padding_NT = torch.stack([(region_NT // 4**k) % 4 >= 2 for k in range(3)]).any(0)
    eye_TT = torch.eye(region_NT.shape[1], dtype=torch.bool)
    return ((same_NTT & ~is_padding_NT[:, None, :]) | eye_TT).to(device)


@lru_cache(maxsize=256)
def relative_index_TT(window_DHW: Triple, table_DHW: Triple, device: torch.device) -> Tensor:
    """Long (T, T): the row of the bias table for each pair of tokens of a window.

    The table has one row per offset of a `table_DHW` window, (2d-1)(2h-1)(2w-1) of them; an effective
    window smaller than that uses the rows of its offsets. The published code multiplies by wrong factors,
    so that offsets share rows (design decision 5); this one has no collisions.
    """
    d, h, w = (torch.arange(n) for n in window_DHW)
    coords_3T = torch.stack(torch.meshgrid(d, h, w, indexing="ij")).flatten(1)
    offsets_3TT = coords_3T[:, :, None] - coords_3T[:, None, :]
    index_TT = torch.zeros_like(offsets_3TT[0])
    for axis, size in enumerate(table_DHW):
        index_TT = index_TT * (2 * size - 1) + offsets_3TT[axis] + size - 1
    return index_TT.to(device)
