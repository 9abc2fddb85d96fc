"""What is decided before a training group starts."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cluster import pipeline
from cluster.pipeline import fit_channels, pretrain_stage
from cluster.pretrain import check_setup, fit_workers
from cluster.session import Resources
from data_shards.build import BuildConfig, build
from data_shards.errors import InputError
from data_shards.formats.index import ShardIndex
from maetrain.recipes.load import load_recipe
from maetrain.tracking.tracker import NullTracker
from maetrain.train.config import PretrainSetup
from maetrain.train.resume import RUN, bound_settings

CONFIG = load_recipe("demo")


@pytest.fixture(scope="module")
def index(small_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return build(small_archive, tmp_path_factory.mktemp("shards"), BuildConfig(format="webdataset"))


def setup_in(run_dir: Path, index: ShardIndex, *overrides: str) -> PretrainSetup:
    config = load_recipe("demo", overrides)
    return PretrainSetup(
        model=config.model, pretrain=config.pretrain, shards=str(index.root), pool_subjects=("a",), run_dir=str(run_dir)
    )


def test_a_pretraining_run_knows_what_the_machine_was_doing(
    tmp_path: Path, index: ShardIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training, export and picture are made up."""

    def draw(path: Path, *_: object) -> None:
        path.write_bytes(b"png")

    monkeypatch.setattr(pipeline, "run_pretraining", lambda *_: None)
    monkeypatch.setattr(pipeline, "export_encoder", lambda run_dir, folder: folder.mkdir())
    monkeypatch.setattr(pipeline, "rebuilt_crop", lambda *_: ())
    monkeypatch.setattr(pipeline, "reconstruction", draw)
    tracker, logged = NullTracker(), set[str]()
    monkeypatch.setattr(tracker, "metrics", lambda metrics, step: logged.update(metrics))
    (tmp_path / "run").mkdir()
    resources = Resources(cpus=2, gpus=0)
    pipeline.pretrain_and_export(setup_in(tmp_path / "run", index), CONFIG, index, resources, tracker)
    assert {"system/cpu_utilization_percentage", "system/process_memory_megabytes"} <= logged


@pytest.mark.parametrize(("gpus", "workers"), [(0, 2), (1, 1), (2, 2), (8, 2)])
def test_there_is_one_rank_a_gpu_where_gpus_are_few(gpus: int, workers: int) -> None:
    assert fit_workers(CONFIG, Resources(cpus=8, gpus=gpus)).cluster.pretrain_workers == workers


def test_a_group_may_be_as_large_as_there_is_room_for() -> None:
    elastic = load_recipe("demo", ("cluster.pretrain_workers=[1,4]",)).cluster
    assert elastic.workers == (1, 4) and CONFIG.cluster.workers == (2, 2)
    grown = fit_workers(load_recipe("demo", ("cluster.pretrain_workers=[3,8]",)), Resources(cpus=8, gpus=2))
    assert grown.cluster.workers == (2, 8)
    with pytest.raises(InputError, match=r"\[4, 1\]: give \[fewest, most\]"):
        load_recipe("demo", ("cluster.pretrain_workers=[4,1]",))


def test_the_model_takes_the_channels_of_the_data(index: ShardIndex) -> None:
    four = replace(index, channel_names=("T1", "T1c", "T2", "FLAIR"))
    assert fit_channels(CONFIG, index) is CONFIG
    assert fit_channels(CONFIG, four).model.in_channels == 4


def test_a_run_with_other_settings_is_refused_before_a_group_starts(tmp_path: Path, index: ShardIndex) -> None:
    resources = Resources(cpus=2, gpus=0)
    (tmp_path / RUN).write_text(json.dumps(bound_settings(setup_in(tmp_path, index), index.sha256)))
    check_setup(setup_in(tmp_path, index), index.sha256, CONFIG.cluster, resources)
    check_setup(setup_in(tmp_path, index, "pretrain.log_every=1"), index.sha256, CONFIG.cluster, resources)
    with pytest.raises(InputError, match=r"other settings \(pretrain.steps: \d+ -> 7\)"):
        check_setup(setup_in(tmp_path, index, "pretrain.steps=7"), index.sha256, CONFIG.cluster, resources)
    (tmp_path / RUN).write_text("{")
    with pytest.raises(InputError, match="run.json: garbled"):
        check_setup(setup_in(tmp_path, index), index.sha256, CONFIG.cluster, resources)


def test_too_few_cores_are_said_with_a_share_that_fits(tmp_path: Path, index: ShardIndex) -> None:
    with pytest.raises(InputError, match="cluster.cpus_per_worker=0.5"):
        check_setup(setup_in(tmp_path, index), index.sha256, CONFIG.cluster, Resources(cpus=1, gpus=0))


@pytest.mark.parametrize("override", ["model.supervised_scales=1", "pretrain.log_every=3", "finetune.steps=3"])
def test_what_does_not_shape_the_encoder_does_not_redo_pretraining(
    tmp_path: Path, index: ShardIndex, override: str
) -> None:
    changed = load_recipe("demo", (override,))
    assert pretrain_stage(changed, index, ("a",), tmp_path).key == pretrain_stage(CONFIG, index, ("a",), tmp_path).key
    wider = load_recipe("demo", ("model.mlp_ratio=2",))
    assert pretrain_stage(wider, index, ("a",), tmp_path).key != pretrain_stage(CONFIG, index, ("a",), tmp_path).key
