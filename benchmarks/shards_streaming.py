"""Parts `webdataset` and `loader`: crops a second out of loaders with two worker processes.

Every measurement starts its loader anew and closes it, so no contender's workers run beside another's.
"""

import functools
import time
from collections.abc import Iterator
from multiprocessing import get_context
from typing import Any

from benchmarks.shard_peers.whole_volumes import NUM_WORKERS, PEERS, Stored, ours
from benchmarks.shards_rounds import Result, Settings, duel_table, in_rounds, same_voxels, spread, warm
from benchmarks.shards_volumes import ScanSet, Triple, draw_crops
from data_shards.build import build
from data_shards.formats.index import ShardIndex
from data_shards.formats.reader import ShardReader, open_reader
from data_shards.loading.pretrain import pretrain_batches
from data_shards.order.world import World

MICRO_BATCH = 8


def read_whole_volumes(scans: ScanSet, settings: Settings) -> Result:
    """Two workers everywhere; a peer takes one crop of every volume it visits, ours decodes what the crop touches."""
    result = Result()
    tar_config = scans.config.model_copy(update={"format": "webdataset"})
    tar_index = build(scans.archive, scans.scratch / "ours-webdataset", tar_config)
    makers = {name: functools.partial(make, scans) for name, make in PEERS.items()}
    stored = {"our webdataset format": ours(tar_index)} | result.attempt_all(makers, settings)
    ours_stored = ours(scans.index)
    warm(scans.scratch)
    for size_DHW in settings.crops_DHW:
        checks = {name: functools.partial(_checked, name, peer, scans, size_DHW) for name, peer in stored.items()}
        peers = result.attempt_all(checks, settings)
        rates = {name: functools.partial(_stream_rate, peer, size_DHW, settings) for name, peer in peers.items()}
        duels = in_rounds(functools.partial(_stream_rate, ours_stored, size_DHW, settings), rates, settings)
        sizes = {name: peer.megabytes for name, peer in peers.items()} | {"ours": ours_stored.megabytes}
        result.lines += [f"### webdataset: {scans.name}, crops of {size_DHW}, {NUM_WORKERS} workers", ""]
        result.lines += duel_table(duels, "crops/s", sizes)
    return result


def load_batches(scans: ScanSet, settings: Settings) -> Result:
    """What our loader costs: its crops a second, beside two processes that do nothing but read."""
    result = Result()
    warm(scans.index.root)
    for size_DHW in settings.crops_DHW:
        loader = functools.partial(_loader_rate, scans.index, size_DHW, settings)
        bare = functools.partial(_bare_rate, scans.index, size_DHW, settings)
        duel = in_rounds(loader, {"bare": bare}, settings)["bare"]
        result.lines += [
            f"### loader: {scans.name}, crops of {size_DHW}",
            "",
            f"- `pretrain_batches`, {NUM_WORKERS} workers, batch {MICRO_BATCH}: {spread(duel.ours, '.1f')} crops/s",
            f"- {NUM_WORKERS} processes that only call `reader.stored_crop`: {spread(duel.peer, '.1f')} crops/s",
            f"- loader / bare reading: {spread(duel.ratios)}",
            "",
        ]
    return result


def _checked(name: str, stored: Stored, scans: ScanSet, size_DHW: Triple) -> Stored:
    """A contender whose first crops are ours."""
    reader = open_reader(scans.index)
    places = {volume.case: i for i, volume in enumerate(scans.index.volumes)}
    stream = stored.stream(size_DHW)
    for _ in range(4):
        crop = next(stream)
        d, h, w = (int(n) for n in crop.start_DHW)
        same_voxels(name, crop.voxels.numpy(), reader.stored_crop(places[crop.case], (d, h, w), size_DHW))
    return stored


def _stream_rate(stored: Stored, size_DHW: Triple, settings: Settings, number: int) -> float:
    return _rate(stored.stream(size_DHW), settings.seconds)


def _loader_rate(index: ShardIndex, size_DHW: Triple, settings: Settings, number: int) -> float:
    pool = range(len(index.volumes))
    batches = pretrain_batches(index, pool, size_DHW, MICRO_BATCH, World(), seed=number, num_workers=NUM_WORKERS)
    return MICRO_BATCH * _rate(batches, settings.seconds)


def _rate(things: Iterator[Any], seconds: float) -> float:
    """Things a second after the start: what the workers made until then is not counted."""
    for _ in range(2 * NUM_WORKERS):  # torch's prefetch factor is 2
        next(things)
    started, count = time.perf_counter(), 0
    while (taken := time.perf_counter() - started) < seconds:
        next(things)
        count += 1
    return count / taken


def _bare_rate(index: ShardIndex, size_DHW: Triple, settings: Settings, number: int) -> float:
    """Crops a second of all processes together."""
    context = get_context("fork")
    answers, gate = context.Queue(), context.Barrier(NUM_WORKERS)
    children = [
        context.Process(target=_only_read, args=(open_reader(index), size_DHW, settings.seconds, seed, gate, answers))
        for seed in range(NUM_WORKERS * number, NUM_WORKERS * (number + 1))
    ]
    for child in children:
        child.start()
    total = sum(answers.get(timeout=60 + 10 * settings.seconds) for _ in children)
    for child in children:
        child.join()
    return total


def _only_read(reader: ShardReader, size_DHW: Triple, seconds: float, seed: int, gate: Any, answers: Any) -> None:
    crops = draw_crops([volume.shape_DHW for volume in reader.index.volumes], size_DHW, 1000, seed)
    reader.stored_crop(*crops[0], size_DHW)
    gate.wait()
    started, count = time.perf_counter(), 0
    while (taken := time.perf_counter() - started) < seconds:
        reader.stored_crop(*crops[count % len(crops)], size_DHW)
        count += 1
    answers.put(count / taken)
