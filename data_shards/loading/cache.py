"""Keeps decoded volumes in memory when the whole pool fits.

All or nothing on purpose: in a random order over a pool larger than the cache nearly every look-up misses, and then
decoding whole volumes costs more than reading just the crop.
"""

from collections.abc import Sequence

import numpy as np

from data_shards.errors import ShardError
from data_shards.formats.reader import ShardReader, stored_air_C
from data_shards.order.crops import cut


class CropSource:
    """Crops of the volumes `pool` (places in the index): from memory if their stored images fit `cache_bytes`."""

    def __init__(self, reader: ShardReader, pool: Sequence[int], cache_bytes: int) -> None:
        self.reader = reader
        self.is_cached = cache_bytes > 0 and _stored_bytes(reader, pool) <= cache_bytes
        self._images: dict[int, np.ndarray] = {}
        self._damaged: set[int] = set()
        self._scratch: np.ndarray | None = None

    def read(
        self, i: int, starts_DHW: Sequence[Sequence[int]], size_DHW: Sequence[int], into: Sequence[np.ndarray]
    ) -> None:
        """Write crops of volume `i` into the arrays `into`, as `ShardReader.stored_crops` does."""
        if not self._keeps(i):
            if len(into) > 1:
                self.reader.stored_crops(i, starts_DHW, size_DHW, into=into)
                return
            # A crop is put together from short rows. Doing that in memory the processor still has at hand, and copying
            # it in one go, takes a fifth less than writing rows into a batch that was last touched a while ago.
            if self._scratch is None or self._scratch.shape != into[0].shape:
                self._scratch = np.empty_like(into[0])
            self.reader.stored_crops(i, starts_DHW, size_DHW, into=[self._scratch])
            into[0][...] = self._scratch
            return
        air_C = stored_air_C(self.reader.index.volumes.stored(i))
        for start, crop in zip(starts_DHW, into, strict=True):
            crop[...] = cut(self._images[i], start, size_DHW, air_C)

    def _keeps(self, i: int) -> bool:
        """Whether volume `i` is in memory, now. A damaged one is read crop by crop: most of it may be whole."""
        if self.is_cached and i not in self._images and i not in self._damaged:
            try:
                shape_DHW = self.reader.index.volumes.stored(i).shape_CDHW[1:]
                self._images[i] = self.reader.stored_crop(i, (0, 0, 0), shape_DHW)
            except ShardError:
                self._damaged.add(i)
        return i in self._images


def _stored_bytes(reader: ShardReader, pool: Sequence[int]) -> int:
    shapes = reader.index.volumes.matrix("shape_CDHW")[np.unique(pool)]
    return 2 * int(shapes.prod(axis=1, dtype=np.int64).sum())  # 2 bytes a voxel
