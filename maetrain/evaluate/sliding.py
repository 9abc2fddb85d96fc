"""Class probabilities of a volume of any size from windows that slide over it, slab by slab along D.

Windows, Gaussian weights and their sum are those of MONAI's `sliding_window_inference`, and so are the probabilities.
MONAI keeps the logits of the whole volume, 9.4 GB for a CT of 512 x 512 x 600 voxels and 15 classes. Here the windows
come in the order of D, and the rows that no later window touches leave at once: what is kept are the logits of one
window's height, K * window_D * H * W * 4 bytes (1 GB for 64 rows of that CT), on the network's device.

B batch, C channel, D H W voxels, d rows of a slab, K classes
"""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from torch import Tensor, nn

from data_shards.errors import InputError
from maetrain.models.config import Triple

SIGMA = 0.125  # of the Gaussian, as a share of the window
ROWS_AT_ONCE = 8  # of probabilities that leave: they are copied a few times on their way


class Sliding(NamedTuple):
    """How windows go over a volume.

    overlap: share of a window that the next one covers again, 0 <= overlap < 1. windows_at_once: batch of the network,
    at least 1. mirror_axes: logits are averaged over all flips along these axes (0 = D, 1 = H, 2 = W); wrong along W
    where left and right are different classes.
    """

    overlap: float = 0.5
    windows_at_once: int = 4
    mirror_axes: tuple[int, ...] = ()

    def check(self) -> None:
        if not 0 <= self.overlap < 1:
            raise InputError(f"overlap {self.overlap}: give a share from 0 to below 1, 0.5 as a rule")
        if self.windows_at_once < 1:
            raise InputError(f"{self.windows_at_once} windows at once: give at least 1")
        if len(set(self.mirror_axes)) < len(self.mirror_axes) or not set(self.mirror_axes) <= {0, 1, 2}:
            raise InputError(f"mirror axes {self.mirror_axes}: give each of 0 (D), 1 (H) and 2 (W) once at most")


USUAL = Sliding()


@torch.no_grad()
def probability_slabs(
    network: nn.Module, volume_CDHW: Tensor, window_DHW: Triple, how: Sliding = USUAL, overlapping: bool = False
) -> Iterator[Tensor]:
    """(K, d, H, W) float32 on the CPU, one slab after another until all rows of the prepared volume have come.

    `overlapping`: outputs are regions, each with a probability of its own, and no classes that exclude each other.

    A volume smaller than the window is padded on both sides, each channel by its minimum, as crops are in training.
    """
    how.check()
    device = next(network.parameters()).device
    padded_CDHW, before_DHW = _pad_to_window(volume_CDHW, window_DHW)
    padded_DHW = padded_CDHW.shape[1:]
    step = [n if n == w else max(int(w * (1 - how.overlap)), 1) for n, w in zip(padded_DHW, window_DHW, strict=True)]
    places = dense_patch_slices(padded_DHW, window_DHW, step)  # by D first
    weight_DHW = compute_importance_map(window_DHW, mode="gaussian", sigma_scale=SIGMA, device=device)
    sums = _Sums(padded_DHW, window_DHW[0], device, overlapping)
    inside = [slice(b, b + n) for b, n in zip(before_DHW, volume_CDHW.shape[1:], strict=True)]
    for at in range(0, len(places), how.windows_at_once):
        batch = places[at : at + how.windows_at_once]
        windows_BCDHW = torch.stack([padded_CDHW[:, d, h, w] for d, h, w in batch]).to(device)
        logits_BKDHW = _logits(network, windows_BCDHW, how.mirror_axes)
        for (d, h, w), logits_KDHW in zip(batch, logits_BKDHW, strict=True):
            yield from sums.leaving(d.start, inside)
            sums.add(h, w, logits_KDHW, weight_DHW)
    yield from sums.leaving(padded_DHW[0], inside)


def _pad_to_window(volume_CDHW: Tensor, window_DHW: Triple) -> tuple[Tensor, list[int]]:
    """The volume, at least as large as the window, and how many voxels were put before it on each axis."""
    size_DHW = volume_CDHW.shape[1:]
    padded_DHW = [max(w, n) for w, n in zip(window_DHW, size_DHW, strict=True)]
    before = [(w - n) // 2 for w, n in zip(padded_DHW, size_DHW, strict=True)]
    if padded_DHW == [*size_DHW]:
        return volume_CDHW, before
    padded_CDHW = volume_CDHW.amin((1, 2, 3), keepdim=True).repeat(1, *padded_DHW)
    d, h, w = (slice(b, b + n) for b, n in zip(before, size_DHW, strict=True))
    padded_CDHW[:, d, h, w] = volume_CDHW
    return padded_CDHW, before


def _logits(network: nn.Module, windows_BCDHW: Tensor, mirror_axes: Sequence[int]) -> Tensor:
    """Full-resolution logits (B, K, D, H, W), the mean over all flips along `mirror_axes`."""
    logits = network(windows_BCDHW)[0].float()
    flips = [axes for n in range(len(mirror_axes)) for axes in combinations(mirror_axes, n + 1)]
    for axes in flips:
        dims = [axis + 2 for axis in axes]
        logits = logits + network(windows_BCDHW.flip(dims))[0].float().flip(dims)
    return logits / (len(flips) + 1)


class _Sums:
    """Weighted logits and weights of the rows that windows still reach, beginning with row `top` of the volume."""

    def __init__(self, size_DHW: Sequence[int], rows: int, device: torch.device, overlapping: bool) -> None:
        self.overlapping = overlapping
        self.top, self.rows, self.device = 0, rows, device
        _, self.height, self.width = size_DHW
        self.weights_dHW = torch.zeros(rows, self.height, self.width, device=device)
        self.logits_dKHW = torch.empty(0)

    def add(self, h: slice, w: slice, logits_KDHW: Tensor, weight_DHW: Tensor) -> None:
        """A window that begins at row `top`."""
        if not len(self.logits_dKHW):
            shape = self.rows, len(logits_KDHW), self.height, self.width
            self.logits_dKHW = torch.zeros(shape, device=self.device)
        self.logits_dKHW[:, :, h, w].addcmul_(logits_KDHW.transpose(0, 1), weight_DHW[:, None])
        self.weights_dHW[:, h, w] += weight_DHW

    def leaving(self, top: int, inside: Sequence[slice]) -> Iterator[Tensor]:
        """Probabilities (K, d, H, W) of the rows above `top`, which becomes the first; padding is cut off."""
        depth, height, width = inside
        num_leaving = min(top - self.top, self.rows)
        first, end = (min(max(row - self.top, 0), num_leaving) for row in (depth.start, depth.stop))
        for row in range(first, end, ROWS_AT_ONCE):
            some = slice(row, min(row + ROWS_AT_ONCE, end))
            mean_dKHW = self.logits_dKHW[some, :, height, width] / self.weights_dHW[some, None, height, width]
            prob_dKHW = mean_dKHW.sigmoid() if self.overlapping else mean_dKHW.softmax(1)
            yield prob_dKHW.transpose(0, 1).cpu()
        if num_leaving:
            for kept in (self.logits_dKHW, self.weights_dHW):
                for row in range(num_leaving, self.rows):  # row by row: source and target overlap
                    kept[row - num_leaving] = kept[row]
                kept[self.rows - num_leaving :] = 0
        self.top = top
