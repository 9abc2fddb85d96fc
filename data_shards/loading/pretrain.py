"""Endless batches of unlabelled crops for masked pretraining.

Which sample comes when is a pure function of (seed, order, epoch), its crop, mirroring and mask seed one of (seed,
epoch, sample): neither ranks nor workers change them, and `samples_seen` is the whole state.

B batch, C channel, D H W voxels
"""

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from data_shards.errors import InputError, ShardError
from data_shards.formats.index import ShardIndex
from data_shards.loading.crops import Answer, CropRecipe, CropSet, Request
from data_shards.loading.ring import BatchRing
from data_shards.order.partition import Pass, step_passes
from data_shards.order.shuffle import EpochOrder
from data_shards.order.streams import stream_seed
from data_shards.order.world import World

CACHE_BYTES = 256 * 2**20  # per rank
_PREFETCH = 2  # batches a worker is ahead
_HELD = 4  # batches that may be held beside; more are handed over the slow way


@dataclass(frozen=True)
class PretrainBatch:
    """The samples of one forward pass of one rank.

    stored_BCDHW: float16 or int16 crops as stored; `volume_BCDHW` widens them. seeds_B: int64, one mask seed per
    sample. keys: their case names. samples_seen_after: position of the global order after this pass of all ranks; a
    run resumes from that after the last pass of a step. weight: of the pass's mean loss in the plain mean over the
    passes of a step, see `Pass`. num_replaced: samples whose volume could not be read and gave way to another, for the
    reasons in `damage`.
    """

    stored_BCDHW: Tensor
    scale_B: Tensor
    offset_B: Tensor
    seeds_B: Tensor
    keys: tuple[str, ...]
    samples_seen_after: int
    weight: float = 1.0
    num_replaced: int = 0
    damage: tuple[str, ...] = ()

    @property
    def volume_BCDHW(self) -> Tensor:
        """The crops in float32, on the device where the stored ones are: half the bytes cross the bus."""
        volume_BCDHW = self.stored_BCDHW.float()
        if self.stored_BCDHW.dtype == torch.float16:
            return volume_BCDHW
        shape = (-1, 1, 1, 1, 1)
        return volume_BCDHW.mul_(self.scale_B.view(shape)).add_(self.offset_B.view(shape))

    def to(self, device: torch.device | str) -> "PretrainBatch":
        """The tensors that the network needs on `device`; copies from pinned memory do not wait."""
        stored, scale, offset = (
            tensor.to(device, non_blocking=True) for tensor in (self.stored_BCDHW, self.scale_B, self.offset_B)
        )
        return replace(self, stored_BCDHW=stored, scale_B=scale, offset_B=offset)


def pretrain_batches(
    index: ShardIndex,
    volumes: Sequence[int],
    crop_DHW: tuple[int, int, int],
    micro_batch: int,
    world: World,
    seed: int,
    samples_seen: int = 0,
    num_workers: int = 0,
    mirror: tuple[bool, bool, bool] = (False, False, False),
    crops_per_volume: int = 1,
    min_foreground: float = 0.0,
    cache_bytes: int = CACHE_BYTES,
    max_damaged_share: float = 0.01,
    on_damage: Callable[[str], None] = warnings.warn,
    pin_memory: bool = False,
    global_batch: int | None = None,
    order: int = 0,
) -> Iterator[PretrainBatch]:
    """The passes of `world.rank`, at most `micro_batch` crops each, from position `samples_seen` on, for ever.

    `global_batch` crops of all ranks are one optimizer step; none = one whole micro batch of each rank. Another
    `order` (from 0) shuffles the epochs otherwise and leaves each sample's crops and masks as they are: for a run that
    goes back to a checkpoint and on in another order. In that epoch some samples come twice and some not at all.

    `volumes` are places in `index.volumes`: the pool. For `mirror`, `crops_per_volume` and `min_foreground` see
    `CropRecipe`. With `num_workers` = 0 stored volumes stay in memory if the pool fits `cache_bytes`; worker processes
    read just the crops and hand them over in shared memory.

    A volume that can't be read gives way to another; `on_damage` hears of each once. Raises ShardError when more than
    `max_damaged_share` (0..1) of this rank's samples did, InputError for an empty pool or more ranks than samples of a
    step, ValueError for `samples_seen` in the middle of a step of `global_batch`.
    """
    if not len(volumes):
        raise InputError("the pretraining pool is empty: lower the share of test persons or add scans")
    recipe = CropRecipe(crop_DHW, seed, crops_per_volume, mirror, min_foreground)
    if global_batch is not None and samples_seen % global_batch:
        raise ValueError(f"{samples_seen} samples seen is not a whole number of steps of {global_batch}")
    epochs = EpochOrder(len(volumes), stream_seed(seed, "order", order) if order else seed, crops_per_volume)
    per_step = micro_batch * world.size if global_batch is None else global_batch
    asked, answered = itertools.tee(_passes(samples_seen, per_step, micro_batch, world))  # the loader runs ahead
    ring = None
    if num_workers:
        shape = (micro_batch, len(index.channel_names), *crop_DHW)
        ring = BatchRing(num_workers * _PREFETCH + _HELD, shape, np.dtype(index.encoding.dtype))
    loader = DataLoader(
        CropSet(index, volumes, recipe, 0 if num_workers else cache_bytes, ring),
        batch_sampler=_Requests(epochs, asked, ring),  # type: ignore[arg-type]
        num_workers=num_workers,
        prefetch_factor=_PREFETCH if num_workers else None,
        multiprocessing_context="fork" if num_workers else None,  # the ring is shared by being inherited
        collate_fn=_as_it_is,  # type: ignore[arg-type]
        worker_init_fn=_one_thread,
        generator=torch.Generator(),  # its own, or the loader would draw from the program's
    )
    damage = DamageCount(max_damaged_share, epochs.num_samples / world.size, on_damage)
    for answer in loader:
        batch = _batch(answer, ring, next(answered), pin_memory)
        del answer
        damage.add(batch)
        yield batch


class DamageCount:
    """Counts samples that gave way, tells of each new reason once, and stops the run when they are too many.

    The share is taken of at least one epoch of `epoch_samples`, or the first damaged sample would stop every run.
    """

    def __init__(self, max_share: float, epoch_samples: float, tell: Callable[[str], None]) -> None:
        self.max_share, self.epoch_samples, self.tell = max_share, epoch_samples, tell
        self.num_replaced = self.num_samples = 0
        self._told: set[str] = set()

    def add(self, batch: PretrainBatch) -> None:
        """Take note of one batch. Raises ShardError above the share."""
        self.num_samples += len(batch.keys)
        self.num_replaced += batch.num_replaced
        for line in batch.damage:
            if line not in self._told:
                self._told.add(line)
                self.tell(f"skipped {line}")
        if batch.num_replaced and self.num_replaced > self.max_share * max(self.num_samples, self.epoch_samples):
            raise ShardError(
                f"{self.num_replaced} of {self.num_samples} samples can't be read, allowed is a share of "
                f"{self.max_share:g} (max_damaged_share); the last: {batch.damage[-1]}"
            )


class _Requests:
    """Batch sampler: for each of this rank's passes its part of the order, and a free slot to put it into."""

    def __init__(self, epochs: EpochOrder, passes: Iterable[Pass], ring: BatchRing | None) -> None:
        self.epochs, self.passes, self.ring = epochs, passes, ring

    def __iter__(self) -> Iterator[Request]:
        for one in self.passes:
            keys = [self.epochs.at(position) for position in one.positions]
            yield Request(keys, self.ring.take() if self.ring else None)


def _passes(samples_seen: int, global_batch: int, micro_batch: int, world: World) -> Iterator[Pass]:
    """This rank's passes of all steps from `samples_seen` on."""
    for seen in itertools.count(samples_seen, global_batch):
        yield from step_passes(seen, global_batch, micro_batch, world)


def _batch(answer: Answer, ring: BatchRing | None, of_pass: Pass, pin_memory: bool) -> PretrainBatch:
    samples = answer.samples
    if answer.voxels_BCDHW is not None:
        stored_BCDHW = torch.from_numpy(answer.voxels_BCDHW)
    else:
        assert ring is not None and answer.slot is not None
        stored_BCDHW = ring.tensor(answer.slot)[: len(samples)]  # a slot has room for a whole micro batch
    return PretrainBatch(
        stored_BCDHW.pin_memory() if pin_memory else stored_BCDHW,
        torch.tensor([sample.scale for sample in samples], dtype=torch.float32),
        torch.tensor([sample.offset for sample in samples], dtype=torch.float32),
        torch.tensor([sample.mask_seed for sample in samples], dtype=torch.int64),
        tuple(sample.case for sample in samples),
        of_pass.seen_after,
        of_pass.weight,
        num_replaced=sum(bool(sample.damage) for sample in samples),
        damage=tuple(line for sample in samples for line in sample.damage),
    )


def _as_it_is(answer: Answer) -> Answer:
    return answer


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
