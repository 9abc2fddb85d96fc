"""Reads MetaImage: .mha, or .mhd with its voxels in a file beside it. Raw and deflated.

A row of TransformMatrix is the direction of one axis; channels lie together at each voxel.
"""

import re
import zlib
from pathlib import Path

import numpy as np

from data_shards.archive.cases import ScanName
from data_shards.archive.text_header import (
    MAX_HEADER_BYTES,
    VoxelLayout,
    affine_of,
    numbers,
    read_fields,
    read_voxels,
)
from data_shards.errors import VolumeError

_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip


def read_metaimage(path: Path, name: ScanName) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (X, Y, Z[, C]) and affine, as they come. Raises VolumeError, calling the file `name`."""
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_HEADER_BYTES)
        last = re.search(rb"^ElementDataFile\s*[=:][^\n]*(\n|$)", raw, re.MULTILINE)
        if last is None:
            raise ValueError("it has no ElementDataFile")
        fields = read_fields(raw[: last.end()], r"(\w+)\s*[=:]\s*(.*)")
        num_dims, num_channels = int(fields["ndims"]), int(fields.get("elementnumberofchannels", "1"))
        sizes = tuple(int(size) for size in fields["dimsize"].split())
        if len(sizes) != num_dims or num_channels < 1 or not _is_true(fields.get("binarydata", "true")):
            raise ValueError(f"shape {sizes} has not the {num_dims} axes it promises, or its voxels are text")
        is_local = fields["elementdatafile"].upper() == "LOCAL"
        is_big = _is_true(fields.get("binarydatabyteordermsb", fields.get("elementbyteordermsb", "false")))
        layout = VoxelLayout(
            sizes=(num_channels, *sizes) if num_channels > 1 else sizes,
            channel_axis=0 if num_channels > 1 else None,
            dtype=np.dtype(_TYPES[fields["elementtype"].upper()]).newbyteorder(">" if is_big else "<"),
            is_deflated=_is_true(fields.get("compresseddata", "false")),
            data_file="" if is_local else fields["elementdatafile"],
            skip_bytes=last.end() if is_local else int(fields.get("headersize", "0")),
        )
        return read_voxels(path, layout), _affine_4x4(fields, num_dims)
    except (OSError, ValueError, KeyError, OverflowError, MemoryError, zlib.error) as error:
        raise VolumeError(f"{name}: can't be read as MetaImage{name.why(error)}: copy or export it again") from None


def _affine_4x4(fields: dict[str, str], num_dims: int) -> np.ndarray:
    spacing = numbers(fields["elementspacing"] if "elementspacing" in fields else fields["elementsize"], num_dims)
    matrix = next((fields[key] for key in ("transformmatrix", "rotation", "orientation") if key in fields), None)
    origin = next((fields[key] for key in ("offset", "position", "origin") if key in fields), None)
    turn = np.eye(num_dims) if matrix is None else numbers(matrix, num_dims**2).reshape(num_dims, num_dims).T
    place = np.zeros(num_dims) if origin is None else numbers(origin, num_dims)
    steps, start = np.eye(3), np.zeros(3)
    used = min(num_dims, 3)
    with np.errstate(all="ignore"):  # garbage becomes an affine that is refused
        steps[:used, :used] = (turn * spacing)[:used, :used]
    start[:used] = place[:used]
    return affine_of(steps, start)


def _is_true(text: str) -> bool:
    return text.strip().lower() in ("true", "t", "1")
