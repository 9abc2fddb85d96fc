"""Memory that a loader's workers write batches into and the training process reads, without a copy in between.

The standard hand-over makes a new shared file for every batch: its pages are cleared, mapped and dropped again, which
costs more than reading the crop. Here a few slots are made once, before the workers are forked, and go round. A slot
comes back when the last tensor over it is gone, so a batch stays what it is for as long as anybody holds it.
"""

import mmap
import weakref
from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class BatchRing:
    """`num_slots` arrays of `shape` and `dtype`, shared with every process forked after this."""

    def __init__(self, num_slots: int, shape: Sequence[int], dtype: np.dtype) -> None:
        self.shape, self.dtype = tuple(shape), dtype
        self._bytes = int(np.prod(self.shape)) * dtype.itemsize
        # anonymous memory rather than /dev/shm, which is 64 MB in many containers
        self._memory = mmap.mmap(-1, max(1, num_slots * self._bytes))
        self._free = deque(range(num_slots))

    def take(self) -> int | None:
        """A slot that nobody holds, or None when all are held."""
        return self._free.popleft() if self._free else None

    def array(self, slot: int) -> np.ndarray:
        """The slot's memory, for a worker to write into."""
        flat = np.frombuffer(self._memory, self.dtype, int(np.prod(self.shape)), slot * self._bytes)
        return flat.reshape(self.shape)

    def tensor(self, slot: int) -> Tensor:
        """The slot as a tensor. The slot is free again when it, and every view of it, is gone."""
        array = self.array(slot)
        weakref.finalize(array, self._free.append, slot)  # the tensor's storage keeps the array alive
        return torch.from_numpy(array)
