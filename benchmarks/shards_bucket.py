"""Part `s3`: what the first epoch of random crops fetches from a bucket, over what it needs."""

from benchmarks.shard_s3 import measure
from benchmarks.shards_rounds import Result, Settings
from benchmarks.shards_volumes import ScanSet


def fetch_epoch(scans: ScanSet, settings: Settings) -> Result:
    """One crop of each volume, without a cache, from moto's server in a process of its own."""
    lines = [
        f"### s3: {scans.name}, the first epoch, no cache",
        "",
        "| crops of | fetched / needed bytes | requests a crop | chunks a crop |",
        "|---|---|---|---|",
    ]
    for size_DHW in settings.crops_DHW:
        found = measure(scans.index.root, size_DHW[0])
        lines.append(
            f"| {size_DHW} | {found['ratio']:.3f} | {found['requests_per_crop']:.1f} | {found['chunks_per_crop']:.1f} |"
        )
    return Result(lines=[*lines, ""])
