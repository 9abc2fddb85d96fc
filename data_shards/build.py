"""Builds shards from an archive: plan, build each shard, finish with the index.

`plan_shards` and `build_shard` are plain functions of picklable values, so the cluster fans `build_shard` out with a
`map_fn` of its own. A finished shard leaves its result beside it (OUT/.build/); a second build reuses it when files,
settings and plan are unchanged, so a killed build goes on where it stopped. Unusable scans are quarantined with
their reason, equal scans stored once. Memory: one scan at a time per worker.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from data_shards.archive.layout import Archive, read_archive
from data_shards.errors import InputError
from data_shards.formats import webdataset_shards, zarr_shards
from data_shards.formats.files import digest, remove, size_bytes, write_text
from data_shards.formats.index import INDEX_NAME, SCHEMA_VERSION, Quarantined, ShardIndex, ShardInfo, VolumeRecord
from data_shards.formats.sample import ShardSample
from data_shards.ingest import ShardPlan, ingest, relative, size_and_time
from data_shards.preprocess import PreprocessConfig

RESULTS_FOLDER = ".build"
_FORMATS = {"zarr": zarr_shards, "webdataset": webdataset_shards}


class BuildConfig(BaseModel):
    """How an archive becomes shards."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["zarr", "webdataset"] = Field(
        default="zarr", description="zarr: random crops; webdataset: tar, streaming"
    )
    volumes_per_shard: int = Field(default=32, ge=1, description="scans in one shard")
    max_quarantined_share: float = Field(
        default=0.1, ge=0, le=1, description="share of unusable scans at which a build fails"
    )
    preprocess: PreprocessConfig = Field(
        default=PreprocessConfig(), description="how each scan is brought into one frame"
    )


@dataclass(frozen=True)
class ShardResult:
    """What became of a plan. `shard` None = every case was quarantined. `reused` = was there already, unchanged."""

    name: str
    fingerprint: str
    shard: ShardInfo | None
    volumes: tuple[VolumeRecord, ...]
    quarantined: tuple[Quarantined, ...]
    reused: bool = False


_RESULT = TypeAdapter(ShardResult)
BuildFn = Callable[[ShardPlan], ShardResult]
MapFn = Callable[[BuildFn, list[ShardPlan]], Iterable[ShardResult]]


def plan_shards(archive: Archive, config: BuildConfig) -> list[ShardPlan]:
    """Cut the archive's cases, in their order, into shards of `volumes_per_shard`. Pure."""
    step, suffix = config.volumes_per_shard, _FORMATS[config.format].SUFFIX
    return [
        ShardPlan(
            name=f"shard-{first // step:05d}{suffix}",
            root=archive.root,
            channel_names=archive.channel_names,
            class_names=archive.class_names,
            cases=archive.cases[first : first + step],
        )
        for first in range(0, len(archive.cases), step)
    ]


def build_shard(plan: ShardPlan, out_dir: Path, config: BuildConfig) -> ShardResult:
    """Build one shard under `out_dir`, or find it finished. Published whole or not at all."""
    out_dir = Path(out_dir)
    result_path = out_dir / RESULTS_FOLDER / f"{plan.name}.json"
    fingerprint = _fingerprint(plan, config)
    finished = _finished(result_path, out_dir)
    if finished is not None and finished.fingerprint == fingerprint:
        return replace(finished, reused=True)

    # From here on the folder no longer is what an older index says.
    remove(out_dir / INDEX_NAME)
    remove(result_path)
    records: list[VolumeRecord] = []
    quarantined: list[Quarantined] = []
    shard_path = out_dir / plan.name
    members = _FORMATS[config.format].write_shard(shard_path, _samples(plan, config, records, quarantined))
    records = [replace(record, members=ranges) for record, ranges in zip(records, members, strict=True)]
    shard = None
    if records:
        shard = ShardInfo(plan.name, *digest(shard_path))
    else:
        remove(shard_path)
    result = ShardResult(plan.name, fingerprint, shard, tuple(records), tuple(quarantined))
    write_text(result_path, json.dumps(_RESULT.dump_python(result, mode="json")))
    return result


def finish_build(results: Iterable[ShardResult], out_dir: Path, archive: Archive, config: BuildConfig) -> ShardIndex:
    """Write the index over all results (in any order). Raises InputError when too much is quarantined or nothing left.

    Equal scans count once: a labelled one before an unlabelled one, else the first by name.
    Shards of an earlier, larger build in the same folder are removed.
    """
    out_dir = Path(out_dir)
    results = sorted(results, key=lambda result: result.name)
    quarantined = tuple(entry for result in results for entry in result.quarantined)
    all_volumes = [volume for result in results for volume in result.volumes]
    share = len(quarantined) / max(1, len(archive.cases))
    if quarantined and (share > config.max_quarantined_share or not all_volumes):
        raise InputError(
            f"{len(quarantined)} of {len(archive.cases)} scans can't be used (limit: a share of "
            f"{config.max_quarantined_share:g}, max_quarantined_share), the first: {quarantined[0].reason}"
        )
    if not all_volumes:
        raise InputError(f"{archive.root}: no scan was built: give an archive that holds some")
    volumes, duplicates = _without_duplicates(all_volumes)
    _remove_leftovers(out_dir, {result.name for result in results})
    index = ShardIndex(
        format=config.format,
        name=archive.name,
        channel_names=archive.channel_names,
        class_names=archive.class_names,
        preprocess=config.preprocess,
        volumes=volumes,
        shards=tuple(result.shard for result in results if result.shard is not None),
        quarantined=quarantined,
        duplicates=duplicates,
        root=out_dir,
    )
    index.save(out_dir)
    return index


def build(archive_root: Path, out_dir: Path, config: BuildConfig, map_fn: MapFn = map) -> ShardIndex:
    """Archive in, shards and index out.

    `map_fn(fn, plans)` yields one result per plan, in any order; function and plans can be pickled.
    """
    archive = read_archive(Path(archive_root))
    plans = plan_shards(archive, config)
    results = map_fn(functools.partial(build_shard, out_dir=Path(out_dir), config=config), plans)
    return finish_build(results, out_dir, archive, config)


def _samples(
    plan: ShardPlan, config: BuildConfig, records: list[VolumeRecord], quarantined: list[Quarantined]
) -> Iterator[ShardSample]:
    """Usable samples one by one; fills `records` (still without members) and `quarantined` on the way."""
    for case in plan.cases:
        outcome = ingest(case, plan, config.preprocess)
        if isinstance(outcome, Quarantined):
            quarantined.append(outcome)
        else:
            sample, record = outcome
            records.append(record)
            yield sample


def _without_duplicates(
    volumes: list[VolumeRecord],
) -> tuple[tuple[VolumeRecord, ...], tuple[tuple[str, str], ...]]:
    kept: dict[str, VolumeRecord] = {}
    for volume in sorted(volumes, key=lambda v: (not v.has_label, v.case)):
        kept.setdefault(volume.voxel_sha256, volume)
    duplicates = [(v.case, kept[v.voxel_sha256].case) for v in volumes if kept[v.voxel_sha256] is not v]
    return tuple(v for v in volumes if kept[v.voxel_sha256] is v), tuple(duplicates)


def _fingerprint(plan: ShardPlan, config: BuildConfig) -> str:
    """Changes when a source file, the plan or a setting that shapes the shard changes."""
    files = [
        (relative(path, plan.root), size_and_time(path))
        for case in plan.cases
        for path in (*case.image_paths, *([case.label_path] if case.label_path else []))
    ]
    people = [(case.case, case.subject) for case in plan.cases]
    settings = config.model_dump(mode="json", exclude={"max_quarantined_share", "volumes_per_shard"})
    content = [SCHEMA_VERSION, plan.name, plan.channel_names, plan.class_names, people, files, settings]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _finished(result_path: Path, out_dir: Path) -> ShardResult | None:
    """The stored result if it can be read and its shard is there in full size. (Hashes are `verify`'s work.)"""
    try:
        result = _RESULT.validate_json(result_path.read_bytes())
    except (OSError, ValueError):
        return None
    if result.shard is not None and size_bytes(out_dir / result.shard.name) != result.shard.bytes:
        return None
    return result


def _remove_leftovers(out_dir: Path, names: set[str]) -> None:
    for result_path in (out_dir / RESULTS_FOLDER).glob("shard-*.json"):
        name = result_path.name.removesuffix(".json")
        if name not in names:
            remove(out_dir / name)
            remove(result_path)
