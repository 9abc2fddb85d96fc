"""Measures what one process of a large run does alone, while all others wait: hashing, manifest, files, queue.

    python -m benchmarks.scale_control [--write FILE]          # CPU, a minute, 1 GB in the temporary folder

`scale_constants.py` holds the figures of `results/scale.md`. They are of the real functions: `write_rank_file`,
`commit`, `assemble`, `retain`, and Ray's queue, which the first rank of a Ray Train group writes every step. Files go
to the local disk, so nothing here stands for a file system over a network.
"""

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open

from benchmarks.machine import add_write_option, append_result, describe
from maetrain.checkpoint.commit import (
    MANIFEST,
    CheckpointFile,
    CheckpointManifest,
    commit,
    read_model,
    retain,
    sha256_file,
    write_rank_file,
)
from maetrain.checkpoint.fragments import Fragment, assemble, to_named

RANKS, FRAGMENT_FLOATS, HASHED_BYTES, PUTS, ROUNDS = 1024, 4096, 2**28, 500, 3
KINDS = ("weight", "exp_avg", "exp_avg_sq")


class Figure(NamedTuple):
    """One row: what, in which unit, one value a round."""

    what: str
    unit: str
    values: list[float]

    def row(self) -> str:
        middle = statistics.median(self.values)
        return f"| {self.what} | {middle:.4g} ({min(self.values):.4g}-{max(self.values):.4g}) | {self.unit} |"


def timed(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def example_manifest(ranks: int, persons: int, shapes: dict[str, list[int]]) -> CheckpointManifest:
    """A manifest as `save_checkpoint` writes it: a file entry a rank, and the whole setup with all its persons."""
    return CheckpointManifest(
        step=100_000,
        samples_seen=200_000_000,
        world_size=ranks,
        shard_index_sha256="0" * 64,
        fingerprint="0" * 64,
        config={"pool_subjects": [f"{person:016x}" for person in range(persons)]},  # salted keys have 16 hex digits
        tensor_shapes=shapes,
        state={"random": "drawn from (seed, purpose, step or sample); nothing to restore"},
        files=tuple(
            CheckpointFile(name=f"rank-{rank:05d}.safetensors", bytes=1_500_000, sha256="0" * 64)
            for rank in range(ranks)
        ),
    )


def checkpoint_figures(folder: Path) -> list[Figure]:
    """Small files of RANKS ranks, written one after another, opened, and removed; and their manifest."""
    write_s, open_s, retain_s, commit_s, read_s = [], [], [], [], []
    tensors = to_named(Fragment(kind, "p", 0, torch.ones(FRAGMENT_FLOATS)) for kind in KINDS)
    manifest = example_manifest(RANKS, 100_000, {"p": [FRAGMENT_FLOATS]})
    for number in range(ROUNDS):
        at, newest = folder / f"step-{2 * number:08d}-a", folder / f"step-{2 * number + 1:08d}-a"
        at.mkdir(parents=True)
        write_s.append(timed(lambda at=at: [write_rank_file(at, rank, tensors) for rank in range(RANKS)]) / RANKS)  # type: ignore[misc]
        open_s.append(timed(lambda at=at: [first_tensor(path) for path in at.iterdir()]) / RANKS)  # type: ignore[misc]
        commit_s.append(timed(lambda at=at: commit(at, manifest)))  # type: ignore[misc]
        read_s.append(timed(lambda at=at: read_model(at / MANIFEST, CheckpointManifest)))  # type: ignore[misc]
        newest.mkdir()
        (newest / MANIFEST).touch()
        retain_s.append(timed(lambda newest=newest: retain(folder, 1, newest)) / RANKS)  # type: ignore[misc]
        assert not at.exists(), "the older checkpoint goes"
    size = len(manifest.model_dump_json(indent=1))
    return [
        Figure("`write_rank_file`, 48 kB, fsync and hash", "s a file", write_s),
        Figure("`safe_open` and one tensor of 16 kB, page cache warm", "s a file", open_s),
        Figure(f"`commit`: {RANKS} files, 100,000 persons, {size / 1e6:.1f} MB", "s", commit_s),
        Figure("`read_model` of that manifest", "s", read_s),
        Figure("`retain`, removing", "s a file", retain_s),
    ]


def first_tensor(path: Path) -> torch.Tensor:
    with safe_open(path, framework="pt") as tensors:
        return tensors.get_tensor("weight|p|0")


def hash_figure(folder: Path) -> Figure:
    path = folder / "large"
    path.write_bytes(bytes(HASHED_BYTES))
    rates = [HASHED_BYTES / timed(lambda: sha256_file(path)) for _ in range(ROUNDS)]
    return Figure("`sha256_file`, page cache warm", "bytes/s", rates)


def assemble_figure(folder: Path) -> Figure:
    """Large runs of 4 ranks: the copy into full tensors, not the opening of files."""
    floats = 2**23
    folder.mkdir()
    files = tuple(
        write_rank_file(folder, rank, to_named(Fragment(k, "p", rank * floats, torch.ones(floats)) for k in KINDS))
        for rank in range(4)
    )
    manifest = example_manifest(4, 0, {"p": [4 * floats]}).model_copy(update={"files": files})
    rates = [4 * floats * 12 / timed(lambda: assemble(folder, manifest, KINDS)) for _ in range(ROUNDS)]
    return Figure("`assemble`, 4 files of 100 MB, page cache warm", "bytes/s", rates)


def queue_figure() -> Figure:
    """What `messages.put_nowait` takes from the first rank's step: a call to an actor and back."""
    import ray
    from ray.util.queue import Queue

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    queue = Queue()
    queue.put_nowait(0)

    def puts() -> None:
        for number in range(PUTS):
            queue.put_nowait(number)

    seconds = [timed(puts) / PUTS for _ in range(ROUNDS)]
    ray.shutdown()
    return Figure("`ray.util.queue.Queue.put_nowait`, on one machine", "s a message", seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_write_option(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures = [*checkpoint_figures(folder / "small"), hash_figure(folder), assemble_figure(folder / "large-ranks")]
        figures.append(queue_figure())
    text = "\n".join(
        [
            f"## {time.strftime('%Y-%m-%d')}",
            "",
            f"{describe(torch.device('cpu'), ('ray', 'safetensors', 'pydantic'))}. {ROUNDS} rounds, median "
            "(lowest-highest).",
            "",
            "| what | figure | unit |",
            "|---|---|---|",
            *(figure.row() for figure in figures),
            "",
        ]
    )
    append_result(arguments.write, text)


if __name__ == "__main__":
    main()
