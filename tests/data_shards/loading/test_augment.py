import time

import numpy as np
import pytest
import torch

from data_shards.loading.augment import AugmentConfig, augment
from data_shards.order.streams import stream

STILL = {
    "rotation_deg": 0,
    "scale_low": 1,
    "scale_high": 1,
    "gamma_low": 1,
    "gamma_high": 1,
    "noise_std": 0,
    "brightness": 0,
}
SHAPE = (12, 16, 20)


def ball(centre=(6, 8, 10), radius_mm=4.0, spacing_mm=(1.0, 1.0, 1.0), shape=SHAPE) -> np.ndarray:
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"))
    offset_mm = (grid - np.reshape(centre, (3, 1, 1, 1))) * np.reshape(spacing_mm, (3, 1, 1, 1))
    return ((offset_mm**2).sum(axis=0) <= radius_mm**2).astype(np.uint8)


def run(seed: int, label: np.ndarray, image: np.ndarray | None = None, spacing_mm=(1.0, 1.0, 1.0), **settings):
    image = label[None].astype(np.float32) if image is None else image
    return augment(stream(seed, "t"), image, label, AugmentConfig(**{**STILL, **settings}), spacing_mm)


def test_with_everything_at_rest_nothing_changes():
    rng = np.random.default_rng(0)
    image, label = rng.normal(size=(2, *SHAPE)).astype(np.float32), rng.integers(0, 3, SHAPE).astype(np.uint8)
    new_image, new_label = run(0, label, image)
    assert np.allclose(new_image, image, atol=1e-4) and np.array_equal(new_label, label)
    assert new_image.dtype == np.float32 and new_label.dtype == np.uint8
    off = augment(stream(0, "t"), image, label, AugmentConfig(enabled=False))
    assert off[0] is image and off[1] is label


@pytest.mark.parametrize(
    "settings", [{"rotation_deg": 40}, {"scale_low": 0.6, "scale_high": 1.6}, {"mirror": (True,) * 3}]
)
def test_image_and_label_move_together(settings):
    label = ball((4, 10, 7), 3.5)
    for seed in range(5):
        image, moved = run(seed, label, **settings)
        both = ((image[0] > 0.5) & (moved > 0)).sum()
        assert 2 * both / ((image[0] > 0.5).sum() + (moved > 0).sum()) > 0.85
    assert not np.array_equal(moved, label)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (2.0, 1.0, 0.5)])
def test_a_ball_turns_into_itself_whatever_the_crop_and_voxel_shape(spacing_mm):
    shape = (13, 25, 49)
    label = ball((6, 12, 24), 5.5, spacing_mm, shape)
    for seed in range(4):
        _, moved = run(seed, label, spacing_mm=spacing_mm, rotation_deg=90)
        assert 2 * (moved & label).sum() / (moved.sum() + label.sum()) > 0.9


def test_magnification_grows_the_volume_by_its_cube():
    label = ball((10, 10, 10), 5.0, shape=(21, 21, 21))
    _, larger = run(0, label, scale_low=1, scale_high=1.5)
    factor = (larger.sum() / label.sum()) ** (1 / 3)
    assert 1.02 < factor < 1.5


def test_mirroring_touches_only_the_axes_asked_for():
    label = (np.arange(np.prod(SHAPE)) % 251).reshape(SHAPE).astype(np.uint8)
    seen = set()
    for seed in range(12):
        moved = run(seed, label, mirror=(False, True, False))[1]
        seen.add(
            "flipped" if np.array_equal(moved, label[:, ::-1]) else "same" if np.array_equal(moved, label) else "?"
        )
    assert seen == {"flipped", "same"}


def test_intensity_changes_leave_the_label_alone():
    label = ball()
    image, new_label = run(1, label, noise_std=0.5, brightness=1.0, gamma_low=0.5, gamma_high=2)
    assert np.array_equal(new_label, label) and not np.allclose(image[0], label, atol=0.05)


def test_a_flat_crop_stays_finite():
    image, _ = run(0, np.zeros(SHAPE, np.uint8), gamma_low=0.5, gamma_high=2, rotation_deg=30)
    assert np.isfinite(image).all()


def test_a_crop_of_32_48_32_costs_few_milliseconds():
    image, label = (
        np.random.default_rng(0).normal(size=(1, 32, 48, 32)).astype(np.float32),
        np.zeros((32, 48, 32), np.uint8),
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = []
        for seed in range(10):
            begin = time.perf_counter()
            augment(stream(seed, "t"), image, label, AugmentConfig())
            times.append(time.perf_counter() - begin)
    finally:
        torch.set_num_threads(threads)
    assert min(times) < 0.015  # about 0.004 s measured; the rest is room for a busy machine
