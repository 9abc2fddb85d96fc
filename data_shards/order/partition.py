"""Splits the global order over ranks, one micro step at a time.

The ranks of one micro step take neighbouring slices of the global order, and the step moves everybody on by
micro_batch * world.size. So the order of samples does not depend on the number of ranks, an epoch border may fall
inside a step, nothing is dropped or repeated, and the whole state is one number: the samples seen so far.
"""

from data_shards.order.world import World


def positions(samples_seen: int, micro_batch: int, world: World) -> range:
    """Positions of the global order that `world.rank` reads in the micro step after `samples_seen` samples."""
    if samples_seen < 0 or micro_batch < 1:
        raise ValueError(f"need samples_seen >= 0 and micro_batch >= 1, got {samples_seen} and {micro_batch}")
    first = samples_seen + world.rank * micro_batch
    return range(first, first + micro_batch)
