"""Endless batches of unlabelled crops for masked pretraining.

Which sample comes when is a pure function of (seed, epoch), its crop, mirroring and mask seed one of (seed, epoch,
sample): neither ranks nor workers change them, and `samples_seen` is the whole state. B batch, C channel, D H W voxels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data_shards.errors import InputError
from data_shards.formats.index import ShardIndex
from data_shards.formats.reader import open_reader
from data_shards.loading.cache import CropSource
from data_shards.order.crops import Triple, crop_start
from data_shards.order.partition import positions
from data_shards.order.shuffle import EpochOrder
from data_shards.order.streams import stream, stream_seed
from data_shards.order.world import World

CACHE_BYTES = 256 * 2**20  # per rank

Mirror = tuple[bool, bool, bool]


@dataclass(frozen=True)
class PretrainBatch:
    """One micro batch of one rank.

    volume_BCDHW: float32 crops. seeds_B: int64, one mask seed per sample. keys: their case names.
    samples_seen_after: position of the global order after this micro step of all ranks; a run resumes from it.
    """

    volume_BCDHW: Tensor
    seeds_B: Tensor
    keys: tuple[str, ...]
    samples_seen_after: int


def pretrain_batches(
    index: ShardIndex,
    volumes: Sequence[int],
    crop_DHW: Triple,
    micro_batch: int,
    world: World,
    seed: int,
    samples_seen: int = 0,
    num_workers: int = 0,
    mirror: Mirror = (False, False, False),
    cache_bytes: int = CACHE_BYTES,
) -> Iterator[PretrainBatch]:
    """Batches of `micro_batch` crops for `world.rank`, from position `samples_seen` on, for ever.

    `volumes` are places in `index.volumes`: the pool. An axis of `mirror` that is True is flipped in half of the
    samples. With `num_workers` = 0 decoded volumes stay in memory if the pool fits `cache_bytes`; worker processes
    read just the crops. Raises InputError for an empty pool.
    """
    if not volumes:
        raise InputError("the pretraining pool is empty: lower the share of test persons or add scans")
    crops = _Crops(index, tuple(volumes), crop_DHW, seed, mirror, cache_bytes if num_workers == 0 else 0)
    loader = DataLoader(
        crops,
        batch_sampler=_Positions(len(volumes), micro_batch, world, seed, samples_seen),
        num_workers=num_workers,
        collate_fn=_collate,
        worker_init_fn=_one_thread,
        generator=torch.Generator(),  # its own, or the loader would draw from the program's
    )
    for volume_BCDHW, seeds_B, keys in loader:
        samples_seen += micro_batch * world.size
        yield PretrainBatch(volume_BCDHW, seeds_B, keys, samples_seen)


class _Positions:
    """Batch sampler: for each micro step this rank's [(epoch, sample), ...]."""

    def __init__(self, pool_size: int, micro_batch: int, world: World, seed: int, samples_seen: int) -> None:
        self.pool_size, self.micro_batch, self.world = pool_size, micro_batch, world
        self.seed, self.samples_seen = seed, samples_seen

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order, seen = EpochOrder(self.pool_size, self.seed), self.samples_seen
        while True:
            yield [order.at(position) for position in positions(seen, self.micro_batch, self.world)]
            seen += self.micro_batch * self.world.size


Item = tuple[np.ndarray, int, str]


class _Crops(Dataset[Item]):
    """(epoch, sample) -> crop (C, D, H, W), mask seed, case name."""

    def __init__(
        self, index: ShardIndex, pool: tuple[int, ...], crop_DHW: Triple, seed: int, mirror: Mirror, cache_bytes: int
    ) -> None:
        self.index, self.pool, self.crop_DHW, self.seed, self.mirror = index, pool, crop_DHW, seed, mirror
        self.source = CropSource(open_reader(index), pool, cache_bytes)

    def __getitem__(self, epoch_and_sample: tuple[int, int]) -> Item:
        epoch, sample = epoch_and_sample
        i = self.pool[sample]
        rng = stream(self.seed, "crop", epoch, sample)
        start = crop_start(rng, self.index.volumes[i].shape_DHW, self.crop_DHW)
        crop_CDHW = self.source.crop(i, start, self.crop_DHW)
        is_flipped = rng.random(3) < 0.5
        axes = tuple(axis + 1 for axis in range(3) if self.mirror[axis] and is_flipped[axis])
        crop_CDHW = np.ascontiguousarray(np.flip(crop_CDHW, axes))
        return crop_CDHW, stream_seed(self.seed, "mask", epoch, sample), self.index.volumes[i].case


def _collate(items: list[Item]) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    crops, seeds, keys = zip(*items, strict=True)
    return torch.from_numpy(np.stack(crops)), torch.tensor(seeds, dtype=torch.int64), keys


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
