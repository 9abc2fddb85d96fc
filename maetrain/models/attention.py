"""Window attention: softmax(q k / sqrt(F) + bias) v in every window, for whole maps and for visible units.

B batch, D H W tokens, E embedding, h heads, N windows of a map, T tokens of a window, F channels of a head
"""

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from maetrain.models.config import Triple
from maetrain.models.windows import (
    Published,
    VisibleUnits,
    WindowPlan,
    bias_rows,
    from_heads,
    gathered_index_BTT,
    pad_to_windows,
    pick_tokens,
    relative_index_TT,
    spread_tokens,
    to_heads,
    visibility_mask_NTT,
)


class _KeptBias(NamedTuple):
    plan: WindowPlan
    table: Tensor
    bias: Tensor


class RelativeBias(nn.Module):
    """Learned bias per head and offset inside a window, added to the attention logits together with its mask."""

    def __init__(self, window_DHW: Triple, heads: int, published: Published = "no") -> None:
        super().__init__()
        self.window_DHW, self.published = window_DHW, published
        self.table = nn.Parameter(torch.zeros(bias_rows(window_DHW), heads))
        nn.init.trunc_normal_(self.table, std=0.02)
        self._kept: _KeptBias | None = None

    def forward(self, plan: WindowPlan) -> Tensor:
        """(1, N, h, T, T), or (1, 1, h, T, T) where all windows have the same.

        Without gradients (inference) the last one is kept for as long as the table is unchanged. Compared by value:
        DeepSpeed, and whoever writes through `.data`, move weights behind torch's version counter.
        """
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            self._kept = None
            return self._bias(plan)
        kept, table = self._kept, self.table
        if (
            kept is None
            or kept.plan != plan
            or (kept.table.dtype, kept.table.device) != (table.dtype, table.device)
            or not torch.equal(kept.table, table)
        ):
            self._kept = kept = _KeptBias(plan, table.detach().clone(), self._bias(plan))
        return kept.bias

    def gathered(self, seen: VisibleUnits, cells_DHW: Triple, plan: WindowPlan) -> Tensor:
        """(B, 1, h, T, T) for the tokens of each sample's visible units; pairs of different windows are masked."""
        index_BTT, share_BTT = gathered_index_BTT(seen, cells_DHW, plan, self.window_DHW)
        bias_BhTT = self._rows(index_BTT).movedim(-1, 1)
        return (bias_BhTT if share_BTT is None else masked(bias_BhTT, share_BTT[:, None]))[:, None]

    def among_seen(self, plan: WindowPlan, is_seen_BNT: Tensor) -> Tensor:
        """(B, N, h, T, T): as `forward`, tokens that are not seen masked (but for themselves: no row stays empty)."""
        itself_TT = torch.eye(is_seen_BNT.shape[-1], dtype=torch.bool, device=is_seen_BNT.device)
        return masked(self._bias(plan), is_seen_BNT[:, :, None, None, :] | itself_TT)

    def _bias(self, plan: WindowPlan) -> Tensor:
        if self.published != "no" and plan.window_DHW != self.window_DHW:
            raise ValueError(
                f"the published network's window here is {self.window_DHW}, but a map of {plan.size_DHW} tokens needs "
                f"{plan.window_DHW}: give it crops of the size it was made for"
            )
        index_TT = relative_index_TT(plan.window_DHW, self.window_DHW, self.table.device, self.published != "no")
        bias_hTT = self._rows(index_TT).movedim(-1, 0)
        if not plan.needs_mask:
            return bias_hTT[None, None]
        visible_NTT = visibility_mask_NTT(plan, self.table.device)
        return masked(bias_hTT, visible_NTT[:, None])[None]

    def _rows(self, index: Tensor) -> Tensor:
        return self.table.index_select(0, index.flatten()).view(*index.shape, -1)


def masked(bias: Tensor, is_visible: Tensor) -> Tensor:
    return bias.masked_fill(~is_visible, torch.finfo(bias.dtype).min)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """q, k, v (B, N, h, T, F), bias (1 or B, 1 or N, h, T, T) -> (B, N, h, T, F).

    Written out: windows are small, so that torch's fused kernels, which want the bias of every window laid out, take
    longer on CPUs and on GPUs (benchmarks/attention.py, docs/decisions/0012-how-speed-is-measured.md).
    """
    logits = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).add_(bias.to(q.dtype))
    return logits.softmax(-1) @ v


class WindowAttention(nn.Module):
    """Self-attention in windows, qkv with bias."""

    def __init__(self, width: int, heads: int, window_DHW: Triple, published: Published = "no") -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.bias = RelativeBias(window_DHW, heads, published)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens_BDHWE: Tensor, plan: WindowPlan) -> Tensor:
        """Over a whole map, cut as planned."""
        if plan.sees_padding:  # the published code projects padding too, so that padded tokens carry the bias
            tokens_BDHWE = pad_to_windows(tokens_BDHWE, plan)
        q, k, v = to_heads(self.qkv(tokens_BDHWE), plan, self.heads, parts=3)
        return self.proj(from_heads(attend(q, k, v, self.bias(plan)), plan))

    def over_units(self, tokens_BTE: Tensor, seen: VisibleUnits, cells_DHW: Triple, plan: WindowPlan) -> Tensor:
        """Over the tokens of each sample's visible units, in the windows of the whole map: (B, T, E) -> (B, T, E).

        By the cheaper of two ways to the same numbers, counted in pairs of tokens. That of all pairs grows with the
        square of the crop's volume, but is smallest where a window covers the map.
        """
        all_pairs, pairs_in_windows = tokens_BTE.shape[1] ** 2, prod(plan.padded_DHW) * prod(plan.window_DHW)
        way = self.among_all if all_pairs <= pairs_in_windows else self.among_windows
        return self.proj(way(self.qkv(tokens_BTE), seen, cells_DHW, plan))

    def among_all(self, qkv_BTE: Tensor, seen: VisibleUnits, cells_DHW: Triple, plan: WindowPlan) -> Tensor:
        """One attention over all of a sample's visible tokens, those of other windows masked."""
        B, T, E = qkv_BTE.shape
        qkv = qkv_BTE.view(B, 1, T, 3, self.heads, E // 3 // self.heads).permute(3, 0, 1, 4, 2, 5)
        q, k, v = qkv.contiguous().unbind(0)
        out_B1hTF = attend(q, k, v, self.bias.gathered(seen, cells_DHW, plan))
        return out_B1hTF.transpose(2, 3).reshape(B, T, E // 3)

    def among_windows(self, qkv_BTE: Tensor, seen: VisibleUnits, cells_DHW: Triple, plan: WindowPlan) -> Tensor:
        """The windows of the whole map, hidden tokens blank and masked."""
        (is_seen_BNhTF,) = to_heads(spread_tokens(torch.ones_like(qkv_BTE[..., :1]), seen, cells_DHW), plan, heads=1)
        q, k, v = to_heads(spread_tokens(qkv_BTE, seen, cells_DHW), plan, self.heads, parts=3)
        out_BNhTF = attend(q, k, v, self.bias.among_seen(plan, is_seen_BNhTF[:, :, 0, :, 0] > 0))
        return pick_tokens(from_heads(out_BNhTF, plan), seen, cells_DHW)


class SkipAttention(nn.Module):
    """Queries from the upsampled map (no query projection), keys and values from the encoder's skip."""

    def __init__(self, width: int, heads: int, window_DHW: Triple, published: Published = "no") -> None:
        super().__init__()
        self.heads = heads
        self.kv = nn.Linear(width, 2 * width)
        self.bias = RelativeBias(window_DHW, heads, published)
        self.proj = nn.Linear(width, width)

    def forward(self, up_BDHWE: Tensor, skip_BDHWE: Tensor, plan: WindowPlan) -> Tensor:
        if plan.sees_padding:
            up_BDHWE, skip_BDHWE = pad_to_windows(up_BDHWE, plan), pad_to_windows(skip_BDHWE, plan)
        (q,) = to_heads(up_BDHWE, plan, self.heads)
        k, v = to_heads(self.kv(skip_BDHWE), plan, self.heads, parts=2)
        return self.proj(from_heads(attend(q, k, v, self.bias(plan)), plan))
