"""Convolutions over channels-last maps, by the fastest of several ways to the same numbers.

B batch, D H W tokens, E width in, K width out
"""

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maetrain.models.config import Triple


def channels_last(map_BEDHW: Tensor) -> Tensor:
    return map_BEDHW.permute(0, 2, 3, 4, 1)


def channels_first(map_BDHWE: Tensor) -> Tensor:
    return map_BDHWE.permute(0, 4, 1, 2, 3)


# torch takes its slow kernel, on one thread and with another memory layout, for a single sample whose channels * D * H
# are no more than this (`use_mkldnn` in ATen's Convolution.cpp, torch 2.13); two samples get the fast one
SLOW_FOR_ONE = 20480


class Conv(nn.Conv3d):
    """A padded convolution over channels-last maps: (B, D, H, W, E) -> (B, D', H', W', K).

    With few output tokens it gathers their neighbourhoods and multiplies once: convolution kernels reorder the whole
    weight on every call, which for 384 -> 768 channels over 16 tokens takes 12 times as long as the product. A small
    single sample is convolved as a batch of its two halves.
    """

    def __init__(self, width: int, out_width: int, kernel: Triple, stride: Triple, padding: Triple) -> None:
        super().__init__(width, out_width, kernel, stride, padding)
        self.pads_DHW = padding

    def forward(self, x_BDHWE: Tensor) -> Tensor:
        B, *size, E = x_BDHWE.shape
        out_DHW = [
            (n + 2 * p - k) // s + 1
            for n, k, s, p in zip(size, self.kernel_size, self.stride, self.pads_DHW, strict=True)
        ]
        if B * prod(out_DHW) < E:
            return self._as_product(x_BDHWE)
        if B == 1 and out_DHW[0] % 2 == 0 and E * size[0] * size[1] <= SLOW_FOR_ONE and not x_BDHWE.is_cuda:
            return self._as_two(x_BDHWE, out_DHW[0] // 2)
        return channels_last(super().forward(channels_first(x_BDHWE)))

    def _as_product(self, x_BDHWE: Tensor) -> Tensor:
        d, h, w = self.pads_DHW
        patches = F.pad(x_BDHWE, (0, 0, w, w, h, h, d, d))
        for axis, (k, s) in enumerate(zip(self.kernel_size, self.stride, strict=True), start=1):
            patches = patches.unfold(axis, k, s)
        return F.linear(patches.flatten(4), self.weight.flatten(1), self.bias)

    def _as_two(self, x_1DHWE: Tensor, half: int) -> Tensor:
        """The sample's upper and lower half as a batch of two, `half` output slices each."""
        d, h, w = self.pads_DHW
        k, s = self.kernel_size[0], self.stride[0]
        halves_2EDHW = (
            F.pad(x_1DHWE, (0, 0, 0, 0, 0, 0, d, d)).unfold(1, s * (half - 1) + k, s * half)[0].permute(0, 3, 4, 1, 2)
        )
        halves_2EDHW = halves_2EDHW.contiguous(memory_format=torch.channels_last_3d)
        out_2KDHW = F.conv3d(halves_2EDHW, self.weight, self.bias, self.stride, (0, h, w))
        return channels_last(out_2KDHW).flatten(0, 1)[None]


class Expand(nn.ConvTranspose3d):
    """A transposed convolution with kernel = stride, no overlap, so a linear layer: every token becomes a block.

    (B, D, H, W, E) -> (B, D', H', W', K), cut to `size_DHW` where longer; where shorter, the rest is the bias, as with
    torch's output_padding.
    """

    def __init__(self, width: int, out_width: int, stride: Triple) -> None:
        super().__init__(width, out_width, stride, stride)

    def forward(self, x_BDHWE: Tensor, size_DHW: Triple) -> Tensor:  # type: ignore[override]
        B, D, H, W, _ = x_BDHWE.shape
        d, h, w = self.stride
        K = self.out_channels
        blocks = (x_BDHWE @ self.weight.flatten(1)).view(B, D, H, W, K, d, h, w)
        out_BDHWK = blocks.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(B, D * d, H * h, W * w, K)
        missing = [want - got for want, got in zip(size_DHW, out_BDHWK.shape[1:4], strict=True)]
        if any(missing):  # negative padding cuts
            out_BDHWK = F.pad(out_BDHWK, (0, 0, 0, missing[2], 0, missing[1], 0, missing[0]))
        assert self.bias is not None
        return out_BDHWK + self.bias
