import gzip
import resource

import nibabel as nib
import numpy as np
import pytest

from data_shards.archive.volume import read_image, read_label, voxel_sha256
from data_shards.errors import VolumeError
from tests.data_shards.helpers import place_code, write_nifti

SHAPE = (5, 6, 7)
OUT_OF_CLASS = (np.arange(210).reshape(SHAPE) > 101) * np.uint8(3)
RAS_TO_LPS = np.diag([-1.0, -1, 1, 1])


@pytest.fixture
def image(tmp_path):
    return read_image([write_nifti(tmp_path / "image.nii.gz", place_code(SHAPE))])


def with_voxel(value: float) -> np.ndarray:
    data = place_code(SHAPE).astype(np.float32)
    data[1, 2, 3] = value
    return data


def test_voxels_and_affine_are_those_nibabel_reads(tmp_path):
    affine = np.array([[-2.0, 0, 0, 9], [0, 3, 0, -4], [0, 0, 1.5, 2], [0, 0, 0, 1]])
    for name in ("a.nii.gz", "a.nii"):
        path = write_nifti(tmp_path / name, place_code(SHAPE), affine)
        volume = read_image([path])
        assert volume.data.dtype == np.float32 and volume.data.shape == (1, *SHAPE)
        assert np.array_equal(volume.data[0], nib.load(path).get_fdata())
        assert np.array_equal(volume.affine_4x4, affine)


def test_scaled_voxels_and_nifti_2_are_read(tmp_path):
    path = tmp_path / "a.nii"
    image = nib.Nifti2Image(place_code(SHAPE), np.eye(4))
    image.header.set_slope_inter(2, 10)
    path.write_bytes(image.to_bytes())
    assert np.array_equal(read_image([path]).data[0], nib.load(path).get_fdata())


def test_channels_come_from_one_4d_file_or_from_several_files(tmp_path):
    one, two = place_code(SHAPE), place_code(SHAPE)[::-1]
    together = read_image([write_nifti(tmp_path / "both.nii.gz", np.stack([one, two], axis=-1))])
    apart = read_image([write_nifti(tmp_path / f"{i}.nii.gz", v) for i, v in enumerate((one, two))])
    assert together.data.shape == (2, *SHAPE)
    assert np.array_equal(together.data, apart.data) and np.array_equal(apart.data[1], two)
    assert voxel_sha256(together) == voxel_sha256(apart)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(with_voxel(np.nan), "1 of 210 voxels are NaN", id="one NaN"),
        pytest.param(np.full(SHAPE, np.nan, np.float32), "210 of 210 voxels are NaN", id="all NaN"),
        pytest.param(with_voxel(np.inf), "infinite", id="infinity"),
        pytest.param(with_voxel(0).astype(np.float64) * 1e300, "infinite", id="beyond float32"),
        pytest.param(np.full(SHAPE, 4, np.int16), "every voxel is 4", id="constant"),
        pytest.param(np.arange(12, dtype=np.int16).reshape(3, 4), r"\(3, 4\) is not a 3-D volume", id="2-D"),
        pytest.param(np.arange(12, dtype=np.int16).reshape(3, 4, 1), "is not a 3-D volume", id="one slice"),
        pytest.param(np.ones((2, 2, 2, 2, 2), np.int16), "is not a 3-D volume", id="5-D"),
        pytest.param(np.zeros(SHAPE, np.complex64), "not numbers", id="complex"),
    ],
)
def test_unusable_voxels_are_refused_by_name(tmp_path, data, message):
    path = write_nifti(tmp_path / "bad.nii.gz", data)
    with pytest.raises(VolumeError, match=message) as caught:
        read_image([path])
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_a_file_truncated_anywhere_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    path = write_nifti(tmp_path / "a.nii.gz", rng.integers(0, 1000, SHAPE).astype(np.int16))
    whole = path.read_bytes()
    for length in [0, 1, 2, 11, 100, len(whole) // 2, len(whole) - 9, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(VolumeError, match="can't be read as NIfTI"):
            read_image([path])
    plain = gzip.decompress(whole)
    path.write_bytes(plain[:-1])
    with pytest.raises(VolumeError, match="can't be read as NIfTI"):
        read_image([path])


def test_a_flipped_byte_in_a_gz_never_passes(tmp_path):
    path = write_nifti(tmp_path / "a.nii.gz", np.random.default_rng(0).integers(0, 9, SHAPE).astype(np.int16))
    good, whole = read_image([path]).data, path.read_bytes()
    for place in range(10, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        with pytest.raises(VolumeError):
            read_image([path])
    path.write_bytes(whole)
    assert np.array_equal(read_image([path]).data, good)


def test_a_file_of_something_else_or_none_is_refused(tmp_path):
    (tmp_path / "a.nii.gz").write_text("not a scan")
    for path in (tmp_path / "a.nii.gz", tmp_path / "missing.nii.gz"):
        with pytest.raises(VolumeError, match=path.name):
            read_image([path])


def test_a_flat_affine_is_refused(tmp_path):
    raw = bytearray(nib.Nifti1Image(place_code(SHAPE), np.eye(4)).to_bytes())
    raw[280:296] = bytes(16)  # first row of the sform
    (tmp_path / "a.nii").write_bytes(raw)
    with pytest.raises(VolumeError, match="not invertible"):
        read_image([tmp_path / "a.nii"])


def with_header(**fields) -> bytes:
    image = nib.Nifti1Image(place_code(SHAPE), np.eye(4))
    for name, value in fields.items():
        image.header[name] = value
    return image.header.binaryblock + bytes(4) + place_code(SHAPE).tobytes(order="F")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        pytest.param({"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]}, "more than the file can hold", id="10^13 voxels"),
        pytest.param({"dim": [7] + [32767] * 7}, "more than the file can hold", id="10^31 voxels"),
        pytest.param({"dim": [3, 1024, 1024, 1024, 1, 1, 1, 1]}, "more than the file can hold", id="two gigabytes"),
        pytest.param({"dim": [3, 5, 6, 8, 1, 1, 1, 1]}, "promises 240 voxels|ends after", id="one slice too many"),
        pytest.param({"dim": [3, 5, 0, 7, 1, 1, 1, 1]}, "is impossible", id="no rows"),
        pytest.param({"dim": [3, -5, -6, 7, 1, 1, 1, 1]}, "is impossible", id="negative"),
        pytest.param({"vox_offset": 1e30}, "is impossible", id="far offset"),
        pytest.param({"vox_offset": np.nan}, "can't be read", id="NaN offset"),
        pytest.param({"vox_offset": -352}, "can't be read", id="negative offset"),
        pytest.param({"pixdim": [1, np.nan, 1, 1, 1, 1, 1, 1], "sform_code": 0}, "not invertible|can't", id="NaN size"),
        pytest.param({"pixdim": [1, 1, 0, 1, 1, 1, 1, 1], "sform_code": 0}, "voxel size of 0 mm", id="no size"),
        pytest.param({"srow_x": [1e30, 0, 0, 0]}, "not invertible", id="a light year"),
        pytest.param({"srow_x": [np.inf, 0, 0, 0]}, "not invertible", id="endless"),
        pytest.param({"srow_y": [1, 0, 0, 0]}, "not invertible", id="two axes along one line"),
        pytest.param({"scl_slope": 1e38, "scl_inter": 3e38}, "infinite", id="steep"),
    ],
)
@pytest.mark.parametrize("is_packed", [False, True])
def test_a_header_that_lies_is_refused_before_memory_is_taken(tmp_path, fields, message, is_packed):
    path = tmp_path / "a.nii"
    path.write_bytes(gzip.compress(with_header(**fields)) if is_packed else with_header(**fields))
    with pytest.raises(VolumeError, match=message):
        read_image([path])


def test_a_gzip_is_not_expanded_beyond_what_its_header_needs(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(with_header() + bytes(1 << 20)))
    assert np.array_equal(read_image([path]).data[0], place_code(SHAPE))  # some padding is fine
    path.write_bytes(gzip.compress(with_header() + bytes(1 << 26), 9))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(VolumeError, match="goes on long after the voxels"):
        read_image([path])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024  # KiB


def test_a_gzip_of_several_members_is_one_file(tmp_path):
    raw = with_header()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(raw[:500]) + gzip.compress(raw[500:]))
    assert np.array_equal(read_image([tmp_path / "a.nii.gz"]).data[0], place_code(SHAPE))


def test_a_link_in_a_circle_and_a_folder_are_refused(tmp_path):
    (tmp_path / "a.nii").symlink_to(tmp_path / "b.nii")
    (tmp_path / "b.nii").symlink_to(tmp_path / "a.nii")
    (tmp_path / "c.nii").mkdir()
    for name, message in [("a.nii", "can't be read"), ("c.nii", "is not a file")]:
        with pytest.raises(VolumeError, match=message):
            read_image([tmp_path / name])


def test_channels_of_different_shape_are_refused(tmp_path):
    paths = [write_nifti(tmp_path / f"{n}.nii", place_code((n, 6, 7))) for n in (5, 4)]
    with pytest.raises(VolumeError, match="4.nii: shape"):
        read_image(paths)


def test_a_label_of_whole_floats_is_as_good_as_integers(tmp_path, image):
    values = place_code(SHAPE) % 3
    for dtype in (np.uint8, np.int32, np.float32, np.float64):
        label = read_label(write_nifti(tmp_path / "l.nii.gz", values.astype(dtype)), image, num_classes=3)
        assert label.data.dtype == np.uint8 and np.array_equal(label.data, values)


@pytest.mark.parametrize(
    ("data", "affine", "message"),
    [
        pytest.param(np.zeros((5, 7, 6), np.uint8), None, r"label shape \(5, 7, 6\) differs", id="other shape"),
        pytest.param(np.zeros((*SHAPE, 2), np.uint8), None, "label shape", id="two channels"),
        pytest.param(with_voxel(0) * 0 + 0.5, None, "label value 0.5", id="half a class"),
        pytest.param(with_voxel(np.nan) * 0, None, "label value nan in 1 voxels", id="NaN"),
        pytest.param(
            OUT_OF_CLASS,
            None,
            r"label value 3 in 108 voxels.*0\.\.2",
            id="no class",
        ),
        pytest.param((with_voxel(0) > 100) * np.int16(-1), None, "label value -1", id="negative"),
        pytest.param(np.zeros(SHAPE, np.uint8), RAS_TO_LPS, "LPS 1 x 1 x 1 mm differ from RAS", id="other axes"),
        pytest.param(np.zeros(SHAPE, np.uint8), np.diag([1, 1, 2, 1.0]), "RAS 1 x 1 x 2 mm", id="other spacing"),
    ],
)
def test_an_unusable_label_is_refused_by_name(tmp_path, image, data, affine, message):
    path = write_nifti(tmp_path / "label.nii.gz", data, affine)
    with pytest.raises(VolumeError, match=message) as caught:
        read_label(path, image, num_classes=3)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_the_voxel_hash_sees_voxels_and_shape_but_not_the_name(tmp_path, image):
    def hash_of(name: str, data: np.ndarray) -> str:
        return voxel_sha256(read_image([write_nifti(tmp_path / name, data)]))

    same = place_code(SHAPE)
    assert hash_of("other.nii", same.astype(np.float32)) == voxel_sha256(image)
    assert hash_of("b.nii", with_voxel(3)) != voxel_sha256(image)
    assert hash_of("c.nii", same.reshape(6, 5, 7)) != voxel_sha256(image)
