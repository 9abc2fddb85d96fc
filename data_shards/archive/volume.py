"""Reads one NIfTI scan into memory and refuses what can't be used, naming the file, the value and the remedy.

The whole file is decompressed in one go: that checks the gzip CRC, which reading just the voxels would skip, and costs
one uncompressed copy in memory. X Y Z are the file's own axes, C channels.
"""

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError, HeaderTypeError, ImageDataError
from nibabel.wrapstruct import WrapStructError

from data_shards.errors import VolumeError
from data_shards.formats.sample import array_sha256

_UNREADABLE = (
    OSError, EOFError, zlib.error, ValueError, TypeError, OverflowError, MemoryError,
    ImageFileError, HeaderDataError, HeaderTypeError, ImageDataError, WrapStructError,
)  # fmt: skip


@dataclass(frozen=True)
class Volume:
    """Voxels in file order: an image float32 (C, X, Y, Z) or a label uint8 (X, Y, Z), with the file's affine (mm)."""

    data: np.ndarray
    affine_4x4: np.ndarray
    path: Path

    @property
    def shape_XYZ(self) -> tuple[int, int, int]:
        x, y, z = self.data.shape[-3:]
        return x, y, z


def read_image(paths: Sequence[Path]) -> Volume:
    """One scan from one file per channel, or from a single 3-D or 4-D (X, Y, Z, C) file.

    Raises VolumeError when a file can't be read (truncated, not NIfTI), isn't a volume (2-D), holds NaN or infinity,
    is constant, has an unusable affine, or when the channels disagree in shape.
    """
    channels: list[np.ndarray] = []
    affine_4x4 = np.eye(4)
    for path in map(Path, paths):
        data_XYZC, affine = _read_nifti(path, np.float32)
        _check_image(path, data_XYZC)
        if channels and data_XYZC.shape[:3] != channels[0].shape:
            raise VolumeError(
                f"{path}: shape {data_XYZC.shape[:3]} differs from the first channel's {channels[0].shape}: "
                "resample the channels to one grid"
            )
        affine_4x4 = affine_4x4 if channels else affine
        channels.extend(np.moveaxis(data_XYZC, -1, 0))
    return Volume(np.stack(channels), affine_4x4, Path(paths[0]))


def read_label(path: Path, like: Volume, num_classes: int | None = None) -> Volume:
    """The label of the image `like`, as uint8 (X, Y, Z). Whole numbers stored as floats are fine.

    Raises VolumeError when it can't be read, its shape, voxel size or orientation differs from the image's, or a value
    is not a whole number in [0, num_classes) (256 where `num_classes` is None).
    """
    path = Path(path)
    data_XYZC, affine = _read_nifti(path, None)
    shape = data_XYZC.shape[:3] if data_XYZC.shape[3] == 1 else data_XYZC.shape
    if shape != like.shape_XYZ:
        raise VolumeError(
            f"{path}: label shape {shape} differs from the shape {like.shape_XYZ} of its image {like.path.name}: "
            "export the label again on the image's grid"
        )
    if not _same_axes(affine, like.affine_4x4):
        raise VolumeError(
            f"{path}: the label's axes {_axes(affine)} differ from {_axes(like.affine_4x4)} of its image "
            f"{like.path.name}: copy the image's affine onto the label"
        )
    data_XYZ = data_XYZC[..., 0]
    limit = num_classes or 256
    is_bad = ~((data_XYZ >= 0) & (data_XYZ < limit) & (data_XYZ == np.floor(data_XYZ)))  # NaN is bad, too
    if is_bad.any():
        raise VolumeError(
            f"{path}: label value {data_XYZ[is_bad][0]} in {int(is_bad.sum())} voxels, allowed are whole numbers "
            f"0..{limit - 1}: name the class in dataset.json or correct the label"
        )
    return Volume(data_XYZ.astype(np.uint8), affine, path)


def voxel_sha256(volume: Volume) -> str:
    """Hash of shape and voxels as read, before any preprocessing: equal scans have equal hashes whatever their name."""
    return array_sha256(volume.data)


def _read_nifti(path: Path, dtype: type | None) -> tuple[np.ndarray, np.ndarray]:
    """Scaled voxels (X, Y, Z, C) and affine; a 3-D file has C = 1."""
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
        kind = nib.Nifti2Image if 540 in (int.from_bytes(raw[:4], "little"), int.from_bytes(raw[:4], "big")) else None
        image = (kind or nib.Nifti1Image).from_bytes(raw)
        data = np.asanyarray(image.dataobj)
        if data.dtype.kind not in "iufb":
            raise ValueError(f"voxels of type {data.dtype} are not numbers")
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf and is refused as such
            data = data if dtype is None else data.astype(dtype, copy=False)
        affine = np.asarray(image.affine, dtype=np.float64)
    except _UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise VolumeError(f"{path}: can't be read as NIfTI ({reason}): copy or export it again") from None
    while data.ndim > 4 and data.shape[-1] == 1:
        data = data[..., 0]
    data = data[..., None] if data.ndim == 3 else data
    if data.ndim != 4 or min(data.shape[:3]) < 2 or data.shape[3] < 1:
        shape = data.shape[:-1] if data.ndim == 4 else data.shape
        raise VolumeError(f"{path}: shape {shape} is not a 3-D volume (2-D images can't be used): remove it")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise VolumeError(f"{path}: its affine is not invertible, so the voxel size is unknown: repair the header")
    return data, affine


def _check_image(path: Path, data: np.ndarray) -> None:
    num_bad = data.size - int(np.isfinite(data).sum())
    if num_bad:
        raise VolumeError(f"{path}: {num_bad} of {data.size} voxels are NaN or infinite: repair or remove the scan")
    for channel in np.moveaxis(data, -1, 0):
        if channel.min() == channel.max():
            raise VolumeError(f"{path}: every voxel is {channel.flat[0]:g}, there is nothing to learn: remove the scan")


def _same_axes(affine_a: np.ndarray, affine_b: np.ndarray) -> bool:
    sizes = nib.affines.voxel_sizes(affine_a), nib.affines.voxel_sizes(affine_b)
    same_direction = nib.aff2axcodes(affine_a) == nib.aff2axcodes(affine_b)
    return same_direction and bool(np.allclose(*sizes, rtol=0.01))


def _axes(affine: np.ndarray) -> str:
    sizes = " x ".join(f"{size:.3g}" for size in nib.affines.voxel_sizes(affine))
    return f"{''.join(nib.aff2axcodes(affine))} {sizes} mm"
