"""Brings every scan into one frame (RAS, D H W, spacing, intensity) and takes a prediction back to the file's own grid.

The way in: reorient to the closest RAS axes, transpose to depth first (D = z from feet to head, H = y, W = x), crop to
content, normalise intensity, resample. What was done is a `PreprocessRecord`; `Restorer` walks it back, slab by slab
along D. A few float32 copies of a scan are alive at a time: 2.3 GB for a CT of 512 x 512 x 600 that is resampled.
X Y Z are the file's axes, C channels, K classes.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import nibabel as nib
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from data_shards.archive.nifti import MAX_VOXELS
from data_shards.archive.volume import Volume, stack_channels
from data_shards.errors import InputError, VolumeError
from data_shards.order.crops import slices
from data_shards.resample import SlabVote, Winners, largest, resample, resample_label

_TISSUE_HU = -500.0  # between lung and soft tissue

Triple = tuple[int, int, int]
TripleMm = tuple[float, float, float]


class PreprocessConfig(BaseModel):
    """How scans are brought into one frame. Equal settings give equal voxels."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    spacing_mm: TripleMm | None = Field(
        default=None, description="voxel size to resample to, (D, H, W) in mm; null = native"
    )
    intensity: Literal["auto", "zscore", "ct"] = Field(
        default="auto",
        description="zscore: clip to percentiles, mean 0, std 1 per scan (MR); ct: window in HU to -1..1; "
        "auto: ct for scans known as CT, zscore for all others",
    )
    clip_percentiles: tuple[float, float] = Field(
        default=(0.5, 99.5), description="zscore: foreground percentiles to clip at, in percent"
    )
    ct_window_hu: tuple[float, float] = Field(
        default=(-1000.0, 1000.0), description="ct: window mapped to -1..1, in HU"
    )
    crop_to_content: bool = Field(
        default=True, description="cut off the air around the body (voxels at the scan's minimum)"
    )

    @model_validator(mode="after")
    def _ranges_run_upwards(self) -> "PreprocessConfig":
        low, high = self.clip_percentiles
        if not 0 <= low < high <= 100:
            raise ValueError(f"clip_percentiles {self.clip_percentiles} must run upwards within 0..100")
        if not self.ct_window_hu[0] < self.ct_window_hu[1]:
            raise ValueError(f"ct_window_hu {self.ct_window_hu} must run upwards")
        if self.spacing_mm is not None and min(self.spacing_mm) <= 0:
            raise ValueError(f"spacing_mm {self.spacing_mm} must be positive")
        return self

    def for_modality(self, modality: str) -> "PreprocessConfig":
        """These settings with `auto` decided for scans of `modality` ("CT", "MR", "" = unknown)."""
        if self.intensity != "auto":
            return self
        return self.model_copy(update={"intensity": "ct" if modality == "CT" else "zscore"})


@dataclass(frozen=True)
class PreprocessRecord:
    """What was done to one scan; JSON-able, enough to undo it. Triples are (D, H, W) unless the name says XYZ.

    `orientation` is nibabel's (axis, flip) per file axis towards RAS. A channel's stored value is
    (clip(x, *clip_C[c]) - shift_C[c]) / scale_C[c].
    """

    shape_XYZ: Triple
    affine_4x4: tuple[tuple[float, ...], ...]
    orientation: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    crop_start: Triple
    crop_stop: Triple
    shape_DHW: Triple
    spacing_before_mm: TripleMm
    spacing_mm: TripleMm
    clip_C: tuple[tuple[float, float], ...]
    shift_C: tuple[float, ...]
    scale_C: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        return _RECORD.dump_python(self, mode="json")

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "PreprocessRecord":
        """Raises ValueError (pydantic's) for anything that isn't a record."""
        return _RECORD.validate_python(value)


_RECORD = TypeAdapter(PreprocessRecord)


@dataclass(frozen=True)
class Prepared:
    """One scan in the system's frame: float32 (C, D, H, W), how it got there, and where it holds anatomy (bool)."""

    volume_CDHW: np.ndarray
    record: PreprocessRecord
    is_foreground_DHW: np.ndarray


def prepare(image: Volume, config: PreprocessConfig, modality: str = "") -> Prepared:
    """Reorient, crop, normalise, resample. Stored values stay within about +-15, safe for float16.

    `modality` decides what `intensity: auto` means.
    Raises VolumeError when nothing is left to normalise (all but a few voxels are equal).
    """
    config = config.for_modality(modality)
    orientation = nib.orientations.io_orientation(image.affine_4x4).astype(int)
    sizes_xyz = nib.affines.voxel_sizes(image.affine_4x4)
    # orientation[i, 0] = the RAS axis that file axis i runs along; D, H, W are RAS axes 2, 1, 0.
    spacing_before = _triple_mm(sizes_xyz[list(orientation[:, 0]).index(axis)] for axis in (2, 1, 0))
    volume_CDHW = stack_channels([_to_dhw(channel, orientation) for channel in image.data])

    # Numbers come from the whole scan, before cropping and resampling: there the air is exactly at the minimum.
    ranges = [_intensity(image, channel, config) for channel in volume_CDHW]
    start, stop = _content_box(volume_CDHW, config)
    d, h, w = slices(start, stop)
    cropped = zip(volume_CDHW[:, d, h, w], ranges, strict=True)
    volume_CDHW = stack_channels([_normalise(channel, *numbers) for channel, numbers in cropped])

    target = config.spacing_mm or spacing_before
    extent_mm = [n * mm for n, mm in zip(volume_CDHW.shape[1:], spacing_before, strict=True)]
    depth, height, width = (max(1, round(size / mm)) for size, mm in zip(extent_mm, target, strict=True))
    shape_DHW = (depth, height, width)
    if math.prod(shape_DHW) > MAX_VOXELS:
        raise VolumeError(
            f"{image.path}: {shape_DHW} voxels at {target} mm are too many: correct its affine or spacing_mm"
        )
    volume_CDHW = stack_channels([resample(channel, shape_DHW) for channel in volume_CDHW])
    (o0, f0), (o1, f1), (o2, f2) = orientation.tolist()
    record = PreprocessRecord(
        shape_XYZ=image.shape_XYZ,
        affine_4x4=tuple(tuple(float(x) for x in row) for row in image.affine_4x4),
        orientation=((o0, f0), (o1, f1), (o2, f2)),
        crop_start=start,
        crop_stop=stop,
        shape_DHW=shape_DHW,
        spacing_before_mm=spacing_before,
        spacing_mm=_triple_mm(size / n for size, n in zip(extent_mm, shape_DHW, strict=True)),
        clip_C=tuple((low, high) for low, high, _, _ in ranges),
        shift_C=tuple(shift for _, _, shift, _ in ranges),
        scale_C=tuple(scale for _, _, _, scale in ranges),
    )
    return Prepared(volume_CDHW, record, _is_foreground(volume_CDHW, record, config))


def prepare_label(label: Volume, record: PreprocessRecord) -> np.ndarray:
    """The label of a prepared scan in the same frame, uint8 (D, H, W). Labelled voxels in cropped-off air are lost."""
    if label.shape_XYZ != record.shape_XYZ:
        raise VolumeError(f"{label.path}: label shape {label.shape_XYZ} differs from the image's {record.shape_XYZ}")
    label_DHW = _to_dhw(label.data, np.array(record.orientation))
    box = slices(record.crop_start, record.crop_stop)
    return np.ascontiguousarray(resample_label(label_DHW[box], record.shape_DHW))


class Restorer:
    """Takes class probabilities (K, d, H, W) slab by slab along D and ends with the segmentation in the file's grid.

    Probabilities are resampled before `winners` decides, the largest by default; what was cropped off is background.
    """

    def __init__(self, record: PreprocessRecord, winners: Winners = largest) -> None:
        self.record = record
        cropped_shape = [b - a for a, b in zip(record.crop_start, record.crop_stop, strict=True)]
        shape_ras = [0, 0, 0]
        for n, (axis, _) in zip(record.shape_XYZ, record.orientation, strict=True):
            shape_ras[axis] = n
        self.label_DHW = np.zeros(shape_ras[::-1], dtype=np.uint8)
        self.in_box_DHW = self.label_DHW[slices(record.crop_start, record.crop_stop)]
        self.vote = SlabVote(record.shape_DHW, cropped_shape, winners)
        self.depth = 0

    def add(self, prob_KdHW: np.ndarray) -> None:
        """The next rows. Raises InputError where they don't fit the prepared scan."""
        self.depth += prob_KdHW.shape[1]
        self._check(self.depth <= self.record.shape_DHW[0], (self.depth, *prob_KdHW.shape[2:]))
        self._check(prob_KdHW.shape[2:] == self.record.shape_DHW[1:], (self.depth, *prob_KdHW.shape[2:]))
        start = self.vote.done
        rows_dHW = self.vote.add(prob_KdHW)
        self.in_box_DHW[start : start + len(rows_dHW)] = rows_dHW

    def labels_XYZ(self) -> np.ndarray:
        """uint8 (X, Y, Z). Raises InputError where rows are missing."""
        self._check(self.depth == self.record.shape_DHW[0], (self.depth, *self.record.shape_DHW[1:]))
        orientation = np.array(self.record.orientation)
        to_file = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), orientation)
        return np.ascontiguousarray(nib.orientations.apply_orientation(self.label_DHW.transpose(2, 1, 0), to_file))

    def _check(self, fits: bool, shape_DHW: tuple[int, ...]) -> None:
        if not fits:
            raise InputError(f"prediction has shape {shape_DHW}, the prepared scan has {self.record.shape_DHW}")


def _to_dhw(data_XYZ: np.ndarray, orientation: np.ndarray) -> np.ndarray:
    return nib.orientations.apply_orientation(data_XYZ, orientation).transpose(2, 1, 0)


def _content_box(volume_CDHW: np.ndarray, config: PreprocessConfig) -> tuple[Triple, Triple]:
    """Smallest box around everything that isn't air, in any channel. Air is at the minimum, or below the CT window."""
    shape = volume_CDHW.shape[1:]
    if not config.crop_to_content:
        return (0, 0, 0), (shape[0], shape[1], shape[2])
    floor_C = volume_CDHW.min(axis=(1, 2, 3))
    if config.intensity == "ct":
        floor_C = np.maximum(floor_C, config.ct_window_hu[0])
    is_content_DHW = (volume_CDHW > floor_C[:, None, None, None]).any(axis=0)
    start, stop = [0, 0, 0], list(shape)
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        hits = np.flatnonzero(is_content_DHW.any(axis=others))
        if len(hits):
            start[axis], stop[axis] = int(hits[0]), int(hits[-1]) + 1
    return (start[0], start[1], start[2]), (stop[0], stop[1], stop[2])


def _intensity(image: Volume, channel_DHW: np.ndarray, config: PreprocessConfig) -> tuple[float, float, float, float]:
    """(low, high, shift, scale) of one channel. Sums in float64 over the foreground: voxels above the minimum."""
    if config.intensity == "ct":
        low, high = config.ct_window_hu
        return low, high, (low + high) / 2, (high - low) / 2
    foreground = channel_DHW[channel_DHW > channel_DHW.min()]
    for values in (foreground, channel_DHW):  # a two-valued image has a flat foreground: take all of it
        if values.size:
            low, high = (float(p) for p in np.percentile(values, config.clip_percentiles))
            spread = np.clip(values, np.float32(low), np.float32(high))
            mean = float(spread.mean(dtype=np.float64))
            spread -= np.float32(mean)
            std = math.sqrt(np.square(spread, out=spread).mean(dtype=np.float64))
            if high > low and std > 0:
                return low, high, mean, std
    raise VolumeError(f"{image.path}: nearly every voxel is {channel_DHW.flat[0]:g}, nothing to learn: remove the scan")


def _normalise(channel_DHW: np.ndarray, low: float, high: float, shift: float, scale: float) -> np.ndarray:
    channel_DHW = np.clip(channel_DHW, low, high)  # a copy; the rest in place
    channel_DHW -= np.float32(shift)
    channel_DHW /= np.float32(scale)
    return channel_DHW


def _is_foreground(volume_CDHW: np.ndarray, record: PreprocessRecord, config: PreprocessConfig) -> np.ndarray:
    """bool (D, H, W), True = anatomy in any channel: denser than lung in CT, above Otsu's threshold elsewhere.

    Otsu's threshold (1979) parts the histogram where the variance between the two sides is largest.
    """
    is_foreground_DHW = np.zeros(volume_CDHW.shape[1:], dtype=bool)
    for channel, shift, scale in zip(volume_CDHW, record.shift_C, record.scale_C, strict=True):
        threshold = (_TISSUE_HU - shift) / scale if config.intensity == "ct" else _otsu(channel)
        is_foreground_DHW |= channel > max(threshold, channel.min())
    return is_foreground_DHW


def _otsu(channel_DHW: np.ndarray) -> float:
    step = 2 if channel_DHW.size > 10**6 else 1  # an eighth of the voxels shows the same histogram
    counts, edges = np.histogram(channel_DHW[::step, ::step, ::step], bins=256)
    centres = (edges[:-1] + edges[1:]) / 2
    below, above = counts.cumsum(), counts.sum() - counts.cumsum()
    sum_below = (counts * centres).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = sum_below / below - (sum_below[-1] - sum_below) / above
        between = np.nan_to_num(below * above * apart**2)
    return float(edges[between.argmax() + 1])


def _triple_mm(values: Iterable[float]) -> TripleMm:
    d, h, w = (float(value) for value in values)
    return d, h, w
