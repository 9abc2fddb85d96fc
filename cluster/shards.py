"""The shard build, one Ray task a shard."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import ray

from cluster.console import Bar
from cluster.session import result_of
from data_shards.build import BuildConfig, build
from data_shards.formats.index import ShardIndex


@ray.remote(max_retries=2)
def _call(function: Callable[[Any], Any], item: Any) -> Any:
    return function(item)


def ray_map(bar: Bar) -> Callable[[Callable, Iterable], Iterator]:
    """`map` over Ray tasks: results come in the order they are done, `bar` moves with each."""

    def run(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        waiting = [_call.remote(function, item) for item in items]
        bar.start(len(waiting))
        while waiting:
            done, waiting = ray.wait(waiting)
            bar.advance()
            yield result_of(done[0])

    return run


def build_shards(archive_root: Path, out: Path, config: BuildConfig, bar: Bar) -> ShardIndex:
    """Builds `out` from an archive; finished shards of an interrupted build are kept."""
    return build(archive_root, out, config, map_fn=ray_map(bar))
