"""Reads volumes and crops of a build, whatever its format. Safe to pickle and to use after a fork.

C channels, D H W voxels, depth first.
"""

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np

from data_shards.errors import InputError
from data_shards.formats.index import ShardIndex, VolumeRecord
from data_shards.formats.webdataset_shards import TarBackend
from data_shards.formats.zarr_shards import ZarrBackend
from data_shards.order.crops import overlap, pad_crop

What = Literal["image", "label"]


class Backend(Protocol):
    """What a format has to offer: voxels [start, stop) of one stored array."""

    def read_box(self, volume: VolumeRecord, what: str, start: Sequence[int], stop: Sequence[int]) -> np.ndarray: ...


class ShardReader:
    """Random access to the volumes of `index`, by their place in `index.volumes`."""

    def __init__(self, index: ShardIndex, backend: Backend) -> None:
        self.index = index
        self._backend = backend

    def read(self, i: int, what: What = "image") -> np.ndarray:
        """The whole image float32 (C, D, H, W) or label uint8 (D, H, W)."""
        return self.crop(i, (0, 0, 0), self.index.volumes[i].shape_DHW, what)

    def crop(self, i: int, start_DHW: Sequence[int], size_DHW: Sequence[int], what: What = "image") -> np.ndarray:
        """The voxels [start, start + size), float32 (C, *size) or uint8 (*size).

        What lies outside the volume is the volume's minimum (air) in an image and 0 in a label. Raises InputError for
        the label of an unlabelled volume and for a shard that is missing or damaged.
        """
        volume = self.index.volumes[i]
        if what == "label" and not volume.has_label:
            raise InputError(f"{volume.case} has no label: choose labelled cases")
        begin, end = overlap(start_DHW, size_DHW, volume.shape_DHW)
        try:
            stored = self._backend.read_box(volume, what, begin, end)
        except OSError as error:
            raise InputError(
                f"{self.index.root / volume.shard}: can't be read ({error.strerror or error}): "
                "give the folder that holds the shards or build again"
            ) from None
        if what == "label":
            return pad_crop(stored, start_DHW, size_DHW, 0)
        return pad_crop(stored.astype(np.float32), start_DHW, size_DHW, np.array(volume.minimum_C, dtype=np.float32))


def open_reader(index: ShardIndex) -> ShardReader:
    """A reader of the shards under `index.root`. Opens no file yet."""
    backend: Backend = ZarrBackend(index.root) if index.format == "zarr" else TarBackend(index.root)
    return ShardReader(index, backend)
