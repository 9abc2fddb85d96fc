"""A store for one start of a group, where the launcher's store outlives it.

torchrun's agent keeps one store for all restarts of its workers, and a restarted rank may read the address that a dead
one left there: "connection refused", and the restart is lost (https://github.com/pytorch/pytorch/issues/135712). The
count of restarts can't keep them apart: each host counts its own. So the ranks agree on a word that no earlier start
knows, and keep everything under it.
"""

import json
import time
import uuid
from datetime import timedelta

import torch.distributed as dist

_ROUND, _LOOK_EVERY_S = "maetrain/round", 0.05


def store_of_this_start(
    store: dist.Store, rank: int, world_size: int, timeout: timedelta = timedelta(minutes=5)
) -> dist.Store:
    """A part of `store` that only the ranks of this start know. RuntimeError where they don't all come in time."""
    ends = time.monotonic() + timeout.total_seconds()
    mine = uuid.uuid4().hex
    store.set(_hello(rank), mine)
    others = range(1, world_size)
    while time.monotonic() < ends:
        if rank == 0:  # its own word is that of the start; whoever finds himself called knows that it is no old one
            called = [store.get(_hello(r)).decode() for r in others if store.check([_hello(r)])]
            store.set(_ROUND, json.dumps([mine, called]))
            if all(store.check([f"{mine}/{r}"]) for r in others):
                return dist.PrefixStore(mine, store)
        elif store.check([_ROUND]):
            word, called = json.loads(store.get(_ROUND))
            if mine in called:
                store.set(f"{word}/{rank}", "here")
                return dist.PrefixStore(word, store)
        time.sleep(_LOOK_EVERY_S)
    raise RuntimeError(f"the {world_size} ranks did not meet within {timeout.total_seconds():g} s")


def _hello(rank: int) -> str:
    return f"maetrain/hello/{rank}"
