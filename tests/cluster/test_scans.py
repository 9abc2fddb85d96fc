"""Scans are decoded once and shared as far as there is room; Ray's store is a list here."""

from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cluster import scans
from cluster.scans import ScoredScans, TrainingScans, room_for_scored
from data_shards.formats.index import ShardIndex

MIB = 2**20


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []
    monkeypatch.setattr(scans.ray, "put", lambda value: found.append(value) or len(found) - 1)
    monkeypatch.setattr(scans.ray, "get", lambda reference: found[reference])
    return found


def test_a_persons_scans_are_decoded_for_the_first_job_alone(
    index: ShardIndex, stored: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Counter[str]()
    of = scans.LabelledScans.of
    monkeypatch.setattr(scans.LabelledScans, "of", lambda self, subject: read.update([subject]) or of(self, subject))
    training = TrainingScans(index)
    first = [training.of(subject) for subject in ("person_000", "person_001", "person_000")]
    assert first[0] == first[2] != first[1] and [training.of("person_001")] == first[1:2]
    assert read == {"person_000": 1, "person_001": 1} and len(stored) == 2


def test_scored_scans_are_shared_until_the_room_is_full(stored: list[Any]) -> None:
    read = Counter[int]()

    def source(i: int) -> Any:
        return lambda: read.update([i]) or SimpleNamespace(nbytes=40, i=i)

    room = ScoredScans(100)
    shared = [room.shared(source(i)) for i in range(4)]
    for _ in range(3):
        assert [cast(Any, scan()).i for scan in shared] == [0, 1, 2, 3]
    assert read[0] == read[1] == 1 and read[2] == 1 + 3 and read[3] == 3, "the last two are read by every job"


@pytest.mark.parametrize(("most_mib", "room_mib"), [(1024, 128), (100, 100), (0, 0)])
def test_half_of_the_smallest_store_is_left_to_what_is_trained_on(
    most_mib: int, room_mib: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [(256 * MIB, True), (4096 * MIB, True), (80 * MIB, False)]
    found = [{"Resources": {"object_store_memory": size}, "Alive": is_alive} for size, is_alive in nodes]
    monkeypatch.setattr(scans.ray, "nodes", lambda: found)
    assert room_for_scored(most_mib) == room_mib * MIB
