import json

import pytest

from data_shards.archive.layout import read_archive
from data_shards.errors import InputError
from tests.data_shards.helpers import place_code, write_nifti

VOXELS = place_code((3, 4, 5))


def write_bids(root, *paths):
    (root / "dataset_description.json").parent.mkdir(parents=True, exist_ok=True)
    (root / "dataset_description.json").write_text(json.dumps({"Name": "x", "BIDSVersion": "1.10.0"}))
    for path in paths:
        write_nifti(root / path, VOXELS)
    return root


def test_names_tell_person_session_and_modality(tmp_path):
    write_bids(
        tmp_path,
        "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz",
        "sub-01/ses-2/anat/sub-01_ses-2_acq-fast_FLAIR.nii",
        "sub-01/ses-10/ct/sub-01_ses-10_ct.nii.gz",
        "sub-02/pet/sub-02_trc-fdg_pet.nii.gz",
        "sub-02/anat/sub-02_new.nii.gz",
    )
    archive = read_archive(tmp_path)
    assert [(c.case, c.subject, c.session, c.modality) for c in archive.cases] == [
        ("sub-01_ses-10_ct", "sub-01", "ses-10", "CT"),
        ("sub-01_ses-2_T1w", "sub-01", "ses-2", "MR"),
        ("sub-01_ses-2_acq-fast_FLAIR", "sub-01", "ses-2", "MR"),
        ("sub-02_new", "sub-02", "", ""),
        ("sub-02_trc-fdg_pet", "sub-02", "", "PT"),
    ]
    assert archive.cases[1].source == "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz"
    assert all(case.label_path is None for case in archive.cases)


def test_series_in_time_masks_and_what_others_derived_are_left_out(tmp_path):
    write_bids(
        tmp_path,
        "sub-01/anat/sub-01_T2w.nii.gz",
        "sub-01/anat/sub-01_mod-T1w_defacemask.nii.gz",
        "sub-01/func/sub-01_task-rest_bold.nii.gz",
        "sub-01/dwi/sub-01_dwi.nii.gz",
        "sub-01/fmap/sub-01_phasediff.nii.gz",
        "derivatives/tool/sub-01/anat/sub-01_desc-x_T1w.nii.gz",
        "sourcedata/sub-01/anat/sub-01_T1w.nii.gz",
        "code/sub-01_T1w.nii.gz",
    )
    (tmp_path / "sub-01/anat/sub-01_T2w.json").write_text("{}")
    (tmp_path / "sub-01/anat/._sub-01_T2w.nii.gz").write_bytes(b"left by a Mac")
    assert [case.case for case in read_archive(tmp_path).cases] == ["sub-01_T2w"]


def test_a_person_list_still_has_the_last_word(tmp_path):
    write_bids(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz", "sub-02/anat/sub-02_T1w.nii.gz")
    (tmp_path / "subjects.json").write_text(json.dumps({"sub-02_T1w": "sub-01"}))  # scanned twice under two numbers
    assert [case.subject for case in read_archive(tmp_path).cases] == ["sub-01", "sub-01"]


def test_a_bids_folder_without_scans_says_so(tmp_path):
    write_bids(tmp_path, "sub-01/func/sub-01_task-rest_bold.nii.gz")
    with pytest.raises(InputError, match="holds no NIfTI"):
        read_archive(tmp_path)
