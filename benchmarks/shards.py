"""Our shards beside what others read, stream and build from the very same scans.

    python -m benchmarks.shards --quick                                   # small, to see that all of it runs
    python -m benchmarks.shards --only reader --crop 96 --sets mr
    python -m benchmarks.shards --write benchmarks/results/shards.md      # everything

Needs the peers of requirements-shards.txt; one that is absent costs a line and the exit status. Everything is in the
page cache, all libraries are held to one thread, and ratios are taken inside a round: ours / peer, above 1 = ours is
faster.

- reader: random crops on one core; blosc2 as in nnU-Net v2, tensorstore, zarrs and zarr-python on our shards
- webdataset: whole-volume readers with two workers, one crop a visit; webdataset, Mosaic Streaming, LitData, MONAI
- loader: our loader with two workers beside two processes that only read
- build: scan to shard beside nnU-Net v2's preprocessing, one core
- s3: bytes and requests of one epoch of crops out of a bucket on this machine
- index: a million synthetic scans: opening, memory, the places of 1024 ranks
- resume: a loader that starts in the middle of an epoch of a million scans
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.machine import add_write_option, append_result, describe
from benchmarks.shards_bucket import fetch_epoch
from benchmarks.shards_building import build_scans
from benchmarks.shards_index import measure_index
from benchmarks.shards_reading import read_crops
from benchmarks.shards_resume import measure_resume
from benchmarks.shards_rounds import Result, Settings
from benchmarks.shards_streaming import load_batches, read_whole_volumes
from benchmarks.shards_volumes import SETS, ScanSet, open_set

PARTS_OF_A_SET: dict[str, Callable[[ScanSet, Settings], Result]] = {
    "reader": read_crops,
    "webdataset": read_whole_volumes,
    "loader": load_batches,
    "build": build_scans,
    "s3": fetch_epoch,
}
PARTS_ALONE: dict[str, Callable[[int, Path, Settings], Result]] = {
    "index": measure_index,
    "resume": measure_resume,
}
PARTS = (*PARTS_OF_A_SET, *PARTS_ALONE)
PACKAGES = (
    "numpy", "numcodecs", "zarr", "zarrs", "tensorstore", "blosc2", "nnunetv2", "webdataset", "mosaicml-streaming",
    "litdata", "monai",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--crop", type=int, nargs="+", metavar="SIDE", default=[64, 96, 128])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one measurement by two workers")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of part index")
    parser.add_argument("--mr", type=Path, default=Path("../shared/data/open_ms"), help="folder of open_ms")
    parser.add_argument("--out", type=Path, default=Path("out-shards"), help="scratch folder, kept for the next run")
    parser.add_argument(
        "--quick", action="store_true", help="few and small scans, one crop size, 2 rounds, 10,000 rows"
    )
    add_write_option(parser)
    arguments = parser.parse_args()
    if min(arguments.rounds, arguments.rows, *arguments.crop) < 1 or arguments.seconds <= 0:
        parser.error("--rounds, --rows, --crop and --seconds are positive numbers")
    torch.set_num_threads(1)
    os.environ.setdefault("RAYON_NUM_THREADS", "1")  # zarrs reads it at its first call

    sides, rounds, seconds, rows = arguments.crop, arguments.rounds, arguments.seconds, arguments.rows
    if arguments.quick:
        sides, rounds, seconds, rows = sides[:1], min(rounds, 2), min(seconds, 0.5), min(rows, 10_000)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    result, remarks = Result(), []
    for name in arguments.sets if set(arguments.only) & set(PARTS_OF_A_SET) else ():
        scans = open_set(name, arguments.mr, arguments.out, arguments.quick)
        remarks.append(f"{name}: {scans.remark}")
        say(f"{remarks[-1]}, stored as {scans.shapes_DHW}")
        smallest = min(min(shape) for shape in scans.shapes_DHW)  # the peers don't pad
        settings = Settings(tuple((side, side, side) for side in sides if side <= smallest), rounds, seconds, say)
        result.failed += [f"{name} does not hold crops of {side}^3" for side in sides if side > smallest]
        for part, measure in PARTS_OF_A_SET.items():
            if part in arguments.only and settings.crops_DHW:
                say(f"{part}, {name}")
                result.add(measure(scans, settings))
    for part, measure_alone in PARTS_ALONE.items():
        if part in arguments.only:
            result.add(measure_alone(rows, arguments.out, Settings((), rounds, seconds, say)))
    text = "\n".join(
        [
            f"## Shards, {time.strftime('%Y-%m-%d')}{', QUICK: no result' if arguments.quick else ''}",
            "",
            f"{describe(torch.device('cpu'), PACKAGES)}. {rounds} rounds; median (lowest-highest); ours / peer above "
            f"1 = ours is faster. {'; '.join(remarks)}",
            "",
            *result.lines,
            *(f"- {line}" for line in dict.fromkeys(result.failed)),
            "",
        ]
    )
    append_result(arguments.write, text)
    if result.failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
