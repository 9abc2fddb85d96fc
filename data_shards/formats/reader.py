"""Reads volumes and crops of a build, whatever its format and wherever it lies. Safe to pickle and to use after a fork.

C channels, D H W voxels, depth first.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from data_shards.errors import InputError
from data_shards.formats import webdataset_shards, zarr_shards
from data_shards.formats.encoding import StoredArray
from data_shards.formats.index import ShardIndex
from data_shards.formats.storage import LocalFiles, Storage
from data_shards.formats.volumes import Stored
from data_shards.order.crops import overlap, pad_crop

What = Literal["image", "label"]
_MEMBER_FILE = {"zarr": zarr_shards.member_file, "webdataset": webdataset_shards.member_file}
_MAX_OPEN_ARRAYS = 1024  # chunk tables of 4 to 40 KB each


class ShardReader:
    """Random access to the volumes of `index`, by their place in `index.volumes`."""

    def __init__(self, index: ShardIndex, storage: Storage) -> None:
        self.index = index
        self.storage = storage
        self._open: OrderedDict[tuple[int, What], StoredArray] = OrderedDict()

    def read(self, i: int, what: What = "image") -> np.ndarray:
        """The whole image float32 (C, D, H, W) or label uint8 (D, H, W)."""
        return self.crop(i, (0, 0, 0), self.index.volumes.stored(i).shape_CDHW[1:], what)

    def crop(self, i: int, start_DHW: Sequence[int], size_DHW: Sequence[int], what: What = "image") -> np.ndarray:
        """The voxels [start, start + size), float32 (C, *size) or uint8 (*size).

        What lies outside the volume is the volume's minimum (air) in an image and 0 in a label. Raises InputError for
        the label of an unlabelled volume, ShardError for a shard that is missing, damaged or of another build.
        """
        volume = self.index.volumes.stored(i)
        begin, end = overlap(start_DHW, size_DHW, volume.shape_CDHW[1:])
        voxels = self._read_box(i, volume, what, begin, end)
        if what == "label":
            return pad_crop(voxels, start_DHW, size_DHW, 0)
        image_CDHW = voxels.astype(np.float32)
        if volume.dtype != "float16":
            image_CDHW *= np.float32(volume.scale)
            image_CDHW += np.float32(volume.offset)
        return pad_crop(image_CDHW, start_DHW, size_DHW, np.array(volume.minimum_C, dtype=np.float32))

    def stored_crop(self, i: int, start_DHW: Sequence[int], size_DHW: Sequence[int], what: What = "image") -> np.ndarray:
        """Like `crop` of a box inside the volume, but as stored: float16 or int16 where `crop` gives float32."""
        volume = self.index.volumes.stored(i)
        end = [start + size for start, size in zip(start_DHW, size_DHW, strict=True)]
        return self._read_box(i, volume, what, start_DHW, end)

    def _read_box(
        self, i: int, volume: Stored, what: What, begin: Sequence[int], end: Sequence[int]
    ) -> np.ndarray:
        if what == "label":
            if not volume.has_label:
                raise InputError(f"{volume.case} has no label: choose labelled cases")
            return self._array(i, volume, what).read_box(self.storage, begin, end)
        channels = volume.shape_CDHW[0]
        return self._array(i, volume, what).read_box(self.storage, (0, *begin), (channels, *end))

    def _array(self, i: int, volume: Stored, what: What) -> StoredArray:
        if (i, what) in self._open:
            self._open.move_to_end((i, what))
        else:
            if len(self._open) >= _MAX_OPEN_ARRAYS:
                self._open.popitem(last=False)
            file = _MEMBER_FILE[self.index.format](volume.shard, volume.case, what)
            shape = volume.shape_CDHW if what == "image" else volume.shape_CDHW[1:]
            member, dtype, fill = (
                (volume.image, np.dtype(volume.dtype), volume.air)
                if what == "image"
                else (volume.label, np.dtype(np.uint8), 0)
            )
            grid = self.index.encoding.grid(shape)
            self._open[i, what] = StoredArray(self.storage, file, member, grid, dtype, fill)
        return self._open[i, what]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}


def open_reader(index: ShardIndex) -> ShardReader:
    """A reader of the shards under `index.root`. Opens no file yet."""
    return ShardReader(index, LocalFiles(index.root))
