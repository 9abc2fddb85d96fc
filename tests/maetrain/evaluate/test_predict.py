"""A segmentation lies voxel for voxel on its image, however the file is turned."""

import weakref
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
import torch
from monai.inferers import sliding_window_inference
from scipy import ndimage
from torch import Tensor

from data_shards.archive.volume import read_image
from data_shards.errors import InputError
from data_shards.preprocess import PreprocessConfig, prepare
from maetrain.evaluate import predict
from maetrain.evaluate.predict import predict_file, probabilities_KDHW
from maetrain.evaluate.sliding import probability_slabs
from maetrain.models.segmentation import NNFormer
from tests.data_shards.helpers import restored_XYZ

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


AFFINES = {
    "straight": np.diag([1.0, 1.0, 1.0, 1.0]),
    "anisotropic": np.diag([0.7, 0.8, 4.0, 1.0]),
    "oblique": oblique_affine((0.9, 0.9, 2.5), 33.0),
    "flipped": np.array([[-1.1, 0, 0, 40], [0, 1.2, 0, -9], [0, 0, -3.0, 77], [0, 0, 0, 1.0]]),
    "permuted": np.array([[0, 0, 2.0, -5], [1.3, 0, 0, 8], [0, -0.8, 0, 30], [0, 0, 0, 1.0]]),
}


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (2, 1), (0, 0)], ids=lambda c: f"sform {c[0]}, qform {c[1]}")
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_the_segmentation_lies_where_the_image_lies_by_sform_and_qform(
    tmp_path: Path, affine: np.ndarray, ending: str, codes: tuple[int, int]
) -> None:
    image = nibabel.Nifti1Image(scan(), affine)
    image.set_sform(affine, codes[0])
    image.set_qform(affine, codes[1])
    nibabel.save(image, tmp_path / f"scan{ending}")
    given = nibabel.load(tmp_path / f"scan{ending}")
    got = predicted(Brightness(), tmp_path / f"scan{ending}")
    assert got.shape == given.shape and np.array_equal(got.affine, given.affine)
    for form in ("sform", "qform"):
        (got_affine, got_code), (want_affine, want_code) = (
            getattr(one.header, f"get_{form}")(coded=True) for one in (got, given)
        )
        assert got_code == want_code
        assert (got_affine is None and want_affine is None) or np.array_equal(got_affine, want_affine)
    assert np.array_equal(np.asarray(got.dataobj), organ(scan()))


@pytest.mark.parametrize("axes", ["RAS", "LPI", "SAR"])
@pytest.mark.parametrize("spacing_mm", [(1.0, 0.5, 0.5), (2.0, 1.4, 1.3)], ids=["finer", "coarser"])
def test_single_marked_voxels_come_back_in_their_place(
    tmp_path: Path, axes: str, spacing_mm: tuple[float, float, float]
) -> None:
    """Bright blocks of three voxels in places that no flip and no swap of axes takes to each other."""
    image_XYZ = np.random.default_rng(1).uniform(1, 2, (26, 21, 18)).astype(np.float32)
    for x, y, z in ((4, 3, 2), (20, 5, 3), (6, 15, 5), (12, 9, 13)):
        image_XYZ[x : x + 3, y : y + 3, z : z + 3] = 100
    stored = turned(image_XYZ, oblique_affine((1.0, 1.0, 1.5), 10.0), axes)
    path = write(tmp_path / "scan.nii.gz", np.asarray(stored.dataobj), stored.affine)
    got = predicted(Bright(), path, PreprocessConfig(intensity="ct", ct_window_hu=(0, 100), spacing_mm=spacing_mm))
    marked = np.asarray(stored.dataobj) == 100
    found = np.asarray(got.dataobj) == 1
    assert np.array_equal(got.affine, nibabel.load(path).affine)
    blocks, num_blocks = ndimage.label(found)
    assert num_blocks == 4
    centres = np.array(ndimage.center_of_mass(found, blocks, range(1, 5)))
    want = np.array(ndimage.center_of_mass(marked, ndimage.label(marked)[0], range(1, 5)))
    assert np.abs(centres - want).max() < 0.5


class Bright(Brightness):
    """Class 1 in the upper half of the CT window."""

    def forward(self, x_BCDHW: Tensor) -> list[Tensor]:
        return super().forward(10 * x_BCDHW)


@torch.no_grad()
@pytest.mark.parametrize("spacing_mm", [None, (1.0, 1.2, 0.8), (3.0, 2.0, 2.2)], ids=["native", "finer", "coarser"])
@pytest.mark.parametrize("axes", ["RAS", "PIL"])
def test_slabs_give_the_labels_of_the_whole_volume(
    tmp_path: Path, axes: str, spacing_mm: tuple[float, float, float] | None
) -> None:
    torch.manual_seed(3)
    network = NNFormer(SMALL, 3).eval()
    network.heads[0].conv.weight.mul_(20)
    stored = turned(scan(), oblique_affine(), axes)
    path = write(tmp_path / "scan.nii.gz", np.asarray(stored.dataobj), stored.affine)
    config = PreprocessConfig(intensity="zscore", spacing_mm=spacing_mm)
    got = np.asarray(predicted(network, path, config).dataobj)
    prepared = prepare(read_image([path]), config)
    logits = sliding_window_inference(
        torch.from_numpy(prepared.volume_CDHW)[None],
        WINDOW,
        4,
        lambda x: network(x)[0],
        overlap=0.5,
        mode="gaussian",
        cval=float(prepared.volume_CDHW.min()),
    )
    prob_KDHW = torch.as_tensor(logits)[0].softmax(0).numpy()
    want = restored_XYZ(prob_KDHW, prepared.record)
    assert len(np.unique(want)) > 1 and (got == want).mean() > 0.9995, "rounding turns ties, nothing else"


def test_no_probabilities_but_the_newest_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slabs: list[weakref.ref] = []

    def watched(*words: object) -> Iterator[Tensor]:
        for slab in probability_slabs(*words):  # type: ignore[arg-type]
            slab = slab.clone()
            slabs.append(weakref.ref(slab))
            yield slab
            assert all(old() is None for old in slabs[:-1])

    monkeypatch.setattr(predict, "probability_slabs", watched)
    path = write(tmp_path / "scan.nii.gz", scan())
    predicted(Brightness(), path, PreprocessConfig(intensity="zscore", spacing_mm=(0.5, 1.0, 1.0)))
    assert len(slabs) > 3


def test_every_window_has_the_size_asked_for() -> None:
    class Spy(Brightness):
        seen: set[tuple[int, ...]] = set()

        def forward(self, x_BCDHW: Tensor) -> list[Tensor]:
            self.seen.add(tuple(x_BCDHW.shape[2:]))
            return super().forward(x_BCDHW)

    probabilities_KDHW(Spy(), noise(1, 5, 21, 13), WINDOW)
    assert Spy.seen == {WINDOW}


def test_an_mha_images_segmentation_has_its_affine(tmp_path: Path) -> None:
    image = SimpleITK.GetImageFromArray(scan().transpose(2, 1, 0))
    image.SetSpacing((1.0, 1.5, 2.0))
    image.SetOrigin((-3.0, 4.0, 5.0))
    SimpleITK.WriteImage(image, tmp_path / "scan.mha")
    predict_file(Brightness(), [tmp_path / "scan.mha"], tmp_path / "out.nii.gz", NATIVE, WINDOW)
    got = SimpleITK.ReadImage(tmp_path / "out.nii.gz")
    assert np.allclose(got.GetSpacing(), (1.0, 1.5, 2.0)) and np.allclose(got.GetOrigin(), (-3.0, 4.0, 5.0))
    assert np.array_equal(SimpleITK.GetArrayFromImage(got).transpose(2, 1, 0), organ(scan()))


def test_a_segmentation_that_breaks_off_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "scan.nii.gz", scan())
    out = tmp_path / "out.nii.gz"
    predict_file(Brightness(), [path], out, NATIVE, WINDOW)
    before = out.read_bytes()

    def half(_: object, name: Path) -> None:
        Path(name).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(nibabel, "save", half)
    with pytest.raises(OSError, match="no space left"):
        predict_file(Brightness(), [path], out, NATIVE, WINDOW)
    assert out.read_bytes() == before


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
