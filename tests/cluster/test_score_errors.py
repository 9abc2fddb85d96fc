"""What `predict`, `evaluate` and `report` refuse, in one line and before any work, and what they leave untouched.

Ray is not started here.
"""

import json
import os
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

import maetrain.train.engine  # noqa: F401 (DeepSpeed's first import lets the linker talk; here nobody counts lines)
from data_shards.archive.identity import PrivacyConfig, read_identity
from data_shards.build import BuildConfig, build
from maetrain.evaluate.metrics import EMPTY_MASK_RULE
from maetrain.evaluate.model_folder import load_model
from maetrain.evaluate.scores import read_scores, write_scores
from tests.cluster.typed import Run, mistake
from tests.data_shards.helpers import one_labelled_scan, write_nifti

from ..maetrain.report.builders import make_inputs, make_rows


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return write_nifti(
        tmp_path / "scan.nii.gz", np.random.default_rng(0).uniform(1, 9, (12, 14, 10)).astype(np.float32)
    )


def test_a_truncated_image_is_named(run: Run, model: Path, scan: Path) -> None:
    scan.write_bytes(scan.read_bytes()[:-200])
    mistake(run("predict", model, scan, "out.nii.gz"), scan, "can't be read", "again")


def test_an_image_of_nan_is_named_with_their_number(run: Run, model: Path, tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "nan.nii.gz", np.full((8, 8, 8), np.nan, dtype=np.float32))
    mistake(run("predict", model, path, "out.nii.gz"), path, "512 of 512 voxels are NaN", "repair")


def test_a_flat_image_is_named(run: Run, model: Path, tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "2d.nii.gz", np.ones((16, 16), dtype=np.float32))
    mistake(run("predict", model, path, "out.nii.gz"), path, "(16, 16)", "not a 3-D volume")


def test_too_many_channels_are_named(run: Run, model: Path, scan: Path) -> None:
    mistake(run("predict", model, scan, scan, "out.nii.gz"), "2 channels", "trained on 1", "one file per channel")


def test_an_image_that_is_not_there_and_a_wrong_output_name_are_named(run: Run, model: Path, scan: Path) -> None:
    mistake(run("predict", model, "gone.nii.gz", "out.nii.gz"), "gone.nii.gz", "no such file")
    mistake(run("predict", model, "gone", "out"), "gone", "no such file or folder")
    mistake(run("predict", model, scan, "out.png"), "out.png", ".nii.gz")
    mistake(run("predict", model, scan, scan), scan, "overwrite")


def test_a_segmentation_by_hand_is_not_overwritten(run: Run, model: Path, scan: Path, tmp_path: Path) -> None:
    by_hand = write_nifti(tmp_path / "labels" / scan.name, np.ones((12, 14, 10), dtype=np.uint8))
    before = by_hand.read_bytes()
    for words in ((scan, by_hand), (scan.parent, by_hand.parent), (scan, by_hand, "--skip-existing")):
        mistake(run("predict", model, *words), by_hand, "no segmentation of maetrain's", "another name")
    assert by_hand.read_bytes() == before
    for _ in range(2):
        assert run("predict", model, scan, "ours.nii.gz")[0] == 0, "our own gives way to a new one"


def test_a_good_image_is_segmented(run: Run, model: Path, scan: Path, tmp_path: Path) -> None:
    code, stdout, stderr = run("predict", model, scan, "new/out.nii.gz")
    assert (code, stderr) == (0, "") and "organ_2" in stdout
    assert nibabel.load(tmp_path / "new" / "out.nii.gz").shape == (12, 14, 10)


def test_a_person_nobody_knows_is_named(run: Run, model: Path, small_archive: Path) -> None:
    outcome = run("evaluate", model, small_archive, "--out", "scores.csv", "--subjects", "person_000,bob")
    mistake(outcome, "--subjects", "'bob'", "12 have one")
    mistake(run("evaluate", model, small_archive, "--out", "scores.csv", "--subjects", ""), "--subjects", "''")


def test_a_person_without_a_label_is_not_left_out_in_silence(run: Run, model: Path, tmp_path: Path) -> None:
    one_labelled_scan(tmp_path / "archive", 2, list(load_model(model)[1].class_names))
    write_nifti(tmp_path / "archive" / "imagesTr" / "b.nii.gz", np.random.default_rng(1).uniform(1, 9, (12, 14, 10)))
    words = ("evaluate", model, "archive", "scores.csv", "--subjects")
    mistake(run(*words, "a,b"), "'b' with a label", "1 have one, such as a")
    assert not (tmp_path / "scores.csv").exists()
    assert run(*words, " a ")[0] == 0, "blanks are no part of a name"


@pytest.mark.parametrize("by_model", [True, False])
def test_a_table_of_scores_is_not_lost(
    run: Run, model: Path, predicted: Path, small_archive: Path, tmp_path: Path, by_model: bool
) -> None:
    words = (model,) if by_model else ("--predictions", predicted, "--arm", "other")
    rows = make_rows(num_subjects=2)
    write_scores(tmp_path / "kept.csv", rows)
    (tmp_path / "thesis.csv").write_text("a,b\n")
    (tmp_path / "folder").mkdir()
    for out, said in (("kept.csv", "holds scores of other jobs"), ("thesis.csv", "no table"), ("folder", "a folder")):
        mistake(run("evaluate", *words, small_archive, out), tmp_path / out, said, "give")
    assert {*read_scores(tmp_path / "kept.csv")} == {*rows}


def test_what_would_lie_in_a_file_is_said_before_any_work(run: Run, model: Path, scan: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for words in (
        ("predict", model, scan, "file/out.nii.gz"),
        ("evaluate", model, "archive", "file/scores.csv"),
        ("report", "in", "--out", "file/report"),
        ("export", "run", "file/encoder"),
    ):
        mistake(run(*words), f"{tmp_path}/file is a file", "nothing can lie in it")


@pytest.mark.parametrize("words", [("--tolerance-mm", "nan"), ("--tolerance-mm", "inf")])
def test_a_tolerance_is_a_number(run: Run, words: tuple[str, ...]) -> None:
    mistake(run("evaluate", "model", "archive", "scores.csv", *words), words[1], "number of mm")


def test_labels_of_other_classes_than_the_models_are_named(run: Run, model: Path, tmp_path: Path) -> None:
    one_labelled_scan(tmp_path / "archive", 3, list(load_model(model)[1].class_names))
    outcome = run("evaluate", model, "archive", "--out", "scores.csv")
    mistake(outcome, "a.nii.gz", "label value 3", "0..2")


def test_an_archive_with_the_classes_in_another_order_is_not_scored(run: Run, model: Path, tmp_path: Path) -> None:
    background, one, two = load_model(model)[1].class_names
    one_labelled_scan(tmp_path / "archive", 2, [background, two, one])
    mistake(run("evaluate", model, "archive", "--out", "scores.csv"), "classes", one, "in their order")
    assert not (tmp_path / "scores.csv").exists()


def test_an_archive_with_other_channels_is_not_scored(run: Run, model: Path, tmp_path: Path) -> None:
    contract = load_model(model)[1]
    one_labelled_scan(tmp_path / "archive", 2, list(contract.class_names))
    header = json.loads((tmp_path / "archive" / "dataset.json").read_text()) | {"modality": {"0": "FLAIR"}}
    (tmp_path / "archive" / "dataset.json").write_text(json.dumps(header))
    outcome = run("evaluate", model, "archive", "--out", "scores.csv")
    mistake(outcome, "channels are ['FLAIR']", str(list(contract.channel_names)), "dataset.json")
    assert not (tmp_path / "scores.csv").exists()


def test_an_archive_without_labels_cannot_be_scored(run: Run, model: Path, scan: Path) -> None:
    mistake(run("evaluate", model, scan.parent, "--out", "scores.csv"), "no labelled case", "labelsTr")


@pytest.fixture
def predicted(small_archive: Path, tmp_path: Path) -> Path:
    """The labels themselves, as a program without fault would write them."""
    return Path(shutil.copytree(small_archive / "labelsTr", tmp_path / "predicted"))


def test_predictions_of_any_program_are_scored(run: Run, predicted: Path, small_archive: Path, tmp_path: Path) -> None:
    words = ("evaluate", "--predictions", predicted, small_archive, "new/scores.csv", "--arm", "other", "--budget", 4)
    code, stdout, stderr = run(*words, "--seed", 2)
    assert (code, stderr) == (0, "") and "15 cases" in stdout and EMPTY_MASK_RULE in stdout
    rows = read_scores(tmp_path / "new" / "scores.csv")
    assert len(rows) == 30 and {r.key[:3] for r in rows} == {(4, "other", 2)}
    assert {(r.dice, r.hd95_mm) for r in rows} == {(1.0, 0.0)}
    code, _, _ = run(*words[:4], "--out", "one.csv", "--arm", "other", "--subjects", "person_000")
    assert code == 0 and {r.subject for r in read_scores(tmp_path / "one.csv")} == {"person_000"}


def test_scores_bear_the_keys_that_hashed_shards_have(
    run: Run, predicted: Path, small_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAETRAIN_SALT", "a secret of some length")
    hashed = PrivacyConfig(names="hash")
    identity = read_identity(hashed, os.environ)
    keyed = build(small_archive, tmp_path / "shards", BuildConfig(format="zarr", privacy=hashed), identity=identity)
    words = ("evaluate", "--predictions", predicted, small_archive, "scores.csv", "--arm", "other", "--names", "hash")
    run(*words)
    assert {r.subject for r in read_scores(Path("scores.csv"))} <= {v.subject for v in keyed.volumes}
    person = keyed.volumes[0].subject
    code, _, stderr = run(*words, "--subjects", person)
    assert (code, stderr) == (0, "") and {r.subject for r in read_scores(Path("scores.csv"))} == {person}


def test_a_missing_prediction_is_named_and_no_table_written(run: Run, predicted: Path, small_archive: Path) -> None:
    next(iter(sorted(predicted.iterdir()))).unlink()
    mistake(
        run("evaluate", "--predictions", predicted, small_archive, "s.csv", "--arm", "x"), "1 of 15 cases", "add it"
    )
    assert not Path("s.csv").exists()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--predictions", "p", "archive", "out.csv"], "--arm"),
        (["--predictions", "p", "model", "archive", "out.csv", "--arm", "x"], "no MODEL"),
        (["model", "archive"], "--out"),
        (["model", "archive", "out.csv", "--arm", "x"], "a MODEL knows its own"),
        (["--predictions", "p", "archive", "out.csv", "--arm", "x", "--budget", "0"], "--budget"),
    ],
)
def test_a_mixed_up_evaluate_says_what_goes_with_what(run: Run, words: list[str], part: str) -> None:
    mistake(run("evaluate", *words), part, "--help")


def test_a_report_is_made_of_scores_alone(run: Run, tmp_path: Path) -> None:
    write_scores(tmp_path / "in" / "scores.csv", make_rows(num_subjects=3, arms=("scratch", "large")))
    assert run("report", "in")[0] == 0 and (tmp_path / "in" / "report" / "index.html").is_file()
    code, stdout, _ = run("report", "in", "--out", "there", "--arm", "large")
    assert code == 0 and f"{tmp_path}/there/index.html" in stdout and (tmp_path / "there" / "report.md").is_file()
    mistake(run("report", "in", "--arm", "huge"), "--arm huge", "'large'")
    mistake(run("report", "in/scores.csv"), tmp_path / "in" / "scores.csv", "give the folder")


def test_the_report_folder_of_a_sweep_stands_for_the_sweep(run: Run, tmp_path: Path) -> None:
    write_scores(tmp_path / "out" / "report" / "scores.csv", make_rows(num_subjects=3))
    make_inputs(title="A sweep's own").save(tmp_path / "out" / "inputs.json")
    assert run("report", "out/report")[0] == 0 and not (tmp_path / "out" / "report" / "report").exists()
    assert "A sweep's own" in (tmp_path / "out" / "report" / "report.md").read_text()


def test_scores_of_different_test_sets_make_no_report(run: Run, tmp_path: Path) -> None:
    write_scores(tmp_path / "in" / "scores.csv", make_rows(num_subjects=3))
    path = tmp_path / "in" / "scores.csv"
    path.write_text("\n".join(line for line in path.read_text().splitlines() if not line.startswith("4,mae,1,case_02")))
    mistake(run("report", "in"), path, "different test sets", "budget 4, arm 'mae', seed 1", "case 'case_02_0'")
    assert not (tmp_path / "in" / "report").exists()
