"""What runs finetune jobs: an actor, or a group of actors whose ranks share each job's batches.

An actor pays imports, and the start of its group, once and then runs job after job. What all jobs share stands in Ray's
object store: a node fetches each scan once, and all its actors read the same memory.
"""

import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import torch
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.journaled import journaled
from cluster.provenance import maker
from data_shards.loading.labelled import LabelledCase
from maetrain.finetune.config import FinetuneJob
from maetrain.finetune.job import JobResult, Protocol, run_job
from maetrain.tracking.system import SystemMetrics
from maetrain.tracking.tracker import NullTracker
from maetrain.train.group import RankInfo, alone, joined_group

JOURNAL = "journal.jsonl"


@dataclass(frozen=True)
class RunFacts:
    """What a job's run in the tracker is told before it trains. `work`: the key of its stage."""

    work: str
    tags: Mapping[str, str]
    params: Mapping[str, object]
    dataset: tuple[str, str, str]


@dataclass(frozen=True)
class Task:
    """One job for a crew. `cases` and `monitor`: references to the scans of one person each."""

    job: FinetuneJob
    folder: Path
    cases: Sequence[ray.ObjectRef]
    monitor: Sequence[ray.ObjectRef]
    facts: RunFacts


class Finetuner:
    """One rank; `ranks` 1 = it works alone."""

    def __init__(self, threads: int, rank: int = 0, ranks: int = 1, address: tuple[str, int] | None = None) -> None:
        torch.set_num_threads(threads)
        if not ray.get_gpu_ids():
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # whose GPU there is, is not this rank's
        self.rank, self.ranks, self.meeting = rank, ranks, address
        self.who: RankInfo | None = None
        self._left = ExitStack()

    def address(self) -> tuple[str, int]:
        """Where the ranks of this one's group meet: its host and a free port there."""
        with socket.socket() as free:
            free.bind(("", 0))
            self.meeting = (ray.util.get_node_ip_address(), free.getsockname()[1])
        return self.meeting

    def ready(self) -> None:
        if self.ranks == 1:
            self.who = alone()
            return
        assert self.meeting is not None
        host, port = self.meeting
        os.environ |= {"MASTER_ADDR": host, "MASTER_PORT": str(port)}
        os.environ |= {"RANK": str(self.rank), "WORLD_SIZE": str(self.ranks), "LOCAL_RANK": "0"}
        self.who = self._left.enter_context(joined_group())

    def run(self, task: Task, protocol: Protocol) -> JobResult:
        assert self.who is not None
        cases, monitor = _scans(task.cases), _scans(task.monitor)
        if not self.who.is_first:
            return run_job(task.job, protocol, cases, monitor, task.folder, NullTracker(), self.who)
        facts = task.facts
        with journaled(task.folder / JOURNAL, task.job.name, facts.work) as tracker, SystemMetrics(tracker):
            tracker.tags(facts.tags)
            tracker.params(facts.params)
            tracker.dataset(*facts.dataset, "finetune")
            return run_job(task.job, protocol, cases, monitor, task.folder, tracker, self.who, maker())


def _scans(references: Sequence[ray.ObjectRef]) -> list[LabelledCase]:
    return [case for cases in ray.get(list(references)) for case in cases]


@dataclass(frozen=True)
class Crew:
    """The actors of one slot."""

    actors: Sequence[Any]
    room: PlacementGroup | None = field(default=None)

    def kill(self) -> None:
        for actor in self.actors:
            ray.kill(actor)
        if self.room is not None:
            remove_placement_group(self.room)


def start_crew(ranks: int, cpus: float, gpus: float) -> Crew:
    """`cpus` and `gpus` for each rank. Does not wait for them to start, or for room."""
    threads = max(int(cpus), 1)
    worker: Any = ray.remote(Finetuner)
    if ranks == 1:
        return Crew([worker.options(num_cpus=cpus, num_gpus=gpus).remote(threads)])
    # all ranks or none: two groups that hold half of what they need would wait for each other
    room = placement_group([{"CPU": cpus} | ({"GPU": gpus} if gpus else {})] * ranks, strategy="PACK")
    options = [
        {
            "num_cpus": cpus,
            "num_gpus": gpus,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(room, placement_group_bundle_index=rank),
        }
        for rank in range(ranks)
    ]
    first = worker.options(**options[0]).remote(threads, 0, ranks)
    address = first.address.remote()
    others = [worker.options(**options[rank]).remote(threads, rank, ranks, address) for rank in range(1, ranks)]
    return Crew([first, *others], room)
