"""Resamples a volume to another number of voxels over the same physical extent.

Voxels are boxes: the outer faces of the first and last voxel stay where they are. Along each axis the volume is
multiplied by one small matrix: linear interpolation where the grid gets finer, a triangle filter as wide as the new
voxel where it gets coarser (so nothing is skipped and nothing aliases). Three matrix products cost less than
scipy.ndimage.zoom and treat images, labels and probabilities alike.
"""

from collections.abc import Iterable, Sequence

import numpy as np


def axis_weights(num_in: int, num_out: int) -> np.ndarray:
    """float32 (num_out, num_in): row i holds the weights of the input voxels in output voxel i; rows sum to 1."""
    step = num_in / num_out  # size of an output voxel in input voxels
    centres = (np.arange(num_out) + 0.5) * step - 0.5
    distances = np.abs(centres.clip(0, num_in - 1)[:, None] - np.arange(num_in)[None, :])
    weights = np.clip(1 - distances / max(step, 1.0), 0, None)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def resample(volume_DHW: np.ndarray, shape_DHW: Sequence[int]) -> np.ndarray:
    """The volume on a grid of `shape_DHW` voxels, float32. An axis whose length stays is not touched."""
    volume_DHW = volume_DHW.astype(np.float32, copy=False)
    # Shrinking axes go first: less to multiply for the others.
    for axis in sorted(range(3), key=lambda a: shape_DHW[a] / volume_DHW.shape[a]):
        if volume_DHW.shape[axis] != shape_DHW[axis]:
            weights = axis_weights(volume_DHW.shape[axis], shape_DHW[axis])
            volume_DHW = np.moveaxis(np.tensordot(weights, volume_DHW, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(volume_DHW)


def resample_label(label_DHW: np.ndarray, shape_DHW: Sequence[int]) -> np.ndarray:
    """The uint8 label on another grid: each class is resampled as a share of the voxel and the largest share wins."""
    if label_DHW.shape == tuple(shape_DHW):
        return label_DHW
    classes = np.unique(label_DHW)
    return classes[largest_share((label_DHW == value for value in classes), shape_DHW)]


def largest_share(shares: Iterable[np.ndarray], shape_DHW: Sequence[int]) -> np.ndarray:
    """uint8 (D, H, W): which of the (D, H, W) `shares` is largest after resampling; the first one wins a tie.

    Takes one class at a time, so memory does not grow with the number of classes.
    """
    winner_DHW = np.zeros(tuple(shape_DHW), dtype=np.uint8)
    best_DHW = np.full(tuple(shape_DHW), -np.inf, dtype=np.float32)
    for k, share_DHW in enumerate(shares):
        share_DHW = resample(share_DHW, shape_DHW)
        is_better = share_DHW > best_DHW
        winner_DHW[is_better] = k
        np.maximum(best_DHW, share_DHW, out=best_DHW)
    return winner_DHW
