"""The verbs `predict` and `export-onnx` as they are typed."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from maetrain.evaluate import onnx_export
from maetrain.models.segmentation import NNFormer
from tests.cluster.typed import Run, typed


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    return typed(monkeypatch, capfd)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    for seed, name in enumerate(("a", "b", "c")):
        data = np.random.default_rng(seed).uniform(1, 9, (20, 18, 17)).astype(np.float32)
        path = tmp_path / "scans" / f"{name}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(data, np.diag([1, 2, 3, 1])), path)
    return tmp_path / "scans"


def labels(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


def test_a_folder_is_segmented_as_its_files_are(run: Run, model: Path, scans: Path, tmp_path: Path) -> None:
    code, stdout, stderr = run("predict", model, scans, "out")
    assert (code, stderr) == (0, "") and "3 of 3 scans" in stdout and "organ_2" in stdout and "b.nii.gz: done" in stdout
    assert run("predict", model, scans / "b.nii.gz", "b.nii.gz")[0] == 0
    assert np.array_equal(labels(tmp_path / "out" / "b.nii.gz"), labels(tmp_path / "b.nii.gz"))
    assert len(np.unique(labels(tmp_path / "b.nii.gz"))) > 1


def test_a_bad_scan_is_told_at_the_end_with_exit_code_1(run: Run, model: Path, scans: Path, tmp_path: Path) -> None:
    (scans / "a.nii.gz").write_bytes(b"no gzip")
    code, stdout, stderr = run("predict", model, scans, "out")
    assert code == 1 and "2 of 3 scans" in stdout and "a.nii.gz: not segmented" in stdout
    (line,) = stderr.splitlines()
    assert line.startswith("maetrain: ") and str(scans / "a.nii.gz") in line and "can't be read" in line
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["b.nii.gz", "c.nii.gz"]


@pytest.mark.parametrize("target", ["folder", "file"])
def test_what_is_there_is_kept_on_demand(run: Run, model: Path, scans: Path, tmp_path: Path, target: str) -> None:
    words = ("predict", model, scans, "out") if target == "folder" else ("predict", model, scans / "a.nii.gz", "a.nii")
    made = tmp_path / ("out/a.nii.gz" if target == "folder" else "a.nii")
    times = []
    for more in ((), ("--skip-existing",), ("--skip-existing", "--overlap", "0.25"), ()):
        assert run(*words, *more)[0] == 0
        times.append(made.stat().st_mtime_ns)
    assert times[0] == times[1] < times[2] < times[3]


def test_overlap_batch_and_mirrors_reach_the_windows(
    run: Run, model: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    forward = NNFormer.forward

    def spy(self: NNFormer, volume_BCDHW: torch.Tensor) -> list[torch.Tensor]:
        batches.append(len(volume_BCDHW))
        return forward(self, volume_BCDHW)

    monkeypatch.setattr(NNFormer, "forward", spy)
    file = scans / "a.nii.gz"  # 17 x 18 x 20 voxels: two windows of 16 on each axis
    for words, want in (
        ((), [4, 4]),
        (("--windows-at-once", 3), [3, 3, 2]),
        (("--mirror", "H", "--mirror", "D"), [4] * 8),
        (("--overlap", "0.9"), [4] * 18),  # steps of one voxel: 2 x 3 x 5 windows, and 6 more
    ):
        batches.clear()
        assert run("predict", model, file, f"{len(words)}.nii.gz", *words)[0] == 0
        if words[:1] != ("--overlap",):
            assert batches == want, words
        else:
            assert sum(batches) == 2 * 3 * 5
    assert not np.array_equal(labels(tmp_path / "0.nii.gz"), labels(tmp_path / "4.nii.gz"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["scans", "out.nii.gz"], "scans is a folder: give it alone, and a folder"),
        (["scans", "scans/a.nii.gz", "out"], "is a folder: give it alone"),
        (["scans", "scans"], "among the images"),
        (["scans", "out", "--overlap", "1"], "--overlap"),
        (["scans", "out", "--windows-at-once", "0"], "--windows-at-once"),
        (["scans", "out", "--mirror", "X"], "--mirror"),
        (["empty", "out"], "no scan in it"),
    ],
)
def test_a_mistake_is_one_line(run: Run, model: Path, scans: Path, tmp_path: Path, words: list[str], said: str) -> None:
    (tmp_path / "empty").mkdir()
    code, _, stderr = run("predict", model, *words)
    (line,) = stderr.splitlines()
    assert code == 2 and said in line
    assert not (tmp_path / "out").exists()


def test_onnx_without_its_packages_is_one_line(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None)
    code, _, stderr = run("export-onnx", model, "network.onnx")
    assert code == 2 and stderr == "maetrain: ONNX needs the package onnx: pip install 'maetrain[onnx]'\n"
    assert not (tmp_path / "network.onnx").exists()


def test_the_verb_says_how_far_onnx_is_from_torch(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "export_onnx", lambda folder, out: 2.5e-6)
    code, stdout, _ = run("export-onnx", model, "network.onnx")
    assert code == 0 and "network.onnx: logits differ from torch's by 2.5e-06 at most" in " ".join(stdout.split())
