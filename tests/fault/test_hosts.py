"""Ranks on two hosts: a host that dies, is cut off, comes back; the head that dies; the driver that dies.

Whatever happens, the run ends with the curve of one process that nothing happened to. One cluster serves all tests.
Most of the time goes into starting processes: a group of two ranks takes 15-30 s until its first step.
"""

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_shards.build import BuildConfig, build
from tests.integration.settings import TINY

from .driver import Run, curve, start_processes, start_run, step_of, torchrun_over
from .hosts import ACROSS, Hosts, environment
from .ray_cluster import RayCluster

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

STEPS = 120
SETTINGS = (
    *TINY,
    f"pretrain.steps={STEPS}",
    "pretrain.checkpoint_every=10",
    "pretrain.keep_checkpoints=1000",
    "pretrain.zero_stage=1",
    "cluster.pretrain_workers=2",
    "cluster.cpus_per_worker=1",
    "cluster.max_failures=5",
    "cluster.resize_check_s=5",
)


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with Hosts(3) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def shared_cluster(hosts: Hosts) -> Iterator[RayCluster]:
    with RayCluster(hosts, cpus=(1, 1, 1)) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: RayCluster) -> RayCluster:
    """Three nodes with a CPU each, so every rank is on a host of its own; whole at the start of every test."""
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


def driver(cluster: RayCluster, shards: Path, out: Path, *overrides: str) -> Run:
    return start_run((*SETTINGS, *overrides), shards, out, cluster.address, cluster.env, cluster.head)


def assert_same(out: Path, whole: dict[int, float]) -> None:
    assert curve(out) == pytest.approx(whole, abs=1e-5)


def host_with_a_rank(cluster: RayCluster) -> int:
    """Not the head's, where the driver is."""
    return next(i for i in range(1, len(cluster.hosts)) if cluster.rank_pids(i))


def test_two_hosts_under_torchrun(hosts: Hosts, shards: Path, whole: dict[int, float], tmp_path: Path) -> None:
    out, setup = tmp_path / "run", tmp_path / "setup.json"
    start_run(SETTINGS, shards, out, setup_only=setup).finish()
    # two of the three
    agents = [start_processes(setup, out, 1, torchrun_over(hosts, i, 2), ACROSS, hosts[i]) for i in range(2)]
    with agents[0], agents[1]:
        agents[0].reach(10)
        assert [len(agent.rank_pids()) for agent in agents] == [1, 1]
        for agent in agents:
            agent.finish()
    assert_same(out, whole)


@pytest.mark.parametrize(("num_hosts", "zero_stage"), [(2, 1), (2, 3), (3, 2)])
def test_a_host_that_dies_and_one_that_is_cut_off(
    cluster: RayCluster, shards: Path, whole: dict[int, float], tmp_path: Path, num_hosts: int, zero_stage: int
) -> None:
    # 3 ranks: the 4 crops of a step do not divide
    settings = (f"cluster.pretrain_workers={num_hosts}", f"pretrain.zero_stage={zero_stage}")
    with driver(cluster, shards, tmp_path / "run", *settings) as run:
        run.reach(20)
        host = host_with_a_rank(cluster)
        cluster.kill_node(host)
        cluster.restart_node(host)
        run.until(lambda: "resumed at step" in run.log, 180, "start after the host died")
        run.reach(run.step() + 20)
        host = host_with_a_rank(cluster)
        cluster.hosts[host].cut()
        time.sleep(5)  # for what was on its way to the disk
        stood_at = run.step()
        time.sleep(15)
        # the cut-off rank may have been the first, with a checkpoint under way that it still commits
        assert run.step() <= stood_at + 10, "ranks that miss one go on"
        cluster.hosts[host].mend()
        # as systemd or the kubelet would: the node that was given up ends, and another takes its place
        cluster.wait_for_end(host, timeout_s=60)
        assert run.step() < STEPS, "it ended before the fault"
        cluster.restart_node(host)
        run.finish()
        assert run.log.count("resumed at step") == 2
    assert_same(run.out, whole)


def test_a_group_shrinks_to_what_is_left_and_grows_again_without_losing_a_step(
    cluster: RayCluster, shards: Path, whole: dict[int, float], tmp_path: Path
) -> None:
    cluster.kill_node(1)
    cluster.kill_node(2)
    wait_for_nodes(cluster, 1)  # or the group would begin as one of two and wait for the second
    # so many steps that the run never ends by itself, and no checkpoint but those that are asked for
    steps = 100_000
    many = ("cluster.pretrain_workers=[1,2]", f"pretrain.checkpoint_every={steps}", f"pretrain.steps={steps}")
    with driver(cluster, shards, tmp_path / "run", *many) as run:
        run.until(lambda: len(cluster.rank_pids()) == 1 and run.step() == 0, 180, "start with one rank")
        cluster.restart_node(1)
        run.until(lambda: run.step() > 0, 240, "checkpoint before the group grows")
        grown_at = run.step()
        run.until(lambda: len(cluster.rank_pids()) == 2, 120, "second rank")
        run.until(lambda: f"resumed at step {grown_at}" in run.log, 120, "start with two ranks from there")
        time.sleep(3)
        drain(cluster, 1)
        run.until(lambda: run.step() > grown_at, 60, "checkpoint before the node is taken away")
        drained_at = run.step()
        cluster.kill_node(1)
        run.until(lambda: f"resumed at step {drained_at}" in run.log, 180, "start with what is left")
        time.sleep(3)
        run.process.terminate()
        assert run.wait(120) == 128 + signal.SIGTERM
    assert 0 < grown_at < drained_at < run.step() < steps
    assert sorted(curve(run.out)) == list(range(1, run.step() + 1))


def ask_ray(cluster: RayCluster, question: str) -> str:
    """What Python code prints that has joined the cluster from its head."""
    joined = f"import time, ray; ray.init(address={cluster.address!r}, log_to_driver=False, logging_level='ERROR')\n"
    words = [sys.executable, "-c", joined + question]
    return cluster.head.run(words, env=environment(cluster.env), check=True).stdout


def wait_for_nodes(cluster: RayCluster, count: int) -> None:
    """Until Ray, too, knows that so many are left."""
    ask_ray(cluster, f"while sum(node['Alive'] for node in ray.nodes()) != {count}: time.sleep(0.5)")


def drain(cluster: RayCluster, i: int) -> None:
    """What a cloud's notice does through the autoscaler: the node will be taken away in 30 s."""
    of_host = f"n['Alive'] and n['NodeManagerAddress'] == {cluster.hosts[i].address!r}"
    node = ask_ray(cluster, f"(node,) = [n['NodeID'] for n in ray.nodes() if {of_host}]; print(node)").split()[-1]
    words = ["drain-node", f"--address={cluster.address}", f"--node-id={node}", "--deadline-remaining-seconds=30"]
    words += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=test"]
    cluster.head.run([sys.executable, "-m", "ray.scripts.scripts", *words], env=environment(cluster.env))


def test_a_killed_driver_is_started_again(
    cluster: RayCluster, shards: Path, whole: dict[int, float], tmp_path: Path
) -> None:
    with driver(cluster, shards, tmp_path / "run") as run:
        run.reach(30)
        run.kill()
    # the ranks may finish what they are at, but not go on for long
    wait_for_no_ranks(cluster, 30)
    assert 30 <= run.step() < STEPS
    assert_goes_on(cluster, shards, run, whole)


def test_a_head_that_dies_and_comes_back(
    cluster: RayCluster, shards: Path, whole: dict[int, float], tmp_path: Path
) -> None:
    # ranks go on until their nodes give the head up, after 15 s; with a checkpoint a step they don't end by then
    with driver(cluster, shards, tmp_path / "run", "pretrain.checkpoint_every=1") as run:
        run.reach(10)
        cluster.kill_head(but=[run.group])
        assert run.wait(90) == 2
        assert "the Ray cluster is gone" in run.log.splitlines()[-1] and "Traceback" not in run.log
    wait_for_no_ranks(cluster, 60)
    assert 10 <= run.step() < STEPS
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
