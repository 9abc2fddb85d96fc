import itertools
import json

import nibabel as nib
import numpy as np
import pytest
from pydantic import ValidationError

from data_shards.archive.volume import Volume
from data_shards.errors import InputError, VolumeError
from data_shards.preprocess import (
    PreprocessConfig,
    PreprocessRecord,
    Restorer,
    prepare,
    prepare_label,
)
from data_shards.resample import resample
from tests.data_shards.helpers import restored_XYZ

SHAPE_RAS = (6, 8, 10)
SPACING_RAS = (1.0, 2.0, 3.0)
NO_CLIP = PreprocessConfig(clip_percentiles=(0, 100), crop_to_content=False)
ORIENTATIONS = [
    "".join(codes) for axes in itertools.permutations(("RL", "AP", "SI")) for codes in itertools.product(*axes)
]  # all 48


def ras_image() -> np.ndarray:
    """Each voxel its own number; air (0) around a body."""
    data = np.arange(1, np.prod(SHAPE_RAS) + 1, dtype=np.float32).reshape(SHAPE_RAS)
    data[:1], data[:, 6:], data[:, :, :3] = 0, 0, 0
    return data


def oriented(data_RAS: np.ndarray, codes: str) -> Volume:
    """The same physical scan as a file whose axes run along `codes`."""
    image = nib.Nifti1Image(data_RAS, np.diag([*SPACING_RAS, 1]))
    to_codes = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes)
    )
    turned = image.as_reoriented(to_codes)
    assert "".join(nib.aff2axcodes(turned.affine)) == codes
    return Volume(np.asarray(turned.dataobj), turned.affine, path="scan")


def as_image(volume: Volume) -> Volume:
    return Volume(volume.data[None], volume.affine_4x4, volume.path)


def one_hot(label_DHW: np.ndarray, num_classes: int) -> np.ndarray:
    return np.moveaxis(np.eye(num_classes, dtype=np.float32)[label_DHW], -1, 0)


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_any_orientation_prepares_to_the_same_volume_and_restores_to_its_own_grid(codes):
    image, label = oriented(ras_image(), codes), oriented((ras_image() % 3).astype(np.uint8), codes)
    prepared = prepare(as_image(image), PreprocessConfig())
    expected = prepare(as_image(oriented(ras_image(), "RAS")), PreprocessConfig())
    assert np.array_equal(prepared.volume_CDHW, expected.volume_CDHW)
    assert prepared.record.spacing_mm == SPACING_RAS[::-1]
    assert prepared.record.shape_DHW == (7, 6, 5)  # z, y, x without the air

    label_DHW = prepare_label(label, prepared.record)
    assert np.array_equal(label_DHW, (ras_image() % 3).astype(np.uint8)[1:, :6, 3:].transpose(2, 1, 0))
    restored = restored_XYZ(one_hot(label_DHW, 3), prepared.record)
    assert restored.dtype == np.uint8 and np.array_equal(restored, label.data)


def test_depth_runs_upwards_height_forwards_width_to_the_right():
    data = np.zeros(SHAPE_RAS, np.float32)
    data[5, 0, 9] = 1  # right, posterior, superior
    volume_CDHW = prepare(as_image(oriented(data, "LPS")), NO_CLIP).volume_CDHW
    assert np.unravel_index(volume_CDHW[0].argmax(), volume_CDHW.shape[1:]) == (9, 0, 5)


def test_zscore_clips_and_normalises_the_foreground_of_any_scale():
    rng = np.random.default_rng(0)
    body = np.zeros((20, 20, 20), np.float32)
    body[4:16, 4:16, 4:16] = rng.normal(100, 10, (12, 12, 12))
    for scale in (1.0, 1e4):
        data = body * np.float32(scale)
        data[8, 8, 8] = 1e6 * scale  # a spike must not flatten the rest
        prepared = prepare(Volume(data[None], np.eye(4), path="s"), PreprocessConfig())
        low, high = np.percentile(data[data > 0], (0.5, 99.5))
        clipped = np.clip(data[data > 0], low, high).astype(np.float64)
        expected = ((np.clip(data, low, high) - clipped.mean()) / clipped.std())[4:16, 4:16, 4:16]
        assert np.allclose(prepared.volume_CDHW[0], expected.transpose(2, 1, 0), atol=1e-4)
        assert abs(prepared.volume_CDHW).max() < 4


def test_ct_maps_its_window_to_minus_one_to_one_and_crops_what_lies_below():
    data = np.full((6, 6, 6), -3000, np.float32)
    data[1:5, 1:5, 1:5] = np.linspace(-900, 3000, 64).reshape(4, 4, 4)
    data[0, 0, 0] = -2000  # outside the scanner's circle, still air
    config = PreprocessConfig(intensity="ct", ct_window_hu=(-1000, 1000))
    volume = prepare(Volume(data[None], np.eye(4), path="s"), config).volume_CDHW[0]
    expected = (np.clip(data[1:5, 1:5, 1:5], -1000, 1000) / 1000).transpose(2, 1, 0)
    assert volume.shape == (4, 4, 4) and np.allclose(volume, expected)


def test_channels_are_normalised_apart():
    data = np.stack([ras_image(), 1000 - 7 * ras_image()])
    volume = prepare(Volume(data, np.eye(4), path="s"), NO_CLIP).volume_CDHW
    for channel, raw in zip(volume, data, strict=True):
        foreground = channel.transpose(2, 1, 0)[raw > raw.min()]
        assert abs(foreground.mean()) < 1e-4 and abs(foreground.std() - 1) < 1e-4


def test_a_nearly_flat_scan_is_refused():
    data = np.zeros((12, 12, 12), np.float32)
    data[3, 3, 3] = 1  # percentiles clip it away
    with pytest.raises(VolumeError, match="nearly every voxel"):
        prepare(Volume(data[None], np.eye(4), path="s"), PreprocessConfig(crop_to_content=False))


def test_resampling_keeps_the_physical_extent_and_a_linear_ramp():
    ramp = np.broadcast_to(np.arange(12, dtype=np.float32) + 0.5, (4, 6, 12))  # value = place of the voxel's centre
    for n in (24, 6, 4):
        centres = (np.arange(n) + 0.5) * 12 / n
        inner = slice(2, -2) if n > 6 else slice(1, -1)  # at the faces there is nothing to lean on
        assert np.allclose(resample(ramp, (4, 6, n))[2, 3, inner], centres[inner], atol=1e-5)
    assert np.array_equal(resample(ramp, (4, 6, 12)), ramp)


def test_shrinking_averages_instead_of_skipping():
    stripes = np.zeros((2, 2, 16), np.float32)
    stripes[..., ::2] = 1
    assert np.allclose(resample(stripes, (2, 2, 4))[..., 1:-1], 0.5, atol=0.02)


@pytest.mark.parametrize("spacing_mm", [(1.5, 1.5, 1.5), (3.0, 1.0, 0.5)])
def test_a_resampled_label_comes_back_with_its_organ_in_place(spacing_mm):
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in (30, 28, 26)), indexing="ij"))
    label_XYZ = (((grid - np.array([14, 11, 12]).reshape(3, 1, 1, 1)) ** 2).sum(0) < 64).astype(np.uint8) * 2
    image = Volume((grid.sum(0) + 50.0 * label_XYZ)[None].astype(np.float32), np.eye(4), path="s")
    prepared = prepare(image, PreprocessConfig(spacing_mm=spacing_mm))
    assert np.allclose(prepared.record.spacing_mm, spacing_mm, rtol=0.05)
    label_DHW = prepare_label(Volume(label_XYZ, np.eye(4), path="l"), prepared.record)
    assert label_DHW.shape == prepared.volume_CDHW.shape[1:] and set(np.unique(label_DHW)) == {0, 2}
    restored = restored_XYZ(one_hot(label_DHW, 3), prepared.record)
    dice = 2 * ((restored == 2) & (label_XYZ == 2)).sum() / ((restored == 2).sum() + (label_XYZ == 2).sum())
    assert restored.shape == label_XYZ.shape and dice > 0.92


def test_the_record_survives_json_and_nonsense_does_not():
    prepared = prepare(as_image(oriented(ras_image(), "PIR")), PreprocessConfig(spacing_mm=(2, 2, 2)))
    assert PreprocessRecord.from_json(json.loads(json.dumps(prepared.record.to_json()))) == prepared.record
    with pytest.raises(ValueError):
        PreprocessRecord.from_json(prepared.record.to_json() | {"crop_start": [1, 2]})


def test_wrong_shapes_are_refused_on_both_ways():
    record = prepare(as_image(oriented(ras_image(), "RAS")), PreprocessConfig()).record
    with pytest.raises(VolumeError, match="label shape"):
        prepare_label(Volume(np.zeros((6, 8, 9), np.uint8), np.eye(4), path="l"), record)
    with pytest.raises(InputError, match="prediction has shape"):
        restored_XYZ(np.zeros((2, 7, 6, 4), np.float32), record)


def test_slabs_that_are_too_few_or_too_many_rows_are_refused():
    record = prepare(as_image(oriented(ras_image(), "RAS")), PreprocessConfig()).record
    restorer = Restorer(record)
    restorer.add(np.zeros((2, 4, 6, 5), np.float32))
    with pytest.raises(InputError, match=r"shape \(4, 6, 5\), the prepared scan has \(7, 6, 5\)"):
        restorer.labels_XYZ()
    with pytest.raises(InputError, match=r"shape \(8, 6, 5\)"):
        restorer.add(np.zeros((2, 4, 6, 5), np.float32))


@pytest.mark.parametrize(
    "setting",
    [{"clip_percentiles": (99, 1)}, {"ct_window_hu": (5, 5)}, {"spacing_mm": (1, 0, 1)}, {"spacing": (1, 1, 1)}],
)
def test_impossible_settings_are_refused(setting):
    with pytest.raises(ValidationError):
        PreprocessConfig(**setting)
