"""Reads volumes and crops of a build, whatever its format and wherever it lies. Safe to pickle and to use after a fork.

C channels, D H W voxels, depth first.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from upath import UPath

from data_shards.errors import InputError, ShardError
from data_shards.formats import webdataset_shards, zarr_shards
from data_shards.formats.disk_cache import CacheConfig, DiskCache, cache_from_environment
from data_shards.formats.encoding import StoredArray
from data_shards.formats.files import is_remote
from data_shards.formats.index import ShardIndex
from data_shards.formats.remote import RemoteFiles
from data_shards.formats.sample import widened
from data_shards.formats.storage import LocalFiles, Storage
from data_shards.formats.volumes import Stored
from data_shards.order.crops import inside, overlap

What = Literal["image", "label"]
_MEMBER_FILE = {"zarr": zarr_shards.member_file, "webdataset": webdataset_shards.member_file}
_MAX_OPEN_ARRAYS = 1024  # chunk tables of 4 to 40 KB each


class ShardReader:
    """Random access to the volumes of `index`, by their place in `index.volumes`."""

    def __init__(self, index: ShardIndex, storage: Storage) -> None:
        self.index = index
        self.storage = storage
        self._shards = frozenset(shard.name for shard in index.shards)
        self._open: OrderedDict[tuple[int, What], tuple[StoredArray, np.ndarray]] = OrderedDict()

    def read(self, i: int, what: What = "image") -> np.ndarray:
        """The whole image float32 (C, D, H, W) or label uint8 (D, H, W)."""
        return self.crop(i, (0, 0, 0), self.index.volumes.stored(i).shape_CDHW[1:], what)

    def crop(self, i: int, start_DHW: Sequence[int], size_DHW: Sequence[int], what: What = "image") -> np.ndarray:
        """The voxels [start, start + size), float32 (C, *size) or uint8 (*size).

        What lies outside the volume is the volume's minimum (air) in an image and 0 in a label. Raises InputError for
        the label of an unlabelled volume, ShardError for a shard that is missing, damaged or of another build.
        """
        stored = self.stored_crop(i, start_DHW, size_DHW, what)
        if what == "label":
            return stored
        volume = self.index.volumes.stored(i)
        return widened(stored, volume.scale, volume.offset)

    def stored_crop(
        self, i: int, start_DHW: Sequence[int], size_DHW: Sequence[int], what: What = "image"
    ) -> np.ndarray:
        """Like `crop`, but as stored: float16 or int16 where `crop` gives float32. Half the bytes, a third of the time:
        numpy widens float16 slowly, torch and GPUs do it in passing."""
        return self.stored_crops(i, [start_DHW], size_DHW, what)[0]

    def stored_crops(
        self,
        i: int,
        starts_DHW: Sequence[Sequence[int]],
        size_DHW: Sequence[int],
        what: What = "image",
        into: Sequence[np.ndarray] | None = None,
    ) -> list[np.ndarray]:
        """Several `stored_crop`s of one volume; a chunk that more than one of them touches is decoded once.

        `into` are arrays to write the crops into, of their shape and type.
        """
        array, air = self._array(i, what)
        *channels, depth, height, width = array.grid.shape
        crops = list(into or (np.empty((*channels, *size_DHW), dtype=array.dtype) for _ in starts_DHW))
        boxes, inner = [], []
        for start, crop in zip(starts_DHW, crops, strict=True):
            begin, end = overlap(start, size_DHW, (depth, height, width))
            boxes.append(((*([0] * len(channels)), *begin), (*channels, *end)))
            inner.append(inside(crop, start, begin, end))
            if inner[-1].shape != crop.shape:
                crop[...] = air
        array.read_boxes(self.storage, boxes, inner)
        return crops

    def _array(self, i: int, what: What) -> tuple[StoredArray, np.ndarray]:
        """An array, opened, and what lies around it: one number or one a channel (C, 1, 1, 1)."""
        if (i, what) in self._open:
            self._open.move_to_end((i, what))
            return self._open[i, what]
        if len(self._open) >= _MAX_OPEN_ARRAYS:
            self._open.popitem(last=False)
        volume = self.index.volumes.stored(i)
        is_ours = volume.dtype == self.index.encoding.dtype and volume.shard in self._shards
        if not is_ours or min(volume.shape_CDHW) < 1:
            raise ShardError(
                f"{volume.case}: {volume.dtype} {volume.shape_CDHW} in {volume.shard!r} can't be in these shards: "
                "build again"
            )
        shape: tuple[int, ...] = volume.shape_CDHW
        air: np.ndarray = stored_air_C(volume).reshape(-1, 1, 1, 1)
        dtype, fill, member = volume.dtype, volume.air, volume.image
        if what == "label":
            if not volume.has_label:
                raise InputError(f"{volume.case} has no label: choose labelled cases")
            shape, dtype, fill, member, air = shape[1:], "uint8", 0, volume.label, np.zeros(1, dtype=np.uint8)
        file = _MEMBER_FILE[self.index.format](volume.shard, volume.case, what)
        grid = self.index.encoding.grid(shape)
        self._open[i, what] = StoredArray(self.storage, file, member, grid, np.dtype(dtype), fill), air
        return self._open[i, what]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}


def stored_air_C(volume: Stored) -> np.ndarray:
    """Each channel's minimum as it is stored: what surrounds the volume."""
    minimum_C = np.array(volume.minimum_C, dtype=np.float64)
    if volume.dtype == "float16":
        return minimum_C.astype(np.float16)
    return np.rint((minimum_C - volume.offset) / volume.scale).astype(volume.dtype)


def open_reader(index: ShardIndex, cache: CacheConfig | None = None) -> ShardReader:
    """A reader of the shards under `index.root`. Opens no file yet.

    Shards in a bucket are kept in the disk `cache`; None = the one that the environment names, if it names one.
    """
    if not is_remote(index.root):
        return ShardReader(index, LocalFiles(index.root))
    files = RemoteFiles(UPath(index.root))
    cache = cache or cache_from_environment()
    if cache.folder is None:
        return ShardReader(index, files)
    versions = {shard.name: shard.sha256 for shard in index.shards}
    return ShardReader(index, DiskCache(files, cache.folder, cache.limit_bytes, versions))
