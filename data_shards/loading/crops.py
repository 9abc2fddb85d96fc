"""(epoch, sample) -> one crop with its mask seed: a pure function, whichever process computes it.

A volume that can't be read gives way to another one, drawn from (seed, epoch, sample, attempt): so a damaged shard
costs its own samples, the same ones give way on any number of ranks, and the loader counts them. C D H W voxels.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from data_shards.errors import ShardError
from data_shards.formats.index import ShardIndex
from data_shards.formats.reader import open_reader
from data_shards.loading.cache import CropSource
from data_shards.loading.ring import BatchRing
from data_shards.order.crops import Triple, crop_start
from data_shards.order.foreground import ForegroundGrid, anatomy_start
from data_shards.order.streams import stream, stream_seed

_MAX_ATTEMPTS = 100


class Sample(NamedTuple):
    """What there is to know of a crop beside its voxels, which read as stored * scale + offset.

    `damage` has a line for each volume that gave way to this one.
    """

    scale: float
    offset: float
    mask_seed: int
    case: str
    damage: tuple[str, ...]


class Request(NamedTuple):
    """One batch to read: its (epoch, sample) keys, and the slot of the ring to write into (None = a new array)."""

    keys: list[tuple[int, int]]
    slot: int | None


class Answer(NamedTuple):
    """`voxels_BCDHW` None = they are in the slot."""

    slot: int | None
    voxels_BCDHW: np.ndarray | None
    samples: list[Sample]


@dataclass(frozen=True)
class CropRecipe:
    """What is cut out of a volume. An axis of `mirror` that is True is flipped in half of the samples.

    `min_foreground` (0..1): share of a crop's 16^3 blocks that should hold anatomy; the best of 16 draws is taken.
    """

    crop_DHW: Triple
    seed: int
    crops_per_volume: int = 1
    mirror: tuple[bool, bool, bool] = (False, False, False)
    min_foreground: float = 0.0


class CropSet(Dataset[Answer]):
    """The crops of the volumes `pool` (places in the index), a batch at a time; keys as `EpochOrder` counts them."""

    def __init__(
        self,
        index: ShardIndex,
        pool: Sequence[int],
        recipe: CropRecipe,
        cache_bytes: int,
        ring: BatchRing | None = None,
    ) -> None:
        self.volumes, self.pool, self.recipe, self.ring = index.volumes, np.asarray(pool), recipe, ring
        self.shape_CDHW, self.dtype = (len(index.channel_names), *recipe.crop_DHW), np.dtype(index.encoding.dtype)
        self.source = CropSource(open_reader(index), pool, cache_bytes)

    def __getitems__(self, request: Request) -> Answer:
        """The crops of a batch; neighbours out of one volume are read together."""
        if self.ring is None or request.slot is None:
            voxels_BCDHW = np.empty((len(request.keys), *self.shape_CDHW), dtype=self.dtype)
        else:
            voxels_BCDHW = self.ring.array(request.slot)
        crops, samples = iter(voxels_BCDHW), list[Sample]()
        for (epoch, volume), group in itertools.groupby(request.keys, self._volume_of):
            names = [sample for _, sample in group]
            samples += self._of_one_volume(epoch, volume, names, list(itertools.islice(crops, len(names))))
        return Answer(request.slot, voxels_BCDHW if request.slot is None else None, samples)

    def _volume_of(self, key: tuple[int, int]) -> tuple[int, int]:
        epoch, sample = key
        return epoch, sample // self.recipe.crops_per_volume

    def _of_one_volume(self, epoch: int, volume: int, names: list[int], into: list[np.ndarray]) -> list[Sample]:
        try:
            return self._read(epoch, names, into, int(self.pool[volume]), ())
        except ShardError:
            # one by one: which crops give way must not depend on which of them happen to be in one batch
            return [self._read_or_replace(epoch, volume, name, crop) for name, crop in zip(names, into, strict=True)]

    def _read_or_replace(self, epoch: int, volume: int, name: int, crop: np.ndarray) -> Sample:
        damage: list[str] = []
        i = int(self.pool[volume])
        for attempt in range(_MAX_ATTEMPTS):
            try:
                return self._read(epoch, [name], [crop], i, tuple(damage))[0]
            except ShardError as error:
                damage.append(f"{self.volumes.column('case')[i]}: {error}")
                i = int(self.pool[stream(self.recipe.seed, "replace", epoch, name, attempt).integers(len(self.pool))])
        raise ShardError(f"{_MAX_ATTEMPTS} volumes in a row can't be read, the last: {damage[-1]}")

    def _read(
        self, epoch: int, names: list[int], into: list[np.ndarray], i: int, damage: tuple[str, ...]
    ) -> list[Sample]:
        """Samples `names` of an epoch, out of the volume at place `i` of the index."""
        seed = self.recipe.seed
        rngs = [stream(seed, "crop", epoch, name) for name in names]
        self.source.read(i, [self._start(rng, i) for rng in rngs], self.recipe.crop_DHW, into)
        for rng, crop in zip(rngs, into, strict=True):
            self._mirror(rng, crop)
        scale, offset, case = (self.volumes.column(name)[i].as_py() for name in ("scale", "offset", "case"))
        seeds = [stream_seed(seed, "mask", epoch, name) for name in names]
        return [Sample(scale, offset, mask_seed, case, damage) for mask_seed in seeds]

    def _start(self, rng: np.random.Generator, i: int) -> Triple:
        _, d, h, w = self.volumes.matrix("shape_CDHW")[i].tolist()
        if not self.recipe.min_foreground:
            return crop_start(rng, (d, h, w), self.recipe.crop_DHW)
        try:
            grid = ForegroundGrid(self.volumes.column("foreground")[i].as_py(), (d, h, w))
        except ValueError as error:
            raise ShardError(f"the index: {error}: build the shards again") from None
        return anatomy_start(rng, grid, self.recipe.crop_DHW, self.recipe.min_foreground)

    def _mirror(self, rng: np.random.Generator, crop_CDHW: np.ndarray) -> None:
        if not any(self.recipe.mirror):
            return
        is_flipped = rng.random(3) < 0.5
        axes = tuple(axis + 1 for axis in range(3) if self.recipe.mirror[axis] and is_flipped[axis])
        if axes:
            crop_CDHW[...] = np.flip(crop_CDHW, axes).copy()
