"""What is scored elsewhere was seen by nobody who trained, and fits the shards."""

import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from cluster import sweep_verb
from cluster.elsewhere import read_elsewhere
from cluster.order import SweepOrder
from data_shards.archive.identity import Identity
from data_shards.errors import InputError
from data_shards.formats.index import ShardIndex
from data_shards.splits import Split
from data_shards.synthetic import SyntheticConfig, write_archive
from maetrain.checkpoint.handover import PoolScan
from maetrain.evaluate.study import Study
from tests.integration.settings import tiny

KEEP = Identity("keep")


@pytest.fixture
def others(tmp_path: Path) -> Path:
    """Three persons of another hospital, whose names are not those of the shards."""
    root = tmp_path / "others"
    write_archive(root, SyntheticConfig(num_subjects=3, shape_XYZ=(24, 28, 20), num_classes=3, seed=9))
    for path in root.glob("*.json"):
        path.write_text(path.read_text().replace("synthetic_", "other_").replace("person_", "stranger_"))
    for path in sorted(root.rglob("synthetic_*")):
        path.rename(path.with_name(path.name.replace("synthetic_", "other_")))
    return root


def read(folder: Path, index: ShardIndex, split: Split, pools: list[PoolScan] | None = None) -> Study:
    return read_elsewhere("there", folder, index, split, pools or [], KEEP)


def labelled(folder: Path) -> list[Path]:
    return sorted((folder / "labelsTr").glob("*.nii.gz"))


def test_strangers_are_taken_with_all_their_labelled_scans(others: Path, index: ShardIndex, split: Split) -> None:
    study = read(others, index, split)
    assert len(study.cases) == len(labelled(others)) > 0
    assert {*study.voxel_sha256} == {case.case for case in study.cases}


def test_a_training_persons_scan_is_known_by_its_voxels(
    others: Path, small_archive: Path, index: ShardIndex, split: Split
) -> None:
    case = next(v.case for v in index.volumes if v.subject in split.train and v.has_label)
    stranger = labelled(others)[0].name.removesuffix(".nii.gz")
    (image,) = (small_archive / "imagesTr").glob(f"{case}.nii.gz")
    shutil.copy(image, others / "imagesTr" / f"{stranger}.nii.gz")
    shutil.copy(small_archive / "labelsTr" / f"{case}.nii.gz", others / "labelsTr" / f"{stranger}.nii.gz")
    with pytest.raises(InputError, match=rf"--elsewhere there: person .*case {stranger}.* by name or by voxels"):
        read(others, index, split)


def test_a_scan_of_the_pretraining_pool_is_known_by_its_voxels_and_its_person(
    others: Path, index: ShardIndex, split: Split
) -> None:
    study = read(others, index, split)
    case = study.cases[0]
    for seen in (
        PoolScan(case="x", subject="somebody", voxel_sha256=study.voxel_sha256[case.case]),
        PoolScan(case="x", subject=case.subject, voxel_sha256="0" * 64),
    ):
        with pytest.raises(InputError, match=f"person {case.subject} "):
            read(others, index, split, [seen])


def test_a_test_person_may_be_scored_elsewhere_too(small_archive: Path, index: ShardIndex, split: Split) -> None:
    """Another scan of a test person is a fair question; nobody has trained on it."""
    every = Split(tuple(sorted({*split.test, *split.monitor, *split.train})), (), ())
    assert read(small_archive, index, every).cases


def test_other_channels_are_refused(others: Path, index: ShardIndex, split: Split) -> None:
    text = (others / "dataset.json").read_text()
    (others / "dataset.json").write_text(text.replace("MRI", "CT"))
    with pytest.raises(InputError, match=r"its channels are \['CT'\], the shards' \['MRI'\]"):
        read(others, index, split)


def test_a_label_that_can_not_be_used_is_found_before_anything_trains(
    others: Path, index: ShardIndex, split: Split
) -> None:
    path = labelled(others)[-1]
    label = nib.load(path)
    nib.save(nib.Nifti1Image(np.full(label.shape, 9, np.uint8), label.affine), path)
    with pytest.raises(InputError, match="label value 9"):
        read(others, index, split)


def test_every_node_is_asked_whether_it_sees_them(
    others: Path, small_archive: Path, index: ShardIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(out: str, read: Mapping[str, str]) -> None:
        raise InputError(read[str(others)])

    monkeypatch.setattr(sweep_verb, "check_storage", stop)
    monkeypatch.setattr(sweep_verb, "open_store", lambda *_: None)
    monkeypatch.setattr(sweep_verb, "ray_session", lambda *_: nullcontext())
    monkeypatch.setattr(sweep_verb, "wait_for_gpus", lambda *_: None)
    places = {"shards": str(index.root), "data": small_archive, "handovers": {}, "elsewhere": {"there": others}}
    order = SweepOrder(config=tiny("sweep.arms=[scratch]"), **places)
    with pytest.raises(InputError, match="^--elsewhere there$"):
        sweep_verb.run_sweep_verb(order, tmp_path / "out", None, None)
