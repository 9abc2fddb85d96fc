import os
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from data_shards.archive.dicom_pixels import decode_frame
from data_shards.archive.layout import read_archive
from data_shards.archive.volume import read_case_image
from data_shards.errors import VolumeError
from tests.data_shards.archive.dicom_faults import FAULTS, Fault, every
from tests.data_shards.archive.dicom_files import (
    AXIAL,
    IDENTITY,
    OBLIQUE,
    SHAPE,
    SPACING_MM,
    enhanced,
    packed_by_itk,
    position_of,
    set_voxels,
    slice_of,
    uid,
    values_of,
    write_series,
)
from tests.data_shards.helpers import place_code

SAGITTAL = (0.0, 1, 0, 0, 0, -1)
CORONAL = (1.0, 0, 0, 0, 0, -1)


def read_only(folder):
    (case,) = read_archive(folder, IDENTITY).cases
    return read_case_image(case)


def affine_by_hand(orientation, num_slices=SHAPE[2]) -> np.ndarray:
    """The DICOM affine as nibabel's documentation writes it (multi-slice, LPS), then to RAS; columns before rows."""
    (row_mm, column_mm) = (SPACING_MM[1], SPACING_MM[0])
    f_column, f_row = np.array(orientation[3:]), np.array(orientation[:3])  # nibabel's F: first rows, then columns
    first, last = np.array(position_of(0, orientation)), np.array(position_of(num_slices - 1, orientation))
    step = (first - last) / (1 - num_slices)
    lps = np.eye(4)
    lps[:3] = np.column_stack([f_column * row_mm, f_row * column_mm, step, first])
    swap = np.eye(4)[[1, 0, 2, 3]]
    return np.diag([-1, -1, 1, 1]) @ lps @ swap


@pytest.mark.parametrize(
    "orientation", [AXIAL, SAGITTAL, CORONAL, OBLIQUE], ids=["axial", "sagittal", "coronal", "oblique"]
)
def test_voxels_and_affine_are_those_of_the_formula_and_of_itk(tmp_path, orientation):
    write_series(tmp_path, orientation=orientation)
    volume = read_only(tmp_path)
    assert volume.data.dtype == np.float32 and np.array_equal(volume.data[0], values_of())
    assert np.allclose(volume.affine_4x4, affine_by_hand(orientation), atol=1e-5)

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    image = reader.Execute()
    assert np.array_equal(sitk.GetArrayFromImage(image).T, volume.data[0])
    for voxel in [(0, 0, 0), (3, 5, 7), (15, 11, 7)]:
        x, y, z = image.TransformIndexToPhysicalPoint(voxel)
        assert np.allclose(volume.affine_4x4 @ [*voxel, 1], [-x, -y, z, 1], atol=1e-4)


def test_an_enhanced_file_is_the_same_volume_as_a_series(tmp_path):
    (tmp_path / "one").mkdir()
    enhanced().save_as(tmp_path / "one" / "IM1", enforce_file_format=False)
    classic, all_in_one = read_only(write_series(tmp_path / "two")), read_only(tmp_path / "one")
    assert np.array_equal(all_in_one.data, classic.data)
    assert np.allclose(all_in_one.affine_4x4, classic.affine_4x4)


@pytest.mark.parametrize("num_frames", [1, 7, 9])
def test_an_enhanced_file_that_miscounts_its_frames_is_refused(tmp_path, num_frames):
    file = enhanced()
    file.NumberOfFrames = num_frames
    file.PixelData += bytes(2 * SHAPE[0] * SHAPE[1])
    file.save_as(tmp_path / "a", enforce_file_format=False)
    with pytest.raises(VolumeError, match=f"has {num_frames} frames, but says for 8 where they lie"):
        read_only(tmp_path)


@pytest.mark.parametrize(
    ("compressor", "syntax"), [("JPEG", JPEGLosslessSV1), ("JPEG2000", JPEG2000Lossless), ("RLE", RLELossless)]
)
def test_compressed_slices_are_read(tmp_path, compressor, syntax):
    def compress(file, k):
        if compressor == "RLE":
            file.compress(RLELossless, generate_instance_uid=False)
        else:
            packed_by_itk(file, compressor, tmp_path)
        assert file.file_meta.TransferSyntaxUID == syntax

    assert np.array_equal(read_only(write_series(tmp_path, change=compress)).data[0], values_of())


def test_a_compressed_slice_that_says_another_size_is_not_given_to_the_decoder(tmp_path):
    file = slice_of(0)
    packed_by_itk(file, "JPEG", tmp_path)
    good = get_frame(file.PixelData, 0, number_of_frames=1)
    place = good.index(b"\xff\xc3")  # frame header: length, bits, rows, columns
    no_height = good[: place + 5] + bytes(2) + good[place + 7 :]
    for stream, message in [
        (no_height, "the compressed image is not of the size"),
        (good[:-2] + good[place : place + 13] + good[-2:], "not one frame header"),
        (good[2:], "not a JPEG stream"),
    ]:
        file.PixelData = encapsulate([stream])
        with pytest.raises(ValueError, match=message):
            decode_frame(file, 0, 1, (SHAPE[1], SHAPE[0]))


def test_slope_and_intercept_hold_for_each_slice(tmp_path):
    def change(file, k):
        file.RescaleSlope, file.RescaleIntercept = k + 1, 10 * k

    z = np.arange(SHAPE[2])
    assert np.array_equal(
        read_only(write_series(tmp_path, change=change)).data[0], place_code(SHAPE) * (z + 1) + 10 * z
    )


def test_stored_numbers_keep_their_sign_and_unused_bits_do_not_count(tmp_path):
    def change(file, k):
        file.BitsStored, file.HighBit = 12, 11
        file.RescaleSlope, file.RescaleIntercept = 1, 0
        stored = place_code(SHAPE)[:, :, k].T - 700
        set_voxels(file, (stored & 0x0FFF | 0x5000).astype(np.int16))  # an overlay in the upper four bits

    assert np.array_equal(read_only(write_series(tmp_path, change=change)).data[0], place_code(SHAPE) - 700)


@pytest.mark.parametrize("is_signed", [0, 1])
def test_inverted_grey_is_turned_back_the_same_way_in_every_slice(tmp_path, is_signed):
    change = every(
        PhotometricInterpretation="MONOCHROME1", PixelRepresentation=is_signed, RescaleSlope=1, RescaleIntercept=0
    )
    values = read_only(write_series(tmp_path, change=change)).data[0]
    assert np.array_equal(values, (-1 if is_signed else 65535) - place_code(SHAPE).astype(int))


def test_a_screenshot_that_says_it_shows_no_names_may_be_a_volume(tmp_path):
    change = every(SOPClassUID=SecondaryCaptureImageStorage, BurnedInAnnotation="NO")
    assert np.array_equal(read_only(write_series(tmp_path, change=change)).data[0], values_of())


def test_positions_within_a_hundredth_of_a_millimetre_are_even(tmp_path):
    def change(file, k):
        file.ImagePositionPatient = list(np.add(position_of(k), [0, 0, 0.004 * (-1) ** k]))

    assert np.array_equal(read_only(write_series(tmp_path, change=change)).data[0], values_of())


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_an_unusable_series_is_refused_by_its_key_and_in_numbers(tmp_path, fault: Fault):
    write_series(tmp_path, change=fault.change, slices=fault.slices)
    (case,) = read_archive(tmp_path, IDENTITY).cases
    with pytest.raises(VolumeError, match=fault.message) as caught:
        read_case_image(case)
    assert str(caught.value).startswith(f"{case.case}: ") and "\n" not in str(caught.value)


def test_series_are_told_apart_by_uid_not_by_folder(tmp_path):
    write_series(tmp_path / "mixed", "one")
    write_series(tmp_path / "mixed", "two", who=2)
    write_series(tmp_path / "a", "three", slices=(0, 2, 4, 6), who=3)
    write_series(tmp_path / "b", "three", slices=(1, 3, 5, 7), who=3)
    cases = {case.series_uid: case for case in read_archive(tmp_path, IDENTITY).cases}
    assert set(cases) == {uid("one"), uid("two"), uid("three")}
    assert cases[uid("three")].image_paths == (tmp_path / "a", tmp_path / "b")
    for name, who in (("one", 0), ("two", 2), ("three", 3)):
        assert np.array_equal(read_case_image(cases[uid(name)]).data[0], values_of(who))


def test_files_are_known_by_their_magic_and_other_objects_are_left_alone(tmp_path):
    write_series(tmp_path)
    for i, path in enumerate(sorted(tmp_path.iterdir())):
        path.rename(tmp_path / f"1.2.840.{i}")  # no ending, or one that says nothing
    shutil.copy(tmp_path / "1.2.840.0", tmp_path / "DICOMDIR")
    report = slice_of(0, "report")
    for keyword in ("Rows", "Columns", "PixelData"):
        delattr(report, keyword)
    report.save_as(tmp_path / "report.dcm", enforce_file_format=False)
    segmentation = slice_of(0, "segmentation")
    segmentation.SOPClassUID = "1.2.840.10008.5.1.4.1.1.66.4"
    segmentation.save_as(tmp_path / "seg.dcm", enforce_file_format=False)
    (tmp_path / "notes.txt").write_text("no scan")
    os.mkfifo(tmp_path / "pipe")  # reading it would never end
    (tmp_path / "circle.dcm").symlink_to(tmp_path / "circle.dcm")
    assert np.array_equal(read_only(tmp_path).data[0], values_of())


def test_a_slice_without_preamble_is_read_when_its_ending_says_so(tmp_path):
    write_series(tmp_path)
    for path in tmp_path.iterdir():
        raw = path.read_bytes()
        path.write_bytes(raw[raw.index(b"\x08\0\x08\0CS") :])  # from the first element after the file meta group
    assert np.array_equal(read_only(tmp_path).data[0], values_of())


def test_broken_files_are_one_refused_series_that_counts_them(tmp_path):
    write_series(tmp_path)
    for name in ("x.dcm", "y.dcm"):
        (tmp_path / name).write_bytes(bytes(128) + b"DICM" + b"\xff" * 40)
    good, bad = sorted(read_archive(tmp_path, IDENTITY).cases, key=lambda case: case.modality != "CT")
    assert np.array_equal(read_case_image(good).data[0], values_of())
    with pytest.raises(VolumeError, match=f"{bad.case}: 2 files of a folder are broken"):
        read_case_image(bad)


def test_a_deflated_file_is_not_expanded(tmp_path):
    def deflate(file, k):
        file.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian

    write_series(tmp_path, change=deflate)
    (case,) = read_archive(tmp_path, IDENTITY).cases
    with pytest.raises(VolumeError, match="8 files of a folder are broken"):
        read_case_image(case)


def test_a_series_that_went_away_is_refused(tmp_path):
    (case,) = read_archive(write_series(tmp_path / "a"), IDENTITY).cases
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(VolumeError, match=f"{case.case}: its folder can't be listed"):
        read_case_image(case)
