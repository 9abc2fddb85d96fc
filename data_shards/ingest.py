"""One case of an archive -> what a shard stores of it, or the reason why it can't be used."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_shards.archive.layout import ArchiveCase
from data_shards.archive.volume import Volume, read_image, read_label, voxel_sha256
from data_shards.errors import VolumeError
from data_shards.formats.index import Quarantined, VolumeRecord
from data_shards.formats.sample import ShardSample, array_sha256
from data_shards.preprocess import Prepared, PreprocessConfig, prepare, prepare_label


@dataclass(frozen=True)
class ShardPlan:
    """One shard to build: `name` under OUT and the cases that go into it, in order."""

    name: str
    root: Path
    channel_names: tuple[str, ...]
    class_names: tuple[str, ...]
    cases: tuple[ArchiveCase, ...]


def ingest(
    case: ArchiveCase, plan: ShardPlan, config: PreprocessConfig
) -> tuple[ShardSample, VolumeRecord] | Quarantined:
    """Read, check and preprocess one case. The record has no members yet: only the written shard knows them.

    An unusable image or label takes the whole case out; no VolumeError leaves here.
    """
    path = case.image_paths[0]
    try:
        image = read_image(case.image_paths)
        if len(image.data) != len(plan.channel_names):
            raise VolumeError(
                f"{path}: has {len(image.data)} channels, the archive names {len(plan.channel_names)}: "
                "correct channel_names or the scan"
            )
        prepared = prepare(image, config)
        label_DHW = None
        if case.label_path is not None:
            path = case.label_path
            label_DHW = prepare_label(read_label(path, image, len(plan.class_names)), prepared.record)
    except VolumeError as error:
        reason = str(error).replace(f"{plan.root}/", "")  # no machine path in what we keep
        return Quarantined(case.case, relative(path, plan.root), reason)
    sample = ShardSample(
        case=case.case,
        image_CDHW=prepared.volume_CDHW.astype(np.float16),
        label_DHW=label_DHW,
        meta={"case": case.case, "spacing_mm": list(prepared.record.spacing_mm)},
    )
    return sample, _record(case, plan, image, prepared, sample)


def relative(path: Path, root: Path) -> str:
    """`path` as seen from the archive's root; just the name of a file that lies elsewhere."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def size_and_time(path: Path) -> tuple[int, int] | None:
    """Bytes and modification time in ns; None for a link to nowhere, which is quarantined when it is read."""
    try:
        return path.stat().st_size, path.stat().st_mtime_ns
    except OSError:
        return None


def _record(case: ArchiveCase, plan: ShardPlan, image: Volume, prepared: Prepared, sample: ShardSample) -> VolumeRecord:
    image_CDHW, label_DHW = sample.image_CDHW, sample.label_DHW
    c, d, h, w = image_CDHW.shape
    return VolumeRecord(
        case=case.case,
        subject=case.subject,
        shard=plan.name,
        shape_CDHW=(c, d, h, w),
        spacing_mm=prepared.record.spacing_mm,
        voxel_sha256=voxel_sha256(image),
        source=relative(case.image_paths[0], plan.root),
        has_label=label_DHW is not None,
        label_classes=() if label_DHW is None else tuple(np.unique(label_DHW).tolist()),
        preprocess=prepared.record.to_json(),
        stored_sha256={what: array_sha256(array) for what, array in sample.arrays().items()},
        members={},
        mean=float(image_CDHW.mean(dtype=np.float64)),
        std=float(image_CDHW.std(dtype=np.float64)),
        minimum_C=tuple(image_CDHW.min(axis=(1, 2, 3)).tolist()),
    )
