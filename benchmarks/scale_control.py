"""Measures what one process of a large run does for all: hashing, manifest, files, curve, messages to the driver.

    python -m benchmarks.scale_control [--write FILE]          # CPU, a minute, 1 GB in the temporary folder

`scale_constants.py` holds the figures of `results/scale.md`. They are of the real functions, with the manifest of the
Synapse variant on 1024 ranks. Files go to the local disk, so nothing here stands for a file system over a network.
What waits for nothing is counted in processor time.
"""

import argparse
import logging
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open

from benchmarks.machine import add_write_option, append_result, describe
from benchmarks.scale_manifest import example_manifest, example_point, point_bytes, synapse_manifest
from maetrain.checkpoint.commit import (
    MANIFEST,
    CheckpointManifest,
    commit,
    read_model,
    retain,
    sha256_file,
    write_rank_file,
)
from maetrain.checkpoint.fragments import Fragment, RunReader, assemble, to_named
from maetrain.train.curve import first_lines

RANKS, PERSONS, FRAGMENT_FLOATS, LARGE_BYTES, POINTS, CALLS, ROUNDS = 1024, 100_000, 4096, 2**28, 50_000, 500, 3
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


def worked(call: Callable[[], object]) -> float:
    """Processor seconds of one call that waits for nothing: other work on the machine does not count."""
    started = time.process_time()
    call()
    return time.process_time() - started


def checkpoint_figures(folder: Path) -> list[Figure]:
    """Small files of RANKS ranks, written one after another, opened, and removed; and a manifest."""
    write_s, open_s, retain_s, commit_s = [], [], [], []
    tensors = to_named(Fragment(kind, "p", 0, torch.ones(FRAGMENT_FLOATS)) for kind in KINDS)
    manifest = synapse_manifest(RANKS, PERSONS)
    for number in range(ROUNDS):
        at, newest = folder / f"step-{2 * number:08d}-a", folder / f"step-{2 * number + 1:08d}-a"
        at.mkdir(parents=True)
        write_s.append(timed(lambda at=at: [write_rank_file(at, rank, tensors) for rank in range(RANKS)]) / RANKS)  # type: ignore[misc]
        open_s.append(timed(lambda at=at: [first_tensor(path) for path in at.iterdir()]) / RANKS)  # type: ignore[misc]
        commit_s.append(timed(lambda at=at: commit(at, manifest)))  # type: ignore[misc]
        newest.mkdir()
        (newest / MANIFEST).touch()
        retain_s.append(timed(lambda newest=newest: retain(folder, 1, newest)) / RANKS)  # type: ignore[misc]
        assert not at.exists(), "the older checkpoint goes"
    size = len(manifest.model_dump_json(indent=1))
    return [
        Figure("`write_rank_file`, 48 kB, fsync and hash", "s a file", write_s),
        Figure("`safe_open` and one tensor of 16 kB, page cache warm", "s a file", open_s),
        Figure(f"`commit`: {RANKS} files, {PERSONS:,} persons, {size / 1e6:.1f} MB", "s", commit_s),
        Figure("`retain`, removing", "s a file", retain_s),
    ]


def manifest_figures(folder: Path) -> list[Figure]:
    """What every rank does with a manifest at resume, and with the descriptions of all files before a commit."""
    folder.mkdir()
    commit(folder, synapse_manifest(RANKS, PERSONS))

    def taken() -> None:
        sent = pickle.dumps(read_model(folder / MANIFEST, CheckpointManifest))
        RunReader(folder, pickle.loads(sent))

    descriptions = [pickle.dumps(file) for file in synapse_manifest(RANKS, 0).files]
    return [
        Figure("manifest read, sent as a pickle, its runs sorted", "s", [worked(taken) for _ in range(ROUNDS)]),
        Figure(
            "description of a rank's file, unpickled",
            "s a file",
            [worked(lambda: [pickle.loads(text) for text in descriptions]) / RANKS for _ in range(ROUNDS)],
        ),
    ]


def copy_figure() -> Figure:
    """What a step waits for: memory that was never used before, as a part of a checkpoint is copied to."""
    part = [Fragment("weight", "p", 0, torch.ones(LARGE_BYTES // 4))]
    rates = [LARGE_BYTES / worked(lambda: to_named(part)) for _ in range(ROUNDS)]
    return Figure("`to_named`, 270 MB of host memory", "bytes/s", rates)


def curve_figures() -> list[Figure]:
    points = [example_point(step) for step in range(POINTS)]
    lines = [point.line() for point in points]
    text = "".join(lines)
    assert abs(len(text) / POINTS / point_bytes() - 1) < 0.02
    return [
        Figure(
            "lines of a curve, joined",
            "s a step",
            [worked(lambda: first_lines(lines, POINTS)) / POINTS for _ in range(ROUNDS)],
        ),
        Figure(
            "a curve's text, cut into lines",
            "s a step",
            [worked(lambda: text.splitlines(keepends=True)) / POINTS for _ in range(ROUNDS)],
        ),
    ]


def first_tensor(path: Path) -> torch.Tensor:
    with safe_open(path, framework="pt") as tensors:
        return tensors.get_tensor("weight|p|0")


def hash_figure(folder: Path) -> Figure:
    path = folder / "large"
    path.write_bytes(bytes(LARGE_BYTES))
    rates = [LARGE_BYTES / worked(lambda: sha256_file(path)) for _ in range(ROUNDS)]
    return Figure("`sha256_file`, page cache warm", "bytes/s", rates)


def assemble_figure(folder: Path) -> Figure:
    """Large runs of 4 ranks: the copy into full tensors, not the opening of files."""
    floats = 2**23
    folder.mkdir()
    files = tuple(
        write_rank_file(folder, rank, to_named(Fragment(k, "p", rank * floats, torch.ones(floats)) for k in KINDS))
        for rank in range(4)
    )
    runs = ((("p", rank * floats, (rank + 1) * floats),) for rank in range(4))
    manifest = example_manifest(0, runs, {"p": [4 * floats]}).model_copy(update={"files": files})
    rates = [4 * floats * 12 / worked(lambda: assemble(folder, manifest, KINDS)) for _ in range(ROUNDS)]
    return Figure("`assemble`, 4 files of 100 MB, page cache warm", "bytes/s", rates)


def telling_figures() -> list[Figure]:
    """What the first rank tells while others wait for it: Ray's metrics every step, the driver a few times a second."""
    import ray

    from cluster.desk import open_desk
    from cluster.progress import RankMetrics

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    desk, metrics, info = open_desk(0), RankMetrics("benchmark"), example_point()
    ray.get(desk.asked.remote())
    metrics.step(info)

    def post() -> None:
        for _ in range(CALLS):
            desk.post.remote(info)

    def measure() -> None:
        for _ in range(CALLS):
            metrics.step(info)

    posts = [worked(post) / CALLS for _ in range(ROUNDS)]
    gauges = [worked(measure) / CALLS for _ in range(ROUNDS)]
    ray.shutdown()
    return [
        Figure("`desk.post.remote`, not waiting for the answer", "s a message", posts),
        Figure("`RankMetrics.step`", "s a step", gauges),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_write_option(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures = [*checkpoint_figures(folder / "small"), *manifest_figures(folder / "manifest"), hash_figure(folder)]
        figures += [assemble_figure(folder / "large-ranks"), copy_figure(), *curve_figures(), *telling_figures()]
    text = "\n".join(
        [
            f"## {time.strftime('%Y-%m-%d')}",
            "",
            f"{describe(torch.device('cpu'), ('ray', 'safetensors', 'pydantic'))}. {ROUNDS} rounds, median "
            "(lowest-highest). Times of files are wall time, the others processor time.",
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
