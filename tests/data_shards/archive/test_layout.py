import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from data_shards.archive.layout import read_archive
from data_shards.archive.volume import read_case_image, read_case_label
from data_shards.errors import InputError
from data_shards.labels import Labels
from tests.data_shards.helpers import place_code, write_archive, write_nifti

VOXELS = place_code((3, 3, 3))


def test_a_decathlon_folder_gives_its_cases_persons_and_classes(tmp_path):
    write_archive(tmp_path, [(6, 6, 6)] * 3)
    (tmp_path / "subjects.json").write_text(json.dumps({"case_0": "anna", "case_2": "anna"}))
    write_nifti(tmp_path / "imagesTs" / "case_9.nii.gz", VOXELS)
    archive = read_archive(tmp_path)
    assert (archive.name, archive.channel_names) == ("Places", ("MRI",))
    assert archive.class_names == ("background", "part 1", "part 2")
    assert [(c.case, c.subject) for c in archive.cases] == [
        ("case_0", "anna"), ("case_1", "case_1"), ("case_2", "anna"), ("case_9", "case_9"),
    ]  # fmt: skip
    assert archive.cases[1].image_paths == (tmp_path / "imagesTr/case_1.nii.gz",)
    assert archive.cases[1].label_path == tmp_path / "labelsTr/case_1.nii.gz"
    assert archive.cases[3].label_path is None


def test_a_person_list_that_fits_no_case_is_refused(tmp_path):
    # silently, each scan would become a person of its own, and one person's scans fall on both sides of the split
    write_archive(tmp_path, [(4, 5, 6)] * 3)
    (tmp_path / "subjects.json").write_text(json.dumps({"case_0": "anna", "case-1": "anna"}))
    with pytest.raises(InputError, match="subjects.json: 'case-1' is no case, and case 'case_1' has no person"):
        read_archive(tmp_path)


def test_a_person_list_may_name_files_and_cases_that_are_not_there(tmp_path):
    write_archive(tmp_path, [(4, 5, 6)] * 2)
    names = {"case_0.nii.gz": "anna", "case_1": "anna", "case_77": "bert"}
    (tmp_path / "subjects.json").write_text(json.dumps(names))
    assert [case.subject for case in read_archive(tmp_path).cases] == ["anna", "anna"]


def test_without_a_training_list_the_folders_are_scanned(tmp_path):
    write_archive(tmp_path, [(6, 6, 6)] * 2)
    header = json.loads((tmp_path / "dataset.json").read_text())
    del header["training"]
    (tmp_path / "dataset.json").write_text(json.dumps(header))
    (tmp_path / "labelsTr/case_1.nii.gz").unlink()
    (tmp_path / "imagesTr/._case_0.nii.gz").write_bytes(b"left by a Mac")
    cases = read_archive(tmp_path).cases
    assert [(c.case, c.label_path is not None) for c in cases] == [("case_0", True), ("case_1", False)]


def write_nnunet(root, channels=("0000", "0001")):
    for channel in channels:
        write_nifti(root / "imagesTr" / f"liver_01_{channel}.nii.gz", VOXELS)
    write_nifti(root / "labelsTr" / "liver_01.nii.gz", np.zeros((3, 3, 3), np.uint8))
    header = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "tumor": 2, "liver": 1}}
    (root / "dataset.json").write_text(json.dumps(header | {"file_ending": ".nii.gz", "numTraining": 1}))


def test_an_nnunet_folder_groups_channels_in_order(tmp_path):
    write_nnunet(tmp_path)
    archive = read_archive(tmp_path)
    assert archive.channel_names == ("T1", "T2") and archive.class_names == ("background", "liver", "tumor")
    (case,) = archive.cases
    assert case.case == "liver_01" and case.label_path is not None
    assert [path.name for path in case.image_paths] == ["liver_01_0000.nii.gz", "liver_01_0001.nii.gz"]


def test_a_missing_channel_is_named(tmp_path):
    write_nnunet(tmp_path, channels=("0001",))
    with pytest.raises(InputError, match=r"liver_01.*\[1\].*names 2"):
        read_archive(tmp_path)


def test_a_plain_tree_is_an_unlabelled_archive(tmp_path):
    write_nifti(tmp_path / "b/visit.1/t1.nii", VOXELS)
    write_nifti(tmp_path / "a.nii.gz", VOXELS)
    archive = read_archive(tmp_path)
    assert [(c.case, c.label_path) for c in archive.cases] == [("a", None), ("b__visit_1__t1", None)]
    assert archive.class_names == ("background",)


def test_two_files_of_one_case_name_are_refused(tmp_path):
    write_nifti(tmp_path / "a b.nii", VOXELS)
    write_nifti(tmp_path / "a.b.nii", VOXELS)
    with pytest.raises(InputError, match="both make case 'a_b'"):
        read_archive(tmp_path)


def test_missing_and_empty_folders_are_told_apart(tmp_path):
    with pytest.raises(InputError, match="nowhere is not a folder"):
        read_archive(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no NIfTI"):
        read_archive(tmp_path)


def test_a_listed_file_that_is_not_there_is_named(tmp_path):
    write_archive(tmp_path, [(6, 6, 6)] * 2)
    (tmp_path / "labelsTr/case_1.nii.gz").unlink()
    with pytest.raises(InputError, match=r"labelsTr/case_1\.nii\.gz is listed"):
        read_archive(tmp_path)


def labels_of(root: Path, labels: dict, **more: object) -> Labels:
    write_nifti(root / "imagesTr" / "a_0000.nii.gz", np.zeros((3, 3, 3), np.uint8))
    header = {"channel_names": {"0": "FLAIR"}, "labels": labels, **more}
    (root / "dataset.json").write_text(json.dumps(header))
    return read_archive(root).labels


def test_nnunet_regions_and_the_ignore_label_are_understood(tmp_path: Path) -> None:
    brats = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}
    labels = labels_of(tmp_path, brats, regions_class_order=[1, 2, 3])
    assert labels.class_names == ("background", "label 1", "label 2", "enhancing", "ignore")
    assert labels.meaning.ignore == 4
    found = [(region.name, region.values, region.written) for region in labels.meaning.regions]
    assert found == [("whole", (1, 2, 3), 1), ("core", (2, 3), 2), ("enhancing", (3,), 3)]


def test_an_ignore_label_beside_plain_classes_is_no_class(tmp_path: Path) -> None:
    labels = labels_of(tmp_path, {"background": 0, "liver": 1, "ignore": 2})
    assert [target.name for target in labels.targets] == ["liver"] and labels.num_outputs == 2
    assert labels.class_names == ("background", "liver", "ignore")


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        ({"background": 0, "whole": [1, 2], "core": [2]}, None),
        ({"background": 0, "whole": [1, 2], "core": [2]}, [1]),
        ({"background": 0, "whole": [1, 2], "core": [2]}, [1, 7]),
        ({"background": 0, "whole": [1, 3], "core": [3]}, [1, 3]),  # 2 has no meaning
        ({"background": 0, "whole": [1, 2], "core": [2], "ignore": 1}, [1, 2]),
        ({"background": 0, "ignore": 1, "liver": 2}, None),
        ({"background": 0, "whole": ["x"]}, [1]),
    ],
)
def test_regions_that_do_not_fit_together_are_refused(tmp_path: Path, labels: dict, order: list | None) -> None:
    with pytest.raises(InputError, match="dataset.json.*renumber the labels"):
        labels_of(tmp_path, labels, **({} if order is None else {"regions_class_order": order}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"labels": {"0": "background", "2": "x"}}, "renumber", id="gap in the label values"),
        pytest.param({"labels": {"background": 0, "x": [1, 2]}}, "renumber", id="nnU-Net regions"),
        pytest.param({"labels": {"0": "background", "1": "x", "2": "x"}}, "renumber", id="one name twice"),
        pytest.param({"labels": ["x"]}, "renumber", id="labels as list"),
        pytest.param({"modality": {"1": "MRI"}}, "channel_names", id="channels not from 0"),
        pytest.param({"modality": None}, "channel_names", id="no channels"),
        pytest.param({"training": "all"}, "training", id="training is no list"),
        pytest.param({"training": [{"label": "x"}]}, "training entry", id="entry without image"),
    ],
)
def test_a_broken_header_gives_one_line_naming_it(tmp_path, change, message):
    write_archive(tmp_path, [(6, 6, 6)])
    header = json.loads((tmp_path / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps(header | change))
    with pytest.raises(InputError, match=message) as caught:
        read_archive(tmp_path)
    assert "dataset.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["dataset.json", "subjects.json"])
@pytest.mark.parametrize("text", ["{", "[]", '"x"'])
def test_garbled_json_is_named(tmp_path, name, text):
    write_archive(tmp_path, [(6, 6, 6)])
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=name):
        read_archive(tmp_path)


@pytest.mark.parametrize(
    ("channels", "modality"),
    [
        (("MRI",), "MR"),
        (("FLAIR", "T1w", "t1gd", "T2w"), "MR"),
        (("T2", "ADC"), "MR"),
        (("CT",), "CT"),
        (("CT", "PET"), ""),  # two machines
        (("PET",), "PT"),
        (("noNorm",), ""),
        (("CTA_of_MRI?",), ""),
    ],
)
def test_channel_names_tell_the_modality(tmp_path, channels, modality):
    write_archive(tmp_path, [(6, 6, 6)])
    header = json.loads((tmp_path / "dataset.json").read_text())
    header["modality"] = {str(i): name for i, name in enumerate(channels)}
    (tmp_path / "dataset.json").write_text(json.dumps(header))
    assert read_archive(tmp_path).cases[0].modality == modality


def test_a_case_says_where_it_came_from(tmp_path):
    write_archive(tmp_path, [(6, 6, 6)])
    (case,) = read_archive(tmp_path).cases
    assert (case.source, case.session, case.series_uid) == ("imagesTr/case_0.nii.gz", "", "")
    assert not case.is_hashed


def test_nnunet_folders_may_hold_other_formats(tmp_path):
    write_nnunet(tmp_path)
    for path in [*tmp_path.rglob("*.nii.gz")]:
        image = sitk.GetImageFromArray(nib.load(path).get_fdata().astype(np.int16).T)
        sitk.WriteImage(image, str(path).replace(".nii.gz", ".nrrd" if "labels" in str(path) else ".mha"))
        path.unlink()
    (case,) = read_archive(tmp_path).cases
    assert [path.name for path in case.image_paths] == ["liver_01_0000.mha", "liver_01_0001.mha"]
    image = read_case_image(case)
    assert np.array_equal(image.data, [VOXELS, VOXELS]) and not read_case_label(case, image).data.any()
