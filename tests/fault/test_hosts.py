"""Ranks on two hosts: a host that dies, is cut off, comes back; the head that dies; the driver that dies.

Whatever happens, the run ends with the curve of one process that nothing happened to. One cluster serves all tests.
Most of the time goes into starting processes: a group of two ranks takes 15-30 s until its first step.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_shards.build import BuildConfig, build
from tests.integration.settings import TINY

from .driver import Run, curve, start_processes, start_run, step_of, torchrun_over
from .hosts import ACROSS, Hosts
from .ray_cluster import RayCluster

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

STEPS = 200
SETTINGS = (
    *TINY,
    f"pretrain.steps={STEPS}",
    "pretrain.checkpoint_every=10",
    "pretrain.keep_checkpoints=1000",
    "pretrain.zero_stage=1",
    "cluster.pretrain_workers=2",
    "cluster.cpus_per_worker=1",
    "cluster.max_failures=20",
)


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with Hosts(2) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def shared_cluster(hosts: Hosts) -> Iterator[RayCluster]:
    with RayCluster(hosts) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: RayCluster) -> RayCluster:
    """Two nodes with a CPU each, so the two ranks are on different hosts; whole at the start of every test."""
    shared_cluster.heal()
    return shared_cluster


@pytest.fixture(scope="module")
def shards(small_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    build(small_archive, folder, BuildConfig(format="zarr"))
    return folder


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """The curve of one process."""
    out = tmp_path_factory.mktemp("whole") / "run"
    setup = out.with_name("setup.json")
    start_run([*SETTINGS], shards, out, setup_only=setup).finish()
    start_processes(setup, out).finish()
    losses = curve(out)
    assert sorted(losses) == list(range(1, STEPS + 1))
    assert len(set(losses.values())) == STEPS, "losses that never change would agree, too"
    return losses


def driver(cluster: RayCluster, shards: Path, out: Path) -> Run:
    return start_run(SETTINGS, shards, out, cluster.address, cluster.env, cluster.head)


def assert_same(out: Path, whole: dict[int, float]) -> None:
    assert curve(out) == pytest.approx(whole, rel=1e-5)


def test_two_hosts_give_the_curve_of_one_process(
    cluster: RayCluster, shards: Path, whole: dict[int, float], tmp_path: Path
) -> None:
    with driver(cluster, shards, tmp_path / "run") as run:
        run.reach(10)
        assert [len(cluster.rank_pids(i)) for i in range(2)] == [1, 1]
        run.finish()
    assert_same(run.out, whole)
    assert run.step() == STEPS


def test_two_hosts_under_torchrun(hosts: Hosts, shards: Path, whole: dict[int, float], tmp_path: Path) -> None:
    out, setup = tmp_path / "run", tmp_path / "setup.json"
    start_run(SETTINGS, shards, out, setup_only=setup).finish()
    agents = [start_processes(setup, out, 1, torchrun_over(hosts, i), ACROSS, hosts[i]) for i in range(2)]
    with agents[0], agents[1]:
        agents[0].reach(10)
        assert [len(agent.rank_pids()) for agent in agents] == [1, 1]
        for agent in agents:
            agent.finish()
    assert_same(out, whole)


def test_a_host_that_dies_and_comes_back(
    cluster: RayCluster, shards: Path, whole: dict[int, float], tmp_path: Path
) -> None:
    with driver(cluster, shards, tmp_path / "run") as run:
        run.reach(50)
        cluster.kill_node(1)
        died_at = run.step()
        cluster.restart_node(1)
        assert died_at < STEPS, "it ended before the fault"
        run.finish()
    assert_same(run.out, whole)


def test_a_host_that_is_cut_off_and_comes_back(
    cluster: RayCluster, shards: Path, whole: dict[int, float], tmp_path: Path
) -> None:
    with driver(cluster, shards, tmp_path / "run") as run:
        run.reach(50)
        cluster.hosts[1].cut()
        time.sleep(10)  # for what was on its way to the disk
        assert run.step() < STEPS, "it ended before the fault"
        stood_at = run.step()
        time.sleep(20)
        assert run.step() == stood_at, "one rank alone goes on"
        cluster.hosts[1].mend()
        # as systemd or the kubelet would: the node that was given up ends, and another takes its place
        cluster.wait_for_end(1, timeout_s=60)
        cluster.restart_node(1)
        run.finish()
    assert_same(run.out, whole)


def test_a_killed_driver_is_started_again(
    cluster: RayCluster, shards: Path, whole: dict[int, float], tmp_path: Path
) -> None:
    with driver(cluster, shards, tmp_path / "run") as run:
        run.reach(50)
        run.kill()
    # the ranks may finish what they are at, but not go on for long
    wait_for_no_ranks(cluster, 30)
    assert 50 <= run.step() < STEPS
    assert_goes_on(cluster, shards, run, whole)


def test_a_head_that_dies_and_comes_back(
    cluster: RayCluster, shards: Path, whole: dict[int, float], tmp_path: Path
) -> None:
    with driver(cluster, shards, tmp_path / "run") as run:
        run.reach(50)
        cluster.kill_head(but=[run.group])
        assert run.wait(90) not in (0, None)
    assert 50 <= run.step() < STEPS
    cluster.restart()
    assert_goes_on(cluster, shards, run, whole)


def assert_goes_on(cluster: RayCluster, shards: Path, run: Run, whole: dict[int, float]) -> None:
    """The same command ends the run, and leaves every checkpoint alone that was committed before."""
    before = run.committed()
    with driver(cluster, shards, run.out) as again:
        again.finish()
    after = again.committed()
    assert {name: after.get(name) for name in before} == before, "steps were repeated from before the last checkpoint"
    assert max(map(step_of, after)) == STEPS
    assert_same(run.out, whole)


def wait_for_no_ranks(cluster: RayCluster, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while ranks := cluster.rank_pids():
        assert time.monotonic() < deadline, f"ranks {ranks} outlive their driver"
        time.sleep(0.2)
