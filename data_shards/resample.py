"""Resamples a volume to another number of voxels over the same physical extent.

Voxels are boxes: the outer faces of the first and last voxel stay where they are. Along each axis the volume is
multiplied by one small matrix: linear interpolation where the grid gets finer, a triangle filter as wide as the new
voxel where it gets coarser (so nothing is skipped and nothing aliases). Three matrix products cost less than
scipy.ndimage.zoom and treat images, labels and probabilities alike. A row of such a matrix is empty but for a few
neighbours, so a volume can also come and go in slabs along D (`SlabVote`): memory is bounded by the slab.
"""

from collections.abc import Callable, Iterable, Sequence

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
    return _weighted(volume_DHW, _weights_of_axes(volume_DHW.shape, shape_DHW))


AxisWeights = list[tuple[int, np.ndarray]]


def _weights_of_axes(shape_DHW: Sequence[int], new_shape_DHW: Sequence[int]) -> AxisWeights:
    """(axis, weights) of the axes that change. Shrinking axes go first: less to multiply for the others."""
    order = sorted(range(3), key=lambda a: new_shape_DHW[a] / shape_DHW[a])
    return [(a, axis_weights(shape_DHW[a], new_shape_DHW[a])) for a in order if shape_DHW[a] != new_shape_DHW[a]]


def _weighted(volume_DHW: np.ndarray, weights: AxisWeights) -> np.ndarray:
    volume_DHW = volume_DHW.astype(np.float32, copy=False)
    for axis, matrix in weights:
        volume_DHW = np.moveaxis(np.tensordot(matrix, volume_DHW, axes=(1, axis)), 0, axis)
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
    return largest(resample(share_DHW, shape_DHW) for share_DHW in shares)


def largest(shares: Iterable[np.ndarray]) -> np.ndarray:
    """For every voxel the number of the share that is largest there, the first of equals; uint8 (D, H, W)."""
    shares = iter(shares)
    best_DHW = next(shares).copy()
    winner_DHW = np.zeros(best_DHW.shape, dtype=np.uint8)
    for k, share_DHW in enumerate(shares, start=1):
        winner_DHW[share_DHW > best_DHW] = k
        np.maximum(best_DHW, share_DHW, out=best_DHW)
    return winner_DHW


Winners = Callable[[Iterable[np.ndarray]], np.ndarray]


class SlabVote:
    """`largest_share`, or another rule, of shares that come in slabs along D.

    Each slab gives the winners of the rows it completes. Holds the few rows that later ones still need. The weights and
    the order of the axes are those of a whole volume; how a matrix product adds up may differ in a share's last bit.
    """

    def __init__(self, shape_DHW: Sequence[int], new_shape_DHW: Sequence[int], winners: Winners = largest) -> None:
        self.winners = winners
        self.weights = _weights_of_axes(shape_DHW, new_shape_DHW)
        matrix = dict(self.weights).get(0, np.eye(shape_DHW[0], dtype=np.float32))
        is_used = matrix != 0  # new row i is made of the rows from first_D[i] to before end_D[i]
        self.first_D, self.end_D = is_used.argmax(axis=1), shape_DHW[0] - is_used[:, ::-1].argmax(axis=1)
        self.no_row_0HW = np.zeros((0, *new_shape_DHW[1:]), dtype=np.uint8)
        self.held_KdHW: np.ndarray | None = None
        self.held_from = self.done = 0

    def add(self, shares_KdHW: np.ndarray) -> np.ndarray:
        """The next rows of all classes -> uint8 (d', H', W'), the winners that are next; d' may be 0."""
        held = shares_KdHW if self.held_KdHW is None else np.concatenate((self.held_KdHW, shares_KdHW), axis=1)
        seen, offset = self.held_from + held.shape[1], self.held_from
        start, stop = self.done, int(np.searchsorted(self.end_D, seen, side="right"))
        keep_from = int(self.first_D[stop]) if stop < len(self.first_D) else seen
        self.held_KdHW, self.held_from, self.done = held[:, keep_from - offset :].copy(), keep_from, stop
        if start == stop:
            return self.no_row_0HW
        lo, hi = int(self.first_D[start]), int(self.end_D[stop - 1])
        weights = [(axis, m[start:stop, lo:hi] if axis == 0 else m) for axis, m in self.weights]
        return self.winners(_weighted(share_dHW[lo - offset : hi - offset], weights) for share_dHW in held)
