"""Slots of shared memory: taken once at a time, back when the last tensor over them is gone."""

import itertools
from multiprocessing import get_context

import numpy as np
import pytest
import torch

from data_shards.loading.pretrain import _HELD, _PREFETCH, pretrain_batches
from data_shards.loading.ring import BatchRing
from data_shards.order.world import World
from tests.data_shards.helpers import build_places

SHAPE = (2, 1, 3, 4, 5)
SHAPES = [(8, 9, 10), (7, 12, 6), (10, 6, 9), (9, 9, 9), (6, 11, 8)]
CROP, WORKERS = (4, 5, 6), 2
NUM_SLOTS = WORKERS * _PREFETCH + _HELD


def test_every_slot_is_given_once_and_then_none():
    ring = BatchRing(3, SHAPE, np.dtype(np.float16))
    assert [ring.take() for _ in range(5)] == [0, 1, 2, None, None]


@pytest.mark.parametrize("dtype", ["float16", "int16"])
def test_slots_do_not_touch_each_other_and_a_forked_process_writes_into_them(dtype):
    ring = BatchRing(4, SHAPE, np.dtype(dtype))

    def write() -> None:
        for slot in (2, 0, 3, 1):
            ring.array(slot)[...] = np.arange(120).reshape(SHAPE) + 1000 * slot

    process = get_context("fork").Process(target=write)
    process.start()
    process.join()
    for slot in range(4):
        expected = torch.arange(120).reshape(SHAPE) + 1000 * slot
        tensor = ring.tensor(slot)
        assert tensor.dtype == getattr(torch, dtype) and torch.equal(tensor, expected.to(tensor.dtype))


@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda t: t, id="itself"),
        pytest.param(lambda t: t[1:, :, 2], id="slice"),
        pytest.param(lambda t: t.view(-1)[7], id="number"),
        pytest.param(lambda t: t.numpy(), id="array"),
        pytest.param(lambda t: t.permute(4, 3, 2, 1, 0).detach(), id="turned"),
        pytest.param(lambda t: t.view(torch.int16), id="other type"),
        pytest.param(lambda t: [t[0], t[1]], id="list"),
    ],
)
def test_a_slot_is_back_only_when_the_tensor_and_every_view_of_it_are_gone(view):
    ring = BatchRing(1, SHAPE, np.dtype(np.float16))
    slot = ring.take()
    held = view(ring.tensor(slot))
    assert ring.take() is None
    del held
    assert ring.take() == slot


def test_a_copy_does_not_hold_the_slot():
    ring = BatchRing(1, SHAPE, np.dtype(np.float16))
    copy = ring.tensor(ring.take()).float()
    assert ring.take() == 0 and copy.shape == SHAPE


def test_an_empty_ring_of_no_slots_is_a_ring():
    assert BatchRing(0, SHAPE, np.dtype(np.float16)).take() is None


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return build_places(tmp_path_factory.mktemp("ring"), SHAPES)


def batches(index, num_workers: int):
    return pretrain_batches(index, range(5), CROP, 2, World(), seed=4, num_workers=num_workers, cache_bytes=0)


def test_a_batch_held_for_long_is_not_overwritten(index):
    loader = batches(index, WORKERS)
    held = next(loader)
    before = held.stored_BCDHW.clone()
    for _ in range(4 * NUM_SLOTS):
        assert next(loader).stored_BCDHW.data_ptr() != held.stored_BCDHW.data_ptr()
    assert torch.equal(held.stored_BCDHW, before)


def test_more_batches_held_than_there_are_slots_are_still_right_and_slots_come_back(index):
    expected = list(itertools.islice(batches(index, 0), 4 * NUM_SLOTS))
    loader, held = batches(index, WORKERS), []
    for step in range(2 * NUM_SLOTS):
        held.append(next(loader))
        assert torch.equal(held[-1].stored_BCDHW, expected[step].stored_BCDHW)
    for batch, right in zip(held, expected, strict=False):  # and all of them still are
        assert torch.equal(batch.stored_BCDHW, right.stored_BCDHW) and batch.keys == right.keys
    places = {batch.stored_BCDHW.data_ptr() for batch in held}
    assert len(places) == len(held)
    del held, batch
    later = []
    for step in range(2 * NUM_SLOTS, 4 * NUM_SLOTS):
        batch = next(loader)
        assert torch.equal(batch.stored_BCDHW, expected[step].stored_BCDHW)
        later.append(batch.stored_BCDHW.data_ptr())
    assert len(set(later[NUM_SLOTS:])) <= NUM_SLOTS  # no new memory: the slots go round again
