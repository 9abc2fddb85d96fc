"""What a checkpoint of the Synapse variant lists for N ranks: the runs each rank holds, and the manifest over them.

ZeRO 1 and 2 lay the parameters of each AdamW group end to end and cut that in N equal parts, so a rank holds a run of
elements of every parameter that its parts touch.
"""

import itertools
import math
from collections.abc import Iterable
from functools import cache

import torch

from benchmarks.scale_counts import RATIO
from maetrain.checkpoint.commit import CheckpointFile, CheckpointManifest
from maetrain.models.mae import MaeConfig, MaskedAutoencoder
from maetrain.models.sizes import CONFIGS
from maetrain.train.curve import StepInfo
from maetrain.train.engine import no_decay

Run = tuple[str, int, int]  # parameter, [start, stop) of its elements
_ALIGNED = 2  # elements; DeepSpeed pads a group so that each part begins at a multiple


@cache
def network() -> dict[str, torch.Tensor]:
    """Name -> parameter, on the meta device."""
    with torch.device("meta"):
        return dict(MaskedAutoencoder(CONFIGS["synapse"](1), MaeConfig(mode="visible", ratio=RATIO)).named_parameters())


def cut(sizes: Iterable[tuple[str, int]], ranks: int) -> list[list[Run]]:
    """Rank -> its runs of one group, whose parameters have `sizes` elements and lie end to end."""
    sizes = list(sizes)
    part = _ALIGNED * math.ceil(sum(size for _, size in sizes) / (_ALIGNED * ranks))
    runs: list[list[Run]] = [[] for _ in range(ranks)]
    ends = itertools.accumulate(size for _, size in sizes)
    for (name, size), end in zip(sizes, ends, strict=True):
        begin = end - size
        for rank in range(begin // part, (end - 1) // part + 1):
            runs[rank].append((name, max(rank * part, begin) - begin, min((rank + 1) * part, end) - begin))
    return runs


@cache
def runs_of_ranks(ranks: int) -> tuple[tuple[Run, ...], ...]:
    """Rank -> all its runs."""
    decayed = [(name, p.numel()) for name, p in network().items() if not no_decay(name, p)]
    plain = [(name, p.numel()) for name, p in network().items() if no_decay(name, p)]
    pairs = zip(cut(decayed, ranks), cut(plain, ranks), strict=True)
    return tuple((*first, *second) for first, second in pairs)


def example_manifest(persons: int, runs: Iterable[Iterable[Run]], shapes: dict[str, list[int]]) -> CheckpointManifest:
    """A manifest as `Saver` writes it: an entry a rank's file with its runs, and the setup with all its persons."""
    files = tuple(
        CheckpointFile(name=f"rank-{rank:05d}.safetensors", bytes=1_500_000, sha256="0" * 64, runs=tuple(mine))
        for rank, mine in enumerate(runs)
    )
    return CheckpointManifest(
        step=100_000,
        samples_seen=200_000_000,
        world_size=max(len(files), 1),
        shard_index_sha256="0" * 64,
        fingerprint="0" * 64,
        config={"pool_subjects": [f"{person:016x}" for person in range(persons)]},  # salted keys have 16 hex digits
        tensor_shapes=shapes,
        state={"order": 0, "updates": 100_000, "num_starts": 1},
        files=files,
    )


def synapse_manifest(ranks: int, persons: int) -> CheckpointManifest:
    shapes = {name: list(parameter.shape) for name, parameter in network().items()}
    return example_manifest(persons, runs_of_ranks(ranks), shapes)


def manifest_bytes(ranks: int, persons: int) -> int:
    """Of the file."""
    return len(synapse_manifest(ranks, persons).model_dump_json(indent=1))


def example_point(step: int = 500_000) -> StepInfo:
    """A point of the curve with as many digits as a true one has."""
    third = 1 / 3
    return StepInfo(step, third, third * 1e-3, third, third, third, third, 1e4 * third, 1e9 * third)


def point_bytes() -> int:
    """Of a step's line in the curve."""
    return len(example_point().line())
