"""World, partition and shuffle together: who reads what, when."""

import pytest

from data_shards.order.partition import positions
from data_shards.order.shuffle import EpochOrder
from data_shards.order.world import World


def read_by_all(num_samples: int, micro: int, size: int, num_reads: int) -> list[tuple[int, int]]:
    """What the ranks of a world read, put together step by step, rank by rank."""
    orders, seen, read = [EpochOrder(num_samples, seed=3) for _ in range(size)], 0, []
    while len(read) < num_reads:
        for rank in range(size):
            read += [orders[rank].at(p) for p in positions(seen, micro, World(rank, size))]
        seen += micro * size
    return read[:num_reads]


@pytest.mark.parametrize("size", range(1, 9))
@pytest.mark.parametrize("micro", [1, 3])
def test_every_world_size_reads_the_same_global_order_with_every_sample_once_an_epoch(size, micro):
    read = read_by_all(num_samples=23, micro=micro, size=size, num_reads=23 * 3)
    assert read == read_by_all(num_samples=23, micro=1, size=1, num_reads=23 * 3)
    for epoch in range(3):
        of_epoch = read[23 * epoch : 23 * (epoch + 1)]
        assert sorted(of_epoch) == [(epoch, sample) for sample in range(23)]


def test_epochs_and_seeds_have_orders_of_their_own():
    def epoch_order(seed: int, epoch: int) -> list[int]:
        order = EpochOrder(50, seed)
        return [order.at(50 * epoch + place)[1] for place in range(50)]

    orders = [epoch_order(0, 0), epoch_order(0, 1), epoch_order(1, 0), list(range(50))]
    assert len({tuple(order) for order in orders}) == 4


def test_a_position_does_not_depend_on_what_was_asked_before():
    walked = EpochOrder(7, seed=0)
    in_order = [walked.at(p) for p in range(40)]
    jumping = EpochOrder(7, seed=0)
    for p in [39, 0, 20, 6, 7, 38]:
        assert jumping.at(p) == in_order[p] == EpochOrder(7, seed=0).at(p)


@pytest.mark.parametrize(("rank", "size"), [(-1, 2), (2, 2), (0, 0)])
def test_a_rank_outside_its_world_is_refused(rank, size):
    with pytest.raises(ValueError, match="world size"):
        World(rank, size)


def test_impossible_orders_are_refused():
    for broken in (lambda: EpochOrder(0, 0), lambda: EpochOrder(3, 0).at(-1), lambda: positions(-1, 1, World())):
        with pytest.raises(ValueError):
            broken()
