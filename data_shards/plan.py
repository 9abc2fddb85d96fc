"""Which case goes into which shard. Pure but for the look at the files' sizes and times.

A finished shard stays as it is while each of its cases is still there, unchanged; everything else is cut anew into
shards of equal length under the free numbers. So a stopped build goes on, a grown archive adds shards, and a build from
nothing depends on the archive alone.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from data_shards.archive.cases import relative
from data_shards.archive.layout import Archive, ArchiveCase
from data_shards.formats.index import SCHEMA_VERSION
from data_shards.ingest import size_and_time


@dataclass(frozen=True)
class ShardPlan:
    """One shard to build: `name` under OUT and the cases that go into it, in order.

    `archive` is the one they come from, without its cases. `fingerprints` say what each case's files and settings were
    when the plan was made.
    """

    name: str
    archive: Archive
    cases: tuple[ArchiveCase, ...]
    fingerprints: tuple[str, ...]
    is_finished: bool = False


def plan_shards(
    archive: Archive, settings: str, volumes_per_shard: int, suffix: str, finished: Mapping[str, Iterable[str]]
) -> list[ShardPlan]:
    """The plan of a whole build. `settings` is a text that changes with everything that shapes a shard.

    `finished` gives the case fingerprints of each shard that is there.
    """
    by_fingerprint = {fingerprint(case, archive, settings): case for case in archive.cases}
    kept: dict[str, tuple[str, ...]] = {}
    placed: set[str] = set()
    for name, fingerprints in sorted(finished.items()):
        marks = tuple(fingerprints)
        # a case that went and came back may stand in two finished shards
        if name.endswith(suffix) and by_fingerprint.keys() >= set(marks) and placed.isdisjoint(marks):
            kept[name] = marks
            placed.update(marks)
    plans = [_plan(archive, name, marks, by_fingerprint, True) for name, marks in kept.items()]
    waiting = [mark for mark in by_fingerprint if mark not in placed]
    number = 0
    for first in range(0, len(waiting), volumes_per_shard):
        while shard_name(number, suffix) in kept:
            number += 1
        marks = tuple(waiting[first : first + volumes_per_shard])
        plans.append(_plan(archive, shard_name(number, suffix), marks, by_fingerprint, False))
        number += 1
    return sorted(plans, key=lambda plan: plan.name)


def shard_name(number: int, suffix: str) -> str:
    return f"shard-{number:05d}{suffix}"


def fingerprint(case: ArchiveCase, archive: Archive, settings: str) -> str:
    """Changes when a file of the case, its name or person, or a setting that shapes its shard changes."""
    files = [
        (relative(path, archive.root), size_and_time(path))
        for given in (*case.image_paths, *([case.label_path] if case.label_path else []))
        for path in _files(given)
    ]
    facts = [case.case, case.subject, case.session, case.modality, case.series_uid]
    content = [SCHEMA_VERSION, settings, archive.channel_names, archive.class_names, facts, files]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _plan(
    archive: Archive, name: str, marks: tuple[str, ...], by_fingerprint: Mapping[str, ArchiveCase], is_finished: bool
) -> ShardPlan:
    cases = tuple(by_fingerprint[mark] for mark in marks)
    return ShardPlan(name, replace(archive, cases=()), cases, marks, is_finished)


def _files(path: Path) -> list[Path]:
    """A file, or all files of a DICOM series' folder."""
    if not path.is_dir():
        return [path]
    return sorted(Path(entry.path) for entry in os.scandir(path) if entry.is_file())
