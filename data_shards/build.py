"""Builds shards from an archive: plan, build each shard, finish with the index.

`build_shard` is a plain function of picklable values, so the cluster fans it out with a `map_fn` of its own. A finished
shard leaves its result beside it (OUT/.build/), and the next build goes on from there: killed at any moment, nothing
finished is done again. Unusable scans are quarantined with their reason, equal scans stored once. Memory: one scan at
a time per worker, and the rows of the index in the driver.
"""

import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from data_shards.archive.identity import Identity, PrivacyConfig
from data_shards.archive.layout import Archive, read_archive
from data_shards.catalogue import CATALOGUE_NAME, catalogue
from data_shards.errors import InputError
from data_shards.formats import webdataset_shards, zarr_shards
from data_shards.formats.encoding import Encoding
from data_shards.formats.files import digest, location, locked, published, remove, size_bytes, write_bytes, write_text
from data_shards.formats.index import INDEX_NAME, Quarantined, ShardIndex, ShardInfo
from data_shards.formats.sample import ShardSample
from data_shards.formats.volumes import VolumeRecord, VolumeTable
from data_shards.ingest import ingest
from data_shards.plan import ShardPlan, fingerprint, plan_shards
from data_shards.preprocess import PreprocessConfig

RESULTS_FOLDER = ".build"
_FORMATS = {"zarr": zarr_shards, "webdataset": webdataset_shards}


class BuildConfig(BaseModel):
    """How an archive becomes shards."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["zarr", "webdataset"] = Field(
        default="zarr", description="zarr: folders any zarr reader opens; webdataset: one tar a shard, streaming"
    )
    volumes_per_shard: int = Field(default=32, ge=1, description="scans in one shard")
    max_quarantined_share: float = Field(
        default=0.1, ge=0, le=1, description="share of unusable scans above which a build fails"
    )
    preprocess: PreprocessConfig = Field(
        default=PreprocessConfig(), description="how each scan is brought into one frame"
    )
    encoding: Encoding = Field(default=Encoding(), description="how voxels become bytes")
    privacy: PrivacyConfig = Field(default=PrivacyConfig(), description="what the shards may tell about persons")

    def settings(self) -> str:
        """A text that changes with everything that shapes a shard."""
        shaping = {"format", "volumes_per_shard", "preprocess", "encoding"}
        return json.dumps(self.model_dump(mode="json", include=shaping), sort_keys=True)


@dataclass(frozen=True)
class ShardResult:
    """What became of a plan. `shard` None = every case was quarantined. `reused` = was there already, unchanged."""

    name: str
    fingerprints: tuple[str, ...]
    shard: ShardInfo | None
    volumes: tuple[VolumeRecord, ...]
    quarantined: tuple[Quarantined, ...]
    reused: bool = False


_RESULT = TypeAdapter(ShardResult)
BuildFn = Callable[[ShardPlan], ShardResult]
MapFn = Callable[[BuildFn, list[ShardPlan]], Iterable[ShardResult]]


def build(
    archive_root: Path, out_dir: Path, config: BuildConfig, map_fn: MapFn = map, identity: Identity | None = None
) -> ShardIndex:
    """Archive in, shards and index out. `out_dir` may be a bucket (see `files.location`).

    `map_fn(fn, plans)` yields one result per plan, in any order; function and plans can be pickled.
    """
    archive = read_archive(Path(archive_root), identity)
    return build_archive(archive, location(out_dir), config, map_fn)


def build_archive(archive: Archive, out_dir: Path, config: BuildConfig, map_fn: MapFn = map) -> ShardIndex:
    """`build` of an archive that is read already. One build at a time in a local `out_dir`."""
    with locked(out_dir / RESULTS_FOLDER / "lock"):
        plans = plan_of(archive, out_dir, config)
        build_one = functools.partial(build_shard, out_dir=out_dir, config=config)
        return finish_build(map_fn(build_one, plans), out_dir, archive, config)


def plan_of(archive: Archive, out_dir: Path, config: BuildConfig) -> list[ShardPlan]:
    """The plan of a build into `out_dir`: what is finished there is kept."""
    finished = {}
    for path in sorted((out_dir / RESULTS_FOLDER).glob("shard-*.json")):
        result = _finished(path.name.removesuffix(".json"), out_dir)
        if result is not None:
            finished[result.name] = result.fingerprints
    return plan_shards(archive, config.settings(), config.volumes_per_shard, _FORMATS[config.format].SUFFIX, finished)


def build_shard(plan: ShardPlan, out_dir: Path, config: BuildConfig) -> ShardResult:
    """Build one shard under `out_dir`, or find it finished. Published whole or not at all.

    Waits for a task of a killed build that may still be writing this shard.
    """
    with locked(out_dir / RESULTS_FOLDER / f".lock-{plan.name}", can_wait=True):
        return _build_shard(plan, out_dir, config)


def _build_shard(plan: ShardPlan, out_dir: Path, config: BuildConfig) -> ShardResult:
    finished = _finished(plan.name, out_dir) if plan.is_finished else None
    if finished is not None and finished.fingerprints == plan.fingerprints:
        return replace(finished, reused=True)

    if (out_dir / plan.name).exists() or _result_path(plan.name, out_dir).exists():
        # From here on the folder no longer is what an older index says. (A new shard is none of its business.)
        remove(out_dir / INDEX_NAME)
        remove(_result_path(plan.name, out_dir))
    records: list[VolumeRecord] = []
    quarantined: list[Quarantined] = []
    changed: list[str] = []
    shard_path = out_dir / plan.name
    with published(shard_path) as temporary:
        members = _FORMATS[config.format].write_shard(
            temporary, _samples(plan, config, records, quarantined, changed), config.encoding
        )
        shard = ShardInfo(plan.name, *digest(temporary))
    records = [replace(record, shard=plan.name, members=of) for record, of in zip(records, members, strict=True)]
    if not records:
        remove(shard_path)
    result = ShardResult(plan.name, plan.fingerprints, shard if records else None, tuple(records), tuple(quarantined))
    if changed:
        return result  # and the next build makes this shard again, should the files be as they were or not
    text = _RESULT.dump_json(result).decode()
    write_text(_result_path(plan.name, out_dir), f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}\n")
    return result


def finish_build(results: Iterable[ShardResult], out_dir: Path, archive: Archive, config: BuildConfig) -> ShardIndex:
    """Write catalogue and index over all results (in any order).

    Equal scans count once: a labelled one before an unlabelled one, else the first by name. Shards of an earlier,
    larger build in the same folder are removed. Raises InputError when too much is quarantined or nothing is left.
    """
    tables: dict[str, VolumeTable] = {}
    shards: dict[str, ShardInfo] = {}
    unusable: dict[str, tuple[Quarantined, ...]] = {}
    for result in results:
        # as columns at once: a million records as objects would take gigabytes
        tables[result.name], unusable[result.name] = VolumeTable.of(result.volumes), result.quarantined
        if result.shard is not None:
            shards[result.name] = result.shard
    names = sorted(tables)
    quarantined = tuple(entry for name in names for entry in unusable[name])
    everything = VolumeTable.join(tables[name] for name in names)
    share = len(quarantined) / max(1, len(archive.cases))
    if quarantined and (share > config.max_quarantined_share or not len(everything)):
        raise InputError(
            f"{len(quarantined)} of {len(archive.cases)} scans can't be used (limit: a share of "
            f"{config.max_quarantined_share:g}, raise shards.max_quarantined_share or repair them), "
            f"the first: {quarantined[0].reason}"
        )
    if not len(everything):
        raise InputError(f"{archive.root}: no scan was built: give an archive that holds some")
    volumes, duplicates = without_duplicates(everything)
    listing = catalogue(archive, everything, duplicates, quarantined)
    index = ShardIndex(
        format=config.format,
        name=archive.name,
        channel_names=archive.channel_names,
        class_names=archive.class_names,
        meaning=archive.meaning,
        preprocess=_decided(config.preprocess, volumes),
        volumes=volumes,
        shards=tuple(shards[name] for name in names if name in shards),
        quarantined=quarantined,
        duplicates=duplicates,
        aliases=aliases(everything, volumes, duplicates),
        encoding=config.encoding,
        catalogue_sha256=hashlib.sha256(listing).hexdigest(),
        root=out_dir,
    )
    write_bytes(out_dir / CATALOGUE_NAME, listing)
    index.save(out_dir)
    _remove_leftovers(out_dir, set(names))
    return index


def without_duplicates(volumes: VolumeTable) -> tuple[VolumeTable, tuple[tuple[str, str], ...]]:
    """The volumes with each voxel content once, and (case, same_as) of those left out."""
    has_label, cases, hashes = (volumes.column(name).to_pylist() for name in ("has_label", "case", "voxel_sha256"))
    first: dict[bytes, int] = {}
    for i in sorted(range(len(volumes)), key=lambda i: (not has_label[i], cases[i])):
        first.setdefault(hashes[i], i)
    if len(first) == len(volumes):
        return volumes, ()
    dropped = [i for i, content in enumerate(hashes) if first[content] != i]
    kept = np.setdiff1d(np.arange(len(volumes)), dropped)
    return volumes.take(kept), tuple((cases[i], cases[first[hashes[i]]]) for i in dropped)


def aliases(
    everything: VolumeTable, kept: VolumeTable, duplicates: Sequence[tuple[str, str]]
) -> tuple[tuple[str, str], ...]:
    """Pairs of persons who share a duplicate and both have scans among those kept, each pair once and in order."""
    person = dict(zip(*(everything.column(name).to_pylist() for name in ("case", "subject")), strict=True))
    left = {*kept.column("subject").to_pylist()}
    pairs = {tuple(sorted((person[case], person[same_as]))) for case, same_as in duplicates}
    return tuple((one, other) for one, other in sorted(pairs) if one != other and {one, other} <= left)


def _samples(
    plan: ShardPlan,
    config: BuildConfig,
    records: list[VolumeRecord],
    quarantined: list[Quarantined],
    changed: list[str],
) -> Iterator[ShardSample]:
    """Usable samples one by one; fills `records` (without shard and members) and `quarantined` on the way.

    `changed` gets the cases whose files are no longer those of the plan.
    """
    settings = config.settings()
    for case, mark in zip(plan.cases, plan.fingerprints, strict=True):
        outcome = ingest(case, plan.archive, config.preprocess, config.encoding)
        if fingerprint(case, plan.archive, settings) != mark:
            changed.append(case.case)
            name = case.source or case.case
            outcome = Quarantined(case.case, name, f"{name}: changed while shards were built: run the build again")
        if isinstance(outcome, Quarantined):
            quarantined.append(outcome)
        else:
            sample, record = outcome
            records.append(record)
            yield sample


def _decided(preprocess: PreprocessConfig, volumes: VolumeTable) -> PreprocessConfig:
    """`intensity: auto` as one answer, where all volumes are of one kind: predictions then need no modality."""
    decided = {preprocess.for_modality(modality) for modality in volumes.column("modality").unique().to_pylist()}
    return decided.pop() if len(decided) == 1 else preprocess


def _result_path(name: str, out_dir: Path) -> Path:
    return out_dir / RESULTS_FOLDER / f"{name}.json"


def result_text(path: Path) -> bytes | None:
    """The JSON in the file of a stored result; None where it does not match its own hash. Raises OSError."""
    stated_sha256, _, text = path.read_bytes().partition(b"\n")
    text = text.rstrip(b"\n")
    return text if hashlib.sha256(text).hexdigest().encode() == stated_sha256 else None


def _finished(name: str, out_dir: Path) -> ShardResult | None:
    """The stored result if it is whole, that of `name`, and its shard is there in full size.

    (The shard's hash is `verify`'s work.)
    """
    try:
        text = result_text(_result_path(name, out_dir))
        if text is None:
            return None
        result = _RESULT.validate_json(text)
    except (OSError, ValueError):
        return None
    if result.name != name or result.shard is not None and result.shard.name != name:
        return None
    if result.shard is not None and size_bytes(out_dir / result.shard.name) != result.shard.bytes:
        return None
    return result


def _remove_leftovers(out_dir: Path, names: set[str]) -> None:
    """Shards that are not of this build, and what killed writers left of theirs."""
    results = out_dir / RESULTS_FOLDER
    wanted = {*names, *(f"{name}.json" for name in names)}
    # results first: a shard that is being removed has none
    for folder, pattern in itertools.product((results, out_dir), ("shard-*", ".tmp-*", ".lock-*")):
        for path in folder.glob(pattern):
            if path.name not in wanted:
                remove(path)
