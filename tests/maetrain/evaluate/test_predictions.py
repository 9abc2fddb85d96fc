"""A folder of predictions gets the scores that its voxels deserve, or one clear error; never a smaller table."""

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from data_shards.archive.cases import ArchiveCase
from data_shards.errors import InputError
from data_shards.labels import Labels
from maetrain.evaluate.metrics import score_case
from maetrain.evaluate.predictions import find_predictions, score_predictions

from .scans import oblique_affine, organ, scan, write

LABELS = Labels(("background", "organ"))
NUM_CASES = 3


def predicted(i: int) -> np.ndarray:
    """The organ of case i, moved by i voxels along X: no two cases have the same scores."""
    return np.roll(organ(scan(i)), i, axis=0)


@pytest.fixture
def cases(tmp_path: Path) -> list[ArchiveCase]:
    found = []
    for i in range(NUM_CASES):
        image = write(tmp_path / "imagesTr" / f"scan_{i}_0000.nii.gz", scan(i), oblique_affine())
        label = write(tmp_path / "labelsTr" / f"scan_{i}.nii.gz", organ(scan(i)), oblique_affine())
        found.append(ArchiveCase(f"scan_{i}_0000", f"person_{i}", (image,), label))
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(NUM_CASES):
        write(tmp_path / "predicted" / f"scan_{i}.nii.gz", predicted(i), oblique_affine())
    return tmp_path / "predicted"


def test_the_scores_are_those_of_the_voxels_in_mm(cases: list[ArchiveCase], folder: Path) -> None:
    found = score_predictions(find_predictions(folder, cases), cases, LABELS, 1.0)
    expected = [
        score_case(predicted(i), organ(scan(i)), (1.0, 1.5, 2.0), LABELS, 1.0, f"scan_{i}_0000", f"person_{i}")[0]
        for i in range(NUM_CASES)
    ]
    assert [(s.case, s.subject) for s in found] == [(s.case, s.subject) for s in expected]
    for one, other in zip(found, expected, strict=True):
        assert (one.dice, one.surface_dice, one.hd95_mm) == pytest.approx(
            (other.dice, other.surface_dice, other.hd95_mm)
        )
    assert found[0].dice == 1.0 and found[1].dice == pytest.approx(4 / 5)


@pytest.mark.parametrize("name", ["scan_1_0000.nii.gz", "scan_1.nii.gz", "scan_1.nii", "scan_1_0000.nii"])
def test_a_case_is_found_under_its_name_and_nnunets(cases: list[ArchiveCase], folder: Path, name: str) -> None:
    (folder / "scan_1.nii.gz").unlink()
    write(folder / name, predicted(1), oblique_affine())
    assert find_predictions(folder, cases)["scan_1_0000"] == folder / name


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_other_formats_give_the_same_scores(cases: list[ArchiveCase], folder: Path, ending: str) -> None:
    expected = score_predictions(find_predictions(folder, cases), cases, LABELS, 1.0)
    for path in list(folder.glob("*.nii.gz")):
        sitk.WriteImage(sitk.ReadImage(str(path)), str(path).replace(".nii.gz", ending))
        path.unlink()
    assert score_predictions(find_predictions(folder, cases), cases, LABELS, 1.0) == expected


def test_a_case_is_found_under_its_images_name_where_ours_is_another(tmp_path: Path) -> None:
    file = write(tmp_path / "a.b.nii.gz", predicted(0))
    case = ArchiveCase("a_b", "p", (Path("imagesTr/a.b.nii.gz"),), Path("labelsTr/a.b.nii.gz"))
    assert find_predictions(tmp_path, [case]) == {"a_b": file}


def test_a_missing_case_is_an_error_that_counts_and_names(cases: list[ArchiveCase], folder: Path) -> None:
    for i in (1, 2):
        (folder / f"scan_{i}.nii.gz").unlink()
    with pytest.raises(InputError, match=r"2 of 3 cases, the first is 'scan_1_0000' .*--subjects"):
        find_predictions(folder, cases)
    assert list(find_predictions(folder, cases[:1])) == ["scan_0_0000"], "what is not asked for may be missing"
    with pytest.raises(InputError, match="gone: no folder there"):
        find_predictions(folder / "gone", cases)


def test_two_files_of_one_case_are_an_error(cases: list[ArchiveCase], folder: Path) -> None:
    write(folder / "scan_2_0000.nii.gz", predicted(2))
    with pytest.raises(InputError, match=r"'scan_2_0000' has two predictions, scan_2_0000.nii.gz and scan_2.nii.gz"):
        find_predictions(folder, cases)


def test_one_file_is_not_the_prediction_of_two_cases(tmp_path: Path) -> None:
    write(tmp_path / "scan.nii.gz", predicted(0))
    cases = [ArchiveCase(f"scan_{i:04d}", "p", (Path(f"imagesTr/scan_{i:04d}.nii.gz"),), None) for i in (1, 2)]
    assert list(find_predictions(tmp_path, cases[:1])) == ["scan_0001"]
    with pytest.raises(InputError, match="scan.nii.gz: may be the prediction of 'scan_0001' or of 'scan_0002'"):
        find_predictions(tmp_path, cases)


def moved(mm: float) -> np.ndarray:
    affine = oblique_affine()
    affine[0, 3] += mm
    return affine


@pytest.mark.parametrize(
    ("data", "affine", "words"),
    [
        (predicted(1)[:-1], oblique_affine(), r"shape \(19, 24, 17\), its label has \(20, 24, 17\)"),
        (np.stack([predicted(1)] * 2, -1), oblique_affine(), r"shape \(20, 24, 17, 2\)"),
        (predicted(1), np.eye(4), "voxels away from its label's"),
        (predicted(1), moved(0.2), "up to 0.2 voxels away from its label's, 0.1 are allowed"),
        (predicted(1), oblique_affine(degrees=20.5), "voxels away from its label's"),
        (
            predicted(1) * 2,
            oblique_affine(),
            "value 2 in 220 voxels is no class; the classes are 0..1, background",
        ),
        (predicted(1) * 0.5, oblique_affine(), "value 0.5 in 220 voxels"),
        (np.where(predicted(1), np.nan, 0.0), oblique_affine(), "value nan in 220 voxels"),
    ],
)
def test_what_is_no_segmentation_of_this_scan_is_refused_by_name(
    cases: list[ArchiveCase], folder: Path, data: np.ndarray, affine: np.ndarray, words: str
) -> None:
    write(folder / "scan_1.nii.gz", data, affine)
    with pytest.raises(InputError, match=words) as caught:
        score_predictions(find_predictions(folder, cases), cases, LABELS, 1.0)
    assert str(folder / "scan_1.nii.gz") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "affine"),
    [
        (lambda d: d.astype(np.float32), oblique_affine()),
        (lambda d: d.astype(np.int16)[..., None], oblique_affine()),
        (lambda d: d, moved(0.05)),  # rounding of headers
    ],
)
def test_other_ways_to_write_the_same_are_scored_the_same(
    cases: list[ArchiveCase], folder: Path, change: Callable[[np.ndarray], np.ndarray], affine: np.ndarray
) -> None:
    before = score_predictions(find_predictions(folder, cases), cases, LABELS, 1.0)
    write(folder / "scan_1.nii.gz", change(predicted(1)), affine)
    assert score_predictions(find_predictions(folder, cases), cases, LABELS, 1.0) == before


def test_a_prediction_may_have_its_images_origin_where_the_label_has_another(
    cases: list[ArchiveCase], folder: Path
) -> None:
    write(cases[0].label_path, organ(scan(0)), moved(7.0))  # type: ignore[arg-type]
    assert score_predictions(find_predictions(folder, cases), cases[:1], LABELS, 1.0)[0].dice == 1.0
    nibabel.save(nibabel.Nifti1Image(predicted(0), moved(3.0)), folder / "scan_0.nii.gz")
    with pytest.raises(InputError, match="up to 3 voxels away"):
        score_predictions(find_predictions(folder, cases), cases[:1], LABELS, 1.0)


def test_an_empty_prediction_is_a_prediction(cases: list[ArchiveCase], folder: Path) -> None:
    write(folder / "scan_0.nii.gz", predicted(0) * 0, oblique_affine())
    (found,) = score_predictions(find_predictions(folder, cases[:1]), cases[:1], LABELS, 1.0)
    assert (found.dice, found.surface_dice, found.hd95_mm) == (0.0, 0.0, pytest.approx(np.linalg.norm([20, 36, 34])))
