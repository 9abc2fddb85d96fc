"""Where a crop starts. Pure integers; reading and padding is the reader's work.

A start may be negative, and a crop may end beyond the volume: what lies outside is padded by the reader. D H W are
voxels, depth first.
"""

from collections.abc import Sequence

import numpy as np

Triple = tuple[int, int, int]


def crop_start(rng: np.random.Generator, shape_DHW: Sequence[int], crop_DHW: Sequence[int]) -> Triple:
    """Uniform over all starts that keep the crop inside the volume, axis by axis.

    Where the volume is the smaller of the two, uniform over all starts that keep the volume inside the crop.
    """
    d, h, w = (
        int(rng.integers(min(0, n - crop), max(0, n - crop) + 1)) for n, crop in zip(shape_DHW, crop_DHW, strict=True)
    )
    return d, h, w


def centre(shape_DHW: Sequence[int], crop_DHW: Sequence[int]) -> Triple:
    """Start of the crop in the middle of the volume (or of the volume in the middle of the crop)."""
    d, h, w = ((n - crop) // 2 for n, crop in zip(shape_DHW, crop_DHW, strict=True))
    return d, h, w


def around(voxel_DHW: Sequence[int], shape_DHW: Sequence[int], crop_DHW: Sequence[int]) -> Triple:
    """Start of the crop centred on a voxel, moved as little as keeps it inside the volume (or the volume inside it)."""
    d, h, w = (
        min(max(voxel - crop // 2, min(0, n - crop)), max(0, n - crop))
        for voxel, n, crop in zip(voxel_DHW, shape_DHW, crop_DHW, strict=True)
    )
    return d, h, w


def overlap(start: Sequence[int], size: Sequence[int], shape: Sequence[int]) -> tuple[list[int], list[int]]:
    """Begin and end (per axis, begin <= end) of the part of the crop [start, start + size) that lies in the volume."""
    begin = [min(max(a, 0), n) for a, n in zip(start, shape, strict=True)]
    end = [max(b, min(a + s, n)) for a, b, s, n in zip(start, begin, size, shape, strict=True)]
    return begin, end


def slices(begin: Sequence[int], end: Sequence[int]) -> tuple[slice, slice, slice]:
    """The box [begin, end) as slices of the three axes."""
    d, h, w = (slice(b, e) for b, e in zip(begin, end, strict=True))
    return d, h, w


def inside(crop: np.ndarray, start: Sequence[int], begin: Sequence[int], end: Sequence[int]) -> np.ndarray:
    """The part of the array `crop`, whose first voxel lies at `start`, that holds the box [begin, end): a view."""
    d, h, w = slices(
        [b - a for a, b in zip(start, begin, strict=True)], [e - a for a, e in zip(start, end, strict=True)]
    )
    return crop[..., d, h, w]


def cut(array: np.ndarray, start: Sequence[int], size: Sequence[int], fill: float | np.ndarray) -> np.ndarray:
    """The crop [start, start + size) of an array in memory, `fill` where it leaves the array.

    `fill` is one number, or one per channel (C,) for a (C, D, H, W) array. A crop that stays inside is a view.
    """
    begin, end = overlap(start, size, array.shape[-3:])
    d, h, w = slices(begin, end)
    if array[..., d, h, w].shape[-3:] == tuple(size):
        return array[..., d, h, w]
    crop = np.empty((*array.shape[:-3], *size), dtype=array.dtype)
    crop[...] = fill.reshape(-1, 1, 1, 1) if isinstance(fill, np.ndarray) else fill
    inside(crop, start, begin, end)[...] = array[..., d, h, w]
    return crop
