"""The shard build on Ray: one task a folder of DICOM headers, one task a shard."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import ray

from cluster.console import Bar, progress_bar
from cluster.session import result_of
from data_shards.archive.identity import read_identity
from data_shards.archive.layout import Archive, read_archive
from data_shards.build import BuildConfig, ShardResult, build_archive
from data_shards.formats.index import ShardIndex
from data_shards.plan import ShardPlan

_AHEAD = 2  # tasks handed to Ray for each core: more would only fill its memory


@ray.remote(max_retries=2)
def _call(function: Callable[[Any], Any], item: Any) -> Any:
    return function(item)


def ray_map(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """`map` over Ray tasks; results come in the order they are done."""
    at_most = _AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
    todo, running = iter(items), list[ray.ObjectRef]()
    while True:
        for item in todo:
            running.append(_call.remote(function, item))
            if len(running) >= at_most:
                break
        if not running:
            return
        done, running = ray.wait(running)
        yield result_of(done[0])


def read_archive_on_ray(source: Path, config: BuildConfig) -> Archive:
    """The archive under `source`, named as `config.privacy` says."""
    return read_archive(source, read_identity(config.privacy, os.environ), ray_map)


def build_shards(archive: Archive, out: Path, config: BuildConfig) -> ShardIndex:
    """Builds `out` from an archive, with a bar; finished shards of an interrupted build are kept."""
    with progress_bar(f"{config.format} shards") as bar:
        return build_archive(archive, out, config, lambda function, plans: _watched(ray_map, function, plans, bar))


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
