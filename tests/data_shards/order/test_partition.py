"""One optimizer step over any number of ranks: the same samples, each of the same weight."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.errors import InputError
from data_shards.order.partition import Pass, num_passes, step_passes
from data_shards.order.world import World


def slots_of(seen: int, global_batch: int, micro: int, size: int) -> list[Pass]:
    """All passes of all ranks of a step: pass by pass, in each rank by rank."""
    of_ranks = [step_passes(seen, global_batch, micro, World(rank, size)) for rank in range(size)]
    return [one for passes in zip(*of_ranks, strict=True) for one in passes]


@st.composite
def steps(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """(step, global batch, micro batch, ranks): all that a run may have."""
    global_batch = draw(st.integers(1, 70))
    return draw(st.integers(0, 5)), global_batch, draw(st.integers(1, 9)), draw(st.integers(1, global_batch))


@settings(max_examples=400, deadline=None, derandomize=True)
@given(steps())
def test_each_position_of_a_step_is_read_once_and_weighs_the_same_on_any_number_of_ranks(case):
    step, global_batch, micro, size = case
    slots = slots_of(step * global_batch, global_batch, micro, size)
    read = [position for one in slots if one.weight for position in one.positions]
    assert read == list(range(step * global_batch, (step + 1) * global_batch))
    for one in slots:
        assert 1 <= len(one.positions) <= micro, "no rank waits for another without a batch"
        if one.weight:  # a sample's share of the plain mean over slots, of the means over a slot's samples
            share = Fraction(one.weight).limit_denominator(10**6) / len(one.positions) / len(slots)
            assert share == Fraction(1, global_batch)
        else:  # filled up with a sample of this very step
            assert micro == 1 and one.positions[0] in read


@settings(max_examples=400, deadline=None, derandomize=True)
@given(steps())
def test_a_step_is_cut_as_evenly_as_can_be_into_as_few_passes_as_can_be(case):
    step, global_batch, micro, size = case
    slots = slots_of(step * global_batch, global_batch, micro, size)
    passes = num_passes(global_batch, micro, size)
    assert len(slots) == passes * size and (passes - 1) * size * micro < global_batch <= passes * size * micro
    sizes = [len(one.positions) if one.weight else 0 for one in slots]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] - sizes[-1] <= 1
    for number in range(passes):  # all ranks of a pass know how far the order has been read after it
        of_pass = slots[number * size : (number + 1) * size]
        (seen_after,) = {one.seen_after for one in of_pass}
        assert seen_after == step * global_batch + sum(sizes[: (number + 1) * size])
    assert slots[-1].seen_after == (step + 1) * global_batch


@pytest.mark.parametrize(("micro", "size", "passes"), [(1, 1, 1), (4, 1, 3), (2, 3, 1), (3, 8, 2), (1, 5, 4)])
def test_a_batch_that_divides_is_cut_into_whole_micro_batches_of_weight_one(micro, size, passes):
    global_batch, seen = micro * size * passes, 1000
    for rank in range(size):
        cut = step_passes(seen, global_batch, micro, World(rank, size))
        starts = [seen + number * micro * size for number in range(passes)]
        assert [one.positions for one in cut] == [
            range(start + rank * micro, start + (rank + 1) * micro) for start in starts
        ]
        assert [one.weight for one in cut] == [1.0] * passes
        assert [one.seen_after for one in cut] == [start + micro * size for start in starts]


@pytest.mark.parametrize(
    ("global_batch", "micro", "size", "sizes", "remark"),
    [
        (8, 4, 3, [3, 3, 2], "fits in one pass"),
        (10, 2, 3, [2, 2, 2, 2, 1, 1], "two passes"),
        (7, 7, 7, [1] * 7, "one sample each"),
        (9, 4, 2, [3, 2, 2, 2], "not 4 4 1 and nothing"),
        (5, 1, 4, [1, 1, 1, 1, 1, 0, 0, 0], "micro batches of one can leave ranks without a sample"),
    ],
)
def test_uneven_steps_by_hand(global_batch, micro, size, sizes, remark):
    slots = slots_of(0, global_batch, micro, size)
    assert [len(one.positions) if one.weight else 0 for one in slots] == sizes
    assert [one.weight for one in slots] == [n * len(sizes) / global_batch for n in sizes]


def test_more_ranks_than_samples_in_a_step_are_refused():
    with pytest.raises(InputError, match="global_batch = 3 .* 4 ranks: global_batch must be at least the number of ra"):
        step_passes(0, 3, 8, World(0, 4))


@pytest.mark.parametrize(("seen", "global_batch", "micro"), [(-1, 4, 2), (0, 0, 2), (0, 4, 0)])
def test_impossible_steps_are_refused(seen, global_batch, micro):
    with pytest.raises(ValueError, match="need samples_seen >= 0"):
        step_passes(seen, global_batch, micro, World())
