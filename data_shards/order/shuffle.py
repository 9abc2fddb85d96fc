"""Which sample stands at which position of the endless training order.

Position counts from the very start of training; position // num_samples is the epoch. Every sample comes once an
epoch, and the order is a pure function of (seed, epoch), so a position restores without replaying what came before.
Costs one permutation an epoch (20 ms for a million volumes); only the current one is kept.
"""

import numpy as np

from data_shards.order.streams import stream


class EpochOrder:
    """The order of `num_volumes` >= 1 volumes under `seed`, each with `crops_per_volume` >= 1 samples in a row.

    Sample s is crop s % crops_per_volume of volume s // crops_per_volume.
    """

    def __init__(self, num_volumes: int, seed: int, crops_per_volume: int = 1) -> None:
        if num_volumes < 1 or crops_per_volume < 1:
            raise ValueError(f"an order needs at least 1 sample, got {num_volumes} x {crops_per_volume}")
        self.num_volumes = num_volumes
        self.crops_per_volume = crops_per_volume
        self.seed = seed
        self._epoch = -1
        self._permutation = np.empty(0, dtype=np.int64)

    @property
    def num_samples(self) -> int:
        """Samples of one epoch."""
        return self.num_volumes * self.crops_per_volume

    def at(self, position: int) -> tuple[int, int]:
        """(epoch, sample) at `position` >= 0, with 0 <= sample < num_samples."""
        if position < 0:
            raise ValueError(f"position {position} lies before the start of training")
        epoch, place = divmod(position, self.num_samples)
        if epoch != self._epoch:
            self._permutation = stream(self.seed, "shuffle", epoch).permutation(self.num_volumes)
            self._epoch = epoch
        turn, crop = divmod(place, self.crops_per_volume)
        return epoch, int(self._permutation[turn]) * self.crops_per_volume + crop
