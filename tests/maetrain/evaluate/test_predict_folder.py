"""A folder of scans: each becomes one segmentation, a bad one spoils no other, and what is finished stays."""

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
from torch import Tensor

from data_shards.errors import InputError
from data_shards.preprocess import PreprocessConfig
from maetrain.evaluate.model_folder import ModelContract
from maetrain.evaluate.predict import note_in
from maetrain.evaluate.predict_folder import Outcome, find_cases, note_of, predict_folder
from maetrain.evaluate.sliding import Sliding

from ..small import SMALL
from .scans import Brightness, organ, scan, write

CONTRACT = ModelContract(
    architecture=SMALL,
    class_names=("background", "organ"),
    channel_names=("MRI",),
    window_DHW=(8, 10, 12),
    preprocess=PreprocessConfig(intensity="zscore"),
    weights_sha256="1a2b" * 16,
)


def labels(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


def names(folder: Path, channels: int) -> list[tuple[list[str], str]]:
    return [([path.name for path in w.image_paths], w.out.name) for w in find_cases(folder, folder / "out", channels)]


@pytest.mark.parametrize(
    ("files", "channels", "cases"),
    [
        ("a.nii.gz b.nii c.mha", 1, ["a.nii.gz>a", "b.nii>b", "c.mha>c"]),
        ("a_0000.nii.gz b_0000.nii.gz", 1, ["a_0000.nii.gz>a", "b_0000.nii.gz>b"]),  # nnU-Net, one channel
        ("a_0000.nii a_0001.nii b_0000.nii b_0001.nii", 2, ["a_0000.nii a_0001.nii>a", "b_0000.nii b_0001.nii>b"]),
        ("s_0001.nii s_0002.nii", 1, ["s_0001.nii>s_0001", "s_0002.nii>s_0002"]),  # numbers of scans, not of channels
        ("s_0000.nii s_0001.nii", 1, ["s_0000.nii>s_0000", "s_0001.nii>s_0001"]),
        ("brats_0000.nii brats_0001.nii", 4, ["brats_0000.nii>brats_0000", "brats_0001.nii>brats_0001"]),  # 4-D files
        ("a_0000.nii a_0001.nii b_0000.nii", 2, ["a_0000.nii a_0001.nii>a", "b_0000.nii>b_0000"]),  # b will be told
        ("a.nii ._a.nii .a.partial.nii notes.txt", 1, ["a.nii>a"]),
    ],
)
def test_files_become_cases(tmp_path: Path, files: str, channels: int, cases: list[str]) -> None:
    for name in files.split():
        (tmp_path / name).touch()
    want = [(case.split(">")[0].split(), f"{case.split('>')[1]}.nii.gz") for case in cases]
    assert names(tmp_path, channels) == want


def test_an_archives_test_images_go_before_its_training_images(tmp_path: Path) -> None:
    for name in ("imagesTr/a.nii", "imagesTs/b.nii"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    assert names(tmp_path, 1) == [(["b.nii"], "b.nii.gz")]
    assert names(tmp_path / "imagesTr", 1) == [(["a.nii"], "a.nii.gz")]
    (tmp_path / "imagesTs" / "b.nii").unlink()
    assert names(tmp_path, 1) == [(["a.nii"], "a.nii.gz")]


def test_what_cannot_be_sorted_out_is_said_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no scan in it"):
        find_cases(tmp_path, tmp_path / "out", 1)
    (tmp_path / "a.nii").touch()
    with pytest.raises(InputError, match="among the images"):
        find_cases(tmp_path, tmp_path / "x" / "..", 1)
    (tmp_path / "a_0000.nii.gz").touch()
    with pytest.raises(InputError, match=r"a_0000.nii.gz and a.nii would both become .*a.nii.gz|a.nii and a_0000"):
        find_cases(tmp_path, tmp_path / "out", 1)


def test_a_bad_scan_is_told_and_the_others_are_segmented(tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    for seed, name in enumerate(("a", "b", "c")):
        write(images / f"{name}.nii.gz", scan(seed))
    (images / "b.nii.gz").write_bytes((images / "b.nii.gz").read_bytes()[:-100])
    heard: list[Outcome] = []
    outcomes = predict_folder(Brightness(), CONTRACT, images, out, on_case=heard.append)
    assert outcomes == heard and [bool(o.error) for o in outcomes] == [False, True, False]
    assert "b.nii.gz" in outcomes[1].error and "\n" not in outcomes[1].error
    assert sorted(path.name for path in out.iterdir()) == ["a.nii.gz", "c.nii.gz"]
    for seed, name in ((0, "a"), (2, "c")):
        assert np.array_equal(labels(out / f"{name}.nii.gz"), organ(scan(seed)))


def test_channels_of_a_case_are_put_together(tmp_path: Path) -> None:
    flat = np.random.default_rng(5).uniform(1, 2, scan().shape).astype(np.float32)
    for name in ("a", "b"):
        write(tmp_path / "images" / f"{name}_0000.nii.gz", scan())
        write(tmp_path / "images" / f"{name}_0001.nii.gz", flat)
    write(tmp_path / "images" / "c_0000.nii.gz", scan())
    outcomes = predict_folder(Brightness(channels=2), CONTRACT, tmp_path / "images", tmp_path / "out")
    assert [o.error for o in outcomes[:2]] == ["", ""] and "1 channels" in outcomes[2].error
    assert np.array_equal(labels(tmp_path / "out" / "b.nii.gz"), organ(scan()))


def test_finished_segmentations_of_this_model_and_these_settings_are_kept(tmp_path: Path) -> None:
    class Counting(Brightness):
        passes = 0

        def forward(self, x_BCDHW: Tensor) -> list[Tensor]:
            self.passes += 1
            return super().forward(x_BCDHW)

    images, out = tmp_path / "images", tmp_path / "out"
    for name in ("a", "b"):
        write(images / f"{name}.nii.gz", scan())
    network, how = Counting(), Sliding(0.25)
    predict_folder(network, CONTRACT, images, out, how)
    first = network.passes
    before = (out / "a.nii.gz").stat().st_mtime_ns
    (out / "b.nii.gz").unlink()
    outcomes = predict_folder(network, CONTRACT, images, out, how, skip_existing=True)
    assert [o.was_there for o in outcomes] == [True, False] and network.passes == first + first // 2
    assert (out / "a.nii.gz").stat().st_mtime_ns == before and (out / "b.nii.gz").is_file()
    other = CONTRACT.model_copy(update={"weights_sha256": "ffff" * 16})
    for contract, changed in ((other, how), (CONTRACT, Sliding(0.3)), (CONTRACT, Sliding(0.25, 4, (1,)))):
        predict_folder(network, CONTRACT, images, out, how)
        assert not any(o.was_there for o in predict_folder(network, contract, images, out, changed, True))
    assert not any(o.was_there for o in predict_folder(network, CONTRACT, images, out, how)), "nobody asked to keep"
    batched = predict_folder(network, CONTRACT, images, out, Sliding(0.25, 1), True)
    assert all(o.was_there for o in batched), "the batch changes no label"


def test_half_a_file_and_somebody_elses_are_no_finished_segmentation(tmp_path: Path) -> None:
    note = note_of(CONTRACT, Sliding())
    assert len(note) < 80 and note_in(tmp_path / "a.nii.gz") is None
    whole = write(tmp_path / "a.nii.gz", organ(scan()))
    assert note_in(whole) == ""
    for i, half in enumerate((b"half", whole.read_bytes()[:40] + b"garbled", gzip.compress(b"\x5c\1\0\0" + bytes(80)))):
        (tmp_path / f"{i}.nii.gz").write_bytes(half)
        assert note_in(tmp_path / f"{i}.nii.gz") is None


def test_a_damaged_segmentation_is_made_anew(tmp_path: Path) -> None:
    write(tmp_path / "images" / "a.nii.gz", scan())
    out = tmp_path / "out" / "a.nii.gz"
    predict_folder(Brightness(), CONTRACT, tmp_path / "images", out.parent)
    out.write_bytes(out.read_bytes()[:12] + b"garbled" * 9)
    (outcome,) = predict_folder(Brightness(), CONTRACT, tmp_path / "images", out.parent, skip_existing=True)
    assert not outcome.was_there and np.array_equal(labels(out), organ(scan()))


@pytest.mark.parametrize(("name", "is_gzip"), [("a.nii.gz", False), ("a.nii", True)])
def test_a_scan_is_what_it_holds_and_not_what_it_is_called(tmp_path: Path, name: str, is_gzip: bool) -> None:
    right = write(tmp_path / ("right.nii.gz" if is_gzip else "right.nii"), scan())
    (tmp_path / "images").mkdir()
    right.rename(tmp_path / "images" / name)
    (outcome,) = predict_folder(Brightness(), CONTRACT, tmp_path / "images", tmp_path / "out")
    assert outcome.error == "" and np.array_equal(labels(outcome.wanted.out), organ(scan()))
