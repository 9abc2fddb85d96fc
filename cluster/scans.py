"""Scans in Ray's object store: decoded once, and read by every worker of a node from the same memory."""

from functools import partial
from typing import cast

import ray

from data_shards.formats.index import ShardIndex
from data_shards.loading.labelled import LabelledScans
from maetrain.evaluate.test_set import LabelledScan, ScanSource


class TrainingScans:
    """person -> a reference to the labelled scans, decoded when they are first asked for.

    By the driver: tasks that decode would wait for the cores that the workers hold, and the workers for them.
    """

    def __init__(self, index: ShardIndex) -> None:
        self._scans, self._there = LabelledScans(index), dict[str, ray.ObjectRef]()

    def of(self, subject: str) -> ray.ObjectRef:
        if subject not in self._there:
            self._there[subject] = ray.put(self._scans.of(subject))
        return self._there[subject]


class ScoredScans:
    """Shares what is scored, up to `room_bytes` in all; each job reads the others from their files.

    Large scans are left out because their inference takes far longer than reading them.
    """

    def __init__(self, room_bytes: int) -> None:
        self.room_bytes = room_bytes

    def shared(self, source: ScanSource) -> ScanSource:
        if self.room_bytes <= 0:
            return source
        scan = source()
        self.room_bytes -= scan.nbytes
        return partial(_got, ray.put(scan)) if self.room_bytes >= 0 else source


def room_for_scored(most_mib: int) -> int:
    """Bytes: `most_mib`, but half of the smallest node's store at most.

    The other half is for the scans to train on; what does not fit Ray writes to a disk and reads again for every job.
    """
    stores = [node["Resources"].get("object_store_memory", 0) for node in ray.nodes() if node["Alive"]]
    return min(most_mib * 2**20, int(min(stores)) // 2)


def _got(reference: ray.ObjectRef) -> LabelledScan:
    return cast(LabelledScan, ray.get(reference))
