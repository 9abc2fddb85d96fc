"""Shards as zarr v3 groups: `shard-00000.zarr/<case>/image` and `/label`, each one sharded, checksummed array.

An array is one file of inner chunks of at most 32^3 voxels, so a crop decodes only the chunks it touches. Each chunk
carries a crc32c of its own (the sharding codec by itself protects just its index). Any zarr v3 reader opens them.
"""

import math
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from data_shards.formats.files import published
from data_shards.formats.index import VolumeRecord
from data_shards.formats.sample import Members, ShardSample
from data_shards.order.crops import slices

SUFFIX = ".zarr"
MAX_CHUNK = 32
_MAX_OPEN_ARRAYS = 1024


def write_shard(path: Path, samples: Iterable[ShardSample]) -> list[Members]:
    """Write one group, whole or not at all; one (empty) `Members` per sample."""
    members: list[Members] = []
    with published(path) as temporary:
        root = zarr.open_group(temporary, mode="w", zarr_format=3)
        for sample in samples:
            group = root.create_group(sample.case, attributes=sample.meta)
            for what, array in sample.arrays().items():
                _write_array(group, what, array)
            members.append({})
    return members


class ZarrBackend:
    """Reads boxes of stored arrays. Opened arrays are kept, but never pickled; zarr itself starts anew after a fork."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._arrays: dict[tuple[str, str, str], Any] = {}

    def read_box(self, volume: VolumeRecord, what: str, start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
        """Voxels [start, stop) of the last three axes, in the stored type."""
        key = (volume.shard, volume.case, what)
        if key not in self._arrays:
            if len(self._arrays) >= _MAX_OPEN_ARRAYS:
                self._arrays.clear()
            self._arrays[key] = zarr.open_array(self.root / volume.shard, path=f"{volume.case}/{what}", mode="r")
        d, h, w = slices(start, stop)
        return np.asarray(self._arrays[key][..., d, h, w])

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "_arrays": {}}


def _write_array(group: zarr.Group, name: str, array: np.ndarray) -> None:
    spatial = [math.ceil(n / math.ceil(n / MAX_CHUNK)) for n in array.shape[-3:]]  # even parts: little padding
    chunks = (1,) * (array.ndim - 3) + tuple(spatial)
    whole = tuple(math.ceil(n / chunk) * chunk for n, chunk in zip(array.shape, chunks, strict=True))
    with warnings.catch_warnings():
        # zarr 3.1 still calls crc32c's place among the codecs unsettled; the spec's registered name is what it writes.
        warnings.simplefilter("ignore")
        stored = group.create_array(
            name,
            shape=array.shape,
            dtype=array.dtype,
            chunks=chunks,
            shards=whole,
            compressors=[ZstdCodec(level=3), Crc32cCodec()],
        )
    stored[...] = array
