"""Window attention and the two transformer blocks of nnFormer.

B batch, D H W tokens, E embedding, h heads, N windows of a map, T tokens of a window, F channels of a head
"""

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maetrain.models.config import Triple
from maetrain.models.windows import (
    WindowPlan,
    from_windows,
    plan_windows,
    relative_index_TT,
    size_DHW,
    to_windows,
    visibility_mask_NTT,
)


class DropPath(nn.Module):
    """Drops the whole residual branch of a sample with probability `rate` while training (stochastic depth)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return branch
        keep = 1 - self.rate
        shape = (branch.shape[0],) + (1,) * (branch.ndim - 1)
        return branch * branch.new_empty(shape).bernoulli_(keep).div_(keep)


class Mlp(nn.Module):
    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, int(width * ratio))
        self.fc2 = nn.Linear(int(width * ratio), width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


class RelativeBias(nn.Module):
    """Learned bias per head and offset inside a window, added to the attention logits together with its mask."""

    def __init__(self, window_DHW: Triple, heads: int) -> None:
        super().__init__()
        self.window_DHW = window_DHW
        rows = prod(2 * w - 1 for w in window_DHW)
        self.table = nn.Parameter(torch.zeros(rows, heads))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, plan: WindowPlan) -> Tensor:
        """(1 or N, h, T, T): one for all windows, or one a window where some pairs must not see each other."""
        index_TT = relative_index_TT(plan.window_DHW, self.window_DHW, self.table.device)
        bias_1hTT = self.table[index_TT.flatten()].view(*index_TT.shape, -1).permute(2, 0, 1)[None]
        if not plan.needs_mask:
            return bias_1hTT
        visible_NTT = visibility_mask_NTT(plan, self.table.device)
        return bias_1hTT.masked_fill(~visible_NTT[:, None], torch.finfo(bias_1hTT.dtype).min)


def attend(q_NTE: Tensor, k_NTE: Tensor, v_NTE: Tensor, bias_NhTT: Tensor, heads: int) -> Tensor:
    """Multi-head attention inside every window; windows come as (B * N, T, E), the bias as (1 or N, h, T, T).

    Written out, not `scaled_dot_product_attention`: with a bias that needs gradients torch's CPU path falls back to
    these very products with extra passes over the logits (1.4x the time here, torch 2.13).
    """
    M, T, E = q_NTE.shape
    q, k, v = (t.view(M, T, heads, E // heads).transpose(1, 2) for t in (q_NTE, k_NTE, v_NTE))
    logits_MhTT = (q * (E // heads) ** -0.5) @ k.transpose(-2, -1)
    n = bias_NhTT.shape[0]
    logits_BNhTT = logits_MhTT.view(M // n, n, heads, T, T) + bias_NhTT
    weights_MhTT = logits_BNhTT.softmax(-1).view(M, heads, T, T)
    return (weights_MhTT @ v).transpose(1, 2).reshape(M, T, E)


class WindowAttention(nn.Module):
    """Self-attention in windows, qkv with bias."""

    def __init__(self, width: int, heads: int, window_DHW: Triple) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.bias = RelativeBias(window_DHW, heads)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens_BDHWE: Tensor, plan: WindowPlan) -> Tensor:
        # qkv before windowing: padded tokens then cost no projection, and their keys are masked anyway
        q, k, v = to_windows(self.qkv(tokens_BDHWE), plan).chunk(3, dim=-1)
        out = attend(q, k, v, self.bias(plan), self.heads)
        return self.proj(from_windows(out, plan))


class SkipAttention(nn.Module):
    """Queries from the upsampled map (no query projection), keys and values from the encoder's skip."""

    def __init__(self, width: int, heads: int, window_DHW: Triple) -> None:
        super().__init__()
        self.heads = heads
        self.kv = nn.Linear(width, 2 * width)
        self.bias = RelativeBias(window_DHW, heads)
        self.proj = nn.Linear(width, width)

    def forward(self, up_BDHWE: Tensor, skip_BDHWE: Tensor, plan: WindowPlan) -> Tensor:
        k, v = to_windows(self.kv(skip_BDHWE), plan).chunk(2, dim=-1)
        out = attend(to_windows(up_BDHWE, plan), k, v, self.bias(plan), self.heads)
        return self.proj(from_windows(out, plan))


class WindowBlock(nn.Module):
    """Pre-norm block: windowed self-attention, then MLP; `shifted` moves the windows by half their size."""

    def __init__(
        self, width: int, heads: int, window_DHW: Triple, shifted: bool, mlp_ratio: float, drop_path: float
    ) -> None:
        super().__init__()
        self.window_DHW, self.shifted = window_DHW, shifted
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, window_DHW)
        self.mlp = Mlp(width, mlp_ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BDHWE: Tensor) -> Tensor:
        plan = plan_windows(size_DHW(x_BDHWE), self.window_DHW, self.shifted)
        x_BDHWE = x_BDHWE + self.drop_path(self.attn(self.norm1(x_BDHWE), plan))
        return x_BDHWE + self.drop_path(self.mlp(self.norm2(x_BDHWE)))


class SkipBlock(nn.Module):
    """First block of a decoder stage: the residual stream is up + skip, attention reads the skip."""

    def __init__(self, width: int, heads: int, window_DHW: Triple, mlp_ratio: float) -> None:
        super().__init__()
        self.window_DHW = window_DHW
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = SkipAttention(width, heads, window_DHW)
        self.mlp = Mlp(width, mlp_ratio)

    def forward(self, up_BDHWE: Tensor, skip_BDHWE: Tensor) -> Tensor:
        plan = plan_windows(size_DHW(up_BDHWE), self.window_DHW, shifted=False)
        x_BDHWE = up_BDHWE + skip_BDHWE + self.attn(self.norm1(up_BDHWE), self.norm1(skip_BDHWE), plan)
        return x_BDHWE + self.mlp(self.norm2(x_BDHWE))
