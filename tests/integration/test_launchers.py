"""The pretraining loop under every launcher: the same losses, whoever started it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.console import progress_bar
from cluster.pretrain import run_pretraining
from cluster.session import Resources
from data_shards.build import BuildConfig, build
from data_shards.formats.index import ShardIndex
from maetrain.finetune.plan import pretrain_pool
from maetrain.recipes.config import RunConfig
from maetrain.tracking.tracker import NullTracker
from maetrain.train.config import PretrainSetup
from maetrain.train.curve import Curve

from .settings import tiny

pytestmark = pytest.mark.runs


@pytest.fixture(scope="module")
def index(small_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    folder = tmp_path_factory.mktemp("shards")
    build(small_archive, folder, BuildConfig(format="zarr"))
    return ShardIndex.load(folder)


def setup_of(config: RunConfig, index: ShardIndex, run_dir: Path) -> PretrainSetup:
    return PretrainSetup(
        model=config.model,
        pretrain=config.pretrain,
        shards=str(index.root),
        pool_subjects=pretrain_pool(index, None),
        run_dir=str(run_dir),
    )


def command(setup: PretrainSetup, processes: int) -> list[str]:
    """One plain process, or torchrun with several."""
    path = Path(setup.run_dir).with_suffix(".json")
    path.write_text(setup.model_dump_json())
    # --standalone binds a free port
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [sys.executable, *(torchrun if processes > 1 else []), "-m", "maetrain.train", str(path)]


def losses(run_dir: Path | str) -> list[float]:
    curve = Curve.load(Path(run_dir) / "curve.jsonl")
    assert [point.step for point in curve] == list(range(1, len(curve) + 1))
    return [point.loss for point in curve]


def run(setup: PretrainSetup, processes: int) -> list[float]:
    done = subprocess.run(command(setup, processes), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return losses(setup.run_dir)


def run_under_ray(setup: PretrainSetup, config: RunConfig, resources: Resources, workers: int) -> list[float]:
    cluster = config.cluster.model_copy(update={"pretrain_workers": workers, "cpus_per_worker": 0.5})
    with progress_bar("pretraining") as bar:
        run_pretraining(setup, cluster, resources, bar, NullTracker())
    return losses(setup.run_dir)


def test_the_loop_gives_the_same_losses_with_and_without_ray(
    index: ShardIndex, ray_resources: Resources, tmp_path: Path
) -> None:
    config = tiny()
    alone = run(setup_of(config, index, tmp_path / "alone"), 2)
    under_ray = run_under_ray(setup_of(config, index, tmp_path / "ray"), config, ray_resources, 2)
    assert len(alone) == config.pretrain.steps
    assert under_ray == pytest.approx(alone, rel=1e-6)
    assert len(set(alone)) == len(alone), "losses that never change would agree, too"


def test_a_folder_is_bound_to_the_settings_of_its_run(index: ShardIndex, tmp_path: Path) -> None:
    setup = setup_of(tiny("pretrain.steps=0"), index, tmp_path / "run")
    run(setup, 1)
    other = setup_of(tiny("pretrain.steps=0", "pretrain.mae.ratio=0.5"), index, tmp_path / "run")
    refused = subprocess.run(command(other, 1), capture_output=True, text=True, timeout=240)
    assert refused.returncode == 2
    line = refused.stderr.strip().splitlines()[-1]
    assert "pretrain.mae.ratio: 0.7 -> 0.5" in line and "another folder" in line


def test_a_damaged_scan_is_told_and_skipped_until_there_are_too_many(index: ShardIndex, tmp_path: Path) -> None:
    shutil.copytree(index.root, tmp_path / "shards")
    damaged = ShardIndex.load(tmp_path / "shards")
    case, shard = damaged.volumes[0].case, damaged.volumes[0].shard
    shutil.rmtree(tmp_path / "shards" / shard / case / "image")
    config = tiny(f"pretrain.steps={len(index.volumes)}", "pretrain.max_damaged_share=0.5")
    run_dir = tmp_path / "tolerant"
    done = subprocess.run(command(setup_of(config, damaged, run_dir), 1), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and len(losses(run_dir)) == config.pretrain.steps
    assert done.stdout.count(f"skipped {case}: ") == 1

    strict = tiny(f"pretrain.steps={len(index.volumes)}", "pretrain.max_damaged_share=0")
    words = command(setup_of(strict, damaged, tmp_path / "strict"), 1)
    done = subprocess.run(words, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2
    assert "max_damaged_share" in done.stderr and case in done.stderr and "Traceback" not in done.stderr
