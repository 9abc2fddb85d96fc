"""Writes small DICOM series whose voxels say where they are, as scanners do: a slice a file, or all in one."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedMRImageStorage, ExplicitVRLittleEndian, generate_uid

from data_shards.archive.identity import Identity
from tests.data_shards.helpers import place_code

IDENTITY = Identity(salt=b"a salt for the tests of the archive")
SHAPE = (16, 12, 8)  # columns, rows, slices
SPACING_MM = (0.8, 1.5, 2.5)  # between columns, rows, slices
AXIAL = (1.0, 0, 0, 0, 1, 0)
# a double oblique: columns and rows turned out of every plane
OBLIQUE = (0.9396926, 0.3420201, 0.0, -0.2961981, 0.8137977, -0.5)

Change = Callable[[Dataset, int], None]


def uid(text: str) -> str:
    return str(generate_uid(entropy_srcs=[text]))


def position_of(k: int, orientation: tuple[float, ...] = AXIAL, step_mm: float = SPACING_MM[2]) -> list[float]:
    """LPS mm of slice k."""
    normal = np.cross(orientation[:3], orientation[3:])
    return [round(float(x), 6) for x in np.array([-31.0, 17, 5]) + k * step_mm * normal]


def slice_of(k: int, series: str = "one", orientation: tuple[float, ...] = AXIAL, who: int = 0) -> FileDataset:
    """Slice k of a CT series: stored numbers place_code(SHAPE, who)[:, :, k].T."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = uid(f"{series} {k}")
    file = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.SeriesInstanceUID, file.StudyInstanceUID = uid(series), uid(f"study of {series}")
    file.FrameOfReferenceUID = uid("frame")
    file.PatientID, file.PatientName, file.PatientBirthDate = "PAT-17", "Doe^Jane", "19610203"
    file.Modality = "CT"
    file.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    file.InstanceNumber = 100 - k  # instance numbers needn't follow space
    file.SpacingBetweenSlices = 99
    file.ImagePositionPatient = position_of(k, orientation)
    file.ImageOrientationPatient = list(orientation)
    file.PixelSpacing = [SPACING_MM[1], SPACING_MM[0]]
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 16, 15, 1
    file.RescaleSlope, file.RescaleIntercept = 2, -1000
    set_voxels(file, place_code(SHAPE, who)[:, :, k].T)
    return file


def set_voxels(file: Dataset, stored_YX: np.ndarray) -> None:
    file.Rows, file.Columns = stored_YX.shape[-2:]
    file.PixelData = stored_YX.tobytes()


def write_series(
    folder: Path,
    series: str = "one",
    orientation: tuple[float, ...] = AXIAL,
    change: Change | None = None,
    slices: tuple[int, ...] = tuple(range(SHAPE[2])),
    who: int = 0,
) -> Path:
    """Files in an order that has nothing to do with space; `change(file, k)` may break slice k."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in slices:
        file = slice_of(k, series, orientation, who)
        if change is not None:
            change(file, k)
        file.save_as(folder / f"{series}-{k * 5 % 8}.dcm", enforce_file_format=False)
    return folder


def packed_by_itk(file: Dataset, compressor: str, folder: Path) -> None:
    """Compress the voxels with another library ("JPEG" is lossless, the commonest in archives; "JPEG2000")."""
    image = sitk.GetImageFromArray(np.frombuffer(file.PixelData, np.int16).reshape(1, file.Rows, file.Columns))
    path = folder / "packed.dcm"
    sitk.WriteImage(image, str(path), useCompression=True, compressor=compressor)
    packed = pydicom.dcmread(path)
    path.unlink()
    file.file_meta.TransferSyntaxUID = packed.file_meta.TransferSyntaxUID
    file.PixelData = packed.PixelData
    file["PixelData"].is_undefined_length = True


def values_of(who: int = 0) -> np.ndarray:
    """What must be read from `slice_of`'s files, (X, Y, Z)."""
    return place_code(SHAPE, who).astype(np.float32) * 2 - 1000


def enhanced(series: str = "one") -> FileDataset:
    """The same scan as one enhanced file, its frames from top to bottom."""
    file = slice_of(0, series)
    file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope"):
        delattr(file, keyword)
    del file.RescaleIntercept
    file.NumberOfFrames = SHAPE[2]
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = list(AXIAL)
    measures.PixelSpacing = [SPACING_MM[1], SPACING_MM[0]]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    file.SharedFunctionalGroupsSequence = [shared]
    each = []
    for k in reversed(range(SHAPE[2])):
        frame, place, values = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = position_of(k)
        values.RescaleSlope, values.RescaleIntercept = 2, -1000
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [place], [values]
        each.append(frame)
    file.PerFrameFunctionalGroupsSequence = each
    set_voxels(file, place_code(SHAPE).transpose(2, 1, 0)[::-1])
    return file
