"""Ranks that start again on a store full of a dead group's words find each other, and none of the dead."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from maetrain.train.meeting import store_of_this_start

SECONDS = timedelta(seconds=20)


@pytest.fixture
def port() -> Iterator[int]:
    """Of a store that outlives its clients, as torchrun's does."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    yield server.port
    del server


def start(port: int, ranks: int) -> list[dist.Store]:
    """One start of a group; its stores, rank by rank."""

    def of(rank: int) -> dist.Store:
        return store_of_this_start(
            dist.TCPStore("127.0.0.1", port, is_master=False, timeout=SECONDS), rank, ranks, SECONDS
        )

    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(of, range(ranks)))


def test_ranks_share_a_store_that_no_earlier_start_wrote_to(port: int) -> None:
    for attempt in range(3):
        stores = start(port, 3)
        assert not any(store.check(["address"]) for store in stores), "nothing of the start before"
        stores[attempt].set("address", str(attempt))
        assert [store.get("address") for store in stores] == [str(attempt).encode()] * 3


def test_a_start_of_another_size_does_not_meet_the_dead(port: int) -> None:
    start(port, 3)
    first, second = start(port, 2)
    first.set("key", "value")
    assert second.get("key") == b"value"
    (alone,) = start(port, 1)
    assert not alone.check(["key"])


def test_a_rank_that_does_not_come_ends_the_wait(port: int) -> None:
    start(port, 2)  # its words of greeting are still there
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=SECONDS)
    for rank in (0, 1):
        with pytest.raises(RuntimeError, match="the 2 ranks did not meet within 0.5 s"):
            store_of_this_start(store, rank, 2, timedelta(seconds=0.5))
