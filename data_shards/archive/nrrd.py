"""Reads NRRD: .nrrd, or .nhdr with its voxels in a file beside it. Raw and gzip encodings.

Axes without a direction (or of a kind that isn't space) are channels. Spaces other than RAS and LAS are taken for LPS,
as ITK does.
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
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
_CODES = {name: code for code, names in _TYPES.items() for name in names}
_FLIPS = {
    "right-anterior-superior": (-1, -1, 1),
    "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1),
    "las": (1, -1, 1),
}
_SPATIAL_KINDS = ("domain", "space", "none", "???")


def read_nrrd(path: Path, name: ScanName) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (X, Y, Z[, C]) and affine, as they come. Raises VolumeError, calling the file `name`."""
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_HEADER_BYTES)
        if not raw.startswith(b"NRRD"):
            raise ValueError("it doesn't begin like one")
        end = re.search(rb"\r?\n\r?\n", raw)
        fields = read_fields(raw[: end.start()] if end else raw, r"([^:#=]+):(?!=) *(.*)")
        sizes = tuple(int(size) for size in fields["sizes"].split())
        if len(sizes) != int(fields["dimension"]):
            raise ValueError(f"shape {sizes} has not the {fields['dimension']} axes it promises")
        encoding, data_file = fields["encoding"].lower(), fields.get("data file", fields.get("datafile", ""))
        skip_bytes = int(fields.get("byte skip", "0"))
        if encoding not in ("raw", "gzip", "gz") or int(fields.get("line skip", "0")):
            raise ValueError("its encoding is not raw or gzip, or skips lines")
        if not data_file:
            if end is None or skip_bytes:
                raise ValueError("its header has no end")
            skip_bytes = end.end()
        is_channel = _channel_axes(fields, len(sizes))
        layout = VoxelLayout(
            sizes=sizes,
            channel_axis=is_channel.index(True) if any(is_channel) else None,
            dtype=np.dtype(_CODES[fields["type"].lower()]).newbyteorder(">" if fields.get("endian") == "big" else "<"),
            is_deflated=encoding != "raw",
            data_file=data_file,
            skip_bytes=skip_bytes,
        )
        return read_voxels(path, layout), _affine_4x4(fields, is_channel)
    except (OSError, ValueError, KeyError, OverflowError, MemoryError, zlib.error) as error:
        raise VolumeError(f"{name}: can't be read as NRRD{name.why(error)}: copy or export it again") from None


def _channel_axes(fields: dict[str, str], num_axes: int) -> list[bool]:
    """Which axis holds channels; one at most, and the fourth where nothing says so."""
    if "space directions" in fields:
        is_channel = [vector == "none" for vector in _vectors(fields["space directions"])]
    else:
        kinds = fields.get("kinds", "domain " * num_axes).lower().split()
        is_channel = [kind not in _SPATIAL_KINDS for kind in kinds]
    if len(is_channel) != num_axes or sum(is_channel) > 1:
        raise ValueError(f"{sum(is_channel)} of its axes are no space, one at most can be the channels")
    return is_channel


def _affine_4x4(fields: dict[str, str], is_channel: list[bool]) -> np.ndarray:
    directions_33, origin_3 = np.eye(3), np.zeros(3)
    if is_channel.count(False) < 3:
        return np.eye(4)  # refused as 2-D by whoever asked
    if "space directions" in fields:
        vectors = [vector for vector in _vectors(fields["space directions"]) if vector != "none"]
        columns = [numbers(vector.strip("()"), 3) for vector in vectors[:3]]
    else:
        spacings = fields["spacings"].split()
        steps = [step for step, channel in zip(spacings, is_channel, strict=True) if not channel][:3]
        columns = [float(step) * directions_33[:, axis] for axis, step in enumerate(steps)]
    if "space origin" in fields:
        origin_3 = numbers(fields["space origin"].strip("()"), 3)
    for axis, column in enumerate(columns):
        directions_33[:, axis] = column
    flips_3 = np.array(_FLIPS.get(fields.get("space", "").lower(), (1, 1, 1)))
    return affine_of(flips_3[:, None] * directions_33, flips_3 * origin_3)


def _vectors(text: str) -> list[str]:
    return re.findall(r"none|\([^()]*\)", text)
