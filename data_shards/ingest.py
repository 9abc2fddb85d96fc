"""One case of an archive -> what a shard stores of it, or the reason why it can't be used."""

import math
from pathlib import Path

import numpy as np

from data_shards.archive.cases import relative
from data_shards.archive.layout import Archive, ArchiveCase
from data_shards.archive.volume import Volume, read_case_image, read_case_label, voxel_sha256
from data_shards.errors import VolumeError
from data_shards.formats.encoding import Encoding
from data_shards.formats.index import Quarantined
from data_shards.formats.sample import ShardSample, array_sha256, widened
from data_shards.formats.volumes import VolumeRecord
from data_shards.order.foreground import pack_foreground
from data_shards.preprocess import Prepared, PreprocessConfig, prepare, prepare_label


def ingest(
    case: ArchiveCase, archive: Archive, config: PreprocessConfig, encoding: Encoding
) -> tuple[ShardSample, VolumeRecord] | Quarantined:
    """Read, check and preprocess one case of `archive` (of which only root and names are looked at).

    The record knows no shard yet. An unusable image or label takes the whole case out; no VolumeError leaves here.
    """
    source = case.source or relative(case.image_paths[0], archive.root)
    path = source
    try:
        image = read_case_image(case)
        if len(image.data) != len(archive.channel_names):
            raise VolumeError(
                f"{source}: has {len(image.data)} channels, the archive names {len(archive.channel_names)}: "
                "correct channel_names or the scan"
            )
        prepared = prepare(image, config, case.modality)
        label_DHW = None
        if case.label_path is not None:
            path = case.case if case.is_hashed else relative(case.label_path, archive.root)
            label = read_case_label(case, image, len(archive.class_names))
            label_DHW = prepare_label(label, prepared.record)
    except VolumeError as error:
        reason = str(error).replace(f"{archive.root}/", "")  # no machine path in what we keep
        return Quarantined(case.case, path, reason)
    scale, offset = scale_of(prepared.volume_CDHW, encoding)
    stored_CDHW = to_stored(prepared.volume_CDHW, scale, offset, np.dtype(encoding.dtype))
    sample = ShardSample(
        case=case.case,
        image_CDHW=stored_CDHW,
        label_DHW=label_DHW,
        air=float(to_stored(prepared.volume_CDHW.min(), scale, offset, stored_CDHW.dtype)),
        meta={
            "case": case.case,
            "spacing_mm": list(prepared.record.spacing_mm),
            "scale_factor": scale,
            "add_offset": offset,
        },
    )
    return sample, _record(case, source, image, prepared, sample)


def scale_of(volume_CDHW: np.ndarray, encoding: Encoding) -> tuple[float, float]:
    """(scale, offset): a voxel reads as stored * scale + offset, to half a scale. float16 has 1 and 0."""
    if encoding.dtype == "float16":
        return 1.0, 0.0
    low, high = float(volume_CDHW.min()), float(volume_CDHW.max())
    return max(high - low, 1e-6) / 65534, (high + low) / 2


def to_stored(voxels: np.ndarray, scale: float, offset: float, dtype: np.dtype) -> np.ndarray:
    """Voxels as they are stored; a larger voxel is never stored as a smaller number."""
    if dtype == np.float16:
        return voxels.astype(dtype)
    return np.rint((voxels.astype(np.float64) - offset) / scale).astype(dtype)


def size_and_time(path: Path) -> tuple[int, int] | None:
    """Bytes and modification time in ns; None for a link to nowhere, which is quarantined when it is read."""
    try:
        return path.stat().st_size, path.stat().st_mtime_ns
    except OSError:
        return None


def _record(case: ArchiveCase, source: str, image: Volume, prepared: Prepared, sample: ShardSample) -> VolumeRecord:
    scale, offset = sample.meta["scale_factor"], sample.meta["add_offset"]
    label_DHW, read_CDHW = sample.label_DHW, widened(sample.image_CDHW, scale, offset)
    c, d, h, w = read_CDHW.shape
    mean = float(read_CDHW.mean(dtype=np.float64))
    # slice by slice: in one go the squares of a large CT in float64 would take gigabytes
    variance = sum(float(np.square(part - mean, dtype=np.float64).sum()) for part in read_CDHW.reshape(c * d, h, w))
    return VolumeRecord(
        case=case.case,
        subject=case.subject,
        session=case.session,
        modality=case.modality,
        shard="",
        shape_CDHW=(c, d, h, w),
        spacing_mm=prepared.record.spacing_mm,
        voxel_sha256=voxel_sha256(image),
        source=source,
        has_label=label_DHW is not None,
        label_classes=() if label_DHW is None else tuple(np.unique(label_DHW).tolist()),
        preprocess=prepared.record.to_json(),
        stored_sha256={what: array_sha256(array) for what, (array, _) in sample.arrays().items()},
        members={},
        mean=mean,
        std=math.sqrt(variance / read_CDHW.size),
        minimum_C=tuple(read_CDHW.min(axis=(1, 2, 3)).tolist()),
        dtype=sample.image_CDHW.dtype.name,
        scale=scale,
        offset=offset,
        air=sample.air,
        foreground=pack_foreground(prepared.is_foreground_DHW),
    )
