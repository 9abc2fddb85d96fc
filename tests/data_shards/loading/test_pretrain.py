import itertools

import numpy as np
import pytest
import torch

from data_shards.errors import InputError
from data_shards.loading.pretrain import pretrain_batches
from data_shards.order.shuffle import EpochOrder
from data_shards.order.world import World
from tests.data_shards.helpers import build_places, decode, stored_code

SHAPES = [(8, 9, 10), (7, 12, 6), (10, 6, 9), (9, 9, 9), (6, 11, 8)]
CROP = (4, 5, 6)


@pytest.fixture(scope="module", params=["zarr", "webdataset"])
def index(request, tmp_path_factory):
    return build_places(tmp_path_factory.mktemp(request.param), SHAPES, request.param)


def read(index, num_steps, micro=2, world=World(), **settings):  # noqa: B008 (a frozen value)
    batches = pretrain_batches(index, range(5), CROP, micro, world, seed=4, **settings)
    return list(itertools.islice(batches, num_steps))


def as_samples(batches) -> list[tuple[str, int, bytes]]:
    return [
        (key, int(seed), volume.numpy().tobytes())
        for batch in batches
        for key, seed, volume in zip(batch.keys, batch.seeds_B, batch.volume_BCDHW, strict=True)
    ]


def test_every_crop_is_a_piece_of_the_volume_it_is_named_for(index):
    for batch in read(index, 15):
        assert batch.volume_BCDHW.shape == (2, 1, *CROP) and batch.volume_BCDHW.dtype == torch.float32
        assert batch.seeds_B.dtype == torch.int64
        for key, volume in zip(batch.keys, batch.volume_BCDHW.numpy(), strict=True):
            i = int(key.removeprefix("case_"))
            codes = decode(index, i, volume[0])
            whole = stored_code(SHAPES[i], i)
            corners = np.argwhere(whole == codes[0, 0, 0])  # codes are unique (but for air): that is where it is from
            assert any(np.array_equal(codes, whole[d : d + 4, h : h + 5, w : w + 6]) for d, h, w in corners)


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_ranks_together_read_the_same_samples_crops_and_seeds_as_one_process(index, size):
    steps = [read(index, -(-20 // size), micro=1, world=World(rank, size)) for rank in range(size)]
    together = as_samples(itertools.chain(*zip(*steps, strict=True)))
    alone = as_samples(read(index, 20, micro=1))
    assert together[:20] == alone
    for epoch in range(4):
        assert len({key for key, _, _ in alone[5 * epoch : 5 * epoch + 5]}) == 5


def test_crops_and_mask_seeds_are_new_in_every_epoch(index):
    samples = as_samples(read(index, 20, micro=1))
    assert len({seed for _, seed, _ in samples}) == 20 and len({voxels for _, _, voxels in samples}) == 20


def test_a_resumed_run_sees_the_same_next_samples(index):
    whole = read(index, 9)
    for after in (1, 4):
        resumed = read(index, 9 - after, samples_seen=whole[after - 1].samples_seen_after)
        assert as_samples(resumed) == as_samples(whole[after:])
        assert resumed[-1].samples_seen_after == whole[-1].samples_seen_after == 18


def test_a_resumed_run_may_have_another_world_size(index):
    seen = read(index, 3, micro=2, world=World(0, 2))[-1].samples_seen_after
    assert seen == 12
    assert as_samples(read(index, 4, micro=1, samples_seen=seen)) == as_samples(read(index, 16, micro=1))[12:]


@pytest.mark.parametrize("settings", [{"num_workers": 2}, {"cache_bytes": 0}], ids=["two workers", "no cache"])
def test_neither_workers_nor_cache_change_what_is_read(index, settings):
    assert as_samples(read(index, 8, **settings)) == as_samples(read(index, 8))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("micro", "size"), [(2, 1), (3, 2), (4, 3), (1, 4), (2, 7), (1, 7)])
def test_a_step_of_seven_samples_is_the_same_on_any_ranks_and_micro_batches(index, micro, size, workers):
    passes = -(-7 // (micro * size))
    settings = {"global_batch": 7, "num_workers": workers, "samples_seen": 7}
    of_ranks = [read(index, 3 * passes, micro, World(rank, size), **settings) for rank in range(size)]
    alone = as_samples(read(index, 4, micro=7))[7:]
    for step in range(3):  # of seven samples of an epoch of five
        turns = [turn for of_rank in zip(*of_ranks, strict=True) for turn in of_rank]
        turns = turns[step * passes * size : (step + 1) * passes * size]
        assert as_samples(batch for batch in turns if batch.weight) == alone[7 * step : 7 * step + 7]
        weights = [batch.weight / len(batch.keys) for batch in turns for _ in batch.keys]
        assert sum(weights) / len(turns) == pytest.approx(1.0)
        assert {round(weight, 9) for weight in weights if weight} == {round(len(turns) / 7, 9)}
        assert turns[-1].samples_seen_after == 7 * (step + 2)
        for batch in turns:
            assert 1 <= len(batch.keys) <= micro
            assert batch.stored_BCDHW.shape == (len(batch.keys), 1, *CROP)
            assert len(batch.keys) == len(batch.seeds_B) == len(batch.scale_B)


def test_a_batch_that_divides_weighs_one_and_is_read_as_if_there_were_no_steps(index):
    plain, in_steps = read(index, 8), read(index, 8, global_batch=4)
    assert as_samples(plain) == as_samples(in_steps)
    assert {batch.weight for batch in plain + in_steps} == {1.0}
    assert [batch.samples_seen_after for batch in in_steps] == list(range(2, 18, 2))


@pytest.mark.parametrize("samples_seen", [3, 9])
def test_a_run_cannot_go_on_in_the_middle_of_a_step(index, samples_seen):
    with pytest.raises(ValueError, match=f"{samples_seen} samples seen is not a whole number of steps of 4"):
        read(index, 1, global_batch=4, samples_seen=samples_seen)


def test_more_ranks_than_samples_are_refused(index):
    with pytest.raises(InputError, match="at least the number of ranks"):
        read(index, 1, world=World(0, 3), global_batch=2)


@pytest.mark.parametrize("workers", [0, 2])
def test_another_order_has_the_same_crops_and_mask_seeds_in_other_places(index, workers):
    orders = [as_samples(read(index, 10, micro=1, order=order, num_workers=workers)) for order in (0, 1, 2)]
    for first in (0, 5):  # epochs
        told = [order[first : first + 5] for order in orders]
        assert {tuple(sorted(epoch)) for epoch in told} == {tuple(sorted(told[0]))}
    assert len({tuple(order) for order in orders}) == 3
    as_ever = EpochOrder(5, seed=4)
    assert [key for key, _, _ in orders[0]] == [f"case_{as_ever.at(p)[1]}" for p in range(10)]


def test_mirroring_flips_the_chosen_axis_in_about_half_of_the_samples(index):
    plain, mirrored = read(index, 30), read(index, 30, mirror=(False, False, True))
    flips = 0
    for before, after in zip(plain, mirrored, strict=True):
        for a, b in zip(before.volume_BCDHW, after.volume_BCDHW, strict=True):
            assert torch.equal(a, b) or torch.equal(a.flip(3), b)
            flips += not torch.equal(a, b)
    assert 15 < flips < 45


def test_a_crop_larger_than_the_volume_is_padded_with_air(index):
    (batch,) = itertools.islice(pretrain_batches(index, [1], (16, 16, 16), 1, World(), seed=0), 1)
    volume, air = batch.volume_BCDHW[0, 0], index.volumes[1].minimum_C[0]
    assert (volume > air).sum() == np.prod(SHAPES[1]) - 2 and volume.min() == air


def test_the_program_s_own_random_numbers_stay_untouched(index):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    read(index, 2)
    assert torch.equal(torch.rand(3), expected)


def test_an_empty_pool_is_an_error(index):
    with pytest.raises(InputError, match="pool is empty"):
        next(pretrain_batches(index, [], CROP, 1, World(), seed=0))
