"""The shard build on Ray: one task a folder of DICOM headers, one task a shard."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import ray

from cluster.console import Bar, progress_bar, say
from cluster.session import ray_session, result_of
from cluster.storage import check_storage
from data_shards.archive.identity import read_identity
from data_shards.archive.layout import Archive, read_archive
from data_shards.build import BuildConfig, ShardResult, build_archive
from data_shards.catalogue import CATALOGUE_NAME
from data_shards.formats.files import absolute
from data_shards.formats.index import ShardIndex
from data_shards.plan import ShardPlan

_LISTED = 20  # scans named one by one; the catalogue has all
_AHEAD = 2  # tasks handed to Ray for each core: more would only fill its memory


@ray.remote(max_retries=2)
def _call(function: Callable[[Any], Any], item: Any) -> Any:
    return function(item)


def ray_map(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """`map` over Ray tasks; results come in the order they are done."""
    at_most = _AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
    todo, running = iter(items), list[ray.ObjectRef]()
    try:
        while True:
            for item in todo:
                running.append(_call.remote(function, item))
                if len(running) >= at_most:
                    break
            if not running:
                return
            done, running = ray.wait(running)
            yield result_of(done[0])
    finally:
        for reference in running:  # an error or an interrupt: nobody will fetch these
            ray.cancel(reference)


def build_shards(archive: Archive, out: Path, config: BuildConfig) -> ShardIndex:
    """Builds `out` from an archive, with a bar; finished shards of an interrupted build are kept."""
    with progress_bar(f"{config.format} shards") as bar:
        return build_archive(archive, out, config, lambda function, plans: _watched(ray_map, function, plans, bar))


def run_build_verb(source: Path, out: Path, config: BuildConfig, address: str | None) -> None:
    """The verb `shards build`, with a summary of what was built, dropped and quarantined."""
    identity = read_identity(config.privacy, os.environ)
    if not any(path.is_file() for path in source.rglob("*")):
        read_archive(source, identity)  # says what is wrong before Ray starts
    with ray_session(address):
        check_storage(absolute(out), {str(source): "SOURCE"})
        archive = read_archive(source, identity, ray_map)
        persons = len({case.subject for case in archive.cases})
        say(f"{archive.name}: {len(archive.cases)} scans of {persons} persons in {source}")
        index = build_shards(archive, out, config)
    for bad in index.quarantined[:_LISTED]:
        say(f"quarantined: {bad.reason}")
    for case, same_as in index.duplicates[:_LISTED]:
        say(f"duplicate: {case} has the voxels of {same_as}")
    num_more = max(0, len(index.quarantined) - _LISTED) + max(0, len(index.duplicates) - _LISTED)
    if num_more:
        say(f"and {num_more} more, see {out / CATALOGUE_NAME}")
    num_bytes = sum(shard.bytes for shard in index.shards)
    say(
        f"{out}: {len(index.volumes)} volumes in {len(index.shards)} shards, {num_bytes / 1e6:.1f} MB; "
        f"{len(index.duplicates)} duplicates dropped, {len(index.quarantined)} quarantined; index {index.sha256[:12]}"
    )


def _watched(
    map_fn: Callable[..., Iterator[ShardResult]],
    function: Callable[[ShardPlan], ShardResult],
    plans: list[ShardPlan],
    bar: Bar,
) -> Iterator[ShardResult]:
    """The results of `map_fn`, while `bar` counts scans: those of finished shards at once, the others as they come."""
    finished = sum(len(plan.cases) for plan in plans if plan.is_finished)
    bar.start(sum(len(plan.cases) for plan in plans), finished)
    started, done = time.perf_counter(), 0
    for result in map_fn(function, plans):
        if not result.reused:
            done += len(result.fingerprints)
            bar.to(finished + done, f"{done / (time.perf_counter() - started):.1f} scans/s")
        yield result
