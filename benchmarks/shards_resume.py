"""Part `resume`: a loader that starts inside an epoch of a million scans, beside one that came there by itself.

The index has `rows` rows over a few small volumes that are really there, so every crop is read and compared.
"""

import itertools
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.shards_rounds import Result, Settings, spread
from benchmarks.shards_volumes import write_small_archive
from data_shards.build import BuildConfig, build
from data_shards.formats.index import INDEX_NAME, ShardIndex
from data_shards.formats.volumes import VolumeTable
from data_shards.loading.pretrain import PretrainBatch, pretrain_batches
from data_shards.order.world import World

CROP_DHW = (16, 16, 16)
MICRO_BATCH = 100


def measure_resume(rows: int, out: Path, settings: Settings) -> Result:
    """The time from nothing but the folder's name to the first batch, half an epoch in."""
    folder = out / f"resume-{rows}"
    if not (folder / INDEX_NAME).exists():
        settings.say(f"resume: writing {rows} rows")
        _write(folder, rows)
    middle = rows // 2 // MICRO_BATCH * MICRO_BATCH
    settings.say(f"resume: {middle} samples the long way")
    walked = next(itertools.islice(_batches(folder, 0), middle // MICRO_BATCH, None))
    seconds, equal = [], True
    for _ in range(settings.rounds + 1):
        started = time.perf_counter()
        resumed = next(_batches(folder, middle))
        seconds.append(time.perf_counter() - started)
        equal &= resumed.keys == walked.keys and torch.equal(resumed.volume_BCDHW, walked.volume_BCDHW)
        equal &= torch.equal(resumed.seeds_B, walked.seeds_B)
    verdict = "equal to" if equal else "DIFFERENT FROM"
    return Result(
        lines=[
            f"### resume: at sample {middle:,} of an epoch of {rows:,}",
            "",
            f"- index opened and first batch of {MICRO_BATCH} read: {spread(seconds[1:], '.2f')} s",
            f"- first batch {verdict} that of the run that read all {middle:,} before",
            "",
        ],
        failed=[] if equal else ["resume: the first batch differs"],
    )


def _batches(folder: Path, samples_seen: int) -> Iterator[PretrainBatch]:
    index = ShardIndex.load(folder)
    return pretrain_batches(
        index,
        np.arange(len(index.volumes)).tolist(),
        CROP_DHW,
        MICRO_BATCH,
        World(),
        seed=0,
        samples_seen=samples_seen,
        cache_bytes=0,
    )


def _write(folder: Path, rows: int) -> None:
    # In a tar a volume is found by its byte range, so many rows may share one.
    archive = write_small_archive(folder / "archive", (24, 24, 24), num_scans=8)
    small = build(archive, folder, BuildConfig(format="webdataset"))
    records = list(small.volumes)
    block = 10_000
    tables = [
        VolumeTable.of(
            replace(records[i % len(records)], case=f"case_{i:07d}") for i in range(first, min(first + block, rows))
        )
        for first in range(0, rows, block)
    ]
    replace(small, volumes=VolumeTable.join(tables)).save(folder)
