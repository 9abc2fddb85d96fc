"""Reads one scan into memory and refuses what can't be used, naming the scan, the value and the remedy.

One way for every format: its reader gives voxels and affine as they come, and the checks here hold for all. Costs one
uncompressed copy of the file in memory besides the result. X Y Z are the file's own axes, C channels.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from data_shards.archive.cases import META_ENDINGS, NRRD_ENDINGS, ArchiveCase, ScanName
from data_shards.archive.dicom_read import read_series
from data_shards.archive.metaimage import read_metaimage
from data_shards.archive.nifti import read_nifti
from data_shards.archive.nrrd import read_nrrd
from data_shards.errors import VolumeError
from data_shards.formats.sample import array_sha256

_VOXEL_MM = 1e-3, 1e3  # outside of it a header is wrong, and resampling to mm would need any amount of memory


@dataclass(frozen=True)
class Volume:
    """Voxels in file order: an image float32 (C, X, Y, Z) or a label uint8 (X, Y, Z), with the file's affine (mm).

    `path` is what messages call the scan: its file, or its key where names are hashed.
    """

    data: np.ndarray
    affine_4x4: np.ndarray
    path: Path

    @property
    def shape_XYZ(self) -> tuple[int, int, int]:
        x, y, z = self.data.shape[-3:]
        return x, y, z


def read_case_image(case: ArchiveCase) -> Volume:
    """The image of a case of any kind. Raises VolumeError as `read_image` does; that of a hashed case names its key."""
    if not case.series_uid:
        return read_image(case.image_paths, case.scan_name)
    name = ScanName(case.case, is_hashed=True)
    data_XYZ, affine_4x4 = read_series(case.image_paths, case.series_uid, case.case)
    check_grid(name, data_XYZ[..., None], affine_4x4)
    check_image(name, data_XYZ[..., None])
    return Volume(data_XYZ[None], affine_4x4, Path(case.case))


def read_case_label(case: ArchiveCase, like: Volume, num_classes: int | None = None) -> Volume:
    """The label of a labelled case, as `read_label`; messages about a hashed case name its key."""
    assert case.label_path is not None
    return read_label(case.label_path, like, num_classes, case.scan_name)


def read_image(paths: Sequence[Path], name: ScanName | None = None) -> Volume:
    """One scan from one file per channel, or from a single 3-D or 4-D (X, Y, Z, C) file: NIfTI, NRRD or MHA.

    Messages call the scan `name`, or by the path of the file in question. Raises VolumeError when a file can't be read
    (truncated, not an image, promising more than it holds), isn't a volume (2-D), holds NaN or infinity, is constant,
    has an unusable affine, or when the channels disagree in shape.
    """
    channels: list[np.ndarray] = []
    affine_4x4 = np.eye(4)
    for path in map(Path, paths):
        file_name = name or ScanName(str(path))
        data_XYZC, affine = _read_file(path, file_name, np.float32)
        check_image(file_name, data_XYZC)
        if channels and data_XYZC.shape[:3] != channels[0].shape:
            raise VolumeError(
                f"{file_name}: shape {data_XYZC.shape[:3]} differs from the first channel's {channels[0].shape}: "
                "resample the channels to one grid"
            )
        affine_4x4 = affine_4x4 if channels else affine
        channels.extend(np.moveaxis(data_XYZC, -1, 0))
    # Files have X fastest: stacked as they are, a large CT would be turned over in memory twice, at a second each.
    data_CXYZ = stack_channels([channel.T for channel in channels]).transpose(0, 3, 2, 1)
    return Volume(data_CXYZ, affine_4x4, Path(str(name)) if name else Path(paths[0]))


def read_label(path: Path, like: Volume, num_classes: int | None = None, name: ScanName | None = None) -> Volume:
    """The label of the image `like`, as uint8 (X, Y, Z). Whole numbers stored as floats are fine.

    Messages call it `name`, or by its path. Raises VolumeError when it can't be read, its shape, voxel size or
    orientation differs from the image's, or a value is not a whole number in [0, num_classes) (256 where `num_classes`
    is None).
    """
    path = Path(path)
    name = name or ScanName(str(path))
    data_XYZC, affine = _read_file(path, name, None)
    shape = data_XYZC.shape[:3] if data_XYZC.shape[3] == 1 else data_XYZC.shape
    if shape != like.shape_XYZ:
        raise VolumeError(
            f"{name}: label shape {shape} differs from the shape {like.shape_XYZ} of its image {like.path.name}: "
            "export the label again on the image's grid"
        )
    if not _same_axes(affine, like.affine_4x4):
        raise VolumeError(
            f"{name}: the label's axes {_axes(affine)} differ from {_axes(like.affine_4x4)} of its image "
            f"{like.path.name}: copy the image's affine onto the label"
        )
    data_XYZ = data_XYZC[..., 0]
    limit = num_classes or 256
    is_bad = ~((data_XYZ >= 0) & (data_XYZ < limit) & (data_XYZ == np.floor(data_XYZ)))  # NaN is bad, too
    if is_bad.any():
        raise VolumeError(
            f"{name}: label value {data_XYZ[is_bad][0]} in {int(is_bad.sum())} voxels, allowed are whole numbers "
            f"0..{limit - 1}: name the class in dataset.json or correct the label"
        )
    return Volume(data_XYZ.astype(np.uint8), affine, Path(str(name)))


def voxel_sha256(volume: Volume) -> str:
    """Hash of shape and voxels as read, before any preprocessing: equal scans have equal hashes whatever their name."""
    return array_sha256(volume.data.transpose(0, 3, 2, 1))


def stack_channels(channels: Sequence[np.ndarray]) -> np.ndarray:
    """`np.stack`, but a single channel is not copied: a CT of 300 MB is otherwise moved at every step on its way."""
    return channels[0][None] if len(channels) == 1 else np.stack(channels)


def read_voxels(path: Path, name: ScanName) -> tuple[np.ndarray, np.ndarray]:
    """Scaled voxels (X, Y, Z, ...) and affine as they come, of NIfTI, NRRD or MHA. VolumeError as `read_image`."""
    if os.path.exists(path) and not os.path.isfile(path):  # reading a pipe or a device may never end
        raise VolumeError(f"{name}: is not a file: give the file of a scan")
    ending = path.suffix.lower()
    read = read_nrrd if ending in NRRD_ENDINGS else read_metaimage if ending in META_ENDINGS else read_nifti
    return read(path, name)


def _read_file(path: Path, name: ScanName, dtype: type | None) -> tuple[np.ndarray, np.ndarray]:
    """Scaled voxels (X, Y, Z, C) and affine; a 3-D file has C = 1."""
    data, affine_4x4 = read_voxels(path, name)
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf and is refused as such
        data = data if dtype is None else data.astype(dtype, copy=False)
    while data.ndim > 4 and data.shape[-1] == 1:
        data = data[..., 0]
    data = data[..., None] if data.ndim == 3 else data
    check_grid(name, data, affine_4x4)
    return data, affine_4x4


def check_grid(name: ScanName, data: np.ndarray, affine_4x4: np.ndarray) -> None:
    """VolumeError unless `data` (X, Y, Z, C) is a volume whose voxels `affine_4x4` gives a place and a size in mm."""
    if data.ndim != 4 or min(data.shape[:3]) < 2 or data.shape[3] < 1:
        shape = data.shape[:-1] if data.ndim == 4 else data.shape
        raise VolumeError(f"{name}: shape {shape} is not a 3-D volume (2-D images can't be used): remove it")
    with np.errstate(over="ignore", invalid="ignore"):
        sizes_mm = nib.affines.voxel_sizes(affine_4x4)
        is_box = np.isfinite(affine_4x4).all() and (sizes_mm > _VOXEL_MM[0]).all() and (sizes_mm < _VOXEL_MM[1]).all()
    if not is_box or abs(np.linalg.det(affine_4x4[:3, :3] / sizes_mm)) < 1e-3:
        raise VolumeError(f"{name}: its affine is not invertible, so the voxel size is unknown: repair the header")


def check_image(name: ScanName, data: np.ndarray) -> None:
    """VolumeError unless every voxel of `data` (X, Y, Z, C) is finite and every channel has some contrast."""
    for channel in np.moveaxis(data, -1, 0):
        low, high = channel.min(), channel.max()
        if not np.isfinite(low) or not np.isfinite(high):  # NaN makes both NaN
            num_bad = data.size - int(np.isfinite(data).sum())
            raise VolumeError(f"{name}: {num_bad} of {data.size} voxels are NaN or infinite: repair or remove the scan")
        if low == high:
            raise VolumeError(f"{name}: every voxel is {channel.flat[0]:g}, there is nothing to learn: remove the scan")


def _same_axes(affine_a: np.ndarray, affine_b: np.ndarray) -> bool:
    sizes = nib.affines.voxel_sizes(affine_a), nib.affines.voxel_sizes(affine_b)
    same_direction = nib.aff2axcodes(affine_a) == nib.aff2axcodes(affine_b)
    return same_direction and bool(np.allclose(*sizes, rtol=0.01))


def _axes(affine: np.ndarray) -> str:
    sizes = " x ".join(f"{size:.3g}" for size in nib.affines.voxel_sizes(affine))
    return f"{''.join(nib.aff2axcodes(affine))} {sizes} mm"
