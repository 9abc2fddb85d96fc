"""Part `reader`: random crops by one core, the same list for everybody; every peer's voxels are compared with ours."""

import functools
import time
from collections.abc import Callable

import numpy as np

from benchmarks.shard_peers.random_access import PEERS
from benchmarks.shards_rounds import Result, Settings, duel_table, in_rounds, one_core, same_voxels, warm
from benchmarks.shards_volumes import ScanSet, Triple, draw_crops, megabytes
from data_shards.formats.reader import open_reader

OUR_SECONDS = 0.3  # about what ours takes of a round

Read = Callable[[int, Triple, Triple], np.ndarray]  # volume, start, size -> (C, *size)


def read_crops(scans: ScanSet, settings: Settings) -> Result:
    result = Result()
    for size_DHW in settings.crops_DHW:
        _one_size(scans, size_DHW, settings, result)
    return result


def _one_size(scans: ScanSet, size_DHW: Triple, settings: Settings, result: Result) -> None:
    ours = open_reader(scans.index).stored_crop
    makers = {name: functools.partial(make, scans, size_DHW) for name, make in PEERS.items()}
    peers = result.attempt_all(makers, settings)
    for i, start in draw_crops(scans.shapes_DHW, size_DHW, len(scans.shapes_DHW), 0):
        for name, peer in peers.items():
            same_voxels(name, peer.read(i, start, size_DHW), ours(i, start, size_DHW))
    warm(scans.index.root)
    warm(scans.peers)
    with one_core():
        count = max(4, round(OUR_SECONDS * _rate(ours, scans, size_DHW, 16, 0)))
        rates = {name: functools.partial(_rate, peer.read, scans, size_DHW, count) for name, peer in peers.items()}
        duels = in_rounds(functools.partial(_rate, ours, scans, size_DHW, count), rates, settings)
    sizes = {"ours": megabytes(scans.index.root, len(scans.shapes_DHW))}
    sizes |= {name: peer.megabytes for name, peer in peers.items()}
    result.lines += [f"### reader: {scans.name}, crops of {size_DHW}", ""]
    result.lines += duel_table(duels, "crops/s and core", sizes)


def _rate(read: Read, scans: ScanSet, size_DHW: Triple, count: int, number: int) -> float:
    """Crops a second of round `number`."""
    crops = draw_crops(scans.shapes_DHW, size_DHW, count, number)
    started = time.perf_counter()
    for i, start in crops:
        read(i, start, size_DHW)
    return count / (time.perf_counter() - started)
