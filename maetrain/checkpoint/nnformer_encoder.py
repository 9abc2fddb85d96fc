"""A pretrained nnFormer encoder for programs that have torch, numpy and safetensors, but not maetrain.

This file lies beside `encoder.safetensors` and `contract.json` and imports nothing else of where it comes from:

    sys.path.insert(0, "handover")
    from nnformer_encoder import load_encoder, prepare
    encoder, contract = load_encoder("handover")
    volume_CDHW = prepare(image_CDHW, spacing_mm_DHW, contract)
    features = encoder(torch.from_numpy(volume_CDHW)[None])  # shallowest first: (B, E * 2**s, D_s, H_s, W_s)

Any batch, any crop of at least one voxel, gradients as usual. In maetrain itself it is a second writing of
`maetrain.models.encoder` (whole maps alone, no drop path) and of `data_shards.preprocess.prepare`, held equal by tests.

B batch, C channel, D H W voxels or tokens (D feet to head, H back to front, W left to right), E embedding,
h heads, N windows of a map, T tokens of a window, F channels of a head
"""

import hashlib
import json
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn


def load_encoder(folder: str | Path) -> tuple["Encoder", dict[str, Any]]:
    """The encoder in eval mode and its contract. ValueError where the weights aren't those the contract speaks of."""
    folder = Path(folder)
    contract = json.loads((folder / "contract.json").read_text(encoding="utf-8"))
    weights = folder / "encoder.safetensors"
    if hashlib.sha256(weights.read_bytes()).hexdigest() != contract["weights_sha256"]:
        raise ValueError(f"{weights}: not the file that contract.json speaks of; copy the folder again")
    encoder = Encoder(contract["architecture"])
    encoder.load_state_dict(load_file(weights))
    return encoder.eval(), contract


class Conv(nn.Conv3d):
    """A convolution over maps with channels last, padded by half its kernel."""

    def __init__(self, width: int, out_width: int, kernel: list[int], stride: list[int]) -> None:
        padding = tuple(k // 2 for k in kernel)
        super().__init__(width, out_width, tuple(kernel), tuple(stride), padding)  # type: ignore[arg-type]

    def forward(self, x_BDHWE: Tensor) -> Tensor:
        return super().forward(x_BDHWE.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)


class StemBlock(nn.Module):
    def __init__(self, in_width: int, width: int, stride: list[int], activated: bool) -> None:
        super().__init__()
        self.conv1 = Conv(in_width, width, [3, 3, 3], stride)
        self.norm1 = nn.LayerNorm(width)
        self.conv2 = Conv(width, width, [3, 3, 3], [1, 1, 1])
        self.norm2 = nn.LayerNorm(width) if activated else None

    def forward(self, x_BDHWE: Tensor) -> Tensor:
        x_BDHWE = self.conv2(self.norm1(F.gelu(self.conv1(x_BDHWE))))
        return x_BDHWE if self.norm2 is None else self.norm2(F.gelu(x_BDHWE))


class Stem(nn.Module):
    def __init__(self, channels: int, width: int, strides: list[list[int]]) -> None:
        super().__init__()
        self.block1 = StemBlock(channels, width // 2, strides[0], activated=True)
        self.block2 = StemBlock(width // 2, width, strides[1], activated=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, volume_BCDHW: Tensor) -> Tensor:
        return self.norm(self.block2(self.block1(volume_BCDHW.permute(0, 2, 3, 4, 1))))


class Down(nn.Module):
    def __init__(self, width: int, stride: list[int]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv = Conv(width, 2 * width, [3 if s > 1 else 1 for s in stride], stride)

    def forward(self, x_BDHWE: Tensor) -> Tensor:
        return self.conv(self.norm(F.gelu(x_BDHWE)))


class Bias(nn.Module):
    """One row per offset between two tokens of a window of the size the network was made for."""

    def __init__(self, window: list[int], heads: int) -> None:
        super().__init__()
        self.window = window
        self.table = nn.Parameter(torch.zeros(prod(2 * w - 1 for w in window), heads))

    def forward(self, window: list[int]) -> Tensor:
        """(h, T, T) for windows of this size, or smaller on any axis."""
        _, h, w = self.window
        strides = ((2 * h - 1) * (2 * w - 1), 2 * w - 1, 1)
        i, j, k = (torch.arange(n) * s for n, s in zip(window, strides, strict=True))
        row_T = (i[:, None, None] + j[:, None] + k).flatten().to(self.table.device)
        middle = sum((n - 1) * s for n, s in zip(self.window, strides, strict=True))
        return self.table[row_T[:, None] - row_T[None, :] + middle].permute(2, 0, 1)


class WindowAttention(nn.Module):
    """Attention in windows. Padding behind the map's end, and what a shift wraps around, is seen by nobody."""

    def __init__(self, width: int, heads: int, window: list[int], shifted: bool) -> None:
        super().__init__()
        self.heads, self.window, self.shifted = heads, window, shifted
        self.qkv = nn.Linear(width, 3 * width)
        self.bias = Bias(window, heads)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BDHWE: Tensor) -> Tensor:
        size = list(x_BDHWE.shape[1:4])
        window = [min(w, n) for w, n in zip(self.window, size, strict=True)]
        shift = [w // 2 if self.shifted and n > w else 0 for w, n in zip(window, size, strict=True)]
        pad = [-n % w for w, n in zip(window, size, strict=True)]

        def cut(map_BDHWE: Tensor) -> Tensor:
            """(B, D, H, W, E) of the padded map -> (B, N, T, E)"""
            x = map_BDHWE.roll([-s for s in shift], (1, 2, 3))
            for axis, w in zip((1, 3, 5), window, strict=True):
                x = x.unflatten(axis, (-1, w))
            return x.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(1, 3).flatten(2, 4)

        place = [(torch.arange(n + p) - s) // w for n, p, s, w in zip(size, pad, shift, window, strict=True)]
        real = [torch.arange(n + p) < n for n, p in zip(size, pad, strict=True)]
        region_NT3 = cut(torch.stack(torch.meshgrid(*place, indexing="ij"), -1)[None])[0]
        is_real_NT = cut(torch.stack(torch.meshgrid(*real, indexing="ij"), -1).all(-1)[None, ..., None])[0, ..., 0]
        sees_NTT = (region_NT3[:, :, None] == region_NT3[:, None]).all(-1) & is_real_NT[:, None]
        sees_NTT = sees_NTT | torch.eye(prod(window), dtype=torch.bool)  # padding sees itself: no row stays empty

        padded_BDHWE = F.pad(self.qkv(x_BDHWE), (0, 0, 0, pad[2], 0, pad[1], 0, pad[0]))
        q, k, v = cut(padded_BDHWE).unflatten(-1, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5)
        logits_BNhTT = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + self.bias(window)
        hidden_N1TT = ~sees_NTT[:, None].to(x_BDHWE.device)
        out_BNhTF = logits_BNhTT.masked_fill(hidden_N1TT, torch.finfo(q.dtype).min).softmax(-1) @ v

        x = out_BNhTF.transpose(2, 3).flatten(3)  # (B, N, T, E), and the cutting backwards
        x = x.unflatten(2, window).unflatten(1, [(n + p) // w for n, p, w in zip(size, pad, window, strict=True)])
        x = x.permute(0, 1, 4, 2, 5, 3, 6, 7).flatten(5, 6).flatten(3, 4).flatten(1, 2).roll(shift, (1, 2, 3))
        return self.proj(x[:, : size[0], : size[1], : size[2]])


class Mlp(nn.Module):
    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, int(width * ratio))
        self.fc2 = nn.Linear(int(width * ratio), width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, window: list[int], shifted: bool, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, window, shifted)
        self.mlp = Mlp(width, mlp_ratio)

    def forward(self, x_BDHWE: Tensor) -> Tensor:
        x_BDHWE = x_BDHWE + self.attn(self.norm1(x_BDHWE))
        return x_BDHWE + self.mlp(self.norm2(x_BDHWE))


class Stage(nn.Module):
    def __init__(self, blocks: list[Block]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x_BDHWE: Tensor) -> Tensor:
        for block in self.blocks:
            x_BDHWE = block(x_BDHWE)
        return x_BDHWE


class Encoder(nn.Module):
    """`architecture`: the object of that name in contract.json."""

    def __init__(self, architecture: dict[str, Any]) -> None:
        super().__init__()
        a = architecture
        if a.get("published", "no") != "no":
            raise ValueError("this file has no networks with the published code's faults; load them with maetrain")
        widths = [a["embed_dim"] * 2**s for s in range(len(a["depths"]))]
        self.stem = Stem(a["in_channels"], a["embed_dim"], a["stem_strides"])
        self.stages = nn.ModuleList(
            Stage([Block(width, heads, list(window), i % 2 == 1, a["mlp_ratio"]) for i in range(depth)])
            for width, heads, window, depth in zip(widths, a["num_heads"], a["windows"], a["depths"], strict=True)
        )
        self.downs = nn.ModuleList(Down(w, stride) for w, stride in zip(widths[:-1], a["down_strides"], strict=True))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)

    def forward(self, volume_BCDHW: Tensor) -> list[Tensor]:
        """(B, C, D, H, W) -> [(B, E * 2**s, D_s, H_s, W_s) for each stage s], shallowest first."""
        x_BDHWE = self.stem(volume_BCDHW)
        feats = []
        for s, (stage, norm) in enumerate(zip(self.stages, self.norms, strict=True)):
            x_BDHWE = stage(x_BDHWE if s == 0 else self.downs[s - 1](x_BDHWE))
            feats.append(norm(x_BDHWE).permute(0, 4, 1, 2, 3))
        return feats


def prepare(image_CDHW: Any, spacing_mm_DHW: Any, contract: dict[str, Any], modality: str = "") -> np.ndarray:
    """What the encoder was pretrained on: float32 (C, D, H, W) from a RAS image transposed to (C, D, H, W).

    Every channel is clipped and scaled by numbers of its whole scan, the air around the body is cut off, and the rest
    resampled, as `contract["preprocess"]` says. `modality`: "CT" where an encoder of intensity `auto` gets one.
    """
    how = contract["preprocess"]
    image_CDHW = np.asarray(image_CDHW, dtype=np.float32)
    is_ct = how["intensity"] == "ct" or (how["intensity"] == "auto" and modality == "CT")
    floor_C = image_CDHW.min(axis=(1, 2, 3))
    channels = []
    for channel, floor in zip(image_CDHW, floor_C, strict=True):
        if is_ct:
            low, high = how["ct_window_hu"]
            shift, scale = (low + high) / 2, (high - low) / 2
        else:
            body = channel[channel > floor]
            low, high = map(float, np.percentile(body, how["clip_percentiles"]))
            clipped = np.clip(body, np.float32(low), np.float32(high)).astype(np.float64)
            shift, scale = clipped.mean(), clipped.std()
        channels.append((np.clip(channel, low, high) - np.float32(shift)) / np.float32(scale))
    volume_CDHW = np.stack(channels).astype(np.float32)
    if how["crop_to_content"]:
        air_C = np.maximum(floor_C, how["ct_window_hu"][0]) if is_ct else floor_C
        where = np.argwhere((image_CDHW > air_C[:, None, None, None]).any(axis=0))
        if len(where):
            (d, h, w), (d_end, h_end, w_end) = where.min(0), where.max(0) + 1
            volume_CDHW = volume_CDHW[:, d:d_end, h:h_end, w:w_end]
    for axis, (now_mm, wanted_mm) in enumerate(zip(spacing_mm_DHW, how["spacing_mm"] or (), strict=False), start=1):
        num_in = volume_CDHW.shape[axis]
        weights = axis_weights(num_in, max(1, round(num_in * float(now_mm) / wanted_mm)))
        volume_CDHW = np.moveaxis(np.tensordot(weights, volume_CDHW, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(volume_CDHW)


def axis_weights(num_in: int, num_out: int) -> np.ndarray:
    """float32 (num_out, num_in): weights of the input voxels in each output voxel, over the same extent in mm.

    Linear where the grid gets finer; where coarser, a triangle as wide as the new voxel, so that nothing is skipped.
    """
    step = num_in / num_out
    centres = ((np.arange(num_out) + 0.5) * step - 0.5).clip(0, num_in - 1)
    weights = np.clip(1 - np.abs(centres[:, None] - np.arange(num_in)) / max(step, 1.0), 0, None)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
