"""A sweep over three hosts: one dies, one is cut off, one comes back. Every job is done once and scored as ever."""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_shards.build import BuildConfig, build
from maetrain.finetune.job import RESULT
from tests.integration.settings import TINY

from .driver import Run
from .hosts import Hosts
from .ray_cluster import RayCluster

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

JOBS = 12
GRID = ("sweep.arms=[scratch]", "sweep.budgets=[1]", f"sweep.seeds={[*range(JOBS)]}", "finetune.steps=200")


@pytest.fixture
def cluster() -> Iterator[RayCluster]:
    """Three nodes with a CPU each, so every worker is on a host of its own."""
    with Hosts(3) as hosts, RayCluster(hosts, cpus=(1, 1, 1)) as cluster:
        yield cluster


def scores(out: Path) -> list[dict[str, str]]:
    with (out / "report" / "scores.csv").open() as file:
        return sorted(csv.DictReader(file), key=lambda row: [*row.values()])


def test_a_sweep_outlives_the_hosts_that_it_runs_on(cluster: RayCluster, small_archive: Path, tmp_path: Path) -> None:
    build(small_archive, tmp_path / "shards", BuildConfig(format="zarr"))

    def sweep(name: str, *more: str, **where: object) -> Run:
        out = tmp_path / name
        words = [sys.executable, "-c", "from cluster.cli import main; main()", "sweep", "demo", *TINY, *GRID]
        words += ["--shards", str(tmp_path / "shards"), "--data", str(small_archive), "--out", str(out), *more]
        return Run(words, out, cluster.env, **where)

    def done(out: Path) -> int:
        return len([*out.glob(f"jobs/*/{RESULT}")])

    def worker_on(i: int) -> bool:
        return bool(cluster.actor_pids("Finetuner.run", i))

    with sweep("out", "--address", cluster.address, host=cluster.head) as run:
        run.until(lambda: all(worker_on(i) for i in range(3)), 240, "job on each host at once")
        run.until(lambda: done(run.out) >= 2, 120, "second job")
        cluster.hosts[2].cut()
        run.until(lambda: run.log.count("tried again: its worker died") == 1, 120, "word of the host that was cut off")
        cluster.kill_node(1)
        run.until(lambda: run.log.count("tried again: its worker died") == 2, 60, "word of the host that died")
        assert done(run.out) < JOBS, "they ended before the faults"
        cluster.restart_node(1)
        run.until(lambda: worker_on(1), 120, "job on the host that came back")
        cluster.hosts[2].mend()
        run.finish()
    names = {path.parent.name for path in run.out.glob(f"jobs/*/{RESULT}")}
    assert len(names) == JOBS
    alone = sweep("alone")
    with alone:
        alone.finish()
    assert scores(run.out) == scores(alone.out), "what a host lost is computed as if nothing had been"
