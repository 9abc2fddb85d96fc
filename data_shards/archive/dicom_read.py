"""Reads one DICOM series: finds its slices again, checks that they are one volume of the body, and puts it together.

First all headers, then, only when everything fits, the voxels of one file at a time: the cost in memory is the volume
and one file. Classic series (a slice a file) and enhanced ones (all frames in one) become the same list of frames.
Every message names the scan by its key and speaks in numbers; nothing is quoted.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import UID

from data_shards.archive.dicom_geometry import SliceGeometry, stack_slices
from data_shards.archive.dicom_header import (
    IDENTIFYING,
    TECHNICAL,
    UnreadableDicomError,
    is_dicom_file,
    is_packed,
    open_dicom,
    quietly,
    text_of,
)
from data_shards.archive.dicom_pixels import decode_frame
from data_shards.archive.dicom_scan import NO_SERIES
from data_shards.archive.nifti import MAX_VOXELS
from data_shards.errors import VolumeError

_MAX_SLICE_VOXELS = 1 << 26  # 8192 x 8192
_PER_FRAME_GROUPS = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
}
_ONE_PER_SERIES = ("StudyInstanceUID", "PatientID", "IssuerOfPatientID", "FrameOfReferenceUID")


@dataclass(frozen=True)
class _Frame:
    """One slice: frame `index` of a file, where it lies, and how stored numbers become values."""

    path: str
    index: int
    geometry: SliceGeometry
    slope: float
    intercept: float


@dataclass(frozen=True)
class _Pixels:
    """How a file stores its numbers."""

    num_rows: int
    num_columns: int
    num_frames: int
    lowest_plus_highest: int | None  # of the stored numbers, where they are inverted (MONOCHROME1)


@quietly()
def read_series(folders: Sequence[Path], series_uid: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Voxels float32 (X, Y, Z) = (column, row, slice) and their RAS affine in mm.

    Raises VolumeError for a series that isn't one evenly spaced stack of grey slices, can't be decoded, may show
    names burned into its pixels, or mixes persons. Never any other exception.
    """
    files = [path for folder in folders for path in _files(folder, name)]
    headers = _headers(files, series_uid, name)
    for keyword in _ONE_PER_SERIES:
        if len({text_of(header, keyword) for header in headers.values()}) > 1:
            raise VolumeError(f"{name}: its files differ in {keyword}, one series has one: separate them")
    try:
        sizes = {path: os.path.getsize(path) for path in headers}
    except OSError:
        raise VolumeError(f"{name}: a file of it went away while it was read: run the build again") from None
    pixels = {path: _check(name, header, sizes[path]) for path, header in headers.items()}
    shapes = {(p.num_columns, p.num_rows) for p in pixels.values()}
    if len(shapes) > 1:
        raise VolumeError(f"{name}: slices of {len(shapes)} sizes, like {min(shapes)} and {max(shapes)}: separate them")
    frames = [f for path, header in headers.items() for f in _frames(name, path, header, pixels[path].num_frames)]
    order, affine_4x4 = stack_slices(name, [frame.geometry for frame in frames])
    (shape_XY,) = shapes
    if shape_XY[0] * shape_XY[1] * len(frames) > MAX_VOXELS:
        raise VolumeError(f"{name}: {shape_XY} x {len(frames)} voxels are more than {MAX_VOXELS}: crop the scan")

    data_ZYX = np.empty((len(frames), *shape_XY[::-1]), dtype=np.float32)
    place_of = {(frames[i].path, frames[i].index): place for place, i in enumerate(order)}
    for path in headers:
        _decode(name, [frame for frame in frames if frame.path == path], pixels[path], data_ZYX, place_of)
    return data_ZYX.transpose(2, 1, 0), affine_4x4


def _files(folder: Path, name: str) -> list[str]:
    try:
        return sorted(path for entry in os.listdir(folder) if is_dicom_file(path := os.path.join(folder, entry)))
    except OSError:
        raise VolumeError(f"{name}: its folder can't be listed: restore it or scan the archive again") from None


def _headers(files: list[str], series_uid: str, name: str) -> dict[str, Dataset]:
    headers: dict[str, Dataset] = {}
    num_unreadable = 0
    for path in files:
        try:
            header = open_dicom(path, ("SeriesInstanceUID",))
            uid = text_of(header, "SeriesInstanceUID")
            if uid == series_uid:
                headers[path] = open_dicom(path, (*TECHNICAL, *IDENTIFYING))
            num_unreadable += not uid
        except UnreadableDicomError:
            num_unreadable += 1
    if series_uid == NO_SERIES:
        raise VolumeError(
            f"{name}: {num_unreadable} files of a folder are broken DICOM or belong to no series: copy them again"
        )
    headers = {path: header for path, header in headers.items() if "Rows" in header}
    if not headers:
        raise VolumeError(f"{name}: none of its slices is there any more: restore them or scan the archive again")
    return headers


def _check(name: str, header: Dataset, size_bytes: int) -> _Pixels:
    """What one file must be before its voxels are touched."""
    kind = UID(text_of(header, "SOPClassUID")).keyword or ""
    image_type = text_of(header, "ImageType").upper()
    burned_in = text_of(header, "BurnedInAnnotation").upper()
    if burned_in == "YES":
        raise VolumeError(f"{name}: names may be burned into its pixels (BurnedInAnnotation is YES): remove it")
    if ("SecondaryCapture" in kind or "SCREEN" in image_type) and burned_in != "NO":
        raise VolumeError(f"{name}: a screenshot that doesn't say BurnedInAnnotation NO may show names: remove it")
    if "LOCALIZER" in image_type:
        raise VolumeError(f"{name}: is a localizer, not a volume: remove it")
    inverted = text_of(header, "PhotometricInterpretation").upper()
    if inverted not in ("MONOCHROME1", "MONOCHROME2") or _whole(name, header, "SamplesPerPixel", 1) != 1:
        raise VolumeError(
            f"{name}: is a colour image, only grey ones (MONOCHROME1, MONOCHROME2) can be used: remove it"
        )
    if "ModalityLUTSequence" in header:
        raise VolumeError(
            f"{name}: its values come from a lookup table, only slope and intercept are known: convert it"
        )
    num_rows, num_columns = _whole(name, header, "Rows"), _whole(name, header, "Columns")
    num_frames = _whole(name, header, "NumberOfFrames", 1)
    bits, stored_bits = _whole(name, header, "BitsAllocated"), _whole(name, header, "BitsStored")
    if min(num_rows, num_columns) < 2 or num_frames < 1 or num_rows * num_columns > _MAX_SLICE_VOXELS:
        raise VolumeError(f"{name}: {num_frames} frames of {num_columns} x {num_rows} voxels can't be used: remove it")
    if bits not in (8, 16, 32) or not 1 <= stored_bits <= bits:
        raise VolumeError(f"{name}: {stored_bits} of {bits} bits a voxel, 8, 16 or 32 are known: convert it")
    needed = num_frames * num_rows * num_columns * bits // 8
    if not is_packed(header) and needed > size_bytes:
        raise VolumeError(f"{name}: a file has {size_bytes} bytes, its header promises {needed}: copy it again")
    is_signed = _whole(name, header, "PixelRepresentation", 0) == 1
    ends = (-1 if is_signed else (1 << stored_bits) - 1) if inverted == "MONOCHROME1" else None
    return _Pixels(num_rows, num_columns, num_frames, ends)


def _frames(name: str, path: str, header: Dataset, num_frames: int) -> list[_Frame]:
    """The frames of one file. Those of an enhanced file lie where its functional groups say, each or all together."""
    shared, each = (
        _items(header, keyword) for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
    )
    if (each or num_frames > 1) and len(each) != num_frames:
        raise VolumeError(f"{name}: has {num_frames} frames, but says for {len(each)} where they lie: convert it")
    places = [(item, *shared, header) for item in each] if each else [(*shared, header)]
    return [
        _Frame(
            path,
            index,
            SliceGeometry(
                _numbers(name, sources, "ImagePositionPatient", 3),
                _numbers(name, sources, "ImageOrientationPatient", 6),
                _numbers(name, sources, "PixelSpacing", 2),
            ),
            _numbers(name, sources, "RescaleSlope", 1, default=1.0)[0],
            _numbers(name, sources, "RescaleIntercept", 1, default=0.0)[0],
        )
        for index, sources in enumerate(places)
    ]


def _decode(
    name: str, frames: list[_Frame], pixels: _Pixels, data_ZYX: np.ndarray, place_of: dict[tuple[str, int], int]
) -> None:
    """Voxels of one file, as values, into their places."""
    try:
        file = open_dicom(frames[0].path, TECHNICAL, with_voxels=True)
        for frame in frames:
            stored_YX = decode_frame(file, frame.index, pixels.num_frames, (pixels.num_rows, pixels.num_columns))
            if pixels.lowest_plus_highest is not None:
                stored_YX = pixels.lowest_plus_highest - stored_YX.astype(np.int64)
            with np.errstate(over="ignore", invalid="ignore"):  # becomes inf and is refused as such
                data_ZYX[place_of[frame.path, frame.index]] = stored_YX * frame.slope + frame.intercept
    except Exception:  # decoders raise anything, and quote the file
        raise VolumeError(
            f"{name}: the voxels of a slice can't be decoded (pixel data missing, short, broken or of an unknown "
            "compression): copy it again or decompress it"
        ) from None


def _items(header: Dataset, keyword: str) -> list[Dataset]:
    try:
        return list(header.get(keyword) or [])
    except Exception:
        return []


def _numbers(
    name: str, sources: Sequence[Dataset], keyword: str, num: int, default: float | None = None
) -> tuple[float, ...]:
    """Finite numbers of an element from the first source that has it, in its functional group or by itself."""
    try:
        for source in sources:
            for holder in (*_items(source, _PER_FRAME_GROUPS[keyword]), source):
                value = holder.get(keyword)
                if value is not None and value != "":
                    numbers = tuple(float(x) for x in (value if num > 1 else (value,)))
                    if len(numbers) != num or not np.isfinite(numbers).all():
                        raise ValueError
                    return numbers
    except Exception:  # decoding is lazy, so a broken value shows up only here
        raise VolumeError(f"{name}: a slice's {keyword} is not {num} numbers: export the series again") from None
    if default is None:
        raise VolumeError(f"{name}: a slice has no {keyword}, so nobody knows where it lies: remove the series")
    return (default,)


def _whole(name: str, header: Dataset, keyword: str, default: int | None = None) -> int:
    try:
        value = header.get(keyword)
        return default if value is None and default is not None else int(value)
    except Exception:
        raise VolumeError(f"{name}: a slice's {keyword} is missing or no whole number: export it again") from None
