"""Random changes to labelled crops, those of nnU-Net (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z).

Turning and scaling are one affine resampling. It reads from the whole scan and not from a crop that was cut before, so
a turned crop has no made-up corners; MONAI's affine transforms only know the middle of an image, so torch's
`grid_sample` does it. What changes intensities is MONAI's. Mirroring is off unless asked for: where left and right are
different classes it teaches the wrong thing. A crop of 32 x 48 x 32 costs about 5 ms on one thread. C channel, D H W
voxels.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import (
    Compose,
    RandAdjustContrast,
    RandGaussianNoise,
    RandGaussianSmooth,
    RandScaleIntensity,
    RandScaleIntensityFixedMean,
    RandSimulateLowResolution,
)
from scipy.spatial.transform import Rotation
from torch.nn.functional import grid_sample

from data_shards.loading.augment_config import AugmentConfig
from data_shards.order.crops import Triple, cut


class Augmenter:
    """Cuts changed crops of one size out of labelled scans."""

    def __init__(self, config: AugmentConfig, crop_DHW: Triple) -> None:
        self.config, self.crop_DHW = config, crop_DHW
        self._intensity = _intensity_transforms(config)

    def crop(
        self,
        rng: np.random.Generator,
        image_CDHW: np.ndarray,
        label_DHW: np.ndarray,
        start_DHW: Sequence[int],
        spacing_mm: Sequence[float],
        air_C: np.ndarray,
        outside: int = 0,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The crop whose middle is that of [start, start + crop), turned, scaled and changed: float32, uint8.

        Outside a scan is `air_C` per channel, and the label value `outside`. All randomness comes from `rng`.
        """
        if not self.config.enabled:
            size = self.crop_DHW
            return cut(image_CDHW, start_DHW, size, air_C), cut(label_DHW, start_DHW, size, outside)
        matrix_33 = _turn_and_scale(rng, self.config)
        is_flipped = (rng.random(3) < 0.5) & np.array(self.config.mirror)
        if matrix_33 is None:
            image_CDHW = cut(image_CDHW, start_DHW, self.crop_DHW, air_C)
            label_DHW = cut(label_DHW, start_DHW, self.crop_DHW, outside)
        else:
            spacing = np.asarray(spacing_mm)
            # turned in mm, or voxels that are no cubes would shear
            matrix_33 = matrix_33 * spacing[None, :] / spacing[:, None]
            image_CDHW, label_DHW = _resampled(
                image_CDHW, label_DHW, start_DHW, self.crop_DHW, matrix_33, air_C, outside
            )
        axes = np.flatnonzero(is_flipped)
        image_CDHW, label_DHW = np.flip(image_CDHW, tuple(axes + 1)), np.flip(label_DHW, tuple(axes))
        self._intensity.set_random_state(seed=int(rng.integers(2**31)))
        changed = self._intensity(torch.from_numpy(np.array(image_CDHW, dtype=np.float32)))
        return np.asarray(changed, dtype=np.float32), np.ascontiguousarray(label_DHW)


def _turn_and_scale(rng: np.random.Generator, config: AugmentConfig) -> np.ndarray | None:
    """The matrix that takes an offset from the crop's middle (D, H, W in mm) to one in the scan; None for neither."""
    is_turned, is_scaled = rng.random(2) < (config.rotation_share, config.scale_share)
    angles_deg = rng.uniform(-config.rotation_deg, config.rotation_deg, 3) * is_turned
    magnification = np.exp(rng.uniform(np.log(config.scale_low), np.log(config.scale_high)) * is_scaled)
    if not (is_turned or is_scaled):
        return None
    return Rotation.from_euler("xyz", angles_deg, degrees=True).as_matrix() / magnification


def _resampled(
    image_CDHW: np.ndarray,
    label_DHW: np.ndarray,
    start_DHW: Sequence[int],
    crop_DHW: Triple,
    matrix_33: np.ndarray,
    air_C: np.ndarray,
    outside: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Linear for the image, nearest for the label. Only the box that the crop's voxels come from is looked at."""
    size = np.array(crop_DHW)
    offsets = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in crop_DHW), indexing="ij"), axis=-1)
    places_DHW3 = offsets @ matrix_33.T + np.asarray(start_DHW) + (size - 1) / 2
    low = np.floor(places_DHW3.min(axis=(0, 1, 2))).astype(int)
    box = np.ceil(places_DHW3.max(axis=(0, 1, 2))).astype(int) - low + 1
    image_CDHW = cut(image_CDHW, low.tolist(), box.tolist(), air_C)
    label_DHW = cut(label_DHW, low.tolist(), box.tolist(), outside)
    # grid_sample counts x, y, z = W, H, D from -1 to 1 over the outer faces of the box
    grid_xyz = (((places_DHW3 - low) * 2 + 1) / box - 1)[..., ::-1]
    grid = torch.from_numpy(np.ascontiguousarray(grid_xyz, dtype=np.float32))[None]

    def sample(array_CDHW: np.ndarray, mode: str) -> np.ndarray:
        tensor = torch.from_numpy(np.ascontiguousarray(array_CDHW, dtype=np.float32))[None]
        return grid_sample(tensor, grid, mode=mode, padding_mode="border", align_corners=False)[0].numpy()

    return sample(image_CDHW, "bilinear"), sample(label_DHW[None], "nearest")[0].astype(label_DHW.dtype)


def _intensity_transforms(config: AugmentConfig) -> Compose:
    low_high = (config.gamma_low, config.gamma_high)
    blur, zoom = config.blur_voxels, (config.low_resolution_zoom, 1.0)
    steps: list[tuple[float, Callable[[float], Any]]] = [
        (config.noise_share, lambda p: RandGaussianNoise(p, std=config.noise_std)),
        (config.blur_share, lambda p: RandGaussianSmooth(blur, blur, blur, p)),
        (config.brightness_share, lambda p: RandScaleIntensity(config.brightness, p)),
        (config.contrast_share, lambda p: RandScaleIntensityFixedMean(p, config.contrast, preserve_range=True)),
        (config.low_resolution_share, lambda p: RandSimulateLowResolution(p, zoom_range=zoom)),
        (config.inverted_gamma_share, lambda p: RandAdjustContrast(p, low_high, invert_image=True, retain_stats=True)),
        (config.gamma_share, lambda p: RandAdjustContrast(p, low_high, retain_stats=True)),
    ]
    return Compose([make(share) for share, make in steps if share > 0])
