"""A segmentation lies voxel for voxel on its image, however the file is turned."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from torch import Tensor

from data_shards.errors import InputError
from data_shards.preprocess import PreprocessConfig
from maetrain.evaluate.predict import predict_file, probabilities_KDHW
from maetrain.models.segmentation import NNFormer

from ..small import SMALL, noise
from .scans import Brightness, oblique_affine, organ, scan, write

NATIVE = PreprocessConfig(intensity="zscore")
WINDOW = (8, 10, 12)


def predicted(network: torch.nn.Module, image: Path, preprocess: PreprocessConfig = NATIVE) -> nibabel.Nifti1Image:
    out = image.parent / f"segmentation-of-{image.name}"
    predict_file(network, [image], out, preprocess, WINDOW)
    return nibabel.load(out)


def turned(image_XYZ: np.ndarray, affine: np.ndarray, axes: str) -> nibabel.Nifti1Image:
    """The same scan, its voxels stored along other axes."""
    image = nibabel.Nifti1Image(image_XYZ, affine)
    orientation = nibabel.orientations
    now, wanted = orientation.io_orientation(affine), orientation.axcodes2ornt(axes)
    return image.as_reoriented(orientation.ornt_transform(now, wanted))


@pytest.mark.parametrize("axes", ["RAS", "LPS", "LAI", "PIR", "SRA", "IPL"])
def test_the_segmentation_has_the_images_affine_shape_and_organ_in_any_orientation(tmp_path: Path, axes: str) -> None:
    stored = turned(scan(), oblique_affine(), axes)
    path = write(tmp_path / "scan.nii.gz", np.asarray(stored.dataobj), stored.affine)
    segmentation = predicted(Brightness(), path)
    assert np.allclose(segmentation.affine, nibabel.load(path).affine, atol=1e-5)
    assert segmentation.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(segmentation.dataobj), organ(np.asarray(stored.dataobj)))


@torch.no_grad()
def test_an_nnformer_gives_the_same_labels_to_the_same_scan_in_other_orientations(tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = NNFormer(SMALL, 3).eval()
    network.heads[0].conv.weight.mul_(20)
    labels = []
    for axes in ("RAS", "LPI", "SAR"):
        stored = turned(scan(), oblique_affine(), axes)
        path = write(tmp_path / f"{axes}.nii.gz", np.asarray(stored.dataobj), stored.affine)
        result = predicted(network, path)
        labels.append(np.asarray(turned(np.asarray(result.dataobj), result.affine, "RAS").dataobj))
    assert len(np.unique(labels[0])) > 1, "labels that are all one class would prove nothing"
    assert np.array_equal(labels[0], labels[1]) and np.array_equal(labels[0], labels[2])


def test_a_resampled_scan_comes_back_to_the_files_own_grid(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.nii", scan(), np.diag([1.0, 1.5, 2.0, 1.0]))
    got = np.asarray(
        predicted(Brightness(), path, PreprocessConfig(intensity="zscore", spacing_mm=(1.5, 1.5, 1.5))).dataobj
    )
    want = organ(scan())
    assert got.shape == want.shape
    # the mean lies close to the body, so blurred by resampling the organ grows by a voxel, but alike on all sides
    assert (got >= want).all()
    for axis, (grown, own) in enumerate(zip(np.nonzero(got), np.nonzero(want), strict=True)):
        assert abs(grown.mean() - own.mean()) < 0.35, f"moved along axis {axis}"
        assert grown.min() >= own.min() - 2 and grown.max() <= own.max() + 2


def test_a_volume_smaller_than_the_window_is_padded_and_cut_again(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.nii.gz", scan())
    out = tmp_path / "out.nii.gz"
    predict_file(Brightness(), [path], out, NATIVE, (64, 64, 64))
    assert np.array_equal(np.asarray(nibabel.load(out).dataobj), organ(scan()))


def test_probabilities_are_the_softmax_of_the_windows_logits() -> None:
    volume = noise(1, 9, 21, 13)
    prob = probabilities_KDHW(Brightness(), volume, WINDOW)
    want = torch.cat([-volume, volume]).softmax(0)
    torch.testing.assert_close(prob, want, atol=1e-5, rtol=1e-5)


def test_every_window_has_the_size_asked_for() -> None:
    class Spy(Brightness):
        seen: set[tuple[int, ...]] = set()

        def forward(self, x_BCDHW: Tensor) -> list[Tensor]:
            self.seen.add(tuple(x_BCDHW.shape[2:]))
            return super().forward(x_BCDHW)

    probabilities_KDHW(Spy(), noise(1, 5, 21, 13), WINDOW)
    assert Spy.seen == {WINDOW}


def test_two_channels_come_from_two_files_in_order(tmp_path: Path) -> None:
    flat = np.random.default_rng(5).uniform(1, 2, scan().shape).astype(np.float32)
    first, second = write(tmp_path / "a.nii.gz", scan()), write(tmp_path / "b.nii.gz", flat)
    predict_file(Brightness(channels=2), [first, second], tmp_path / "out.nii.gz", NATIVE, WINDOW)
    assert np.array_equal(np.asarray(nibabel.load(tmp_path / "out.nii.gz").dataobj), organ(scan()))


def test_a_wrong_number_of_channels_is_said_with_both_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.nii.gz", scan())
    with pytest.raises(InputError) as error:
        predict_file(Brightness(channels=2), [path], tmp_path / "out.nii.gz", NATIVE, WINDOW)
    said = str(error.value)
    assert "1 channels" in said and "trained on 2" in said and str(path) in said and "\n" not in said


@pytest.mark.parametrize("name", ["out.png", "out", "out.nii.gz.txt", "out.npz"])
def test_an_output_that_is_no_nifti_name_is_refused_before_any_work(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="end the name in .nii.gz"):
        predict_file(Brightness(), [tmp_path / "not even read.nii.gz"], tmp_path / name, NATIVE, WINDOW)


def test_an_output_that_would_overwrite_the_image_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.nii.gz", scan())
    before = path.read_bytes()
    with pytest.raises(InputError, match="overwrite"):
        predict_file(Brightness(), [path], tmp_path / "x" / ".." / "scan.nii.gz", NATIVE, WINDOW)
    assert path.read_bytes() == before


def test_a_model_of_mixed_scans_does_not_guess_what_a_file_is(tmp_path):
    path = write(tmp_path / "scan.nii.gz", scan(), oblique_affine())
    with pytest.raises(InputError, match="intensity = auto"):
        predicted(Brightness(), path, PreprocessConfig())
