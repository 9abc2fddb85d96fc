"""The plan of a sweep: every cell once, budgets nested, arms paired."""

import pytest
from pydantic import ValidationError

from data_shards.errors import InputError
from data_shards.formats.index import ShardIndex
from maetrain.finetune.config import FinetuneConfig, FinetuneJob
from maetrain.finetune.plan import plan_jobs, pretrain_pool, split_of

ARMS = {"scratch": None, "mae": "handover"}


def test_every_budget_arm_and_seed_is_one_job(small_index: ShardIndex) -> None:
    split = split_of(small_index, 0.25, 2, 0)
    jobs = plan_jobs(small_index, split, (1, 2, 4), (0, 1), ARMS)
    cells = [(job.budget, job.arm, job.seed) for job in jobs]
    assert len(cells) == 12 and set(cells) == {(b, a, s) for b in (1, 2, 4) for a in ARMS for s in (0, 1)}
    assert len({job.name for job in jobs}) == 12
    assert {job.handover for job in jobs if job.arm == "mae"} == {"handover"}
    assert {job.handover for job in jobs if job.arm == "scratch"} == {None}


def test_budgets_are_nested_and_arms_see_the_same_persons(small_index: ShardIndex) -> None:
    split = split_of(small_index, 0.25, 2, 0)
    persons = {(j.budget, j.arm, j.seed): j.subjects for j in plan_jobs(small_index, split, (1, 2, 4), (0, 1, 2), ARMS)}
    for seed in (0, 1, 2):
        for arm in ARMS:
            one, two, four = (persons[budget, arm, seed] for budget in (1, 2, 4))
            assert (len(one), len(two), len(four)) == (1, 2, 4) and set(four) <= set(split.train)
            assert four[:1] == one and four[:2] == two
        assert persons[4, "scratch", seed] == persons[4, "mae", seed]
    assert len({persons[4, "mae", seed] for seed in (0, 1, 2)}) > 1, "seeds order the persons anew"


def test_nobody_who_tests_or_monitors_is_in_the_pretraining_pool(small_index: ShardIndex) -> None:
    split = split_of(small_index, 0.25, 2, 0)
    pool = pretrain_pool(small_index, split)
    everyone = {volume.subject for volume in small_index.volumes}
    assert set(pool) == everyone - {*split.test, *split.monitor}
    assert set(pretrain_pool(small_index, None)) == everyone


def test_a_budget_larger_than_the_persons_there_are_is_refused_with_both_numbers(small_index: ShardIndex) -> None:
    split = split_of(small_index, 0.25, 2, 0)
    with pytest.raises(InputError, match=f"budget 99 .* {len(split.train)} training persons.*sweep.budgets"):
        plan_jobs(small_index, split, (1, 99), (0,), ARMS)


@pytest.mark.parametrize("arm", ["", "MAE", "a b", "../x", "1st"])
def test_an_arm_that_would_make_a_bad_folder_name_is_refused(arm: str) -> None:
    with pytest.raises(ValidationError):
        FinetuneJob(budget=1, arm=arm, seed=0, subjects=("anna",))


@pytest.mark.parametrize("name", ["crop_DHW", "window_DHW"])
def test_a_crop_without_voxels_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match=rf"{name} = \(16, 0, 16\)"):
        FinetuneConfig(**{name: (16, 0, 16)})
