"""Formulas for checkpoints and resume of N ranks (docs/decisions/0015): what waits, what threads do beside it.

A checkpoint is one file a rank of its runs of weight and moments, the curve of all steps so far,
and the manifest. `before_0015` is the design that came first, for comparison.
"""

from typing import NamedTuple

from benchmarks import scale_constants as c
from benchmarks import scale_model as model
from benchmarks.scale_manifest import network, point_bytes, runs_of_ranks


class Size(NamedTuple):
    """What is stored: `steps` so far, each with a line in the curve."""

    parameters: int
    gpus: int
    steps: float

    @property
    def state_bytes(self) -> float:
        return c.STATE_BYTES * self.parameters

    @property
    def curve_bytes(self) -> float:
        return self.steps * point_bytes()

    @property
    def files(self) -> int:
        """A rank each; curve, events."""
        return self.gpus + 2

    def read_s(self, bytes_: float) -> float:
        """All ranks together, from the shared file system."""
        return max(bytes_ / c.STORAGE_BYTES_PER_S, bytes_ / model.nodes_of(self.gpus) / c.NODE_STORAGE_BYTES_PER_S)


def stall_s(size: Size) -> dict[str, float]:
    """What training waits for. The copy goes through a pinned buffer of the driver's into memory that is new."""
    copied_s = size.state_bytes / size.gpus * (1 / c.HOST_COPY_BYTES_PER_S + 1 / c.FRESH_COPY_BYTES_PER_S)
    # all_gather_object: two collectives, then each rank takes each description from its GPU and unpickles it
    gathered_s = size.gpus * (c.DESCRIPTION_S + c.LAUNCH_S) + 2 * model.gather_s(0, size.gpus, c.FAST_NET_BYTES_PER_S)
    return {
        "copy": copied_s,
        "files' descriptions": gathered_s if size.gpus > 1 else 0.0,
    }


def store_s(size: Size) -> dict[str, float]:
    """What the threads do after the copy, one after another; the last two are the first rank's."""
    return {
        "write": size.read_s(size.state_bytes) + size.files / c.FILES_PER_S + c.RANK_FILE_S,
        "hash": size.state_bytes / size.gpus / c.HASH_BYTES_PER_S,
        # the curve goes into the checkpoint and beside it
        "curve and manifest": c.COMMIT_S
        + size.steps * c.CURVE_TEXT_S
        + size.curve_bytes * (2 / c.NODE_STORAGE_BYTES_PER_S + 1 / c.HASH_BYTES_PER_S),
        "remove the old one": size.files * c.REMOVE_S,
    }


def resume_s(size: Size) -> dict[str, float]:
    """As many ranks as wrote the checkpoint, from a shared file system."""
    runs = runs_of_ranks(size.gpus)
    weights = 4 * size.parameters
    in_all = sum(len(mine) for mine in runs)
    checked = size.state_bytes + size.curve_bytes
    return {
        "first rank hashes all": checked * (1 / c.HASH_BYTES_PER_S + 1 / c.NODE_STORAGE_BYTES_PER_S)
        + size.files / c.OPENS_PER_S,
        "manifest": c.MANIFEST_S,
        "first rank reads and sends weights": weights * (1 / c.ASSEMBLE_BYTES_PER_S + 1 / c.HOST_COPY_BYTES_PER_S)
        + in_all * c.OPEN_S
        + model.broadcast_s(weights, len(network()), size.gpus, c.FAST_NET_BYTES_PER_S),
        # a file is opened for every run of every kind
        "every rank reads its runs": size.read_s(size.state_bytes)
        + size.state_bytes / size.gpus / c.ASSEMBLE_BYTES_PER_S
        + 3 * (in_all / c.OPENS_PER_S + max(map(len, runs)) * c.OPEN_S),
        # and writes the copy beside the checkpoints
        "first rank reads the curve": size.steps * c.CURVE_LINES_S + 2 * size.curve_bytes / c.NODE_STORAGE_BYTES_PER_S,
    }


def bucket_s(size: Size) -> float:
    """What a bucket adds: the first rank asks for size and content of one file after another."""
    return 2 * size.files * c.FIRST_BYTE_S


class Before(NamedTuple):
    save_s: float
    resume_s: float


def before_0015(size: Size) -> Before:
    """Training waits until all is stored; every rank reads all files, once the first has hashed them; no curve."""
    bare = size._replace(steps=0)
    opens_s = size.gpus**2 / c.OPENS_PER_S + size.gpus * c.OPEN_S
    read_s = size.read_s(size.gpus * size.state_bytes) + size.state_bytes / c.ASSEMBLE_BYTES_PER_S
    return Before(sum(store_s(bare).values()), resume_s(bare)["first rank hashes all"] + opens_s + read_s)
