"""Cutting a token map into attention windows, and saying which token may see which.

A map of any size is padded to whole windows; padded tokens are seen by nobody. Shifted windows wrap around
the map's border, and tokens that were not neighbours before the wrap don't see each other. Where only some blocks of
the map are there (a masked autoencoder's visible units), the same windows hold for the tokens that are left.
Everything here but `gathered_*` depends on sizes only, so it is computed once per size and kept on the device.

B batch, D H W tokens, E embedding, N windows of a map, T tokens of a window, h heads, F channels of a head,
V visible units, G units of a map, c cells (tokens) of a unit
"""

from functools import lru_cache
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from maetrain.masking.units import MaskUnitGrid, pick_units, to_units
from maetrain.models.config import Triple

Published = Literal["no", "cubic", "acdc"]


class WindowPlan(NamedTuple):
    """How one map is cut: effective window and shift per axis, and the size padded to whole windows.

    The published code lets tokens see padding, and in the ACDC network also what the shift's wrap brought beside them;
    ours (False, False) masks both.
    """

    size_DHW: Triple
    window_DHW: Triple
    shift_DHW: Triple
    padded_DHW: Triple
    sees_padding: bool = False
    sees_wrap: bool = False

    @property
    def needs_mask(self) -> bool:
        hides_wrap = any(self.shift_DHW) and not self.sees_wrap
        hides_padding = self.padded_DHW != self.size_DHW and not self.sees_padding
        return hides_wrap or hides_padding


def size_DHW(map_BDHW: Tensor) -> Triple:
    """The extent of dimensions 1 to 3, as plain numbers."""
    _, D, H, W = map_BDHW.shape[:4]
    return int(D), int(H), int(W)


def plan_windows(size_DHW: Triple, window_DHW: Triple, shifted: bool, published: Published = "no") -> WindowPlan:
    """Window and shift for a map.

    Ours: an axis not longer than its window is covered whole, without a shift; the others shift by half a window.
    Published, cubic: where the smallest side is not longer than the window, that side becomes the window on all axes
    and nothing shifts. Published, acdc: the window stays; nothing shifts where it equals the map, or is 1 on some axis.
    """
    if published == "no":
        window = tuple(min(w, s) for w, s in zip(window_DHW, size_DHW, strict=True))
        shift = tuple(w // 2 if shifted and s > w else 0 for w, s in zip(window, size_DHW, strict=True))
    else:
        window = window_DHW
        if published == "cubic" and (covered := min(size_DHW) <= min(window)):
            window = (min(size_DHW),) * 3
        elif published == "acdc":
            covered = size_DHW == window or min(window) < 2
        shift = tuple(w // 2 if shifted and not covered else 0 for w in window)
    padded = tuple(-(-s // w) * w for w, s in zip(window, size_DHW, strict=True))
    return WindowPlan(size_DHW, window, shift, padded, published != "no", published == "acdc")  # type: ignore[arg-type]


def pad_to_windows(tokens_BDHWE: Tensor, plan: WindowPlan) -> Tensor:
    """Zeros behind the map's end on each axis, up to whole windows."""
    d, h, w = (p - s for p, s in zip(plan.padded_DHW, size_DHW(tokens_BDHWE), strict=True))
    return F.pad(tokens_BDHWE, (0, 0, 0, w, 0, h, 0, d)) if d or h or w else tokens_BDHWE


def to_heads(tokens_BDHWE: Tensor, plan: WindowPlan, heads: int, parts: int = 1) -> tuple[Tensor, ...]:
    """(B, D, H, W, parts * h * F) -> `parts` tensors (B, N, h, T, F): windows and heads cut in a single copy."""
    x = pad_to_windows(tokens_BDHWE, plan)
    if any(plan.shift_DHW):
        x = torch.roll(x, [-s for s in plan.shift_DHW], dims=(1, 2, 3))
    B, D, H, W, E = x.shape
    d, h, w = plan.window_DHW
    width = E // parts // heads
    x = x.view(B, D // d, d, H // h, h, W // w, w, parts, heads, width)
    x = x.permute(7, 0, 1, 3, 5, 8, 2, 4, 6, 9)
    return x.reshape(parts, B, -1, heads, d * h * w, width).unbind(0)


def from_heads(out_BNhTF: Tensor, plan: WindowPlan) -> Tensor:
    """The way back: (B, N, h, T, F) -> (B, D, H, W, h * F), padding cut off."""
    D, H, W = plan.padded_DHW
    d, h, w = plan.window_DHW
    B, _, heads, _, width = out_BNhTF.shape
    x = out_BNhTF.reshape(B, D // d, H // h, W // w, heads, d, h, w, width)
    x = x.permute(0, 1, 5, 2, 6, 3, 7, 4, 8).reshape(B, D, H, W, heads * width)
    if any(plan.shift_DHW):
        x = torch.roll(x, list(plan.shift_DHW), dims=(1, 2, 3))
    if plan.padded_DHW != plan.size_DHW:
        D, H, W = plan.size_DHW
        x = x[:, :D, :H, :W]
    return x


def window_of_DHW(plan: WindowPlan) -> Tensor:
    """Long (D, H, W) of the padded map: which tokens share a window; those a shift wrapped around count apart."""
    axes = list(zip(plan.padded_DHW, plan.window_DHW, plan.shift_DHW, strict=True))
    place_D, place_H, place_W = ((torch.arange(n) - shift).div(w, rounding_mode="floor") + 1 for n, w, shift in axes)
    _, places_H, places_W = ((n - 1 - shift) // w + 2 for n, w, shift in axes)
    return (place_D[:, None, None] * places_H + place_H[:, None]) * places_W + place_W


@lru_cache(maxsize=256)
@torch.inference_mode(mode=False)  # kept longer than the inference that may ask first
def visibility_mask_NTT(plan: WindowPlan, device: torch.device) -> Tensor:
    """Bool (N, T, T), True = the row's token may attend to the column's token.

    Two tokens see each other when both are real and the wrap of the shift did not bring them together.
    A padded token sees itself, so that no row of the softmax is empty; its output is cut off later.
    """

    def cut(values_DHW: Tensor) -> Tensor:
        (cut_1N1T1,) = to_heads(values_DHW[None, ..., None], plan, heads=1)
        return cut_1N1T1[0, :, 0, :, 0]

    region_NT = cut(torch.zeros(plan.padded_DHW, dtype=torch.long) if plan.sees_wrap else window_of_DHW(plan))
    seen_NTT = region_NT[:, :, None] == region_NT[:, None, :]
    if not plan.sees_padding:
        D, H, W = plan.size_DHW
        is_padding_DHW = torch.ones(plan.padded_DHW, dtype=torch.bool)
        is_padding_DHW[:D, :H, :W] = False
        seen_NTT = seen_NTT & ~cut(is_padding_DHW)[:, None, :]
    return (seen_NTT | torch.eye(region_NT.shape[1], dtype=torch.bool)).to(device)


def bias_rows(window_DHW: Triple) -> int:
    """Rows of the bias table of a window: one for each offset between two of its tokens."""
    d, h, w = window_DHW  # no generator: `torch.compile` could not follow it
    return (2 * d - 1) * (2 * h - 1) * (2 * w - 1)


def row_strides(table_DHW: Triple, published: bool) -> Triple:
    """How many rows of the bias table an offset of one token along D, H, W moves.

    The published code has (3h - 1, 2h - 1, 1) instead, so that different offsets share rows (design decision 5).
    """
    _, h, w = table_DHW
    return (3 * h - 1, 2 * h - 1, 1) if published else ((2 * h - 1) * (2 * w - 1), 2 * w - 1, 1)


def _ramp_DHW(size_DHW: Triple, strides: Triple) -> Tensor:
    """Long (D, H, W): i * strides[0] + j * strides[1] + k * strides[2]. The difference of two tokens is their row."""
    i, j, k = (torch.arange(n) * stride for n, stride in zip(size_DHW, strides, strict=True))
    return i[:, None, None] + j[:, None] + k


@lru_cache(maxsize=256)
@torch.inference_mode(mode=False)  # kept longer than the inference that may ask first
def relative_index_TT(window_DHW: Triple, table_DHW: Triple, device: torch.device, published: bool = False) -> Tensor:
    """Long (T, T): the row of the bias table for each pair of tokens of a window.

    The table has one row per offset of a `table_DHW` window, (2d-1)(2h-1)(2w-1) of them; an effective
    window smaller than that uses the rows of its offsets.
    """
    strides = row_strides(table_DHW, published)
    row_T = _ramp_DHW(window_DHW, strides).flatten()
    middle = sum((size - 1) * stride for size, stride in zip(table_DHW, strides, strict=True))
    return (row_T[:, None] - row_T[None, :] + middle).to(device)


class VisibleUnits(NamedTuple):
    """Which units of a crop the encoder gets: `index_BV`, long, places in the flattened grid of units."""

    grid_DHW: Triple
    index_BV: Tensor


def spread_tokens(tokens_BTE: Tensor, seen: VisibleUnits, cells_DHW: Triple) -> Tensor:
    """(B, T, E) of each sample's visible units -> the whole map (B, D, H, W, E), zero where it is hidden."""
    B, _, E = tokens_BTE.shape
    V = seen.index_BV.shape[1]
    (a, b, c), (d, h, w) = seen.grid_DHW, cells_DHW
    cells = d * h * w * E
    blank_BGE = tokens_BTE.new_zeros(B, a * b * c, cells)
    units_BGE = blank_BGE.scatter(1, seen.index_BV[..., None].expand(B, V, cells), tokens_BTE.reshape(B, V, cells))
    return units_BGE.view(B, a, b, c, d, h, w, E).permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(B, a * d, b * h, c * w, E)


def pick_tokens(map_BDHWE: Tensor, seen: VisibleUnits, cells_DHW: Triple) -> Tensor:
    """The way back: the tokens (B, T, E) of the visible units, unit by unit."""
    return pick_units(tokens_by_unit(map_BDHWE, cells_DHW), seen.index_BV).flatten(1, 2)


def tokens_by_unit(map_BDHWE: Tensor, cells_DHW: Triple) -> Tensor:
    """(B, D, H, W, E) -> (B, G, c, E): the tokens of each unit side by side."""
    B, D, H, W, E = map_BDHWE.shape
    d, h, w = cells_DHW
    blocks = map_BDHWE.reshape(B, D // d, d, H // h, h, W // w, w, E).permute(0, 1, 3, 5, 2, 4, 6, 7)
    return blocks.reshape(B, -1, d * h * w, E)


@lru_cache(maxsize=256)
@torch.inference_mode(mode=False)  # kept longer than the inference that may ask first
def _rows_and_windows_Gc(
    plan: WindowPlan, table_DHW: Triple, cells_DHW: Triple, device: torch.device
) -> tuple[Tensor, Tensor]:
    """For every cell of every unit: its place in bias rows, and its window."""
    ramp_DHW = _ramp_DHW(plan.size_DHW, row_strides(table_DHW, published=False))
    D, H, W = plan.size_DHW
    window_DHW = window_of_DHW(plan)[:D, :H, :W]
    units = MaskUnitGrid(plan.size_DHW, cells_DHW)
    rows_Gc, windows_Gc = (to_units(x[None, None], units)[0].to(device) for x in (ramp_DHW, window_DHW))
    return rows_Gc, windows_Gc


def gathered_index_BTT(
    seen: VisibleUnits, cells_DHW: Triple, plan: WindowPlan, table_DHW: Triple
) -> tuple[Tensor, Tensor | None]:
    """For visible units' tokens, T = V * c: rows of the bias table (B, T, T), long, and pairs that share a window.

    The second is None where one window covers the map.
    """
    rows_Gc, windows_Gc = _rows_and_windows_Gc(plan, table_DHW, cells_DHW, seen.index_BV.device)
    row_BT = rows_Gc[seen.index_BV].flatten(1)
    middle = (bias_rows(table_DHW) - 1) // 2
    index_BTT = row_BT[:, :, None] - row_BT[:, None, :] + middle
    if plan.window_DHW == plan.size_DHW:
        return index_BTT, None
    window_BT = windows_Gc[seen.index_BV].flatten(1)
    # tokens of different windows can be further apart than the table knows; they don't see each other anyway
    return index_BTT.clamp_(0, bias_rows(table_DHW) - 1), window_BT[:, :, None] == window_BT[:, None, :]
