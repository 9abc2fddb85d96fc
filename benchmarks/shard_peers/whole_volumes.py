"""Peers that read a whole volume to take one crop from it: webdataset, Mosaic Streaming, LitData, MONAI's disk cache.

Each holds the same stored volumes in its own form, uncompressed as by default, and streams for ever with its own
loader and `NUM_WORKERS` processes. One volume visited = one crop, cut in the worker, so only the crop travels.
"""

import functools
import math
import sys
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from benchmarks.shards_volumes import ScanSet, Triple, megabytes, stored_npy, whole
from data_shards.formats.index import ShardIndex
from data_shards.formats.reader import open_reader
from data_shards.order.crops import crop_start

NUM_WORKERS = 2
ENDLESS = 100_000  # items, where a loader wants a number
LITDATA_COPIES = 8  # of every volume: workers get whole chunks, and the few volumes of a set are too few of them


class Crop(NamedTuple):
    """Stored (C, *size) voxels and where they come from, so that they can be checked."""

    case: str
    start_DHW: Triple
    voxels: Tensor


class Stored(NamedTuple):
    """The set in one contender's form: `stream(crop_DHW)` yields crops for ever."""

    stream: Callable[[Triple], Iterator[Crop]]
    megabytes: float


class Cropper:
    """Cuts a random crop out of a volume in memory. Every worker draws its own starts, the same ones in every run."""

    def __init__(self, crop_DHW: Triple) -> None:
        self.crop_DHW = crop_DHW
        self._rng: np.random.Generator | None = None

    def start(self, shape_DHW: tuple[int, ...]) -> Triple:
        if self._rng is None:
            worker = get_worker_info()
            self._rng = np.random.default_rng(worker.id if worker else 0)
        return crop_start(self._rng, shape_DHW, self.crop_DHW)

    def __call__(self, case: str, image_CDHW: np.ndarray) -> Crop:
        start = self.start(image_CDHW.shape[1:])
        d, h, w = (slice(a, a + n) for a, n in zip(start, self.crop_DHW, strict=True))
        return Crop(case, start, torch.from_numpy(np.array(image_CDHW[:, d, h, w])))


class OurCrops(Dataset[Crop]):
    """Item k is a random crop of volume k % n, of which our reader decodes what the crop touches."""

    def __init__(self, index: ShardIndex, crop_DHW: Triple) -> None:
        self.index, self.cropper, self.reader = index, Cropper(crop_DHW), open_reader(index)

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, k: int) -> Crop:
        i = k % len(self.index.volumes)
        start = self.cropper.start(self.index.volumes[i].shape_DHW)
        voxels = self.reader.stored_crop(i, start, self.cropper.crop_DHW)
        return Crop(self.index.volumes[i].case, start, torch.from_numpy(voxels))


def ours(index: ShardIndex) -> Stored:
    """Our shards, of either format, by a plain DataLoader over our reader."""
    return Stored(lambda crop_DHW: _loaded(OurCrops(index, crop_DHW)), megabytes(index.root, len(index.volumes)))


def webdataset_tars(scans: ScanSet) -> Stored:
    """A tar for each worker, image.npy members, WebDataset(...).repeat().decode()."""
    import webdataset

    sources, folder = stored_npy(scans), scans.peers / "webdataset"
    if not folder.exists():
        with whole(folder) as temporary:
            per_tar = math.ceil(len(sources) / NUM_WORKERS)
            with webdataset.ShardWriter(f"{temporary}/%03d.tar", maxcount=per_tar, verbose=0) as writer:
                for source in sources:
                    writer.write({"__key__": source.stem, "image.npy": np.load(source)})
    tars = [str(path) for path in sorted(folder.glob("*.tar"))]

    def stream(crop_DHW: Triple) -> Iterator[Crop]:
        cut = functools.partial(_cut_tar_sample, Cropper(crop_DHW))
        data = webdataset.WebDataset(tars, shardshuffle=False).repeat().decode().map(cut)
        return iter(webdataset.WebLoader(data, batch_size=None, num_workers=NUM_WORKERS, worker_init_fn=_one_thread))

    return Stored(stream, megabytes(folder, len(sources)))


def mosaic_streaming(scans: ScanSet) -> Stored:
    """MDS shards with an ndarray column, read from the local folder."""
    streaming = _import_streaming()
    sources, folder = stored_npy(scans), scans.peers / "mds"
    if not folder.exists():
        with whole(folder) as temporary:
            columns = {"case": "str", "image": f"ndarray:{np.load(sources[0], mmap_mode='r').dtype}"}
            with streaming.MDSWriter(out=str(temporary), columns=columns, size_limit=_part_bytes(sources)) as writer:
                for source in sources:
                    writer.write({"case": source.stem, "image": np.load(source)})

    class Volumes(streaming.StreamingDataset):  # type: ignore[name-defined]
        cropper: Cropper

        def __getitem__(self, at: Any) -> Crop:
            sample = super().__getitem__(at)
            return self.cropper(sample["case"], sample["image"])

    streaming.base.util.clean_stale_shared_memory()
    data = Volumes(local=str(folder), batch_size=1, epoch_size=ENDLESS)

    def stream(crop_DHW: Triple) -> Iterator[Crop]:
        data.cropper = Cropper(crop_DHW)
        return _loaded(data)

    return Stored(stream, megabytes(folder, len(sources)))


def litdata_chunks(scans: ScanSet) -> Stored:
    """optimize(), StreamingDataset and StreamingDataLoader.

    Version 0.2.76 maps local chunks into memory, so of a volume it too reads only what the crop touches.
    """
    import litdata

    sources, folder = stored_npy(scans), scans.peers / "litdata"
    if not folder.exists():
        with whole(folder) as temporary:
            # In a process of its own: what it leaves behind makes workers that are forked later abort at their end.
            writer = get_context("spawn").Process(target=_write_litdata, args=(sources * LITDATA_COPIES, temporary))
            writer.start()
            writer.join()
            if writer.exitcode != 0:
                raise RuntimeError(f"its writer ended with {writer.exitcode}")

    def stream(crop_DHW: Triple) -> Iterator[Crop]:
        cut = functools.partial(_cut_litdata_sample, Cropper(crop_DHW))
        data = litdata.StreamingDataset(str(folder), transform=cut)
        endless = litdata.ParallelStreamingDataset([data], length=math.inf)
        loader = litdata.StreamingDataLoader(
            endless, batch_size=1, num_workers=NUM_WORKERS, collate_fn=_only, worker_init_fn=_one_thread
        )
        return (crop for (crop,) in loader)

    return Stored(stream, megabytes(folder, len(sources) * LITDATA_COPIES))


class MonaiCrops(Dataset[Crop]):
    """Crops of a PersistentDataset's items, which are read from its cache with torch.load."""

    def __init__(self, cached: Any, cropper: Cropper) -> None:
        self.cached, self.cropper = cached, cropper

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, k: int) -> Crop:
        item = self.cached[k % len(self.cached)]
        return self.cropper(item["case"], item["image"].numpy())


def monai_cache(scans: ScanSet) -> Stored:
    """PersistentDataset: the first visit writes the tensor with torch.save, all others load it whole."""
    from monai.data import PersistentDataset
    from monai.transforms import Compose, Transform

    class Load(Transform):  # the cache holds what the deterministic transforms at the head give
        def __call__(self, item: dict[str, str]) -> dict[str, Any]:
            return {"case": item["case"], "image": torch.from_numpy(np.load(item["image"]))}

    sources, folder = stored_npy(scans), scans.peers / "monai"
    items = [{"case": source.stem, "image": str(source)} for source in sources]
    cached = PersistentDataset(items, transform=Compose([Load()]), cache_dir=folder)
    for k in range(len(items)):
        cached[k]

    def stream(crop_DHW: Triple) -> Iterator[Crop]:
        return _loaded(MonaiCrops(cached, Cropper(crop_DHW)))

    return Stored(stream, megabytes(folder, len(sources)))


PEERS: dict[str, Callable[[ScanSet], Stored]] = {
    "webdataset, .npy in tars": webdataset_tars,
    "Mosaic Streaming, MDS": mosaic_streaming,
    "LitData": litdata_chunks,
    "MONAI PersistentDataset": monai_cache,
}


def _loaded(data: Dataset) -> Iterator[Crop]:
    """The items of a data set by a plain DataLoader."""
    return iter(DataLoader(data, batch_size=1, collate_fn=_only, num_workers=NUM_WORKERS, worker_init_fn=_one_thread))


def _only(items: list[Any]) -> Any:
    """The one item of a batch of one."""
    return items[0]


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


def _cut_tar_sample(cropper: Cropper, sample: dict[str, Any]) -> Crop:
    return cropper(sample["__key__"], sample["image.npy"])


def _cut_litdata_sample(cropper: Cropper, sample: dict[str, Any]) -> Crop:
    return cropper(sample["case"], sample["image"])


def _part_bytes(sources: list[Path]) -> int:
    """64 MiB a shard or chunk, as recommended; or one volume: MDS would put an empty shard before one too large."""
    return max(2**26, *(path.stat().st_size + 2**16 for path in sources))


def _write_litdata(sources: list[Path], folder: Path) -> None:
    import litdata

    litdata.optimize(
        fn=_litdata_sample,
        inputs=[str(source) for source in sources],
        output_dir=str(folder),
        chunk_bytes=_part_bytes(sources),
        num_workers=1,
        verbose=False,
    )


def _litdata_sample(path: str) -> dict[str, Any]:
    return {"case": Path(path).stem, "image": np.load(path)}


def _import_streaming() -> ModuleType:
    """Streaming beside a stand-in for torchvision, which it needs for CIFAR data sets and which needs CUDA's torch."""
    import transformers.feature_extraction_utils  # noqa: F401 (it looks for torchvision too, and must not find this)

    attributes: dict[str, dict[str, Any]] = {
        "torchvision": {},
        "torchvision.datasets": {"VisionDataset": object},
        "torchvision.transforms": {},
        "torchvision.transforms.functional": {"to_tensor": torch.as_tensor},
    }
    for name, values in attributes.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(values)
    try:
        import streaming
    finally:
        for name in attributes:
            del sys.modules[name]
    return streaming
