"""What NRRD and MetaImage share: a header of text lines, and voxels raw or deflated after it or in a file beside it.

Read here and not with ITK: its C readers crash the process on a broken header, follow it to any file, and allocate
what it asks for. ITK is the reference in the tests. X Y Z are the file's own axes, C channels; both formats count in
LPS mm, what leaves here is RAS.
"""

import math
import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_shards.archive.nifti import MAX_EXPANSION, MAX_VOXELS

MAX_HEADER_BYTES = 1 << 20
LPS_TO_RAS = np.diag([-1.0, -1, 1, 1])


@dataclass(frozen=True)
class VoxelLayout:
    """Where and how the voxels lie. `sizes` run from the fastest axis; `channel_axis` None = no channels among them.

    `data_file` "" = in the header's own file. `skip_bytes` -1 = the voxels are the last bytes of their file.
    """

    sizes: tuple[int, ...]
    channel_axis: int | None
    dtype: np.dtype
    is_deflated: bool
    data_file: str
    skip_bytes: int


def read_fields(head: bytes, pattern: str) -> dict[str, str]:
    """Key (lower case) -> value of the lines that match `pattern`.

    Raises ValueError where a key comes twice: which one counts depends on the reader.
    """
    fields: dict[str, str] = {}
    for line in head.decode("latin-1").split("\n"):
        match = re.fullmatch(pattern, line.strip())
        if match is not None:
            key = match[1].strip().lower()
            if key in fields:
                raise ValueError("its header says something twice")
            fields[key] = match[2].strip()
    return fields


def read_voxels(path: Path, layout: VoxelLayout) -> np.ndarray:
    """(X, Y, Z[, C]) as stored. Raises ValueError where the file holds less than the header promises, or elsewhere."""
    sizes, name = layout.sizes, layout.data_file
    if not 2 <= len(sizes) <= 5 or min(sizes) < 1:
        raise ValueError(f"shape {sizes} is impossible")
    if name != os.path.basename(name) or name in (".", "..") or "\\" in name:
        raise ValueError("its voxels must lie in a file beside it")
    source = path.parent / name if name else path
    if not os.path.isfile(source):
        raise ValueError("the file with its voxels is not there")
    needed = math.prod(sizes) * layout.dtype.itemsize
    size_bytes = os.path.getsize(source)
    skip_bytes = size_bytes - needed if layout.skip_bytes == -1 and not layout.is_deflated else layout.skip_bytes
    there = (size_bytes - skip_bytes) * (MAX_EXPANSION if layout.is_deflated else 1)
    if skip_bytes < 0 or math.prod(sizes) > MAX_VOXELS or needed > there:
        raise ValueError(f"the header promises {math.prod(sizes)} voxels, more than the file can hold")
    with open(source, "rb") as file:
        file.seek(skip_bytes)
        raw = _inflated(file.read(), needed) if layout.is_deflated else file.read(needed)
    if len(raw) != needed:
        raise ValueError(f"the file has {len(raw)} of {needed} bytes of voxels")
    data = np.frombuffer(raw, layout.dtype).reshape(sizes, order="F")
    if layout.channel_axis is not None:
        data = np.moveaxis(data, layout.channel_axis, -1)
        if data.ndim == 3:
            data = data[:, :, None]  # channels of a 2-D image must not pass for a third dimension
    return data


def affine_of(directions_33: np.ndarray, origin_3: np.ndarray) -> np.ndarray:
    """RAS affine from LPS: column i of `directions_33` is the step in mm along file axis i."""
    affine_4x4 = np.eye(4)
    affine_4x4[:3, :3], affine_4x4[:3, 3] = directions_33, origin_3
    return LPS_TO_RAS @ affine_4x4


def numbers(text: str, num: int) -> np.ndarray:
    """float64 (num,). Raises ValueError for anything else, so that a header can't broadcast."""
    values = np.array([float(part) for part in text.replace(",", " ").split()])
    if values.shape != (num,):
        raise ValueError(f"its header has {len(values)} numbers where {num} are needed")
    return values


def _inflated(packed: bytes, needed: int) -> bytes:
    """At most one byte more than needed, and only if the stream ends there with the right checksum."""
    inflater = zlib.decompressobj(wbits=47)  # 32 + 15: zlib or gzip, as the stream says
    raw = inflater.decompress(packed, needed + 1)
    if not inflater.eof:
        raise ValueError("its voxels are truncated, or more than the header promises")
    return raw
