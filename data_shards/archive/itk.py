"""Reads the voxels of NRRD (.nrrd, .nhdr) and MetaImage (.mha, .mhd) files with SimpleITK.

ITK believes what a header says, follows it to other files and allocates what it asks for. So the header, which is
text, is read here first: how much it promises, where the voxels lie, and whether they are there. ITK counts in LPS mm
and (Z, Y, X); what leaves here is (X, Y, Z) and RAS.
"""

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from data_shards.archive.cases import ScanName
from data_shards.archive.nifti import MAX_EXPANSION, MAX_VOXELS
from data_shards.errors import VolumeError

_MAX_HEADER_BYTES = 1 << 20
_LPS_TO_RAS = np.diag([-1.0, -1, 1, 1])
_NRRD_BYTES = {
    "signed char": 1, "int8": 1, "int8_t": 1, "uchar": 1, "unsigned char": 1, "uint8": 1, "uint8_t": 1,
    "short": 2, "short int": 2, "signed short": 2, "signed short int": 2, "int16": 2, "int16_t": 2,
    "ushort": 2, "unsigned short": 2, "unsigned short int": 2, "uint16": 2, "uint16_t": 2,
    "int": 4, "signed int": 4, "int32": 4, "int32_t": 4, "uint": 4, "unsigned int": 4, "uint32": 4, "uint32_t": 4,
    "longlong": 8, "long long": 8, "long long int": 8, "signed long long": 8, "signed long long int": 8,
    "int64": 8, "int64_t": 8, "ulonglong": 8, "unsigned long long": 8, "unsigned long long int": 8,
    "uint64": 8, "uint64_t": 8, "float": 4, "double": 8,
}  # fmt: skip
_META_BYTES = {
    "MET_CHAR": 1, "MET_UCHAR": 1, "MET_SHORT": 2, "MET_USHORT": 2, "MET_INT": 4, "MET_UINT": 4, "MET_LONG": 4,
    "MET_ULONG": 4, "MET_LONG_LONG": 8, "MET_ULONG_LONG": 8, "MET_FLOAT": 4, "MET_DOUBLE": 8,
}  # fmt: skip

# ITK prints warnings that quote paths
sitk.ProcessObject.SetGlobalWarningDisplay(False)


@dataclass(frozen=True)
class _Promise:
    """What a header says about its voxels. `data_file` "" = they follow in the same file, after `header_bytes`."""

    image_io: str
    num_voxels: int
    voxel_bytes: int
    is_packed: bool
    data_file: str
    header_bytes: int
    packed_bytes: int = 0


def read_itk(path: Path, name: ScanName) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (X, Y, Z[, C]) and affine, as they come. Raises VolumeError, calling the file `name`.

    Refused are text and bzip2 encodings, and voxels that lie in several files or in another folder.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read(_MAX_HEADER_BYTES)
        promise = _nrrd_promise(raw) if raw.startswith(b"NRRD") else _meta_promise(raw)
        _check_promise(path, promise)
        reader = sitk.ImageFileReader()
        reader.SetImageIO(promise.image_io)
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        num_voxels = math.prod(reader.GetSize()) * reader.GetNumberOfComponents()
        if num_voxels != promise.num_voxels:
            raise ValueError(f"its header promises {promise.num_voxels} voxels, ITK understands {num_voxels}")
        image = reader.Execute()
        data = sitk.GetArrayFromImage(image)
    except (OSError, ValueError, RuntimeError, OverflowError, MemoryError, TypeError, KeyError) as error:
        raise VolumeError(f"{name}: can't be read as NRRD or MHA{name.why(error)}: copy or export it again") from None
    num_dims = image.GetDimension()
    data = data.transpose(*range(num_dims)[::-1], *range(num_dims, data.ndim))
    if num_dims < 3:
        return np.expand_dims(data, 2), np.eye(4)  # channels must not pass for a third dimension
    return data, _affine_4x4(image)


def _affine_4x4(image: sitk.Image) -> np.ndarray:
    num_dims = image.GetDimension()
    affine_4x4 = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(num_dims, num_dims)
    affine_4x4[:3, :3] = direction[:3, :3] * np.array(image.GetSpacing())[:3]
    affine_4x4[:3, 3] = image.GetOrigin()[:3]
    return _LPS_TO_RAS @ affine_4x4


def _check_promise(path: Path, promise: _Promise) -> None:
    source = path.parent / promise.data_file if promise.data_file else path
    if "/" in promise.data_file or "\\" in promise.data_file or "%" in promise.data_file or promise.data_file == "LIST":
        raise ValueError("its voxels must lie in one file beside it")
    if not os.path.isfile(source):
        raise ValueError("the file with its voxels is not there")
    there = os.path.getsize(source) - promise.header_bytes
    most = there * MAX_EXPANSION if promise.is_packed else there
    if (
        promise.num_voxels > MAX_VOXELS
        or promise.num_voxels * promise.voxel_bytes > most
        or promise.packed_bytes > there
    ):
        raise ValueError(f"its header promises {promise.num_voxels} voxels, more than the file can hold")


def _nrrd_promise(raw: bytes) -> _Promise:
    blank = re.search(rb"\r?\n\r?\n", raw)
    head = raw[: blank.start()] if blank else raw
    fields = _fields(head, rb"([^:#=]+): *(.*)")
    if not {"spacings", "space directions"} & fields.keys():
        raise ValueError("its header names no voxel size")
    encoding = fields["encoding"].lower()
    if encoding not in ("raw", "gzip", "gz"):
        raise ValueError("its encoding is not raw or gzip")
    data_file = fields.get("data file", fields.get("datafile", ""))
    if not data_file and not blank:
        raise ValueError("its header has no end")
    sizes = [int(size) for size in fields["sizes"].split()]
    return _Promise(
        image_io="NrrdImageIO",
        num_voxels=_product(sizes),
        voxel_bytes=_NRRD_BYTES[fields["type"].lower()],
        is_packed=encoding != "raw",
        data_file=data_file,
        header_bytes=blank.end() if blank and not data_file else 0,
    )


def _meta_promise(raw: bytes) -> _Promise:
    last = re.search(rb"^ElementDataFile *= *([^\r\n]*)\r?(\n|$)", raw, re.MULTILINE)
    if last is None:
        raise ValueError("it is neither NRRD nor a MetaImage")
    fields = _fields(raw[: last.end()], rb"(\w+) *= *(.*)")
    if not {"elementspacing", "elementsize"} & fields.keys():
        raise ValueError("its header names no voxel size")
    if fields.get("binarydata", "true").lower() != "true":
        raise ValueError("its voxels are written as text")
    sizes = [int(size) for size in fields["dimsize"].split()]
    data_file = fields["elementdatafile"]
    is_local = data_file.lower() == "local"
    return _Promise(
        image_io="MetaImageIO",
        num_voxels=_product([*sizes, int(fields.get("elementnumberofchannels", 1))]),
        voxel_bytes=_META_BYTES[fields["elementtype"].upper()],
        is_packed=fields.get("compresseddata", "false").lower() == "true",
        data_file="" if is_local else data_file,
        header_bytes=last.end() if is_local else 0,
        packed_bytes=int(fields.get("compresseddatasize", 0)),
    )


def _fields(head: bytes, pattern: bytes) -> dict[str, str]:
    """Keys in lower case. A key said twice is refused: which one counts depends on the reader."""
    fields: dict[str, str] = {}
    for line in head.splitlines():
        match = re.fullmatch(pattern, line.strip())
        if match is not None:
            key, value = match[1].decode("latin-1").strip().lower(), match[2].decode("latin-1").strip()
            if key in fields:
                raise ValueError("its header says something twice")
            fields[key] = value
    return fields


def _product(sizes: list[int]) -> int:
    if not 2 <= len(sizes) <= 5 or min(sizes) < 1:
        raise ValueError(f"its shape {tuple(sizes)} is impossible")
    return math.prod(sizes)
