"""Checks a build: is every shard there, in its size, with its hash; with `deep`, is every sample what was stored."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_shards.formats.files import digest, size_bytes
from data_shards.formats.index import ShardIndex, VolumeRecord
from data_shards.formats.reader import What, open_reader
from data_shards.formats.sample import array_sha256


@dataclass(frozen=True)
class Damage:
    """What is wrong with a shard, or with one case in it. `reason` is one line."""

    shard: str
    case: str | None
    reason: str


def verify(folder: Path, deep: bool = False) -> list[Damage]:
    """Every damage found under `folder`; an empty list means that all is well.

    Compares sizes and sha256 of the shards; `deep` also decodes each sample and names the damaged ones. Raises
    InputError when the index itself is missing or damaged.
    """
    index = ShardIndex.load(Path(folder))
    damages: list[Damage] = []
    for shard in index.shards:
        path = index.root / shard.name
        num_bytes = size_bytes(path)
        if num_bytes < 0:
            damages.append(Damage(shard.name, None, "is missing"))
            continue
        if num_bytes != shard.bytes:
            damages.append(Damage(shard.name, None, f"has {num_bytes} bytes, the index says {shard.bytes}"))
        elif digest(path)[0] != shard.sha256:
            damages.append(Damage(shard.name, None, "sha256 differs from the index: its content has changed"))
        if deep:
            damages.extend(_damaged_samples(index, shard.name))
    return damages


def _damaged_samples(index: ShardIndex, shard: str) -> Iterator[Damage]:
    reader = open_reader(index)
    for i, volume in enumerate(index.volumes):
        if volume.shard != shard:
            continue
        try:
            arrays: dict[What, np.ndarray] = {"image": reader.read(i, "image")}
            if volume.has_label:
                arrays["label"] = reader.read(i, "label")
        except Exception as error:  # whatever a decoder raises on damaged bytes is the finding itself
            yield Damage(shard, volume.case, f"can't be decoded: {' '.join(str(error).split())}")
            continue
        yield from (Damage(shard, volume.case, reason) for reason in _faults(index, volume, arrays))


def _faults(index: ShardIndex, volume: VolumeRecord, arrays: dict[What, np.ndarray]) -> Iterator[str]:
    shapes: dict[What, tuple[int, ...]] = {"image": volume.shape_CDHW, "label": volume.shape_DHW}
    for what, array in arrays.items():
        stored = array.astype(np.float16) if what == "image" else array
        if array.shape != shapes[what]:
            yield f"{what} has shape {array.shape}, the index says {shapes[what]}"
        elif not np.isfinite(array).all():
            yield f"{what} holds NaN or infinite voxels"
        elif what == "label" and array.max() >= len(index.class_names):
            yield f"label value {array.max()}, the classes end at {len(index.class_names) - 1}"
        elif array_sha256(stored) != volume.stored_sha256[what]:
            yield f"{what} differs from what was stored"
