"""World, partition and shuffle together: who reads what, when."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.order.partition import step_passes
from data_shards.order.shuffle import EpochOrder
from data_shards.order.world import World


def positions(samples_seen: int, micro: int, world: World) -> range:
    """What a rank reads in a step of one whole pass."""
    (only,) = step_passes(samples_seen, micro * world.size, micro, world)
    return only.positions


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


def test_the_order_of_an_epoch_is_what_it_has_always_been():
    """Pinned: another order would take a run that is resumed by a newer version through some samples twice."""
    order = EpochOrder(8, seed=4)
    assert [order.at(p)[1] for p in range(16)] == [1, 0, 6, 4, 7, 3, 5, 2, 1, 3, 5, 7, 6, 2, 4, 0]


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


def positions_of_all(seen: int, micro: int, size: int, num_steps: int) -> np.ndarray:
    """(steps, ranks, micro) positions that a world reads from `seen` on."""
    steps = [
        [positions(seen + step * micro * size, micro, World(rank, size)) for rank in range(size)]
        for step in range(num_steps)
    ]
    return np.array([[list(of_rank) for of_rank in step] for step in steps])


@pytest.mark.parametrize("micro", [1, 2, 5])
def test_from_1_to_257_ranks_each_step_takes_the_next_positions_and_nothing_else(micro):
    for size in range(1, 258):
        seen = 7 * size + 3  # a run that stopped in another world, within an epoch
        read = positions_of_all(seen, micro, size, num_steps=2)
        assert read.shape == (2, size, micro)
        assert np.array_equal(read.ravel(), np.arange(seen, seen + 2 * micro * size)), size


NUM_POSITIONS = 257 * 5 * 2


@pytest.mark.parametrize(("num_volumes", "crops_per_volume"), [(1, 1), (23, 1), (23, 3), (5, 7), (300, 2), (1, 4)])
def test_from_1_to_257_ranks_every_sample_comes_once_an_epoch_in_one_global_order(num_volumes, crops_per_volume):
    num_samples = num_volumes * crops_per_volume
    order = EpochOrder(num_volumes, 3, crops_per_volume)
    alone = np.array([order.at(p) for p in range(NUM_POSITIONS)])
    assert np.array_equal(alone[:, 0], np.arange(NUM_POSITIONS) // num_samples)
    for epoch in range(NUM_POSITIONS // num_samples):
        of_epoch = alone[epoch * num_samples : (epoch + 1) * num_samples, 1]
        assert np.array_equal(np.sort(of_epoch), np.arange(num_samples))
        # crops of a volume are neighbours, in turn
        volumes = of_epoch.reshape(num_volumes, crops_per_volume)
        assert np.array_equal(volumes % crops_per_volume, np.tile(np.arange(crops_per_volume), (num_volumes, 1)))
        assert (volumes // crops_per_volume == volumes[:, :1] // crops_per_volume).all()
    for size, micro in itertools.product([1, 2, 3, 64, 255, 256, 257], [1, 2, 5]):
        num_steps = NUM_POSITIONS // (micro * size)
        read = positions_of_all(0, micro, size, num_steps)
        for rank in {0, size // 2, size - 1}:  # each rank has an order of its own and walks it alone
            own = EpochOrder(num_volumes, 3, crops_per_volume)
            walked = np.array([own.at(int(p)) for p in read[:, rank].ravel()])
            assert np.array_equal(walked, alone[read[:, rank].ravel()]), (size, micro, rank)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 4), st.lists(st.tuples(st.integers(1, 257), st.integers(1, 6)), max_size=6))
def test_a_run_resumed_again_and_again_on_other_world_sizes_reads_one_order(num_volumes, crops_per_volume, worlds):
    """Each of `worlds` is (size, micro batch) of a part of the run, of one step."""
    seen, read = 0, []
    for size, micro in worlds:
        for rank in range(size):
            order = EpochOrder(num_volumes, 8, crops_per_volume)
            read += [order.at(p) for p in positions(seen, micro, World(rank, size))]
        seen += size * micro
    alone = EpochOrder(num_volumes, 8, crops_per_volume)
    assert read == [alone.at(p) for p in range(seen)]
