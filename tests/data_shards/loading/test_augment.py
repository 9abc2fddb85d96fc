"""Labelled crops, changed: what moves, moves together, in mm, out of the whole scan; intensities leave labels alone."""

import numpy as np
import pytest

from data_shards.loading.augment import Augmenter
from data_shards.loading.augment_config import AugmentConfig
from data_shards.order.crops import cut
from data_shards.order.streams import stream

STILL = {
    name: 0 for name in AugmentConfig.model_fields if name.endswith("_share")
}  # nothing but what a test asks for happens
SHAPE = (12, 16, 20)
AIR = np.zeros(1, np.float32)


def ball(centre=(6, 8, 10), radius_mm=4.0, spacing_mm=(1.0, 1.0, 1.0), shape=SHAPE) -> np.ndarray:
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"))
    offset_mm = (grid - np.reshape(centre, (3, 1, 1, 1))) * np.reshape(spacing_mm, (3, 1, 1, 1))
    return ((offset_mm**2).sum(axis=0) <= radius_mm**2).astype(np.uint8)


def run(seed, label, image=None, spacing_mm=(1.0, 1.0, 1.0), start=(0, 0, 0), size=None, air=AIR, **settings):
    image = label[None].astype(np.float32) if image is None else image
    augmenter = Augmenter(AugmentConfig(**{**STILL, **settings}), size or label.shape)
    return augmenter.crop(stream(seed, "t"), image, label, start, spacing_mm, air)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_with_everything_at_rest_nothing_changes():
    rng = np.random.default_rng(0)
    image, label = rng.normal(size=(2, *SHAPE)).astype(np.float32), rng.integers(0, 3, SHAPE).astype(np.uint8)
    still, off = run(0, label, image), run(0, label, image, enabled=False)
    for new_image, new_label in (still, off):
        assert np.array_equal(new_image, image) and np.array_equal(new_label, label)
        assert new_image.dtype == np.float32 and new_label.dtype == np.uint8


def test_a_turn_by_nothing_gives_the_crop_that_cutting_gives():
    rng = np.random.default_rng(1)
    image, label = rng.normal(size=(2, *SHAPE)).astype(np.float32), rng.integers(0, 3, SHAPE).astype(np.uint8)
    start, size, air = (-2, 5, 8), (7, 8, 9), np.array([-3.0, 5.0], np.float32)
    new_image, new_label = run(
        0, label, image, start=start, size=size, air=air, rotation_share=1, rotation_deg=0, spacing_mm=(3, 1, 2)
    )
    assert np.allclose(new_image, cut(image, start, size, air), atol=1e-4)
    assert np.array_equal(new_label, cut(label, start, size, 0))


@pytest.mark.parametrize(
    "settings",
    [
        {"rotation_share": 1, "rotation_deg": 40},
        {"scale_share": 1, "scale_low": 0.6, "scale_high": 1.6},
        {"mirror": (True,) * 3},
    ],
)
def test_image_and_label_move_together(settings):
    label = ball((4, 10, 7), 3.5)
    for seed in range(5):
        image, moved = run(seed, label, **settings)
        assert overlap(image[0] > 0.5, moved > 0) > 0.85
    assert not np.array_equal(moved, label)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (2.0, 1.0, 0.5)])
def test_a_ball_turns_into_itself_whatever_the_crop_and_voxel_shape(spacing_mm):
    shape = (13, 25, 49)
    label = ball((6, 12, 24), 5.5, spacing_mm, shape)
    for seed in range(4):
        _, moved = run(seed, label, spacing_mm=spacing_mm, rotation_share=1, rotation_deg=90)
        assert overlap(moved, label) > 0.9


def test_magnification_grows_the_volume_by_its_cube():
    label = ball((10, 10, 10), 5.0, shape=(21, 21, 21))
    _, larger = run(0, label, scale_share=1, scale_low=1, scale_high=1.5)
    factor = (larger.sum() / label.sum()) ** (1 / 3)
    assert 1.02 < factor < 1.5


def test_a_turned_crop_shows_what_lies_around_it_in_the_scan_and_no_repeated_edge():
    """Voxels hold their own place: a value that the crop's corners show must come from where they point."""
    shape = (40, 40, 40)
    place = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")).astype(np.float32)
    label = np.zeros(shape, np.uint8)
    size, start = (10, 10, 10), (15, 15, 15)
    for seed in range(3):
        image, _ = run(seed, label, place, start=start, size=size, air=np.zeros(3, np.float32), rotation_share=1)
        middle = image.mean(axis=(1, 2, 3))
        assert np.allclose(middle, 19.5, atol=1e-3), "turned about the crop's middle"
        corners = image[:, ::9, ::9, ::9].reshape(3, 8).T
        radii = np.linalg.norm(corners - 19.5, axis=1)
        assert np.allclose(radii, np.sqrt(3) * 4.5, atol=1e-3), "a turn keeps lengths, out to the corners"


def test_what_is_turned_in_from_outside_the_scan_is_air_and_background():
    image, label = np.ones((1, *SHAPE), np.float32), np.ones(SHAPE, np.uint8)
    new_image, new_label = run(0, label, image, air=np.array([-7.0], np.float32), rotation_share=1, rotation_deg=45)
    assert np.isclose(new_image.min(), -7, atol=1e-4) and (new_label == 0).sum() > 100
    assert overlap(new_label > 0, new_image[0] > -3) > 0.97


def test_mirroring_touches_only_the_axes_asked_for():
    label = (np.arange(np.prod(SHAPE)) % 251).reshape(SHAPE).astype(np.uint8)
    seen = set()
    for seed in range(12):
        moved = run(seed, label, mirror=(False, True, False))[1]
        seen.add(
            "flipped" if np.array_equal(moved, label[:, ::-1]) else "same" if np.array_equal(moved, label) else "?"
        )
    assert seen == {"flipped", "same"}


def textured() -> np.ndarray:
    return np.random.default_rng(3).normal(size=(1, *SHAPE)).astype(np.float32)


INTENSITY = [name for name in STILL if name not in ("rotation_share", "scale_share")]


@pytest.mark.parametrize("share", INTENSITY)
def test_each_change_of_intensity_happens_as_often_as_said_and_leaves_the_label_alone(share):
    label, image = ball(), textured()
    changed = 0
    for seed in range(60):
        new_image, new_label = run(seed, label, image, **{share: 0.5})
        assert np.array_equal(new_label, label) and new_image.shape == image.shape and np.isfinite(new_image).all()
        changed += not np.allclose(new_image, image, atol=1e-6)
    assert 15 <= changed <= 45  # 30 expected; each bound lies 3.9 standard deviations off


def test_noise_is_no_stronger_than_said():
    stds = [float((run(seed, ball(), textured(), noise_share=1)[0] - textured()).std()) for seed in range(30)]
    assert 0.2 < max(stds) < 0.33 and min(stds) < 0.1


def test_blur_and_low_resolution_take_detail_away():
    for share in ("blur_share", "low_resolution_share"):
        rough = [float(np.abs(np.diff(run(seed, ball(), textured(), **{share: 1})[0])).mean()) for seed in range(8)]
        assert max(rough) <= float(np.abs(np.diff(textured())).mean()) + 1e-6
        assert min(rough) < 0.7 * float(np.abs(np.diff(textured())).mean())


def test_the_same_stream_gives_the_same_crop_whatever_was_drawn_before():
    label, image = ball(), textured()
    augmenter = Augmenter(AugmentConfig(), SHAPE)

    def crop(seed: int) -> bytes:
        new_image, new_label = augmenter.crop(stream(seed, "t"), image, label, (0, 0, 0), (1, 1, 1), AIR)
        return new_image.tobytes() + new_label.tobytes()

    once = [crop(seed) for seed in range(10)]
    assert [crop(seed) for seed in reversed(range(10))] == once[::-1]
    assert len(set(once)) > 5


def test_a_flat_crop_stays_finite():
    everything = {name: 1 for name in STILL}
    image, _ = run(0, np.zeros(SHAPE, np.uint8), **everything)
    assert np.isfinite(image).all()


def test_blur_that_runs_downwards_is_refused():
    with pytest.raises(ValueError, match="blur_voxels"):
        AugmentConfig(blur_voxels=(1.0, 0.5))
