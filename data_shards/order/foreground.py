"""Where a volume holds anatomy, in blocks of 16 voxels, and crops that hold some of it. Pure.

A block counts as foreground when at least a quarter of it does. One bit a block: some hundred bytes a volume, so the
grid stands in the index and choosing a crop reads no shard. D H W are voxels or blocks, depth first.
"""

import math
import zlib
from collections.abc import Sequence

import numpy as np

from data_shards.order.crops import Triple, crop_start, overlap

BLOCK = 16
_BLOCK_SHARE = 0.25
_TRIES = 16


def pack_foreground(is_foreground_DHW: np.ndarray) -> bytes:
    """The grid of a volume's mask (bool, True = anatomy), compressed."""
    share_DHW = is_foreground_DHW.astype(np.float32)
    for axis in range(3):
        edges = np.arange(0, share_DHW.shape[axis], BLOCK)
        size = np.diff(np.append(edges, share_DHW.shape[axis])).astype(np.float32)
        sums = np.add.reduceat(share_DHW, edges, axis=axis)
        share_DHW = (sums / size.reshape([-1 if a == axis else 1 for a in range(3)])).astype(np.float32)
    return zlib.compress(np.packbits(share_DHW >= _BLOCK_SHARE).tobytes(), 9)


class ForegroundGrid:
    """The packed grid of a volume of `shape_DHW` voxels. Raises ValueError for bytes that are no such grid."""

    def __init__(self, packed: bytes, shape_DHW: Sequence[int]) -> None:
        blocks = [math.ceil(n / BLOCK) for n in shape_DHW]
        try:
            raw = zlib.decompress(packed)
            if len(raw) != math.ceil(math.prod(blocks) / 8):
                raise ValueError(f"{len(raw)} bytes for {math.prod(blocks)} blocks")
            bits = np.unpackbits(np.frombuffer(raw, dtype=np.uint8), count=math.prod(blocks))
            self.is_foreground_DHW = bits.reshape(blocks).astype(bool)
        except (zlib.error, ValueError) as error:
            raise ValueError(f"no foreground grid of {tuple(shape_DHW)} voxels ({error})") from None
        self.shape_DHW = tuple(shape_DHW)
        # sums[d, h, w] = foreground blocks before d, h, w: any box is counted by eight look-ups
        self._sums_DHW = np.zeros([n + 1 for n in blocks], dtype=np.int64)
        self._sums_DHW[1:, 1:, 1:] = self.is_foreground_DHW.cumsum(0).cumsum(1).cumsum(2)

    def share(self, start_DHW: Sequence[int], crop_DHW: Sequence[int]) -> float:
        """Share, 0..1, of foreground among the blocks that the crop touches."""
        begin, end = overlap(start_DHW, crop_DHW, self.shape_DHW)
        (d0, h0, w0), (d1, h1, w1) = ([a // BLOCK for a in begin], [-(-b // BLOCK) for b in end])
        s = self._sums_DHW
        count = (
            s[d1, h1, w1] - s[d0, h1, w1] - s[d1, h0, w1] - s[d1, h1, w0]
            + s[d0, h0, w1] + s[d0, h1, w0] + s[d1, h0, w0] - s[d0, h0, w0]
        )  # fmt: skip
        return float(count) / max(1, (d1 - d0) * (h1 - h0) * (w1 - w0))


def anatomy_start(rng: np.random.Generator, grid: ForegroundGrid, crop_DHW: Sequence[int], min_share: float) -> Triple:
    """Start of the first of up to 16 random crops whose foreground share is at least `min_share` (0..1), or the best.

    Drawn as `crop_start` draws; with `min_share` 0 it is the same crop.
    """
    best, best_share = None, -1.0
    for _ in range(_TRIES):
        start = crop_start(rng, grid.shape_DHW, crop_DHW)
        share = grid.share(start, crop_DHW)
        if share >= min_share:
            return start
        if share > best_share:
            best, best_share = start, share
    assert best is not None
    return best
