"""The two transformer blocks of nnFormer, for whole maps and for visible units.

B batch, D H W tokens, E embedding, V visible units, c cells (tokens) of a unit, T = V * c
"""

import torch.nn.functional as F
from torch import Tensor, nn

from maetrain.models.attention import SkipAttention, WindowAttention
from maetrain.models.config import Triple
from maetrain.models.windows import Published, VisibleUnits, plan_windows, size_DHW


class DropPath(nn.Module):
    """Stochastic depth: in training, drops the whole residual branch of a sample with probability `rate`.

    Where units are maps of their own, that of a unit.
    """

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


class WindowBlock(nn.Module):
    """Pre-norm block: windowed self-attention, then MLP; `shifted` moves the windows by half their size."""

    def __init__(
        self,
        width: int,
        heads: int,
        window_DHW: Triple,
        shifted: bool,
        mlp_ratio: float,
        drop_path: float,
        published: Published = "no",
    ) -> None:
        super().__init__()
        self.window_DHW, self.shifted, self.published = window_DHW, shifted, published
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, window_DHW, published)
        self.mlp = Mlp(width, mlp_ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BDHWE: Tensor, seen: VisibleUnits | None = None) -> Tensor:
        """A whole map (B, D, H, W, E); or, with `seen`, units (B * V, d, h, w, E) of which each sample has V.

        Windows that fit into a unit stay inside it: each unit is a small map of its own. Larger ones join the tokens of
        all units of a sample that lie in the same window.
        """
        if seen is not None and any(w > c for w, c in zip(self.window_DHW, size_DHW(x_BDHWE), strict=True)):
            return self._over_units(x_BDHWE, seen)
        plan = plan_windows(size_DHW(x_BDHWE), self.window_DHW, self.shifted, self.published)
        x_BDHWE = x_BDHWE + self.drop_path(self.attn(self.norm1(x_BDHWE), plan))
        return x_BDHWE + self.drop_path(self.mlp(self.norm2(x_BDHWE)))

    def _over_units(self, x_MDHWE: Tensor, seen: VisibleUnits) -> Tensor:
        cells_DHW = size_DHW(x_MDHWE)
        map_DHW: Triple = tuple(g * c for g, c in zip(seen.grid_DHW, cells_DHW, strict=True))  # type: ignore[assignment]
        plan = plan_windows(map_DHW, self.window_DHW, self.shifted)
        x_BTE = x_MDHWE.reshape(len(seen.index_BV), -1, x_MDHWE.shape[-1])
        x_BTE = x_BTE + self.drop_path(self.attn.over_units(self.norm1(x_BTE), seen, cells_DHW, plan))
        x_BTE = x_BTE + self.drop_path(self.mlp(self.norm2(x_BTE)))
        return x_BTE.view(x_MDHWE.shape)


class SkipBlock(nn.Module):
    """First block of a decoder stage: the residual stream is up + skip, attention reads the skip."""

    def __init__(
        self, width: int, heads: int, window_DHW: Triple, mlp_ratio: float, published: Published = "no"
    ) -> None:
        super().__init__()
        self.window_DHW, self.published = window_DHW, published
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = SkipAttention(width, heads, window_DHW, published)
        self.mlp = Mlp(width, mlp_ratio)

    def forward(self, up_BDHWE: Tensor, skip_BDHWE: Tensor) -> Tensor:
        plan = plan_windows(size_DHW(up_BDHWE), self.window_DHW, shifted=False, published=self.published)
        x_BDHWE = up_BDHWE + skip_BDHWE + self.attn(self.norm1(up_BDHWE), self.norm1(skip_BDHWE), plan)
        return x_BDHWE + self.mlp(self.norm2(x_BDHWE))
