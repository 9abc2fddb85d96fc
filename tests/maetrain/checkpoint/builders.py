"""Checkpoints of two ranks, small enough to damage byte by byte."""

from pathlib import Path

import torch

from data_shards.formats.files import is_remote
from maetrain.checkpoint.commit import CheckpointManifest, commit, step_dir, write_rank_file
from maetrain.checkpoint.fragments import Fragment, to_named

SHAPES = {"a.weight": [3, 4], "b.bias": [5]}
KINDS = ("weight", "exp_avg")
ATTEMPT = "0a1b2c3d"


def full(kind: str, name: str, step: int = 0) -> torch.Tensor:
    """What the tensor holds: every element of every kind, parameter and step another number."""
    offset = 1000 * step + 100 * (KINDS.index(kind) * len(SHAPES) + list(SHAPES).index(name))
    return torch.arange(offset, offset + torch.Size(SHAPES[name]).numel(), dtype=torch.float32).view(SHAPES[name])


def rank_fragments(step: int = 0) -> list[list[Fragment]]:
    """Two ranks; the cut goes through the middle of a.weight, as ZeRO cuts."""
    ranks: list[list[Fragment]] = [[], []]
    for kind in KINDS:
        a, b = full(kind, "a.weight", step).flatten(), full(kind, "b.bias", step)
        ranks[0].append(Fragment(kind, "a.weight", 0, a[:7]))
        ranks[1] += [Fragment(kind, "a.weight", 7, a[7:]), Fragment(kind, "b.bias", 0, b)]
    return ranks


def write_checkpoint(
    checkpoints: Path,
    step: int,
    ranks: list[list[Fragment]] | None = None,
    committed: bool = True,
    attempt: str = ATTEMPT,
) -> Path:
    folder = step_dir(checkpoints, step, attempt)
    if not is_remote(folder):
        folder.mkdir(parents=True)
    ranks = rank_fragments(step) if ranks is None else ranks
    files = tuple(write_rank_file(folder, rank, to_named(parts)) for rank, parts in enumerate(ranks))
    if committed:
        commit(folder, manifest_of(step, files))
    return folder


def manifest_of(step: int, files: tuple) -> CheckpointManifest:
    return CheckpointManifest(
        step=step,
        samples_seen=8 * step,
        world_size=len(files),
        shard_index_sha256="0" * 64,
        fingerprint="f" * 64,
        config={},
        tensor_shapes=SHAPES,
        state={},
        files=files,
    )
