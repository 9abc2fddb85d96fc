"""A name, an id and a birth date are planted wherever a DICOM file can hold text; nothing that leaves may show them."""

import functools
import logging
import pickle
import traceback
import warnings

import nibabel as nib
import numpy as np
import pytest
from pydicom.datadict import DicomDictionary, dictionary_VR, keyword_for_tag
from pydicom.dataset import Dataset

from data_shards.archive import dicom_header
from data_shards.archive.identity import Identity
from data_shards.archive.layout import read_archive
from data_shards.archive.volume import read_case_image, read_case_label
from data_shards.errors import InputError, VolumeError
from tests.data_shards.archive.basic_profile import BASIC_PROFILE
from tests.data_shards.archive.dicom_faults import FAULTS
from tests.data_shards.archive.dicom_files import IDENTITY, uid, values_of, write_series
from tests.data_shards.helpers import place_code, write_archive, write_nifti

PLANTED = ("xaver", "zyx4711", "19610203", "4711.1961", "1.2.4711")
TEXTS = {
    "AE": "XAVER", "AS": "063Y", "CS": "XAVER ZYX4711", "DA": "19610203", "DT": "19610203101112", "LO": "Xaver ZYX4711",
    "LT": "Xaver ZYX4711 19610203", "PN": "Xaver^ZYX4711", "SH": "ZYX4711", "ST": "Xaver 19610203", "TM": "101112",
    "UC": "Xaver", "UI": "1.2.4711.1961", "UR": "http://xaver/zyx4711", "UT": "Xaver ZYX4711 19610203",
    "OB": b"Xaver 19610203", "UN": b"Xaver 19610203", "DS": "4711.1961", "IS": "4711",
}  # fmt: skip
# What a series needs to be one; everything else is planted.
_NEEDED = {"SpecificCharacterSet", "SeriesInstanceUID", *dicom_header.TECHNICAL}


@functools.cache
def planted(tags: tuple[int, ...]) -> Dataset:
    """Text in each of the tags that can hold some, in private ones, and one level down in sequences."""
    header, item = Dataset(), Dataset()
    item.PatientName, item.PatientID, item.PersonName = "Xaver^Inner", "ZYX4711", "Xaver"
    for tag in tags:
        vr = dictionary_VR(tag)
        if not 0x0008 <= tag >> 16 != 0x7FE0 or keyword_for_tag(tag) in _NEEDED:
            continue
        if vr in TEXTS:
            header.add_new(tag, vr, TEXTS[vr])
        elif vr == "SQ":
            header.add_new(tag, vr, [item])
    header.add_new(0x50002500, "LO", "Xaver")  # a curve
    header.add_new(0x60001500, "LO", "Xaver")  # an overlay
    block = header.private_block(0x0011, "XAVER ZYX4711", create=True)
    for i, vr in enumerate(TEXTS):
        block.add_new(i, vr, TEXTS[vr])
    header.private_block(0x0013, "XAVER", create=True).add_new(1, "SQ", [item])
    return header


ALL_TAGS = tuple(DicomDictionary)


def assert_nothing_shows(*texts: object) -> None:
    for text in map(str, texts):
        assert not [word for word in PLANTED if word in text.lower()], text


@pytest.fixture
def folder(tmp_path):
    """Its name is the patient's, as often in practice."""
    return tmp_path / "scans" / "Xaver ZYX4711 19610203"


def test_every_text_of_the_basic_profile_is_planted(folder):
    file = planted(ALL_TAGS)
    groups_of_files = [tag for tag in BASIC_PROFILE if tag >> 16 >= 8]
    left_out = {tag for tag in groups_of_files if tag not in file and dictionary_VR(tag) in (*TEXTS, "SQ")}
    assert left_out <= {0x0020000E, 0x00200052}  # the uids of series and frame of reference, planted below
    assert len(BASIC_PROFILE) > 600 and len(file) > 3000


def test_a_listing_shows_keys_and_nothing_else(folder, capfd, caplog):
    caplog.set_level(logging.DEBUG)

    def change(file, k):
        file.update(planted(ALL_TAGS))
        file.SeriesInstanceUID, file.FrameOfReferenceUID = "1.2.4711.1", "1.2.4711.2"

    write_series(folder, change=change)
    archive = read_archive(folder, IDENTITY)
    (case,) = archive.cases
    volume = read_case_image(case)
    assert np.array_equal(volume.data[0], values_of())
    published = [case.case, case.subject, case.session, case.source, str(volume.path)]
    assert all(len(key) == 16 and set(key) <= set("0123456789abcdef") for key in published)
    assert (case.modality, archive.name, case.label_path) == ("CT", "archive", None)
    assert_nothing_shows(*published, repr(case), archive.name, *capfd.readouterr(), caplog.text)
    assert repr(IDENTITY) not in published and IDENTITY.salt not in pickle.dumps(archive)


def test_a_modality_is_one_of_a_list_or_unknown(folder):
    write_series(folder, change=lambda file, k: setattr(file, "Modality", "XAVER"))
    assert read_archive(folder, IDENTITY).cases[0].modality == ""


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_no_message_about_a_series_quotes_it(folder, fault, capfd, caplog):
    caplog.set_level(logging.DEBUG)

    def change(file, k):
        file.update(planted(BASIC_PROFILE))
        fault.change(file, k)

    write_series(folder, change=change, slices=fault.slices)
    (case,) = read_archive(folder, IDENTITY).cases
    with pytest.raises(VolumeError) as caught:
        read_case_image(case)
    error = pickle.loads(pickle.dumps(caught.value))
    shown = "".join(traceback.format_exception(caught.value))
    assert str(error).startswith(f"{case.case}: ")
    assert_nothing_shows(error, shown, *capfd.readouterr(), caplog.text)


@pytest.mark.parametrize("keyword", ["SpecificCharacterSet", *dicom_header.TECHNICAL])
def test_text_in_a_technical_element_is_not_quoted_either(folder, keyword, capfd, caplog):
    def change(file, k):
        vr = dictionary_VR(keyword).split(" ")[0]
        file.add_new(keyword, vr if vr in ("UI", "CS") else "LO", "XAVER ZYX4711")

    write_series(folder, change=change)
    caplog.clear()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        shown = list_and_read(folder)
    assert_nothing_shows(*shown, *(warning.message for warning in warned), *capfd.readouterr(), caplog.text)


def list_and_read(folder) -> list[str]:
    """Everything a run would show of a folder."""
    shown = ["".join(repr(case) for case in read_archive(folder, IDENTITY).cases)]
    for case in read_archive(folder, IDENTITY).cases:
        try:
            read_case_image(case)
        except VolumeError as error:
            shown += traceback.format_exception(error)
    return shown


def test_without_a_salt_or_with_names_kept_dicom_is_refused(folder, tmp_path):
    write_series(folder)
    for identity, message in [
        (None, "there is no salt: write one with `head -c 32 /dev/urandom > salt`"),
        (Identity("keep", IDENTITY.salt), "privacy.names is keep, but the archive holds DICOM"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            read_archive(tmp_path, identity)
        assert_nothing_shows(caught.value)


def test_series_of_one_person_share_their_key_and_visits_are_told_apart(tmp_path):
    def visit(series: str, study: str, patient: str) -> None:
        def change(file, k):
            file.StudyInstanceUID, file.PatientID = uid(study), patient

        write_series(tmp_path / series, series, change=change)

    visit("a", "first", "17")
    visit("b", "first", "17 ")
    visit("c", "second", " 17")
    visit("d", "third", "18")
    cases = {case.series_uid: case for case in read_archive(tmp_path, IDENTITY).cases}
    a, b, c, d = (cases[uid(name)] for name in "abcd")
    assert a.subject == b.subject == c.subject != d.subject
    assert a.session == b.session and len({a.session, c.session, d.session}) == 3


def test_hash_hides_the_names_of_files_and_persons_too(tmp_path, folder):
    identity = Identity("hash", IDENTITY.salt)
    write_archive(folder, [(6, 6, 6)] * 2)
    (folder / "subjects.json").write_text('{"case_0": "Xaver", "case_1": "Xaver"}')
    archive = read_archive(folder, identity)
    assert len({case.case for case in archive.cases}) == 2 and len({case.subject for case in archive.cases}) == 1
    for case in archive.cases:
        image = read_case_image(case)
        read_case_label(case, image, 3)
        assert case.source == case.case == str(image.path)
        assert_nothing_shows(repr(case))
        assert "case_" not in repr(case)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("Xaver.nii", nib.Nifti1Header().binaryblock[:344] + b"Xaver"[:4]),
        ("Xaver.nrrd", b"NRRD0004\ndimension: Xaver\nsizes: 1 2\n\n"),
        ("Xaver.mha", b"NDims = Xaver\nElementDataFile = LOCAL\n"),
    ],
)
def test_messages_about_hashed_files_hold_no_path_and_no_reason_of_a_library(folder, name, content, capfd, caplog):
    folder.mkdir(parents=True)
    (folder / name).write_bytes(content)
    (case,) = read_archive(folder, Identity("hash", IDENTITY.salt)).cases
    with pytest.raises(VolumeError) as caught:
        read_case_image(case)
    assert_nothing_shows(*traceback.format_exception(caught.value), *capfd.readouterr(), caplog.text)
    assert "Xave" not in caplog.text
    assert str(caught.value).startswith(f"{case.case}: can't be read as")
    with pytest.raises(VolumeError, match=rf"{name}: can't be read as \w+ \("):
        read_case_image(read_archive(folder).cases[0])


@pytest.mark.parametrize("fault", ["missing file", "stray person", "two of a name"])
def test_a_layout_that_does_not_fit_is_not_quoted_where_names_are_hashed(tmp_path, fault):
    if fault == "two of a name":
        for name in ("Xaver 4711.nii", "Xaver.4711.nii"):
            write_nifti(tmp_path / name, place_code((4, 5, 6)))
    else:
        write_archive(tmp_path, [(6, 6, 6)] * 2)
        (tmp_path / "subjects.json").write_text('{"Xaver": "ZYX4711"}')
    if fault == "missing file":
        (tmp_path / "imagesTr" / "case_1.nii.gz").unlink()
    with pytest.raises(InputError, match="see which|see why") as caught:
        read_archive(tmp_path, Identity("hash", IDENTITY.salt))
    assert_nothing_shows(caught.value)
    assert "case_1" not in str(caught.value)
