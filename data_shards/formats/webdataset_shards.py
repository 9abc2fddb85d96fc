"""Shards as webdataset tars: `<case>.image.npy`, `<case>.label.npy`, `<case>.json`. Equal input gives equal bytes.

Standard readers stream them. Ours goes by the byte ranges in the index: it maps the tar into memory and touches just
the pages of the crop. Nothing is unpickled.
"""

import io
import json
import mmap
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import webdataset

from data_shards.errors import InputError
from data_shards.formats.files import published
from data_shards.formats.index import VolumeRecord
from data_shards.formats.sample import Members, ShardSample
from data_shards.order.crops import slices

SUFFIX = ".tar"


def write_shard(path: Path, samples: Iterable[ShardSample]) -> list[Members]:
    """Write one tar, whole or not at all; per sample the byte ranges of its arrays."""
    cases: list[str] = []
    with published(path) as temporary:
        with temporary.open("wb") as file:
            # Fixed owner, mode and time: the bytes depend on the samples alone.
            writer = webdataset.TarWriter(file, user="root", group="root", mode=0o444, encoder=False, mtime=0)
            for sample in samples:
                parts = {f"{what}.npy": _npy_bytes(array) for what, array in sample.arrays().items()}
                meta = json.dumps(sample.meta, sort_keys=True).encode()
                writer.write({"__key__": sample.case, **parts, "json": meta})
                cases.append(sample.case)
            writer.close()
        with tarfile.open(temporary) as tar:
            ranges = {info.name: (info.offset_data, info.size) for info in tar}
    return [
        {what: ranges[f"{case}.{what}.npy"] for what in ("image", "label") if f"{case}.{what}.npy" in ranges}
        for case in cases
    ]


class TarBackend:
    """Reads boxes of stored arrays. Memory maps are opened on first use and never pickled; a fork may share them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._maps: dict[str, mmap.mmap] = {}

    def read_box(self, volume: VolumeRecord, what: str, start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
        """Voxels [start, stop) of the last three axes, in the stored type."""
        d, h, w = slices(start, stop)
        return np.array(self._array(volume, what)[..., d, h, w])

    def _array(self, volume: VolumeRecord, what: str) -> np.ndarray:
        """A view into the memory map, nothing read yet."""
        if volume.shard not in self._maps:
            with (self.root / volume.shard).open("rb") as file:
                self._maps[volume.shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        tar, (offset, size) = self._maps[volume.shard], volume.members[what]
        header = io.BytesIO(tar[offset : offset + min(size, 256)])
        try:
            np.lib.format.read_magic(header)
            shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(header)
            if is_fortran or dtype.hasobject:
                raise ValueError("unexpected npy layout")
            return np.ndarray(shape, dtype, buffer=tar, offset=offset + header.tell())
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{self.root / volume.shard}: {what} of {volume.case} is damaged ({error}): "
                "run `maetrain shards verify`, remove the shard and build again"
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "_maps": {}}


def _npy_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()
