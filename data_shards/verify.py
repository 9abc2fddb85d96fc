"""Checks a build: is every file there, in its size, with its hash; with `deep`, is every sample what was stored.

A shard whose hash is wrong may still decode, for our reader looks at chunks alone. So `deep` opens such a shard as
other readers do, too: by its zarr.json files, or as a tar of zips. A whole build pays nothing for that.
"""

import json
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.build import RESULTS_FOLDER, result_text
from data_shards.catalogue import CATALOGUE_NAME
from data_shards.errors import InputError
from data_shards.formats.disk_cache import CacheConfig
from data_shards.formats.encoding import chunk_key
from data_shards.formats.files import digest, size_bytes
from data_shards.formats.index import ShardIndex
from data_shards.formats.reader import ShardReader, What, open_reader
from data_shards.formats.sample import array_sha256
from data_shards.formats.volumes import VolumeRecord


@dataclass(frozen=True)
class Damage:
    """What is wrong with a shard (or another file of the build), or with one case in it. `reason` is one line."""

    shard: str
    case: str | None
    reason: str


def verify(folder: Path, deep: bool = False) -> list[Damage]:
    """Every damage found under `folder`; an empty list means that all is well.

    Compares sizes and sha256 of shards, catalogue and stored results; `deep` also decodes each sample and names the
    damaged ones. Raises InputError when the index itself is missing or damaged.
    """
    index = ShardIndex.load(folder)
    reader = open_reader(index, CacheConfig())  # what is in the bucket, not in a cache of it
    damages = [*_catalogue_damage(index), *_result_damages(index.root)]
    for shard in index.shards:
        path = index.root / shard.name
        num_bytes = size_bytes(path)
        if num_bytes < 0:
            reason = "is missing"
        elif num_bytes != shard.bytes:
            reason = f"has {num_bytes} bytes, the index says {shard.bytes}"
        elif digest(path)[0] != shard.sha256:
            reason = "sha256 differs from the index: its content has changed"
        else:
            reason = ""
        if reason:
            damages.append(Damage(shard.name, None, reason))
        if deep:
            damages.extend(_damaged_samples(reader, shard.name, is_changed=bool(reason)))
    return damages


def _catalogue_damage(index: ShardIndex) -> Iterator[Damage]:
    path = index.root / CATALOGUE_NAME
    if not path.is_file():
        yield Damage(CATALOGUE_NAME, None, "is missing")
    elif digest(path)[0] != index.catalogue_sha256:
        yield Damage(CATALOGUE_NAME, None, "sha256 differs from the index: its content has changed")


def _result_damages(root: Path) -> Iterator[Damage]:
    """Stored results that the next build will not believe. Training needs none: where they are gone, all is well."""
    for path in sorted((root / RESULTS_FOLDER).glob("shard-*.json")):
        if result_text(path) is None:
            name = f"{RESULTS_FOLDER}/{path.name}"
            yield Damage(name, None, "does not match its own hash: the next build does its shard again")


def _damaged_samples(reader: ShardReader, shard: str, is_changed: bool) -> Iterator[Damage]:
    index = reader.index
    for i in index.volumes.where("shard", [shard]).tolist():
        volume = index.volumes[i]
        try:
            reasons = list(_faults(reader, i, volume))
            if is_changed and not reasons:
                reasons = list(_faults_for_others(index, volume))
        except Exception as error:  # whatever a decoder raises on damaged bytes is the finding itself
            reasons = [f"can't be decoded: {' '.join(str(error).split())}"]
        yield from (Damage(shard, volume.case, reason) for reason in reasons)


def _faults(reader: ShardReader, i: int, volume: VolumeRecord) -> Iterator[str]:
    """What is wrong with the stored voxels of volume `i`. Raises what the reader raises."""
    shapes: dict[What, tuple[int, ...]] = {"image": volume.shape_CDHW}
    if volume.has_label:
        shapes["label"] = volume.shape_DHW
    num_classes = len(reader.index.class_names)
    for what, shape in shapes.items():
        array = reader.stored_crop(i, (0, 0, 0), volume.shape_DHW, what)
        if array.shape != shape:
            yield f"{what} has shape {array.shape}, the index says {shape}"
        elif not np.isfinite(array).all():
            yield f"{what} holds NaN or infinite voxels"
        elif what == "label" and array.max() >= num_classes:
            yield f"label value {array.max()}, the classes end at {num_classes - 1}"
        elif array_sha256(array) != volume.stored_sha256[what]:
            yield f"{what} differs from what was stored"


def _faults_for_others(index: ShardIndex, volume: VolumeRecord) -> Iterator[str]:
    """What other readers will not find as it was written: the facts beside the voxels. Raises what decoders raise."""
    group, arrays = _facts_of_zarr(index, volume) if index.format == "zarr" else _facts_of_tar(index, volume)
    facts = {"case": volume.case, "spacing_mm": list(volume.spacing_mm)}
    if group != facts | {"scale_factor": volume.scale, "add_offset": volume.offset}:
        yield "the facts beside its voxels differ from the index"
    for what, (dtype, shape, fill) in {
        "image": (volume.dtype, volume.shape_CDHW, volume.air),
        "label": ("uint8", volume.shape_DHW, 0),
    }.items():
        blank = np.broadcast_to(np.zeros((), dtype), shape)  # of an array only type and shape count here
        if what in arrays and arrays[what] != index.encoding.metadata(blank, fill):
            yield f"the zarr.json of its {what} differs from the index"


def _facts_of_zarr(index: ShardIndex, volume: VolumeRecord) -> tuple[Any, dict[str, Any]]:
    """(attributes of the case, its arrays' zarr.json by name) of a zarr shard."""
    folder = index.root / volume.shard / volume.case
    attributes = json.loads((folder / "zarr.json").read_bytes())
    if attributes.pop("zarr_format") != 3 or attributes.pop("node_type") != "group" or len(attributes) != 1:
        raise InputError("its zarr.json is no zarr v3 group")
    arrays = {what: json.loads((folder / what / "zarr.json").read_bytes()) for what in volume.members}
    return attributes["attributes"], arrays


def _facts_of_tar(index: ShardIndex, volume: VolumeRecord) -> tuple[Any, dict[str, Any]]:
    """(JSON of the case, its arrays' zarr.json by name) of a tar. Checks the zips' own checksums."""
    found: dict[str, Any] = {}
    wanted = {"json", *volume.members}
    # ignore_zeros: a damaged header costs its own member, not all that come after it
    with (index.root / volume.shard).open("rb") as file, tarfile.open(fileobj=file, ignore_zeros=True) as tar:
        for info in tar:
            case, _, ending = info.name.partition(".")
            name = ending.removesuffix(".zarr.zip")
            content = tar.extractfile(info) if case == volume.case and name in wanted else None
            if content is None:
                continue
            if name == "json":
                found[name] = json.load(content)
            else:
                with zipfile.ZipFile(content) as zipped:
                    found[name] = json.loads(zipped.read("zarr.json"))
                    zipped.read(chunk_key(name))
            if wanted == found.keys():  # looks no further: what comes behind may be damaged
                return found.pop("json"), found
    raise InputError(f"the tar has no {min(wanted - found.keys())} of it")
