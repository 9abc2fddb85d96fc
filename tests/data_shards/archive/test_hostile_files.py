"""Files made by someone who wants to hurt us, or by a broken disk: refused with a message, or read as a whole volume.

A few hundred examples in the suite, always the same; MAETRAIN_FUZZ_EXAMPLES=10000 looks longer.
"""

import functools
import gzip
import io
import os
import re
import resource
import struct
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import RLELossless

from data_shards.archive.layout import read_archive
from data_shards.archive.volume import read_case_image, read_image
from data_shards.errors import InputError
from tests.data_shards.archive.dicom_files import IDENTITY, enhanced, packed_by_itk, slice_of, write_series
from tests.data_shards.helpers import place_code

NUM_EXAMPLES = int(os.environ.get("MAETRAIN_FUZZ_EXAMPLES", "200"))
MAX_SECONDS = 5
MAX_GROWTH_KIB = 512 * 1024
SHAPE = (4, 5, 6)

hostile = settings(
    max_examples=NUM_EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,  # it would count the seconds in which others had the processor
    suppress_health_check=list(HealthCheck),
)
GARBAGE = st.one_of(
    st.binary(min_size=1, max_size=8),
    st.sampled_from([b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\xff\xff", b"\0\x80"]),
    st.floats(width=32).map(lambda x: struct.pack("<f", x)),
    st.integers(-(2**15), 2**15 - 1).map(lambda x: struct.pack("<h", x)),
)
EDITS = st.lists(
    st.tuples(st.sampled_from(["write", "write", "insert", "cut", "end"]), st.floats(0, 1), GARBAGE),
    min_size=1,
    max_size=4,
)
TEXT_GARBAGE = st.sampled_from(
    ["-1", "0", "1e15", "1000000000000000", "99999999999999999999999", "nan", "inf", "", "LIST", "../../etc/passwd",
     "/dev/zero", "x" * 300, "(1,0,0) none (0,0,1)", "4 5 6 7", "4 5", "gzip", "raw", "ascii", "hex", "bzip2", "True",
     "LOCAL", "%d 1 9 1", "double", "block", "MET_DOUBLE", "MET_STRING", "MET_CHAR_ARRAY", "2 3 4 5 6", "RAS", "\0"]
)  # fmt: skip


@pytest.fixture(autouse=True)
def memory_stays_small():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MAX_GROWTH_KIB


def edited(raw: bytes, edits: list[tuple[str, float, bytes]], within: int) -> bytes:
    """`raw` with bytes overwritten, inserted or removed among its first `within`, or the file ended there."""
    data = bytearray(raw)
    for what, share, garbage in edits:
        place = int(share * (min(within, len(data)) - 1)) if data else 0
        if what == "end":
            del data[int(share * len(data)) :]
        elif what == "cut":
            del data[place : place + len(garbage)]
        else:
            data[place : place + (len(garbage) if what == "write" else 0)] = garbage
    return bytes(data)


def read_or_refuse(read, num_voxels) -> bool:
    """True = it was read: then all its voxels are numbers, and as many as the header says."""
    start = time.process_time()
    try:
        volume = read()
    except InputError as error:
        assert "\n" not in str(error)
        return False
    finally:
        assert time.process_time() - start < MAX_SECONDS
    assert np.isfinite(volume.data).all() and np.isfinite(volume.affine_4x4).all()
    assert volume.data.size == num_voxels()
    return True


NIFTI = nib.Nifti1Image(place_code(SHAPE), np.eye(4)).to_bytes()
NIFTI_2 = nib.Nifti2Image(place_code(SHAPE), np.eye(4)).to_bytes()


@hostile
@given(edits=EDITS, which=st.booleans(), packed=st.booleans())
def test_a_broken_nifti_is_refused_or_read_whole(tmp_path_factory, edits, which, packed):
    raw = edited(NIFTI if which else NIFTI_2, edits, 352 if which else 544)
    path = folder_of(tmp_path_factory) / "a.nii.gz"
    path.write_bytes(gzip.compress(raw, 1) if packed else raw)

    def num_voxels() -> int:
        is_second = 540 in (struct.unpack("<i", raw[:4])[0], struct.unpack(">i", raw[:4])[0])
        either = [
            struct.unpack_from(f"{order}{'8q' if is_second else '8h'}", raw, 16 if is_second else 40) for order in "<>"
        ]
        dims = next(dims for dims in either if 1 <= dims[0] <= 7)
        return int(np.prod(dims[1 : dims[0] + 1]))

    read_or_refuse(lambda: read_image([path]), num_voxels)


def folder_of(factory: pytest.TempPathFactory) -> Path:
    return factory.getbasetemp()


@hostile
@given(edits=EDITS)
def test_a_broken_gzip_is_refused_or_read_whole(tmp_path_factory, edits):
    path = folder_of(tmp_path_factory) / "a.nii.gz"
    path.write_bytes(edited(gzip.compress(NIFTI), edits, 1 << 20))
    read_or_refuse(lambda: read_image([path]), lambda: int(np.prod(SHAPE)))


def itk_file(folder: Path, name: str, compressed: bool, channels: int = 1) -> bytes:
    data = np.stack([place_code(SHAPE).T] * channels, axis=-1)
    image = sitk.GetImageFromArray(data if channels > 1 else data[..., 0], isVector=channels > 1)
    sitk.WriteImage(image, str(folder / name), useCompression=compressed)
    return (folder / name).read_bytes()


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
@hostile
@given(
    edits=st.one_of(st.just([]), EDITS),
    fields=st.lists(st.tuples(st.integers(0, 30), TEXT_GARBAGE), max_size=3),
    packed=st.booleans(),
    channels=st.sampled_from([1, 2]),
)
def test_a_broken_nrrd_or_mha_is_refused_or_read_whole(tmp_path_factory, ending, edits, fields, packed, channels):
    folder = folder_of(tmp_path_factory)
    raw = itk_file(folder, f"a{ending}", packed, channels)
    end = raw.index(b"\n\n") if ending == ".nrrd" else raw.index(b"LOCAL") + 5
    lines = raw[:end].split(b"\n")
    for i, value in fields:
        line = lines[i % len(lines)]
        sign = b":" if ending == ".nrrd" else b"="
        lines[i % len(lines)] = line.split(sign)[0] + sign + b" " + value.encode()
    raw = edited(b"\n".join(lines) + raw[end:], edits, end + 4)
    (folder / f"a{ending}").write_bytes(raw)

    def num_voxels() -> int:
        sizes = re.search(rb"(?:sizes:|DimSize *[=:])([^\r\n]+)", raw, re.IGNORECASE)[1]
        more = re.search(rb"ElementNumberOfChannels = (\d+)", raw)
        return int(np.prod([int(n) for n in sizes.split()])) * (int(more[1]) if more else 1)

    read_or_refuse(lambda: read_image([folder / f"a{ending}"]), num_voxels)


@functools.cache
def dicom_bytes(kind: str) -> tuple[bytes, int]:
    """A file and how many of its bytes come before its voxels."""
    file = enhanced() if kind == "enhanced" else slice_of(0)
    if kind == "RLE":
        file.compress(RLELossless, generate_instance_uid=False)
    elif kind.startswith("JPEG"):
        with tempfile.TemporaryDirectory() as folder:
            packed_by_itk(file, kind, Path(folder))
    buffer = io.BytesIO()
    file.save_as(buffer, enforce_file_format=False)
    return buffer.getvalue(), len(buffer.getvalue()) - len(file.PixelData)


@pytest.mark.parametrize("kind", ["classic", "enhanced", "RLE", "JPEG", "JPEG2000"])
@hostile
@given(edits=EDITS, in_header=st.booleans())
def test_a_broken_dicom_file_is_refused_or_read_whole(tmp_path_factory, kind, edits, in_header):
    folder = folder_of(tmp_path_factory) / f"dicom {kind}"
    if not folder.exists():
        write_series(folder, slices=(1, 2, 3)) if kind != "enhanced" else folder.mkdir()
    raw, header_bytes = dicom_bytes(kind)
    (folder / "a").write_bytes(edited(raw, edits, header_bytes if in_header else len(raw)))
    try:
        cases = read_archive(folder, IDENTITY).cases
    except InputError:  # an enhanced file without its magic is no DICOM, and the folder holds nothing else
        assert kind == "enhanced"
        return
    for case in cases:
        read_or_refuse(lambda case=case: read_case_image(case), lambda: voxels_in(folder))


def voxels_in(folder: Path) -> int:
    files = [pydicom.dcmread(path, force=True) for path in folder.iterdir()]
    return sum(int(f.Rows) * int(f.Columns) * int(f.get("NumberOfFrames") or 1) for f in files)
