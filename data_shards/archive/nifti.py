"""Reads the voxels of a NIfTI file, believing its header only as far as the file goes.

Shape and type are checked before anything is allocated; a gzip is expanded to what the header needs and no further, but
to its end, because only there its CRC is checked. X Y Z are the file's own axes.
"""

import gzip
import logging
import math
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError, HeaderTypeError, ImageDataError
from nibabel.volumeutils import apply_read_scaling
from nibabel.wrapstruct import WrapStructError

from data_shards.archive.cases import ScanName
from data_shards.errors import VolumeError

MAX_VOXELS = 1 << 31  # 8 GiB as float32; the largest body CT has a quarter of that
MAX_EXPANSION = 1040  # deflate makes at most 1032 bytes of one
_SLACK_BYTES = 1 << 20  # after the voxels: padding
_MAX_OFFSET_BYTES = 1 << 26  # before the voxels: extensions

UNREADABLE = (  # what nibabel and gzip raise for a file that is garbled, cut or no NIfTI at all
    OSError, EOFError, zlib.error, ValueError, TypeError, KeyError, OverflowError, MemoryError,
    ImageFileError, HeaderDataError, HeaderTypeError, ImageDataError, WrapStructError,
)  # fmt: skip

# nibabel logs what it dislikes with bytes of the header; what matters is raised as an error
nib.imageglobals.logger.setLevel(logging.CRITICAL + 1)


def read_nifti(path: Path, name: ScanName) -> tuple[np.ndarray, np.ndarray]:
    """Scaled voxels (X, Y, Z[, C]) and affine, as they come. Raises VolumeError, calling the file `name`."""
    try:
        with _opened(path) as (stream, most_bytes):
            return _read(stream, most_bytes)
    except UNREADABLE as error:
        raise VolumeError(f"{name}: can't be read as NIfTI{name.why(error)}: copy or export it again") from None


def read_nifti_header(path: Path) -> nib.Nifti1Header:
    """The header alone, by the file's content and not by its name. Raises one of UNREADABLE."""
    with _opened(path) as (stream, _):
        return _read_header(stream)[0]


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    """What the file holds, expanded where it is packed, whatever its name; and how many bytes that is at most."""
    with open(path, "rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        is_gzip = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if is_gzip:
            with gzip.GzipFile(fileobj=file) as unzipped:
                yield cast(IO[bytes], unzipped), size_bytes * MAX_EXPANSION
        else:
            yield file, size_bytes


def _read(stream: IO[bytes], most_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    header, header_bytes = _read_header(stream)
    shape, dtype = header.get_data_shape(), header.get_data_dtype()
    if dtype.kind not in "iufb":
        raise ValueError(f"voxels of type {dtype} are not numbers")
    num_voxels = math.prod(int(n) for n in shape)
    # 0 stands for "right after the header", which ends with four bytes about extensions
    offset = int(header["vox_offset"]) or header_bytes + 4
    if not shape or min(shape) < 1 or not header_bytes <= offset <= _MAX_OFFSET_BYTES:
        raise ValueError(f"shape {tuple(shape)} or voxel offset {offset} is impossible")
    if num_voxels > MAX_VOXELS or offset + num_voxels * dtype.itemsize > most_bytes:
        raise ValueError(f"the header promises {num_voxels} voxels, more than the file can hold")
    stream.read(offset - header_bytes)
    voxels = stream.read(num_voxels * dtype.itemsize)
    if len(voxels) < num_voxels * dtype.itemsize:
        raise ValueError(f"the file ends after {len(voxels)} of {num_voxels * dtype.itemsize} bytes of voxels")
    if len(stream.read(_SLACK_BYTES + 1)) > _SLACK_BYTES:
        raise ValueError("the file goes on long after the voxels its header promises")
    data = np.frombuffer(voxels, dtype).reshape(shape, order="F")
    slope, inter = (
        default if x is None else x for x, default in zip(header.get_slope_inter(), (1.0, 0.0), strict=True)
    )
    with np.errstate(all="ignore"):  # garbage becomes NaN or inf and is refused as such
        data = apply_read_scaling(data, np.float64(slope), np.float64(inter))
        return data, np.asarray(header.get_best_affine(), dtype=np.float64)


def _read_header(stream: IO[bytes]) -> tuple[nib.Nifti1Header, int]:
    start = stream.read(4)
    is_second = 540 in (int.from_bytes(start, "little"), int.from_bytes(start, "big"))
    kind = nib.Nifti2Header if is_second else nib.Nifti1Header
    size_bytes = kind.template_dtype.itemsize
    block = start + stream.read(size_bytes - len(start))
    given = kind(block, check=False)
    if not given["sform_code"] and not given["pixdim"][1:4].all():  # nibabel would make it 1 mm
        raise ValueError("a voxel size of 0 mm")
    return kind(block), size_bytes
