"""A run's folder is bound to its settings; what does not shape the curve may change."""

from pathlib import Path

import pytest
import torch

from data_shards.errors import InputError
from data_shards.formats.index import ShardIndex
from maetrain.train.group import RankInfo
from maetrain.train.resume import bind_run, bound_settings

from ..small import small_setup

ALONE = RankInfo(0, 1, torch.device("cpu"))


def test_the_same_settings_go_on(small_index: ShardIndex, tmp_path: Path) -> None:
    for _ in range(2):
        bind_run(small_setup(small_index, tmp_path), small_index.sha256, ALONE)
    assert (tmp_path / "run.json").is_file()


@pytest.mark.parametrize(
    "change",
    [
        {"checkpoint_every": 5},
        {"keep_checkpoints": 1},
        {"log_every": 1},
        {"loader_workers": 1},
        {"max_damaged_share": 1},
        {"zero_stage": 3, "offload": True, "micro_batch": 1},
        {"storage_timeout_s": 1, "stall_timeout_s": 0, "max_skipped_steps": 9},
    ],
)
def test_how_it_is_saved_guarded_and_spread_over_ranks_may_change(
    small_index: ShardIndex, tmp_path: Path, change: dict
) -> None:
    bind_run(small_setup(small_index, tmp_path), small_index.sha256, ALONE)
    bind_run(small_setup(small_index, tmp_path, **change), small_index.sha256, ALONE)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"learning_rate": 0.5}, "pretrain.learning_rate: 0.001 -> 0.5"),
        ({"seed": 4}, "pretrain.seed: 3 -> 4"),
        ({"global_batch": 8}, "pretrain.global_batch: 4 -> 8"),
        ({"precision": "bf16"}, 'pretrain.precision: "fp32" -> "bf16"'),
    ],
)
def test_a_setting_that_shapes_the_curve_is_refused_by_name(
    small_index: ShardIndex, tmp_path: Path, change: dict, said: str
) -> None:
    bind_run(small_setup(small_index, tmp_path), small_index.sha256, ALONE)
    with pytest.raises(InputError) as error:
        bind_run(small_setup(small_index, tmp_path, **change), small_index.sha256, ALONE)
    assert said in str(error.value) and str(tmp_path) in str(error.value)


def test_other_shards_are_refused(small_index: ShardIndex, tmp_path: Path) -> None:
    setup = small_setup(small_index, tmp_path)
    bind_run(setup, small_index.sha256, ALONE)
    with pytest.raises(InputError, match="shard_index_sha256"):
        bind_run(setup, "0" * 64, ALONE)


def test_the_order_of_the_pools_persons_does_not_count(small_index: ShardIndex, tmp_path: Path) -> None:
    setup = small_setup(small_index, tmp_path)
    turned = setup.model_copy(update={"pool_subjects": setup.pool_subjects[::-1]})
    assert bound_settings(setup, "x") == bound_settings(turned, "x")
