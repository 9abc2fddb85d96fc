"""A pretraining group under Ray: a rank dies, a rank finds a mistake, a group gets nowhere; what is seen of it."""

import os
import shutil
import signal
import threading
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest
import ray

from cluster.console import progress_bar
from cluster.pretrain import run_pretraining
from cluster.session import Resources
from data_shards.build import BuildConfig, build
from data_shards.errors import InputError
from data_shards.formats.index import ShardIndex
from maetrain.recipes.config import RunConfig
from maetrain.tracking.tracker import NullTracker
from maetrain.train.config import PretrainSetup

from .settings import tiny
from .test_launchers import losses, setup_of

pytestmark = pytest.mark.runs


@pytest.fixture(scope="module")
def index(small_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return build(small_archive, tmp_path_factory.mktemp("shards"), BuildConfig(format="zarr"))


class Recorder(NullTracker):
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.points: list[tuple[int, Mapping[str, float]]] = []

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.points.append((step, metrics))


def train(setup: PretrainSetup, config: RunConfig, resources: Resources, tracker: NullTracker) -> list[float]:
    cluster = config.cluster.model_copy(update={"pretrain_workers": 2, "cpus_per_worker": 0.5})
    with progress_bar("pretraining") as bar:
        run_pretraining(setup, cluster, resources, bar, tracker)
    return losses(setup.run_dir)


def rank_processes() -> list[psutil.Process]:
    """Of this test's own Ray session."""
    mine = psutil.Process().children(recursive=True)
    ranks = [process for process in mine if process.name().startswith("ray::RayTrain")]
    return [process for process in ranks if process.status() != psutil.STATUS_ZOMBIE]


def wait_for_step(run_dir: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while not list((run_dir / "checkpoints").glob(f"step-{step:08d}-*/manifest.json")):
        assert time.monotonic() < deadline, f"step {step} did not come"
        time.sleep(0.02)


def metrics_of_this_node() -> str:
    port = ray.nodes()[0]["MetricsExportPort"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=10) as answer:
        return answer.read().decode()


def test_a_killed_rank_changes_neither_curve_nor_logged_points_and_is_seen_from_outside(
    index: ShardIndex, ray_resources: Resources, tmp_path: Path
) -> None:
    config = tiny("pretrain.steps=60", "pretrain.checkpoint_every=10", "pretrain.keep_checkpoints=99")
    undisturbed = Recorder()
    whole = train(setup_of(config, index, tmp_path / "whole"), config, ray_resources, undisturbed)
    scraped: list[str] = []

    def kill() -> None:
        wait_for_step(tmp_path / "killed", 20)
        os.kill(rank_processes()[-1].pid, signal.SIGKILL)
        wait_for_step(tmp_path / "killed", 30)
        while killer_may_look.is_set() and not (scraped and "maetrain_pretrain_restarts{" in scraped[-1]):
            scraped.append(metrics_of_this_node())
            time.sleep(0.2)

    killer, killer_may_look, disturbed = threading.Thread(target=kill), threading.Event(), Recorder()
    killer_may_look.set()
    killer.start()
    try:
        assert train(setup_of(config, index, tmp_path / "killed"), config, ray_resources, disturbed) == whole
    finally:
        killer_may_look.clear()
        killer.join()
    assert [step for step, _ in disturbed.points] == list(range(5, 61, 5)) == [s for s, _ in undisturbed.points]
    assert [m["loss"] for _, m in disturbed.points] == [m["loss"] for _, m in undisturbed.points]
    assert disturbed.points[0][1]["restarts"] == 0 and disturbed.points[-1][1]["restarts"] == 1
    for name in ("loss", "step_s", "data_wait_s", "comm_wait_s", "volumes_per_s", "memory_mib", "restarts"):
        assert f"maetrain_pretrain_{name}{{" in scraped[-1], name


def test_a_ranks_mistake_is_one_line_and_ends_all_ranks(
    index: ShardIndex, ray_resources: Resources, tmp_path: Path
) -> None:
    shutil.copytree(index.root, tmp_path / "shards")
    damaged = ShardIndex.load(tmp_path / "shards")
    case, shard = damaged.volumes[0].case, damaged.volumes[0].shard
    shutil.rmtree(tmp_path / "shards" / shard / case / "image")
    config = tiny("pretrain.max_damaged_share=0", f"pretrain.steps={len(index.volumes)}")
    with pytest.raises(InputError, match=f"max_damaged_share.*{case}"):
        train(setup_of(config, damaged, tmp_path / "run"), config, ray_resources, NullTracker())
    deadline = time.monotonic() + 30
    while rank_processes():  # Ray kills them in its own time
        assert time.monotonic() < deadline, "a rank outlives its group"
        time.sleep(0.1)


@pytest.mark.faults
def test_a_group_that_never_gets_anywhere_is_given_up_with_a_reason(
    index: ShardIndex, ray_resources: Resources, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its ranks end by the stall guard before they have stored anything; their stacks are found and told."""
    config = tiny("pretrain.stall_timeout_s=0.01", "cluster.max_failures=1")
    with pytest.raises(InputError, match="started 2 times in a row.*before it had stored another checkpoint"):
        train(setup_of(config, index, tmp_path / "run"), config, ray_resources, NullTracker())
    assert "a rank stalled and was ended" in " ".join(capsys.readouterr().out.split())
    assert list((tmp_path / "run" / "stalls").glob("rank-0000?-*.stacks"))
