"""What an epoch of random crops costs from a bucket, in bytes and requests: one crop of each volume, without a cache.

    python -m benchmarks.shard_s3 out/shards            # a folder of built shards
    python -m benchmarks.shard_s3 out/shards --crop 96

The bucket is moto's, in a process of its own on this machine: it counts like S3, its speed says nothing. Needed are the
bytes of the chunks that the crops touch; fetched are these, the chunk tables and the gaps read along.
"""

import argparse
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import fsspec
from upath import UPath

from data_shards.formats.disk_cache import CacheConfig
from data_shards.formats.index import ShardIndex
from data_shards.formats.reader import open_reader
from data_shards.formats.remote import RemoteFiles
from data_shards.formats.storage import Bytes, Range
from data_shards.order.crops import crop_start
from data_shards.order.streams import stream

BUCKET = "shards"


class Counted:
    """A storage that adds up what is asked of it."""

    def __init__(self, source: RemoteFiles) -> None:
        self.source = source
        self.num_bytes, self.num_ranges = 0, 0

    def read(self, file: str, ranges: Sequence[Range]) -> Sequence[Bytes]:
        self.num_bytes += sum(size for _, size in ranges)
        self.num_ranges += len(ranges)
        return self.source.read(file, ranges)

    def read_again(self, file: str, ranges: Sequence[Range]) -> Sequence[Bytes]:
        return self.source.read_again(file, ranges)


def measure(index_dir: Path, crop: int) -> dict[str, float]:
    """One epoch of crops of `crop`^3 voxels of the shards in the local folder `index_dir`.

    Gives crops, needed_bytes, fetched_bytes, ratio (fetched / needed), chunks_per_crop and requests_per_crop; the
    request for the chunk table is among these, as every crop is the first of its volume.
    """
    with _server() as options:
        return _measure(_uploaded(index_dir, options), crop)


def _measure(root: Path, crop: int) -> dict[str, float]:
    index = ShardIndex.load(root)
    reader = open_reader(index, CacheConfig())
    files = reader.storage
    assert isinstance(files, RemoteFiles)
    counted = Counted(files)
    reader.storage = counted
    num_crops = len(index.volumes)
    table_bytes = 0
    for i, volume in enumerate(index.volumes):
        size = (crop, crop, crop)
        reader.stored_crop(i, crop_start(stream(0, "crop", 0, i), volume.shape_DHW, size), size)
        table_bytes += 16 * index.encoding.grid(volume.shape_CDHW).num_chunks + 4
    needed_bytes = counted.num_bytes - table_bytes
    return {
        "crops": num_crops,
        "needed_bytes": needed_bytes,
        "fetched_bytes": files.bytes_fetched,
        "ratio": files.bytes_fetched / needed_bytes,
        "chunks_per_crop": (counted.num_ranges - num_crops) / num_crops,
        "requests_per_crop": files.num_requests / num_crops,
    }


@contextmanager
def _server() -> Iterator[dict[str, Any]]:
    """An empty S3 in another process; gives the options by which fsspec reaches it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    try:
        yield {"endpoint_url": f"http://127.0.0.1:{ours.recv()}", "key": "nobody", "secret": "nothing"}
    finally:
        process.terminate()
        process.join()


def _serve(answer: Connection) -> None:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    answer.send(server.get_host_and_port()[1])
    answer.poll(None)  # until the other end is gone


def _uploaded(folder: Path, options: dict[str, Any]) -> Path:
    files = fsspec.filesystem("s3", **options)
    files.mkdir(BUCKET)
    files.put(f"{os.fspath(folder).rstrip('/')}/", f"{BUCKET}/x/", recursive=True)
    return cast(Path, UPath(f"s3://{BUCKET}/x", **options))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of built shards, on this machine")
    parser.add_argument("--crop", type=int, nargs="+", metavar="SIDE", default=[64, 96, 128])
    arguments = parser.parse_args()
    print("| crop | crops | needed MB | fetched / needed | chunks a crop | requests a crop |")
    print("|---|---|---|---|---|---|")
    with _server() as options:
        root = _uploaded(arguments.folder, options)
        for side in arguments.crop:
            of = _measure(root, side)
            print(
                f"| {side}^3 | {of['crops']} | {of['needed_bytes'] / 1e6:.1f} | {of['ratio']:.3f} | "
                f"{of['chunks_per_crop']:.1f} | {of['requests_per_crop']:.1f} |"
            )


if __name__ == "__main__":
    main()
