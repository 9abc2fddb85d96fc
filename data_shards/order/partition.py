"""Splits the global order over ranks, one optimizer step at a time.

A step takes the next `global_batch` samples of the order, on any number of ranks up to that, in as few passes as their
micro batches allow. So the samples of a step do not depend on the number of ranks, an epoch border may fall inside it,
nothing is dropped, and the whole state is one number: the samples seen so far. Where the batch does not divide, passes
differ by a sample and say how much they weigh.
"""

from dataclasses import dataclass

from data_shards.errors import InputError
from data_shards.order.world import World


@dataclass(frozen=True)
class Pass:
    """One forward pass of one rank: `positions` of the global order, at least one.

    weight: by which the mean loss over the pass's samples is multiplied, so that the plain mean over the passes of all
    ranks is the mean over the samples of the step; exactly 1 where the batch divides. It is 0 for a pass without a
    sample of its own, which repeats the last one of the step because no rank can skip a pass; there are such with
    micro batches of one sample alone. seen_after: samples seen after this pass of all ranks.
    """

    positions: range
    weight: float
    seen_after: int


def num_passes(global_batch: int, micro_batch: int, num_ranks: int) -> int:
    """Passes of each rank in a step. InputError for more ranks than samples."""
    if num_ranks > global_batch:
        raise InputError(
            f"global_batch = {global_batch} on {num_ranks} ranks: global_batch must be at least the number of ranks; "
            f"use fewer ranks, or global_batch={num_ranks}"
        )
    return -(-global_batch // (micro_batch * num_ranks))


def step_passes(samples_seen: int, global_batch: int, micro_batch: int, world: World) -> list[Pass]:
    """What `world.rank` does in the step after `samples_seen` samples.

    The passes of all ranks, counted pass by pass and in each rank by rank, take the samples of the step in order and
    as evenly as can be: they differ by one sample at most, the larger ones first. InputError for more ranks than
    samples.
    """
    if samples_seen < 0 or global_batch < 1 or micro_batch < 1:
        raise ValueError(
            f"need samples_seen >= 0, global_batch >= 1 and micro_batch >= 1, got {samples_seen}, {global_batch} and "
            f"{micro_batch}"
        )
    slots = num_passes(global_batch, micro_batch, world.size) * world.size
    size, larger = divmod(global_batch, slots)
    end_of_step = samples_seen + global_batch

    def start(slot: int) -> int:
        return samples_seen + slot * size + min(slot, larger)

    passes = []
    for first in range(0, slots, world.size):
        begin, end = start(first + world.rank), start(first + world.rank + 1)
        weight = (end - begin) * slots / global_batch
        passes.append(Pass(range(min(begin, end_of_step - 1), end), weight, start(first + world.size)))
    return passes
