"""Batches must divide over ranks, and the message says which batch would."""

import pytest
from pydantic import ValidationError

from data_shards.errors import InputError
from maetrain.train.config import PretrainConfig


@pytest.mark.parametrize(("world", "passes"), [(1, 6), (2, 3), (3, 2), (6, 1)])
def test_the_global_batch_is_spread_over_ranks_and_passes(world: int, passes: int) -> None:
    assert PretrainConfig(global_batch=24, micro_batch=4).accumulation(world) == passes


@pytest.mark.parametrize(("batch", "world", "offered"), [(24, 5, 20), (8, 16, 64), (30, 2, 32)])
def test_a_batch_that_does_not_divide_is_refused_with_one_that_does(batch: int, world: int, offered: int) -> None:
    with pytest.raises(InputError, match=f"use pretrain.global_batch={offered}$"):
        PretrainConfig(global_batch=batch, micro_batch=4).accumulation(world)
    assert PretrainConfig(global_batch=offered, micro_batch=4).accumulation(world) >= 1


def test_bf16_without_zero_is_refused() -> None:
    with pytest.raises(ValidationError, match="use zero_stage 1 or 2"):
        PretrainConfig(precision="bf16", zero_stage=0)
