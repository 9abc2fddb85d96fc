"""Decodes one frame of a DICOM file, having looked at a compressed one before the decoders do.

pydicom's decoders are C libraries that believe the stream they get: one that says it is 65535 voxels wide, or leaves
its height open, took all memory. So its own frame header must say what the DICOM header says.
"""

import re
import struct

import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels import pixel_array
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from data_shards.archive.dicom_header import is_packed, text_of

_JPEG = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEGLSNearLossless)
_JPEG_2000 = (JPEG2000, JPEG2000Lossless, HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL)
_SCAN = 0xFFDA  # the coded voxels follow
# Every marker that begins a frame, is hierarchical, or sets the height later. Coded voxels never look like one.
_FRAME_MARKERS = re.compile(rb"\xff[\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf\xdc\xde\xdf\xf7]")


def decode_frame(file: Dataset, index: int, num_frames: int, shape_YX: tuple[int, int]) -> np.ndarray:
    """Stored numbers (Y, X) of frame `index`. Raises whatever the decoders raise, ValueError for a stream that lies."""
    if is_packed(file):
        syntax = text_of(file.file_meta, "TransferSyntaxUID")
        stream = get_frame(file.PixelData, index, number_of_frames=num_frames)
        if syntax in _JPEG:
            said_YX = _jpeg_shape_YX(stream)
        elif syntax in _JPEG_2000:
            said_YX = _jpeg_2000_shape_YX(stream)
        elif syntax == RLELossless:  # written in Python, it allocates what the header says
            said_YX = shape_YX
        else:
            raise ValueError("an unknown compression")
        if said_YX != shape_YX:
            raise ValueError("the compressed image is not of the size that the header says")
    stored_YX = pixel_array(file, index=index, raw=True)
    if stored_YX.shape != shape_YX:
        raise ValueError("the decoded image is not of the size that the header says")
    return stored_YX


def _jpeg_shape_YX(stream: bytes) -> tuple[int, int]:
    """From the one frame header (SOF) of a grey JPEG or JPEG-LS stream."""
    if stream[:2] != b"\xff\xd8":
        raise ValueError("not a JPEG stream")
    place, marker, frame_headers = 2, 0, []
    while marker != _SCAN:
        marker, length = struct.unpack_from(">HH", stream, place)
        if marker < 0xFFC0 or length < 2:
            raise ValueError("a broken JPEG stream")
        if _FRAME_MARKERS.match(stream, place):
            frame_headers.append(place + 4)
        place += 2 + length
    if len(frame_headers) != 1 or _FRAME_MARKERS.search(stream, place):
        raise ValueError("not one frame header in a JPEG stream")
    _, num_rows, num_columns, num_channels = struct.unpack_from(">BHHB", stream, frame_headers[0])
    if num_channels != 1:
        raise ValueError("a colour image")
    return num_rows, num_columns


def _jpeg_2000_shape_YX(stream: bytes) -> tuple[int, int]:
    """From the SIZ marker, which must come first."""
    if stream[:4] != b"\xff\x4f\xff\x51":
        raise ValueError("not a JPEG 2000 stream")
    right, bottom, left, top = struct.unpack_from(">4I", stream, 8)
    (num_channels,) = struct.unpack_from(">H", stream, 40)
    if num_channels != 1:
        raise ValueError("a colour image")
    return bottom - top, right - left
