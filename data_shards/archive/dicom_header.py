"""Opens DICOM headers, and is the only place that says which of their elements may be looked at.

A header is full of persons. Two short lists are ever read: technical elements, and those that go into a salted key and
nowhere else. No text of a header or of pydicom's exceptions and warnings leaves here, because they quote values.
"""

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from data_shards.archive.identity import Identity, same_text

# Only for keys: they tell series, visits and persons apart.
IDENTIFYING = (
    "SeriesInstanceUID", "StudyInstanceUID", "PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate",
)  # fmt: skip
TECHNICAL = (
    "SOPClassUID", "Modality", "ImageType", "BurnedInAnnotation", "FrameOfReferenceUID",
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation",
    "BitsAllocated", "BitsStored", "PixelRepresentation", "ModalityLUTSequence", "RescaleSlope", "RescaleIntercept",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip
MODALITIES = ("CT", "MR", "PT", "NM", "US", "XA", "CR", "DX", "MG", "OPT", "OT")  # others become "" = unknown

_MAGIC_AT, _MAGIC = 128, b"DICM"
_MAX_ELEMENT_BYTES = 1 << 26  # a lying length may not make us allocate more; functional groups of 10 000 frames fit

# pydicom logs in words taken from the header; here the reader's own checks speak instead
pydicom.config.logger.setLevel(logging.CRITICAL + 1)
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE


@contextmanager
def quietly() -> Iterator[None]:
    """No warnings while DICOM is looked at: pydicom's quote values, and it decodes them late, anywhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class UnreadableDicomError(Exception):
    """This file can't be opened as DICOM. Carries no reason: it would quote the file."""


def is_dicom_file(path: str) -> bool:
    """By its magic, whatever its name, or by its ending .dcm. Anything but a regular file is none."""
    # DICOMDIR is a table of contents; reading a pipe or a device may never end
    if os.path.basename(path) == "DICOMDIR" or not os.path.isfile(path):
        return False
    if path.lower().endswith(".dcm"):
        return True
    try:
        with open(path, "rb") as file:
            file.seek(_MAGIC_AT)
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def open_dicom(path: str, keywords: Sequence[str], with_voxels: bool = False) -> Dataset:
    """The named elements of one file; with `with_voxels` the pixel data, too. Raises UnreadableDicomError."""
    # pydicom raises nearly anything on a broken file: struct.error, KeyError, RecursionError, AttributeError, ...
    try:
        with open(path, "rb") as file:
            head = file.read(_MAGIC_AT + len(_MAGIC))
        has_magic = head[_MAGIC_AT:] == _MAGIC
        if has_magic:
            syntax = pydicom.filereader.read_file_meta_info(path).get("TransferSyntaxUID")
            if syntax == DeflatedExplicitVRLittleEndian:  # expands without any limit
                raise UnreadableDicomError
        elif head[:2] == b"\x02\x00":  # no preamble, yet a file meta group: it could be a deflated one
            raise UnreadableDicomError
        header = pydicom.dcmread(
            path,
            force=not has_magic,
            stop_before_pixels=not with_voxels,
            specific_tags=[*keywords, "PixelData"] if with_voxels else list(keywords),
            defer_size=None if with_voxels else _MAX_ELEMENT_BYTES,
        )
        if "TransferSyntaxUID" not in header.file_meta:  # written without a preamble; pydicom found out by looking
            is_implicit = header.original_encoding[0]
            header.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if is_implicit else ExplicitVRLittleEndian
        return header
    except Exception:
        raise UnreadableDicomError from None


def text_of(header: Dataset, keyword: str) -> str:
    """An element as text in one spelling, "" where it is missing or broken."""
    try:
        value = header.get(keyword)
        return "" if value is None else same_text(str(value))
    except Exception:  # decoding is lazy, so a broken value shows up only here
        return ""


def subject_key(header: Dataset, identity: Identity) -> str:
    """The person: by the patient's id, else by name and birth date, else every study is a person of its own.

    Not by the id's issuer: scanners fill it unevenly, and one person as two could stand on both sides of a split, while
    two of the same id taken for one only cost a little freedom in drawing it.
    """
    for keywords in (("PatientID",), ("PatientName", "PatientBirthDate")):
        texts = [text_of(header, keyword) for keyword in keywords]
        if texts[0]:
            return identity.key("subject", keywords[0], *texts)
    return identity.key("subject", "StudyInstanceUID", text_of(header, "StudyInstanceUID"))


def is_packed(header: Dataset) -> bool:
    """Whether the pixel data is compressed, as far as we know."""
    plain = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
    return text_of(header.file_meta, "TransferSyntaxUID") not in plain


def modality_of(header: Dataset) -> str:
    modality = text_of(header, "Modality").upper()
    return modality if modality in MODALITIES else ""
