"""What nnU-Net is given and told, with scripts in the place of its commands."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from benchmarks import nnunet
from data_shards.build import BuildConfig, build
from data_shards.errors import InputError
from data_shards.labels import Labels
from maetrain.evaluate.scores import read_scores

from ..data_shards.helpers import KEEP_ALL, place_code

SHAPE_XYZ, CASES = (7, 8, 6), 6
SPACING_MM = (1.0, 1.0, 1.5)
PLAIN = {"background": 0, "edema": 1, "core": 2, "tip": 3}
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "tip": [3], "ignore": 4}
COMMANDS = {
    "nnUNetv2_plan_and_preprocess": """
folder=$nnUNet_preprocessed/Dataset001_Own
mkdir -p $folder
echo '{"configurations": {"3d_fullres": {}}}' > $folder/nnUNetPlans.json
""",
    "nnUNetv2_train": """
echo "$@" $nnUNet_extTrainer $FEW_STEPS_EPOCHS $FEW_STEPS_PER_EPOCH >> $(dirname $0)/trained
""",
    "nnUNetv2_predict": """cp -r $(dirname $0)/../predictions "$4" """,
}


def label_XYZ(case: int, highest: int) -> np.ndarray:
    label_XYZ = np.zeros(SHAPE_XYZ, np.uint8)
    for value in range(1, highest + 1):
        label_XYZ[value, 2:5, case % 3 : 4] = value
    return label_XYZ


def write_sitk(path: Path, data_XYZ: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(data_XYZ.T)
    image.SetSpacing(SPACING_MM)
    sitk.WriteImage(image, str(path))


def write_archive(root: Path, ending: str, is_4d: bool, labels: dict) -> Path:
    """Two channels: of one 4-D file as in MSD, or of two files as in nnU-Net."""
    highest = max(max(value) if isinstance(value, list) else value for value in labels.values())
    header: dict = {"labels": labels}
    header |= {"regions_class_order": [1, 2, 3]} if labels is REGIONS else {}
    header |= {"modality" if is_4d else "channel_names": {"0": "T1", "1": "T2"}}
    for case in range(CASES):
        channels = [place_code(SHAPE_XYZ, 2 * case + channel) for channel in range(2)]
        write_sitk(root / "labelsTr" / f"p{case}{ending}", label_XYZ(case, highest))
        if is_4d:
            (root / "imagesTr").mkdir(exist_ok=True)
            image = nib.Nifti1Image(np.stack(channels, axis=-1), np.diag([-1.0, -1.0, SPACING_MM[2], 1.0]))
            nib.save(image, root / "imagesTr" / f"p{case}{ending}")
        for channel, data_XYZ in enumerate([] if is_4d else channels):
            write_sitk(root / "imagesTr" / f"p{case}_{channel:04d}{ending}", data_XYZ)
    (root / "dataset.json").write_text(json.dumps(header))
    return root


@pytest.fixture
def call(tmp_path: Path) -> Callable[..., None]:
    """Plans, trains and predicts by scripts; what is predicted is the truth."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, script in COMMANDS.items():
        (commands / name).write_text(f"#!/bin/sh -e\n{script}\n")
        (commands / name).chmod(0o755)

    def call(*words: str, ending: str = ".nii.gz", is_4d: bool = False, labels: dict = PLAIN) -> None:
        data, shards = tmp_path / "data", tmp_path / "shards"
        if not data.exists():
            write_archive(data, ending, is_4d, labels)
            build(data, shards, BuildConfig(format="zarr", preprocess=KEEP_ALL))
            for case in range(CASES):
                write_sitk(tmp_path / "predictions" / f"p{case}.nii.gz", label_XYZ(case, 3))
        places = ("--shards", shards, "--data", data, "--out", tmp_path / "out", "--nnunet", commands)
        settings = ("sweep.budgets=[2]", "sweep.seeds=[0]", "split.monitor_subjects=1", *words)
        nnunet.main(["demo", *map(str, places), "--budget", "2", *settings])

    return call


@pytest.mark.parametrize(
    ("ending", "is_4d", "is_link"),
    [
        (".nii.gz", False, True),
        (".nii.gz", True, False),  # as MSD has it
        (".nii", False, False),
        (".nrrd", False, False),
        (".mha", False, False),
    ],
)
def test_scans_of_any_kind_come_as_one_file_a_channel(
    call: Callable[..., None], tmp_path: Path, ending: str, is_4d: bool, is_link: bool
) -> None:
    call(ending=ending, is_4d=is_4d)
    (raw,) = (tmp_path / "out").rglob("Dataset001_Own/imagesTr")
    images, test = sorted(raw.iterdir()), sorted((raw.parents[2] / "test").iterdir())
    assert len(images) == 2 * 2 and len(test) == 2 * 2, "two persons, two channels"
    for path in images + test:
        assert path.is_symlink() == is_link
        found = sitk.ReadImage(str(path))
        case, channel = int(path.name[1]), int(path.name[3:7])
        assert np.array_equal(sitk.GetArrayFromImage(found).T, place_code(SHAPE_XYZ, 2 * case + channel))
        assert found.GetSpacing() == pytest.approx(SPACING_MM)
    labels = sorted((raw.parent / "labelsTr").iterdir())
    assert [path.name for path in labels] == sorted({f"{path.name[:2]}.nii.gz" for path in images})
    for path in labels:
        assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))).T, label_XYZ(int(path.name[1]), 3))
    assert {row.dice for row in read_scores(tmp_path / "out" / "scores.csv")} == {1.0}


def test_a_scan_that_stands_there_twice_is_trained_on_once(call: Callable[..., None], tmp_path: Path) -> None:
    """The shards hold it once, so that the other networks see it once, and nobody's test scan in training."""
    data, shards = write_archive(tmp_path / "data", ".nii.gz", False, PLAIN), tmp_path / "shards"
    for path in (*data.glob("imagesTr/p*"), *data.glob("labelsTr/p*")):
        copy = path.with_name(path.name.replace("p", "q", 1))
        copy.write_bytes(path.read_bytes())
    subjects = {f"{name}{case}": f"person {case}" for name in "pq" for case in range(CASES)}
    (data / "subjects.json").write_text(json.dumps(subjects))
    build(data, shards, BuildConfig(format="zarr", preprocess=KEEP_ALL))
    for case in range(CASES):
        write_sitk(tmp_path / "predictions" / f"p{case}.nii.gz", label_XYZ(case, 3))
    call()
    (raw,) = (tmp_path / "out").rglob("Dataset001_Own/labelsTr")
    assert [path.name[0] for path in sorted(raw.iterdir())] == ["p", "p"]


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (PLAIN, {"labels": PLAIN}),
        ({**PLAIN, "ignore": 4}, {"labels": {**PLAIN, "ignore": 4}}),
        # a list of one value would be no region of nnU-Net's
        (REGIONS, {"labels": {**REGIONS, "tip": 3}, "regions_class_order": [1, 2, 3]}),
    ],
)
def test_nnunet_is_told_of_regions_and_of_voxels_that_nobody_annotated(
    call: Callable[..., None], tmp_path: Path, labels: dict, told: dict
) -> None:
    call(labels=labels)
    (header,) = (tmp_path / "out").rglob("dataset.json")
    about = {"channel_names": {"0": "T1", "1": "T2"}, "numTraining": 2, "file_ending": ".nii.gz"}
    assert json.loads(header.read_text()) == about | told
    order = [name for name in json.loads(header.read_text())["labels"] if name not in ("background", "ignore")]
    assert order == [name for name in labels if name not in ("background", "ignore")], "regions_class_order counts them"
    assert {row.dice for row in read_scores(tmp_path / "out" / "scores.csv")} == {1.0}


def test_a_class_with_a_name_that_nnunet_keeps_for_itself_is_refused() -> None:
    labels = Labels(("background", "organ", "ignore"))  # as MSD may have it, where that is a class like others
    index = SimpleNamespace(labels=labels, meaning=labels.meaning, channel_names=("T1",), root=Path("shards"))
    with pytest.raises(InputError, match="class 'ignore' of shards .* rename it in dataset.json"):
        nnunet.dataset_json(index, 2)


def test_the_sweeps_steps_are_cut_into_epochs_and_another_cut_is_another_job(
    call: Callable[..., None], tmp_path: Path
) -> None:
    for words in (("--epochs", "1"), ("--epochs", "5"), ("--epochs", "1"), ("--epochs", "5", "finetune.steps=100")):
        call("finetune.steps=50", *words)
    trained = [line.split() for line in (tmp_path / "bin" / "trained").read_text().splitlines()]
    assert [line[-2:] for line in trained] == [["1", "50"], ["5", "10"], ["5", "20"]]
    for line in trained:
        (source,) = Path(line[-3]).glob("*.py")
        assert f"class {line[4]}(" in source.read_text(), "nnU-Net looks for that name in each file of the folder"


@pytest.mark.parametrize("epochs", ["0", "-1", "3"])
def test_epochs_that_the_steps_cannot_be_cut_into_are_refused(call: Callable[..., None], epochs: str) -> None:
    with pytest.raises(InputError, match=f"^--epochs {epochs}: finetune.steps = 50 can't be cut into so many equal"):
        call("finetune.steps=50", "--epochs", epochs)


def test_a_command_that_fails_is_named_with_its_log(call: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "bin" / "nnUNetv2_train").write_text("#!/bin/sh\necho too little memory\nexit 3\n")
    with pytest.raises(InputError, match="nnUNetv2_train 1 3d_fullres all .* ended with status 3; ") as failed:
        call()
    (log,) = (tmp_path / "out").rglob("log")
    assert str(log) in str(failed.value) and "too little memory" in log.read_text()
    assert "\n" not in str(failed.value) and not (tmp_path / "out" / "scores.csv").exists()


def test_a_folder_without_the_commands_is_named(call: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "bin" / "nnUNetv2_plan_and_preprocess").unlink()
    with pytest.raises(InputError, match="nnUNetv2_plan_and_preprocess: No such file or directory; .* --nnunet"):
        call()
