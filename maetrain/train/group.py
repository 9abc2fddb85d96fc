"""The process group, whoever started it: Ray Train, torchrun, or nobody (one process)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import psutil
import torch
import torch.distributed as dist

from maetrain.train.meeting import store_of_this_start

T = TypeVar("T")


@dataclass(frozen=True)
class RankInfo:
    """Who this process is; `device` is where its tensors live."""

    rank: int
    world_size: int
    device: torch.device
    ranks_on_node: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # a launcher that shows each rank only its own GPU leaves one; otherwise the local rank picks
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _who(device: torch.device) -> RankInfo:
    return RankInfo(dist.get_rank(), dist.get_world_size(), device, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


@contextmanager
def joined_group() -> Iterator[RankInfo]:
    """Uses the group that is there, or joins the one torchrun describes, or makes one of a single process.

    A group that was there is left alone at the end; one made here is destroyed.
    """
    device = _device(int(os.environ.get("LOCAL_RANK", "0")))
    if dist.is_initialized():
        yield _who(device)
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        launchers = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
        store = store_of_this_start(launchers, rank, world_size)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
    elif "RANK" in os.environ:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield _who(device)
    finally:
        dist.destroy_process_group()


def alone() -> RankInfo:
    """A process that needs no group."""
    return RankInfo(0, 1, _device(0))


def memory_in_use(device: torch.device) -> float:
    """Bytes: the most that tensors have held on a GPU, or what the process holds now."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return float(psutil.Process().memory_info().rss)


def sums_over_ranks(values: torch.Tensor, who: RankInfo) -> list[float]:
    """Each of the float32 `values` summed over all ranks."""
    if who.world_size > 1:
        dist.all_reduce(values)
    return values.tolist()


def from_first(value: T, who: RankInfo) -> T:
    """The first rank's `value`, on every rank."""
    box = [value]
    if who.world_size > 1:
        dist.broadcast_object_list(box)
    return box[0]


def barrier(who: RankInfo) -> None:
    if who.world_size > 1:
        dist.barrier()
