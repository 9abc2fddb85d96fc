import os
import pickle

import numpy as np
import pytest
import SimpleITK as sitk

from data_shards.archive.layout import read_archive
from data_shards.archive.volume import read_case_image
from data_shards.errors import InputError
from tests.data_shards.archive.dicom_files import IDENTITY, uid, values_of, write_series
from tests.data_shards.helpers import place_code, write_nifti

VOXELS = place_code((3, 4, 5))


def write_itk(path, who=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(place_code((3, 4, 5), who).T), str(path))


def test_formats_may_be_mixed_freely(tmp_path):
    write_nifti(tmp_path / "a/scan.nii.gz", place_code((3, 4, 5), 1))
    write_nifti(tmp_path / "a/UPPER.NII", place_code((3, 4, 5), 2))
    for who, name in enumerate(("a/b.nrrd", "c.1/d.nhdr", "c.1/e.mha", "f.mhd"), start=3):
        write_itk(tmp_path / name, who)
    names = ["a__UPPER", "a__b", "a__scan", "c_1__d", "c_1__e", "f"]
    files = {case.case: case for case in read_archive(tmp_path).cases}
    assert sorted(files) == names
    assert files["c_1__d"].source == "c.1/d.nhdr" and files["f"].subject == "f"
    for who, case in enumerate(("a__scan", "a__UPPER", "a__b", "c_1__d", "c_1__e", "f"), start=1):
        assert np.array_equal(read_case_image(files[case]).data[0], place_code((3, 4, 5), who))
    write_series(tmp_path / "a")
    archive = read_archive(tmp_path, IDENTITY)
    (series,) = (case for case in archive.cases if case.series_uid)
    assert np.array_equal(read_case_image(series).data[0], values_of())
    # files beside DICOM were made of it: their names are as private
    assert len(archive.cases) == 7 and all(case.is_hashed for case in archive.cases)
    assert {case.case for case in archive.cases if not case.series_uid} == {
        IDENTITY.key("case", name) for name in names
    }


def test_header_reading_may_be_fanned_out_and_come_back_in_any_order(tmp_path):
    write_series(tmp_path / "a" / "b", "one", slices=(0, 2, 4, 6))
    write_series(tmp_path / "c", "one", slices=(1, 3, 5, 7))
    write_nifti(tmp_path / "d/scan.nii", VOXELS)
    folders = []

    def elsewhere(fn, items):
        folders.extend(items)
        fn = pickle.loads(pickle.dumps(fn))
        return [pickle.loads(pickle.dumps(fn(item))) for item in reversed(items)]

    assert read_archive(tmp_path, IDENTITY, elsewhere) == read_archive(tmp_path, IDENTITY)
    assert folders == [".", "a", "a/b", "c", "d"]


def test_each_folder_is_visited_once_whatever_links_say(tmp_path):
    write_nifti(tmp_path / "root/z/scan.nii", VOXELS)
    write_nifti(tmp_path / "elsewhere/far.nii", VOXELS)
    write_series(tmp_path / "root/z")
    for name, target in [("a", "z"), ("loop", "."), ("z/up", ".."), ("out", "../elsewhere"), ("twice", "../elsewhere")]:
        (tmp_path / "root" / name).symlink_to(tmp_path / "root" / target, target_is_directory=True)
    cases = read_archive(tmp_path / "root", IDENTITY).cases
    files = {case.image_paths[0].relative_to(tmp_path / "root").as_posix() for case in cases if not case.series_uid}
    assert files == {"out/far.nii", "z/scan.nii"}
    assert [case.image_paths for case in cases if case.series_uid] == [(tmp_path / "root/z",)]


def test_keys_do_not_change_when_the_archive_is_moved_or_gets_more(tmp_path):
    write_series(tmp_path / "a" / "x")
    (tmp_path / "a" / "x" / "broken.dcm").write_bytes(b"nothing")
    before = {(case.case, case.subject, case.session) for case in read_archive(tmp_path / "a", IDENTITY).cases}
    (tmp_path / "a").rename(tmp_path / "b")
    write_series(tmp_path / "b" / "y", "two")
    cases = read_archive(tmp_path / "b", IDENTITY).cases
    assert before < {(case.case, case.subject, case.session) for case in cases}
    assert {case.series_uid for case in cases} == {"-", uid("one"), uid("two")}


def test_a_pipe_named_like_a_scan_is_refused_and_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "scan.nii")
    (tmp_path / "zero.mha").symlink_to("/dev/zero")
    for case in read_archive(tmp_path).cases:
        with pytest.raises(InputError, match="is not a file"):
            read_case_image(case)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_is_an_error_without_its_name(tmp_path):
    write_nifti(tmp_path / "a.nii", VOXELS)
    (tmp_path / "Doe").mkdir(mode=0o000)
    with pytest.raises(InputError, match="a folder of the archive can't be listed") as caught:
        read_archive(tmp_path)
    assert "Doe" not in str(caught.value)
