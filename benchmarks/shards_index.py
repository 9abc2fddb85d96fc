"""Part `index`: opening an index of many rows, and finding one rank's samples in it. No voxels, no peers.

The index is written once; each reading runs in a process of its own, whose peak memory is its alone.
"""

import hashlib
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.shards_rounds import Result, Settings, spread
from data_shards.formats.encoding import Member
from data_shards.formats.index import INDEX_NAME, ShardIndex, ShardInfo
from data_shards.formats.volumes import VolumeRecord, VolumeTable
from data_shards.order.partition import step_passes
from data_shards.order.shuffle import EpochOrder
from data_shards.order.world import World
from data_shards.preprocess import PreprocessConfig

RANKS = 1024
PER_SHARD = 32


class Opened(NamedTuple):
    """Seconds of a process that opens an index, and its peak memory."""

    open_s: float
    order_s: float
    ranks_s: float
    sample_us: float
    imports_bytes: int
    peak_bytes: int


def measure_index(rows: int, out: Path, settings: Settings) -> Result:
    """`rows` synthetic scans; one more round is dropped, in which the file comes into the page cache."""
    folder = out / f"index-{rows}"
    if not (folder / INDEX_NAME).exists():
        settings.say(f"index: writing {rows} rows")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _in_process(_write, folder, rows)
    found = [_in_process(_open, folder) for _ in range(settings.rounds + 1)][1:]
    megabytes = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    peaks = [(row.peak_bytes - row.imports_bytes) / 1e6 for row in found]
    return Result(
        lines=[
            f"### index: {rows:,} scans",
            "",
            f"- on disk {megabytes:.0f} MB; open, with its hash checked: {spread([r.open_s for r in found])} s",
            f"- order of an epoch: {spread([r.order_s for r in found], '.3f')} s",
            f"- places of a micro step for each of {RANKS} ranks: {spread([r.ranks_s for r in found], '.4f')} s",
            f"- what reading one more sample needs: {spread([r.sample_us for r in found], '.0f')} microseconds",
            f"- peak memory beyond the imports: {spread(peaks, '.0f')} MB",
            "",
        ]
    )


def _write(folder: Path, rows: int) -> None:
    block = 10_000
    tables = [
        VolumeTable.of(_record(i) for i in range(first, min(first + block, rows))) for first in range(0, rows, block)
    ]
    shards = tuple(
        ShardInfo(f"shard-{k:05d}.zarr", _sha256(f"shard {k}"), 2**26) for k in range((rows - 1) // PER_SHARD + 1)
    )
    ShardIndex(
        format="zarr",
        name="synthetic",
        channel_names=("image",),
        class_names=("background",),
        preprocess=PreprocessConfig(),
        volumes=VolumeTable.join(tables),
        shards=shards,
        root=folder,
    ).save(folder)


def _open(folder: Path) -> Opened:
    imports_bytes = _peak_bytes()
    started = time.perf_counter()
    index = ShardIndex.load(folder)
    opened = time.perf_counter()
    order = EpochOrder(len(index.volumes), seed=0)
    order.at(0)
    ordered = time.perf_counter()
    places = [
        [order.at(p)[1] for p in step_passes(0, 2 * RANKS, 2, World(rank, RANKS))[0].positions] for rank in range(RANKS)
    ]
    found = time.perf_counter()
    index.volumes.stored(places[0][0])  # the first one reads the columns
    one_read = time.perf_counter()
    for rank in range(RANKS):
        index.volumes.stored(places[rank][1])
    sample_us = (time.perf_counter() - one_read) / RANKS * 1e6
    return Opened(opened - started, ordered - opened, found - ordered, sample_us, imports_bytes, _peak_bytes())


def _record(i: int) -> VolumeRecord:
    """Row `i`, its text as hard to compress as a real one's."""
    return VolumeRecord(
        case=f"case_{i:07d}",
        subject=f"subject_{i // 2:07d}",
        shard=f"shard-{i // PER_SHARD:05d}.zarr",
        shape_CDHW=(1, 140 + i % 31, 170 + i % 37, 130 + i % 29),
        spacing_mm=(1.0, 1.0, 1.0),
        voxel_sha256=_sha256(f"voxels {i}"),
        source=f"imagesTr/case_{i:07d}.nii.gz",
        has_label=i % 10 == 0,
        label_classes=(0, 1, 2) if i % 10 == 0 else (),
        preprocess={"shift_C": [i / 7], "scale_C": [1 + i % 97 / 31], "crop_start": [i % 11, i % 13, i % 17]},
        stored_sha256={"image": _sha256(f"stored {i}")},
        members={"image": Member(i % PER_SHARD * 2**21, 2**21, i)},
        mean=i % 89 / 89,
        std=1.0,
        minimum_C=(-1.5,),
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _peak_bytes() -> int:
    """VmHWM: getrusage's peak would be inherited from the process that started this one."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _in_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function` gives in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()
