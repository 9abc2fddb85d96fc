"""The two transformer blocks of nnFormer, for whole maps and for visible units.

B batch, D H W tokens, E embedding, V visible units, c cells (tokens) of a unit, T = V * c,
K blocks of an encoder
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_shards.order.streams import stream_seed
from maetrain.models.attention import SkipAttention, WindowAttention
from maetrain.models.config import Triple
from maetrain.models.windows import Published, VisibleUnits, plan_windows, size_DHW


def draw_drops_K2B(seeds_B: Tensor, num_blocks: int) -> Tensor:
    """Uniform numbers in [0, 1), float32 on the CPU, that decide for each block's two branches what is dropped.

    Drawn from each sample's own mask seed (another stream of it), so that neither the batch it lands in nor the number
    of ranks changes them.
    """
    seeds = [stream_seed(seed, "drop-path") for seed in seeds_B.tolist()]
    return torch.stack([torch.rand(num_blocks, 2, generator=torch.Generator().manual_seed(s)) for s in seeds], dim=-1)


class DropPath(nn.Module):
    """Stochastic depth: drops the whole residual branch of a sample with probability `rate`.

    Nothing is drawn here: `draws_B` holds a uniform number in [0, 1) for each sample, so that activations which are
    computed again are dropped again, and compiled code has no generator to follow. None = all are kept, as outside of
    training. A branch may have several rows of each sample, its visible units one after another: they stay or go
    together, as in those stages where windows join them, and as in the dense autoencoder.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor, draws_B: Tensor | None) -> Tensor:
        if draws_B is None or self.rate == 0:
            return branch
        keep_B = (draws_B >= self.rate).to(branch.dtype) / (1 - self.rate)
        return (branch.reshape(len(draws_B), -1) * keep_B[:, None]).view(branch.shape)


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

    def forward(
        self,
        x_BDHWE: Tensor,
        seen: VisibleUnits | None = None,
        attn_draws_B: Tensor | None = None,
        mlp_draws_B: Tensor | None = None,
    ) -> Tensor:
        """A whole map (B, D, H, W, E); or, with `seen`, units (B * V, d, h, w, E) of which each sample has V.

        Windows that fit into a unit stay inside it: each unit is a small map of its own. Larger ones join the tokens of
        all units of a sample that lie in the same window. The draws are those of drop path for the two branches.
        """
        if seen is not None and any(w > c for w, c in zip(self.window_DHW, size_DHW(x_BDHWE), strict=True)):
            return self._over_units(x_BDHWE, seen, attn_draws_B, mlp_draws_B)
        plan = plan_windows(size_DHW(x_BDHWE), self.window_DHW, self.shifted, self.published)
        x_BDHWE = x_BDHWE + self.drop_path(self.attn(self.norm1(x_BDHWE), plan), attn_draws_B)
        return x_BDHWE + self.drop_path(self.mlp(self.norm2(x_BDHWE)), mlp_draws_B)

    def _over_units(
        self, x_MDHWE: Tensor, seen: VisibleUnits, attn_draws_B: Tensor | None, mlp_draws_B: Tensor | None
    ) -> Tensor:
        cells_DHW = size_DHW(x_MDHWE)
        map_DHW: Triple = tuple(g * c for g, c in zip(seen.grid_DHW, cells_DHW, strict=True))  # type: ignore[assignment]
        plan = plan_windows(map_DHW, self.window_DHW, self.shifted)
        x_BTE = x_MDHWE.reshape(len(seen.index_BV), -1, x_MDHWE.shape[-1])
        x_BTE = x_BTE + self.drop_path(self.attn.over_units(self.norm1(x_BTE), seen, cells_DHW, plan), attn_draws_B)
        x_BTE = x_BTE + self.drop_path(self.mlp(self.norm2(x_BTE)), mlp_draws_B)
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
