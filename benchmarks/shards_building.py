"""Part `build`: one scan from its file to its shard, beside nnU-Net v2's preprocessing of the same scan.

One process on one core; round r takes scan r for both, each after one scan to warm up.
"""

import functools
import shutil
import time
from pathlib import Path

from benchmarks.shard_peers.nnunet import NnunetPreprocessing
from benchmarks.shards_rounds import Result, Settings, duel_table, in_rounds, one_core, warm
from benchmarks.shards_volumes import ScanSet, megabytes
from data_shards.build import build

PEER = "nnU-Net v2 preprocessing (float32)"


def build_scans(scans: ScanSet, settings: Settings) -> Result:
    result = Result()
    files = sorted(scans.archive.glob("*.nii.gz"))
    make = functools.partial(NnunetPreprocessing, files[0], settings.crops_DHW[0], is_ct=scans.name == "ct")
    peer = result.attempt(PEER, make, settings)
    if peer is None:
        return result
    timed = scans.scratch / "timed"
    shutil.rmtree(timed, ignore_errors=True)
    ours = functools.partial(_our_rate, scans, files, timed)
    theirs = functools.partial(_their_rate, peer, files, timed)
    warm(scans.archive)
    with one_core():
        ours(0)
        theirs(0)
        duels = in_rounds(ours, {PEER: theirs}, settings)
    num_built = min(settings.rounds, len(files))
    sizes = {"ours": megabytes(timed / "ours", num_built), PEER: megabytes(timed / "peer", num_built)}
    shutil.rmtree(timed)
    result.lines += [f"### build: {scans.name}", "", *duel_table(duels, "volumes/s and core", sizes)]
    return result


def _our_rate(scans: ScanSet, files: list[Path], timed: Path, number: int) -> float:
    scan = files[number % len(files)]
    archive, out = timed / "archive", timed / "ours" / scan.name
    for folder in (archive, out):
        shutil.rmtree(folder, ignore_errors=True)
    archive.mkdir(parents=True)
    (archive / scan.name).symlink_to(scan.resolve())
    started = time.perf_counter()
    build(archive, out, scans.config)
    return 1 / (time.perf_counter() - started)


def _their_rate(peer: NnunetPreprocessing, files: list[Path], timed: Path, number: int) -> float:
    scan = files[number % len(files)]
    out = timed / "peer" / scan.name
    shutil.rmtree(out, ignore_errors=True)
    started = time.perf_counter()
    peer.run(scan, out)
    return 1 / (time.perf_counter() - started)
