"""A step's crops are spread over any number of ranks up to their own number."""

import pytest
from pydantic import ValidationError

from data_shards.errors import InputError
from maetrain.train.config import PretrainConfig


@pytest.mark.parametrize(("world", "passes"), [(1, 6), (2, 3), (3, 2), (6, 1)])
def test_the_global_batch_is_spread_over_ranks_and_passes(world: int, passes: int) -> None:
    assert PretrainConfig(global_batch=24, micro_batch=4).accumulation(world) == passes


@pytest.mark.parametrize(("batch", "world", "passes"), [(24, 5, 2), (30, 2, 4), (8, 8, 1), (7, 3, 1)])
def test_a_batch_that_does_not_divide_is_spread_all_the_same(batch: int, world: int, passes: int) -> None:
    assert PretrainConfig(global_batch=batch, micro_batch=4).accumulation(world) == passes


def test_more_ranks_than_crops_are_refused() -> None:
    with pytest.raises(InputError, match="global_batch = 8 on 16 ranks"):
        PretrainConfig(global_batch=8, micro_batch=4).accumulation(16)


def test_bf16_without_zero_is_refused() -> None:
    with pytest.raises(ValidationError, match="use zero_stage 1, 2 or 3"):
        PretrainConfig(precision="bf16", zero_stage=0)
    with pytest.raises(ValidationError, match="use zero_stage 1, 2 or 3"):
        PretrainConfig(offload=True, zero_stage=0)
    with pytest.raises(ValidationError, match="use zero_stage 1 or 2"):
        PretrainConfig(compile=True, zero_stage=3)
