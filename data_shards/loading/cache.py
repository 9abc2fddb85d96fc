"""Keeps decoded volumes in memory when the whole pool fits.

All or nothing on purpose: in a random order over a pool larger than the cache nearly every look-up misses, and then
decoding whole volumes costs more than reading just the crop.
"""

from collections.abc import Sequence

import numpy as np

from data_shards.formats.reader import ShardReader
from data_shards.order.crops import cut


class CropSource:
    """Crops of the volumes `pool` (places in the index): from memory if their float32 images fit `cache_bytes`."""

    def __init__(self, reader: ShardReader, pool: Sequence[int], cache_bytes: int) -> None:
        self.reader = reader
        shapes = reader.index.volumes.matrix("shape_CDHW")[np.unique(pool)]
        self.is_cached = 4 * int(shapes.prod(axis=1, dtype=np.int64).sum()) <= cache_bytes
        self._images: dict[int, np.ndarray] = {}

    def crop(self, i: int, start_DHW: Sequence[int], size_DHW: Sequence[int]) -> np.ndarray:
        """Image voxels [start, start + size) of volume `i`, float32 (C, *size), padded as `ShardReader.crop` does."""
        if not self.is_cached:
            return self.reader.crop(i, start_DHW, size_DHW)
        if i not in self._images:
            self._images[i] = self.reader.read(i)
        air_C = np.array(self.reader.index.volumes.stored(i).minimum_C, dtype=np.float32)
        return cut(self._images[i], start_DHW, size_DHW, air_C)
