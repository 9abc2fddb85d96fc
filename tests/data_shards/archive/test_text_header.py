"""NRRD and MetaImage beside what SimpleITK writes and reads."""

import resource
import zlib

import numpy as np
import pytest
import SimpleITK as sitk

from data_shards.archive.volume import read_image, read_label
from data_shards.errors import VolumeError
from tests.data_shards.helpers import place_code

SHAPE = (5, 6, 7)
NRRD = """NRRD0004
# written by hand
type: short
dimension: 3
sizes: 5 6 7
space: {space}
space directions: (2,0,0) (0,3,0) (0,0,1.5)
space origin: (9,-4,2)
kinds: domain domain domain
endian: {endian}
encoding: raw
units:=Comment: of a key and a value

"""
META = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = False
TransformMatrix = 1 0 0 0 1 0 0 0 1
Offset = 9 -4 2
ElementSpacing = 2 3 1.5
DimSize = 5 6 7
ElementType = MET_SHORT
ElementDataFile = LOCAL
"""


def turned_image(data: np.ndarray, is_vector: bool = False) -> sitk.Image:
    image = sitk.GetImageFromArray(data, isVector=is_vector)
    turn = sitk.Euler3DTransform((0, 0, 0), 0.3, -0.2, 0.5).GetMatrix()
    image.SetDirection(turn)
    image.SetSpacing((0.8, 1.5, 2.5))
    image.SetOrigin((-31.0, 17, 5))
    return image


@pytest.mark.parametrize("ending", [".nrrd", ".nhdr", ".mha", ".mhd"])
@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("packed", [False, True])
def test_voxels_and_places_are_those_of_itk(tmp_path, ending, dtype, packed):
    image = turned_image((place_code(SHAPE) % 127).astype(dtype).T)
    path = tmp_path / f"a{ending}"
    sitk.WriteImage(image, str(path), useCompression=packed)
    volume = read_image([path])
    assert np.array_equal(volume.data[0], sitk.GetArrayFromImage(image).T.astype(np.float32))
    for voxel in [(0, 0, 0), (1, 2, 3), (4, 5, 6)]:
        x, y, z = image.TransformIndexToPhysicalPoint(voxel)
        assert np.allclose(volume.affine_4x4 @ [*voxel, 1], [-x, -y, z, 1], atol=1e-4)


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_vectors_are_channels(tmp_path, ending):
    both = np.stack([place_code(SHAPE, who).T for who in (1, 2)], axis=-1)
    sitk.WriteImage(turned_image(both, is_vector=True), str(tmp_path / f"a{ending}"))
    volume = read_image([tmp_path / f"a{ending}"])
    assert volume.data.shape == (2, *SHAPE)
    assert np.array_equal(volume.data, [place_code(SHAPE, 1), place_code(SHAPE, 2)])


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_a_fourth_axis_is_channels_as_in_nifti(tmp_path, ending):
    both = np.stack([place_code(SHAPE, who).T for who in (1, 2)])
    sitk.WriteImage(sitk.GetImageFromArray(both, isVector=False), str(tmp_path / f"a{ending}"))
    if ending == ".nrrd":  # ITK has given it a space of four dimensions
        pytest.raises(VolumeError, read_image, [tmp_path / f"a{ending}"]).match("4 numbers where 3")
        raw = (tmp_path / "a.nrrd").read_bytes()
        head, voxels = raw.split(b"\n\n", 1)
        lines = [line for line in head.split(b"\n") if not line.startswith(b"space")]
        (tmp_path / "a.nrrd").write_bytes(b"\n".join([*lines, b"spacings: 1 1 1 nan"]) + b"\n\n" + voxels)
    volume = read_image([tmp_path / f"a{ending}"])
    assert np.array_equal(volume.data, [place_code(SHAPE, 1), place_code(SHAPE, 2)])


@pytest.mark.parametrize(
    ("space", "x", "y"),
    [
        ("right-anterior-superior", 1, 1),
        ("left-anterior-superior", -1, 1),
        ("left-posterior-superior", -1, -1),
        ("LPS", -1, -1),
    ],
)
@pytest.mark.parametrize("endian", ["little", "big"])
def test_nrrd_spaces_and_byte_orders_are_known(tmp_path, space, x, y, endian):
    voxels = place_code(SHAPE).astype("<i2" if endian == "little" else ">i2").tobytes(order="F")
    (tmp_path / "a.nrrd").write_bytes(NRRD.format(space=space, endian=endian).encode() + voxels)
    volume = read_image([tmp_path / "a.nrrd"])
    assert np.array_equal(volume.data[0], place_code(SHAPE))
    assert np.array_equal(
        volume.affine_4x4,
        np.diag([2 * x, 3 * y, 1.5, 1]) + [[0, 0, 0, 9 * x], [0, 0, 0, -4 * y], [0, 0, 0, 2], [0] * 4],
    )


def test_voxels_at_the_end_of_another_file_are_found(tmp_path):
    raw = b"a header of some other make" + place_code(SHAPE).tobytes(order="F")
    (tmp_path / "a.raw").write_bytes(raw)
    (tmp_path / "a.nhdr").write_text(
        NRRD.format(space="LPS", endian="little").strip() + "\nbyte skip: -1\ndata file: a.raw\n"
    )
    (tmp_path / "a.mhd").write_text(META.replace("LOCAL", "a.raw").replace("NDims", "HeaderSize = -1\nNDims"))
    for name in ("a.nhdr", "a.mhd"):
        assert np.array_equal(read_image([tmp_path / name]).data[0], place_code(SHAPE))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            ("5 6 7", "1000000 1000000 1000"), "promises 1000000000000000 voxels, more than", id="10^15 voxels"
        ),
        pytest.param(("5 6 7", "5 6 8"), "promises 240 voxels, more than", id="one slice too many"),
        pytest.param(("5 6 7", "-5 -6 7"), "is impossible", id="negative"),
        pytest.param(("5 6 7", "5 6"), "axes it promises", id="two of three axes"),
        pytest.param(("5 6 7", "5 6 7 1"), "axes it promises", id="four of three axes"),
        pytest.param(("5 6 7", "5 6 x"), "invalid literal", id="no number"),
        pytest.param(("5 6 7", "210 1 1"), "is not a 3-D volume", id="one row"),
    ],
)
@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_a_header_that_lies_is_refused(tmp_path, name, change, message):
    head = NRRD.format(space="LPS", endian="little") if name == "a.nrrd" else META
    (tmp_path / name).write_bytes(head.replace(*change).encode() + place_code(SHAPE).tobytes())
    with pytest.raises(VolumeError, match=message) as caught:
        read_image([tmp_path / name])
    assert str(caught.value).startswith(f"{tmp_path / name}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("a.mha", ("LOCAL", "/etc/passwd"), "must lie in a file beside it"),
        ("a.mha", ("LOCAL", "../b.raw"), "must lie in a file beside it"),
        ("a.mha", ("LOCAL", "LIST"), "is not there"),
        ("a.mha", ("LOCAL", "zero"), "is not there"),
        ("a.mha", ("CompressedData = False", "CompressedData = True"), "incorrect header check"),
        ("a.mha", ("ElementSpacing = 2 3 1.5\n", ""), "it has no 'elementsize'"),
        ("a.mha", ("ElementSpacing = 2 3 1.5", "ElementSpacing = 2 3 0"), "not invertible"),
        ("a.mha", ("ElementSpacing = 2 3 1.5", "ElementSpacing = 2"), "1 numbers where 3 are needed"),
        ("a.mha", ("BinaryData = True", "BinaryData = False"), "are text"),
        ("a.mha", ("MET_SHORT", "MET_STRING"), "MET_STRING"),
        ("a.mha", ("NDims = 3", "NDims = 3\nNDims = 3"), "says something twice"),
        ("a.nrrd", ("encoding: raw", "encoding: raw\ndata file: /dev/zero"), "must lie in a file beside it"),
        ("a.nrrd", ("encoding: raw", "encoding: bzip2"), "is not raw or gzip"),
        ("a.nrrd", ("encoding: raw", "encoding: raw\nline skip: 1"), "skips lines"),
        ("a.nrrd", ("type: short", "type: block"), "block"),
        ("a.nrrd", ("(0,3,0)", "none"), "is not a 3-D volume"),
        ("a.nrrd", ("(0,3,0)", "(0,nan,0)"), "not invertible"),
        ("a.nrrd", ("(0,3,0)", "(2,0,0)"), "not invertible"),
        ("a.nrrd", ("(0,3,0)", "(0,3e9,0)"), "not invertible"),
    ],
)
def test_a_header_that_cannot_be_used_is_refused(tmp_path, name, change, message):
    (tmp_path / "zero").symlink_to("/dev/zero")
    head = NRRD.format(space="LPS", endian="little") if name == "a.nrrd" else META
    assert change[0] in head
    (tmp_path / name).write_bytes(head.replace(*change).encode() + place_code(SHAPE).tobytes())
    with pytest.raises(VolumeError, match=message):
        read_image([tmp_path / name])


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_a_packed_file_that_expands_to_more_or_less_is_refused(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(place_code(SHAPE).T), str(path), useCompression=True)
    raw = path.read_bytes()
    for changed in (b"5 6 8", b"5 6 6"):
        path.write_bytes(raw.replace(b"5 6 7", changed))
        with pytest.raises(VolumeError, match="can't be read"):
            read_image([path])
    for place in range(len(raw) - 60, len(raw), 7):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        with pytest.raises(VolumeError, match="can't be read"):
            read_image([path])


def test_a_packed_file_is_not_expanded_beyond_what_its_header_needs(tmp_path):
    head = META.replace("CompressedData = False", "CompressedData = True").encode()
    (tmp_path / "a.mha").write_bytes(head + zlib.compress(bytes(1 << 27), 9))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(VolumeError, match="more than the header promises"):
        read_image([tmp_path / "a.mha"])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024  # KiB


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_two_dimensions_and_nan_are_refused_as_in_nifti(tmp_path, ending):
    path = str(tmp_path / f"a{ending}")
    sitk.WriteImage(sitk.GetImageFromArray(place_code((5, 6, 1))[..., 0].T), path)
    with pytest.raises(VolumeError, match="is not a 3-D volume"):
        read_image([path])
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((6, 5, 3), np.int16), isVector=True), path)
    with pytest.raises(VolumeError, match="is not a 3-D volume"):
        read_image([path])
    bad = place_code(SHAPE).T.astype(np.float32)
    bad[1, 2, 3] = np.nan
    sitk.WriteImage(sitk.GetImageFromArray(bad), path)
    with pytest.raises(VolumeError, match="1 of 210 voxels are NaN"):
        read_image([path])


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_a_label_may_have_these_formats_too(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    sitk.WriteImage(turned_image(place_code(SHAPE).T), str(tmp_path / "image.nrrd"))
    sitk.WriteImage(turned_image((place_code(SHAPE) % 3).astype(np.uint8).T), str(path))
    image = read_image([tmp_path / "image.nrrd"])
    assert np.array_equal(read_label(path, image, 3).data, place_code(SHAPE) % 3)
    with pytest.raises(VolumeError, match="label value 2"):
        read_label(path, image, 2)
