"""Everything that can be wrong with a DICOM series: how to make it so, and what must be said about it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import MPEG4HP41, SecondaryCaptureImageStorage

from tests.data_shards.archive.dicom_files import OBLIQUE, SHAPE, Change, position_of, set_voxels, uid

ALL_SLICES = tuple(range(SHAPE[2]))


@dataclass(frozen=True)
class Fault:
    """`change` breaks slice k of a good series, or `slices` are all there is."""

    name: str
    message: str
    change: Change = lambda file, k: None
    slices: tuple[int, ...] = ALL_SLICES


def every(**values) -> Change:
    """Set (None = delete) elements of every slice."""

    def change(file: Dataset, k: int) -> None:
        for keyword, value in values.items():
            if value is None:
                delattr(file, keyword)
            else:
                setattr(file, keyword, value)

    return change


def only(k_changed: int, **values) -> Change:
    return lambda file, k: every(**values)(file, k) if k == k_changed else None


def moved(shift_of: Callable[[int], tuple[float, float, float]]) -> Change:
    """Slice k lies `shift_of(k)` mm beside its place."""

    def change(file: Dataset, k: int) -> None:
        file.ImagePositionPatient = list(np.add(position_of(k), shift_of(k)))

    return change


def film(file: Dataset, k: int) -> None:
    file.file_meta.TransferSyntaxUID = MPEG4HP41
    file.PixelData = encapsulate([b"no picture"])
    file["PixelData"].is_undefined_length = True


def another_size(file: Dataset, k: int) -> None:
    if k == 3:
        set_voxels(file, np.eye(4, 6, dtype=np.int16))


FAULTS = [
    Fault("three slices", "has 3 slices, a volume needs 4", slices=(0, 1, 2)),
    Fault("a turned slice", "1 of 8 slices are turned", only(3, ImageOrientationPatient=list(OBLIQUE))),
    Fault("skewed axes", "not at right angles", every(ImageOrientationPatient=[1, 0, 0, 0.1, 0.9949874, 0])),
    Fault("axes of no length", "not at right angles", every(ImageOrientationPatient=[0] * 6)),
    Fault("another pixel size", "pixel sizes run from 0.8 to 3 mm", only(3, PixelSpacing=[3, 3])),
    Fault("no pixel size", "has no PixelSpacing", only(3, PixelSpacing=None)),
    Fault("pixel size 0", "one positive size", every(PixelSpacing=[0, 0])),
    Fault("two phases", "1 of 8 slices lie where another one does", only(4, ImagePositionPatient=position_of(3))),
    Fault("copies", "7 of 8 slices lie where another", every(ImagePositionPatient=position_of(3))),
    Fault("a hole", "2 slices are missing, the first after slice 3 of 6.*7.5 mm", slices=(0, 1, 2, 5, 6, 7)),
    Fault("uneven", "2.5 to 3.1 mm apart", moved(lambda k: (0, 0, 0.6 * (k > 4)))),
    Fault("growing gaps", "mm apart", moved(lambda k: (0, 0, 0.05 * k * k))),
    Fault("gantry tilt", r"shift by 11\.31 degrees", moved(lambda k: (0, 0.5 * k, 0))),
    Fault("one aside", "a slice lies 0.4 mm beside", moved(lambda k: (0.4 * (k == 3), 0, 0))),
    Fault("no position", "has no ImagePositionPatient", only(3, ImagePositionPatient=None)),
    Fault("half a position", "ImagePositionPatient is not 3 numbers", only(3, ImagePositionPatient=[1, 2])),
    Fault("endless position", "ImagePositionPatient is not 3 numbers", only(3, ImagePositionPatient=[1, 2, "1e999"])),
    Fault("far away", "from the origin", only(3, ImagePositionPatient=[1, 2, "1e300"])),
    Fault("colour", "colour image", every(SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)),
    Fault("palette", "colour image", every(PhotometricInterpretation="PALETTE COLOR")),
    Fault("lookup table", "lookup table", every(ModalityLUTSequence=[Dataset()])),
    Fault("burned in", "BurnedInAnnotation is YES", only(3, BurnedInAnnotation="YES")),
    Fault("screenshot", "screenshot", every(SOPClassUID=SecondaryCaptureImageStorage)),
    Fault("screen save", "screenshot", every(ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"])),
    Fault("localizer", "is a localizer", every(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])),
    Fault("no voxels", "can't be decoded", only(3, PixelData=None)),
    Fault("short voxels", "can't be decoded", only(3, PixelData=bytes(38))),
    Fault("12 bits", "16 of 12 bits", every(BitsAllocated=12)),
    Fault("17 of 16 bits", "17 of 16 bits", every(BitsStored=17)),
    Fault("huge rows", "frames of 16 x 65535 voxels|header promises", every(Rows=65535)),
    Fault("no columns", "Columns is missing", only(3, Columns=None)),
    Fault("another size", r"slices of 2 sizes, like \(6, 4\)", another_size),
    Fault("no slope", "RescaleSlope is not 1 numbers", only(3, RescaleSlope="1e999")),
    Fault("steep slope", "NaN or infinite", only(3, RescaleSlope="1e300")),
    Fault("flat", "every voxel is -1000", every(RescaleSlope=0)),
    Fault("two persons", "differ in PatientID", only(3, PatientID="PAT-18")),
    Fault("two frames", "differ in FrameOfReferenceUID", only(3, FrameOfReferenceUID=uid("other"))),
    Fault("unknown compression", "can't be decoded", film),
    Fault("frames without a place", "has 2 frames, but says for 0", every(NumberOfFrames=2)),
]  # fmt: skip
