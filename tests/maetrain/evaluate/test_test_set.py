"""Test persons are scored in the image's own grid and millimetres."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_shards.archive.layout import ArchiveCase
from data_shards.archive.volume import read_image, voxel_sha256
from data_shards.errors import InputError
from data_shards.labels import Labels
from data_shards.preprocess import PreprocessConfig
from maetrain.evaluate.study import Study, read_study
from maetrain.evaluate.test_set import LabelledScan, score_scans, spacing_mm_XYZ

from .scans import Brightness, oblique_affine, organ, scan, write

CLASSES = ("background", "organ")


def case(folder: Path, label_XYZ: np.ndarray, name: str = "c1", affine: np.ndarray | None = None) -> ArchiveCase:
    image = write(folder / f"{name}.nii.gz", scan(), affine)
    label = write(folder / f"{name}-label.nii.gz", label_XYZ.astype(np.uint8), affine)
    return ArchiveCase(name, f"person of {name}", (image,), label)


def scores(cases: list[ArchiveCase], classes: tuple[str, ...] = CLASSES, **more: object) -> list:
    return scores_of(read_study(cases, len(classes)), classes, **more)


def scores_of(study: Study, classes: tuple[str, ...] = CLASSES, **more: object) -> list:
    labels = Labels(classes)
    sources = study.sources(labels, PreprocessConfig(intensity="zscore"))
    return score_scans(Brightness(), sources, labels, (8, 10, 12), 1.0, **more)


def test_the_spacing_of_a_turned_grid_is_the_length_of_its_voxels() -> None:
    assert spacing_mm_XYZ(oblique_affine((1.0, 1.5, 2.0))) == pytest.approx((1.0, 1.5, 2.0))


def test_a_perfect_segmentation_has_dice_one_and_no_distance(tmp_path: Path) -> None:
    (row,) = scores([case(tmp_path, organ(scan()), affine=oblique_affine())])
    assert (row.dice, row.hd95_mm, row.surface_dice) == (1.0, 0.0, 1.0)
    assert (row.case, row.subject, row.class_name) == ("c1", "person of c1", "organ")


def test_a_scan_that_has_changed_is_refused(tmp_path: Path) -> None:
    one = case(tmp_path, organ(scan()))
    study = Study([one], {"c1": voxel_sha256(read_image(one.image_paths))})
    assert scores_of(study)
    write(one.image_paths[0], scan(seed=1))
    with pytest.raises(InputError, match="c1.nii.gz: not the scan it was"):
        scores_of(study)


def test_a_studys_content_is_its_persons_voxels_and_labels(tmp_path: Path) -> None:
    one, other = case(tmp_path, organ(scan())), case(tmp_path, np.zeros_like(organ(scan())), "c2")
    assert other.label_path is not None
    before = read_study([one, other, replace(one, case="c3", label_path=None)], 2).content
    assert list(before) == ["c1", "c2"] and before["c1"][:2] == ["person of c1", before["c2"][1]]
    assert before["c1"][2] != before["c2"][2]
    write(other.label_path, organ(scan()))
    after = read_study([one, other], 2).content
    assert after["c1"] == before["c1"] and after["c2"][:2] == before["c2"][:2] and after["c2"] != before["c2"]


@pytest.mark.parametrize(("axis", "millimetres"), [(0, 1.0), (1, 1.5), (2, 2.0)])
def test_a_label_one_voxel_off_is_off_by_that_axis_spacing(tmp_path: Path, axis: int, millimetres: float) -> None:
    off = np.roll(organ(scan()), 1, axis)
    (row,) = scores([case(tmp_path, off, affine=oblique_affine((1.0, 1.5, 2.0)))])
    length = (5, 11, 4)[axis]
    assert row.hd95_mm == pytest.approx(millimetres)
    assert row.dice == pytest.approx((length - 1) / length)


def test_every_case_has_one_row_a_class_and_is_shown_once(tmp_path: Path) -> None:
    shown: list[str] = []

    def on_scan(which: LabelledScan, predicted: np.ndarray) -> None:
        shown.append(which.case.case)
        assert which.image_CXYZ.shape == (1, *scan().shape) and np.array_equal(which.image_CXYZ[0], scan())
        assert np.array_equal(predicted, which.label_XYZ)

    cases = [case(tmp_path, organ(scan()), name) for name in ("a", "b")]
    rows = scores(cases, ("background", "organ", "never there"), on_scan=on_scan)
    assert shown == ["a", "b"]
    assert [(r.case, r.class_name) for r in rows] == [(c, k) for c in "ab" for k in ("organ", "never there")]
    assert [r.dice for r in rows if r.class_name == "never there"] == [1.0, 1.0]


def test_a_label_value_that_names_no_class_is_refused_with_the_file(tmp_path: Path) -> None:
    label = organ(scan())
    label[0, 0, 0] = 7
    with pytest.raises(InputError, match=r"c1-label.nii.gz: label value 7"):
        scores([case(tmp_path, label)])
