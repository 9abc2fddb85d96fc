"""Peers that read a crop out of a stored volume: blosc2 as nnU-Net uses it, and three readers of our own zarr shards.

Each opens its arrays once and keeps them, copies each crop into an array of its own, and is held to one thread.
nnU-Net itself opens the file anew for every patch (and a label and a pickle besides): the peer here is spared that.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.shards_volumes import ScanSet, Triple, megabytes, stored_npy


class CropReader(Protocol):
    """A crop of volume `i` of the set: as stored, (C, *size). `megabytes`: of a volume on disk, on average."""

    megabytes: float

    def read(self, i: int, start_DHW: Triple, size_DHW: Triple) -> np.ndarray: ...


class _Arrays:
    """Whatever lets itself be sliced like an array."""

    def __init__(self, arrays: list[Any], megabytes: float) -> None:
        self.arrays, self.megabytes = arrays, megabytes

    def read(self, i: int, start_DHW: Triple, size_DHW: Triple) -> np.ndarray:
        d, h, w = (slice(a, a + n) for a, n in zip(start_DHW, size_DHW, strict=True))
        return np.asarray(self.arrays[i][:, d, h, w])


class MemoryMap(_Arrays):
    """Uncompressed .npy files, mapped: what reading costs without any decoding."""

    def __init__(self, scans: ScanSet, crop_DHW: Triple) -> None:
        paths = stored_npy(scans)
        super().__init__([np.load(path, mmap_mode="r") for path in paths], _mean_megabytes(paths))

    def read(self, i: int, start_DHW: Triple, size_DHW: Triple) -> np.ndarray:
        return np.array(super().read(i, start_DHW, size_DHW))  # a view of the map has read nothing yet


class Blosc2(_Arrays):
    """nnU-Net v2's own rule for chunks and blocks, its own saving and its own way to open, with a codec of choice."""

    def __init__(self, scans: ScanSet, crop_DHW: Triple, codec: str, level: int) -> None:
        import blosc2
        from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

        blosc2.set_nthreads(1)
        folder = scans.peers / f"blosc2-{codec.lower()}-{level}-for-{'x'.join(map(str, crop_DHW))}"
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for source in stored_npy(scans):
            paths.append(folder / f"{source.stem}.b2nd")
            if paths[-1].with_suffix(".pkl").exists():  # its last file
                continue
            image_CDHW = np.load(source)
            blocks, chunks = comp_blosc2_params(image_CDHW.shape, crop_DHW, image_CDHW.itemsize)
            no_label = np.zeros((1, 1, 1, 1), dtype=np.int8)
            nnUNetDatasetBlosc2.save_case(
                image_CDHW,
                no_label,
                {},
                str(folder / source.stem),
                chunks=chunks,
                blocks=blocks,
                chunks_seg=no_label.shape,
                blocks_seg=no_label.shape,
                clevel=level,
                codec=blosc2.Codec[codec],
            )
        arrays = [blosc2.open(str(path), mode="r", dparams={"nthreads": 1}, mmap_mode="r") for path in paths]
        super().__init__(arrays, _mean_megabytes(paths))


class ZarrPython(_Arrays):
    """zarr-python on our shards, by its own pipeline or by the Rust one of `zarrs`."""

    def __init__(self, scans: ScanSet, crop_DHW: Triple, pipeline: str | None = None) -> None:
        import zarr

        settings: dict[str, Any] = {"threading.max_workers": 1}
        if pipeline is not None:
            settings["codec_pipeline.path"] = pipeline
        with zarr.config.set(settings):  # a pipeline takes its settings when its array is opened
            arrays = [zarr.open_array(path, mode="r") for path in _shard_arrays(scans)]
        super().__init__(arrays, megabytes(scans.index.root, len(scans.index.volumes)))


class TensorStore:
    """tensorstore on our shards, without a cache of its own."""

    def __init__(self, scans: ScanSet, crop_DHW: Triple) -> None:
        import tensorstore

        context = tensorstore.Context(
            {"data_copy_concurrency": {"limit": 1}, "file_io_concurrency": {"limit": 1}, "cache_pool": {}}
        )
        specs = [{"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{p}/"}} for p in _shard_arrays(scans)]
        self.arrays = [tensorstore.open(spec, context=context, open=True, read=True).result() for spec in specs]
        self.megabytes = megabytes(scans.index.root, len(scans.index.volumes))

    def read(self, i: int, start_DHW: Triple, size_DHW: Triple) -> np.ndarray:
        d, h, w = (slice(a, a + n) for a, n in zip(start_DHW, size_DHW, strict=True))
        return self.arrays[i][:, d, h, w].read().result()


def _zarrs(scans: ScanSet, crop_DHW: Triple) -> CropReader:
    import zarrs

    return ZarrPython(scans, crop_DHW, f"{zarrs.__name__}.ZarrsCodecPipeline")


PEERS: dict[str, Callable[[ScanSet, Triple], CropReader]] = {
    "npy memory map": MemoryMap,
    "blosc2, zstd 5": lambda scans, crop: Blosc2(scans, crop, "ZSTD", 5),
    "blosc2, lz4hc 5 (nnU-Net 2.8)": lambda scans, crop: Blosc2(scans, crop, "LZ4HC", 5),
    "tensorstore on our shards": TensorStore,
    "zarrs on our shards": _zarrs,
    "zarr-python on our shards": ZarrPython,
}


def _shard_arrays(scans: ScanSet) -> list[Path]:
    return [scans.index.root.resolve() / volume.shard / volume.case / "image" for volume in scans.index.volumes]


def _mean_megabytes(paths: list[Path]) -> float:
    return sum(path.stat().st_size for path in paths) / len(paths) / 1e6
