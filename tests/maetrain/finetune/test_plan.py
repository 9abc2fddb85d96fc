"""The plan of a sweep: every cell once, budgets nested, arms paired."""

from dataclasses import replace

import pytest
from pydantic import ValidationError

from data_shards.errors import InputError
from data_shards.formats.index import ShardIndex
from maetrain.finetune.config import FinetuneConfig, FinetuneJob
from maetrain.finetune.plan import best_rates, plan_jobs, plan_trials, pretrain_pool, split_of
from maetrain.recipes.load import load_recipe

ARMS: dict[str, list[str]] = {"scratch": [], "mae": ["handover"]}


def test_every_budget_arm_and_seed_is_one_job(small_index: ShardIndex) -> None:
    split = split_of(small_index, 0.25, 2, 0)
    jobs = plan_jobs(small_index, split, (1, 2, 4), (0, 1), ARMS)
    cells = [(job.budget, job.arm, job.seed) for job in jobs]
    assert len(cells) == 12 and set(cells) == {(b, a, s) for b in (1, 2, 4) for a in ARMS for s in (0, 1)}
    assert len({job.name for job in jobs}) == 12
    assert {job.handover for job in jobs if job.arm == "mae"} == {"handover"}
    assert {job.handover for job in jobs if job.arm == "scratch"} == {None}


def test_the_seeds_of_an_arm_take_its_encoders_in_turn_the_same_at_each_budget(small_index: ShardIndex) -> None:
    split = split_of(small_index, 0.25, 2, 0)
    jobs = plan_jobs(small_index, split, (1, 2), (7, 3, 5), {"scratch": [], "mae": ["a", "b"]})
    taken = {(j.budget, j.seed): j.handover for j in jobs if j.arm == "mae"}
    assert taken == {(budget, seed): folder for budget in (1, 2) for seed, folder in ((7, "a"), (3, "b"), (5, "a"))}


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


def test_a_person_with_two_names_who_would_test_and_train_is_refused(small_index: ShardIndex) -> None:
    split = split_of(small_index, 0.25, 1, seed=0)
    (tested, *_), (trains, also_trains, *_) = split.test, split.train
    for pair, is_refused in (((trains, also_trains), False), ((trains, tested), True), ((tested, "unlabelled"), True)):
        index = replace(small_index, aliases=(pair,))
        if is_refused:
            with pytest.raises(InputError, match=f"^{pair[0]} and {pair[1]} share a scan.*subjects.json"):
                split_of(index, 0.25, 1, seed=0)
        else:
            assert split_of(index, 0.25, 1, seed=0) == split


def test_a_budget_larger_than_the_persons_there_are_is_refused_with_both_numbers(small_index: ShardIndex) -> None:
    split = split_of(small_index, 0.25, 2, 0)
    with pytest.raises(InputError, match=f"budget 99 .* {len(split.train)} training persons.*sweep.budgets"):
        plan_jobs(small_index, split, (1, 99), (0,), ARMS)


@pytest.mark.parametrize("arm", ["", "MAE", "a b", "../x", "1st"])
def test_an_arm_that_would_make_a_bad_folder_name_is_refused(arm: str) -> None:
    with pytest.raises(ValidationError):
        FinetuneJob(budget=1, arm=arm, seed=0, subjects=("anna",))


def test_windows_are_as_large_as_crops_unless_told_otherwise() -> None:
    """A larger one pads small scans by what no crop was padded in training: two points of Dice on the hippocampus."""
    assert FinetuneConfig().window_DHW == FinetuneConfig().crop_DHW
    assert FinetuneConfig(crop_DHW=(8, 16, 24)).window_DHW == (8, 16, 24)
    assert FinetuneConfig(crop_DHW=(8, 16, 24), window_DHW=(16, 16, 16)).window_DHW == (16, 16, 16)
    for recipe in ("demo", "small", "hippocampus", "brain"):
        finetune = load_recipe(recipe, ["finetune.crop_DHW=[16,24,16]"]).finetune
        assert finetune.window_DHW == (16, 24, 16)


@pytest.mark.parametrize("name", ["crop_DHW", "window_DHW"])
def test_a_crop_without_voxels_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match=rf"{name} = \(16, 0, 16\)"):
        FinetuneConfig(**{name: (16, 0, 16)})


RATES = (1e-2, 1e-3)


def trials(index: ShardIndex, budgets: tuple[int, ...], at: tuple[int, ...] = ()) -> list[FinetuneJob]:
    return plan_trials(index, split_of(index, 0.25, 2, 0), budgets, (0,), ARMS, RATES, at)


@pytest.mark.parametrize(
    ("budgets", "at", "expected"),
    [((1, 2, 4), (), {4}), ((1, 2), (), {2}), ((1, 2, 4, 5), (), {4}), ((1, 2, 4), (2, 4), {2, 4})],
)
def test_trials_are_made_at_the_smallest_budget_from_four_on_else_the_largest(
    small_index: ShardIndex, budgets: tuple[int, ...], at: tuple[int, ...], expected: set[int]
) -> None:
    found = trials(small_index, budgets, at)
    assert {job.budget for job in found} == expected
    assert len(found) == len({job.name for job in found}) == len(expected) * len(ARMS) * len(RATES)
    cells = {job.name: job for job in plan_jobs(small_index, split_of(small_index, 0.25, 2, 0), budgets, (0,), ARMS)}
    for job in found:
        assert job.is_trial and job.learning_rate in RATES
        twin = cells[f"budget-{job.budget:03d}-{job.arm}-seed-{job.seed}"]
        assert (job.subjects, job.handover) == (twin.subjects, twin.handover), "on the persons of that budget"


def test_a_trial_that_could_hold_nobody_out_is_refused(small_index: ShardIndex) -> None:
    once = [v for v in small_index.volumes if v.has_label]
    single = [v.subject for v in once]
    index = replace(small_index, volumes=tuple(v for v in once if single.count(v.subject) == 1))
    with pytest.raises(InputError, match="budget of 1 with one scan .* sweep.trial_budgets"):
        plan_trials(index, split_of(index, 0.2, 1, 0), (1,), (0,), ARMS, RATES)
    with pytest.raises(InputError, match=r"trial_budgets: 3 is not among sweep.budgets \[1, 2\]"):
        trials(small_index, (1, 2), (3,))


def test_each_arm_gets_the_rate_that_did_best_on_average_and_the_smaller_of_equals() -> None:
    def trial(arm: str, rate: float, seed: int = 0) -> FinetuneJob:
        return FinetuneJob(budget=4, arm=arm, seed=seed, subjects=("a",), learning_rate=rate, is_trial=True)

    found = [
        (trial("scratch", 1e-2, 0), 0.9), (trial("scratch", 1e-2, 1), 0.1),  # 0.50
        (trial("scratch", 1e-3, 0), 0.6), (trial("scratch", 1e-3, 1), 0.6),  # 0.60
        (trial("mae", 1e-2), 0.7), (trial("mae", 1e-3), 0.7),
        (trial("long", 1e-2), 0.0), (trial("long", 1e-3), 0.01),
    ]  # fmt: skip
    assert best_rates(found) == {"scratch": 1e-3, "mae": 1e-3, "long": 1e-3}


def test_the_rates_that_were_found_are_the_jobs_own(small_index: ShardIndex) -> None:
    jobs = plan_jobs(small_index, split_of(small_index, 0.25, 2, 0), (1,), (0,), ARMS, {"mae": 1e-4})
    assert {job.arm: job.learning_rate for job in jobs} == {"mae": 1e-4, "scratch": None}
    config = FinetuneConfig(learning_rate=3e-3, pretrained_learning_rate=2e-3)
    assert {job.arm: job.peak(config) for job in jobs} == {"mae": 1e-4, "scratch": 3e-3}


def test_every_class_is_among_those_that_are_left_to_train_on(small_index: ShardIndex) -> None:
    """Persons have one class each but for two: of two persons one validates, so the first one must have both."""
    split = split_of(small_index, 0.25, 2, 0)
    whole = set(split.train[:2])
    volumes = tuple(
        v if v.subject in whole or v.subject not in split.train else replace(v, label_classes=(0, 1))
        for v in small_index.volumes
    )
    index = replace(small_index, volumes=volumes)
    firsts = [
        {job.subjects[0] for job in plan_jobs(index, split, (2, 4), range(20), ARMS, None, fewest)} for fewest in (1, 0)
    ]
    assert firsts[0] <= whole and not firsts[1] <= whole


@pytest.mark.parametrize("settings", [{"keep": "best"}, {"patience": 2}])
def test_a_choice_without_validation_cases_is_refused(settings: dict) -> None:
    with pytest.raises(ValidationError, match="set validation_share"):
        FinetuneConfig(**settings)
    FinetuneConfig(**settings, validation_share=0.2)


def test_a_budget_that_cannot_be_met_is_the_one_that_was_typed(small_index: ShardIndex) -> None:
    split = split_of(small_index, 0.25, 1, 0)
    with pytest.raises(InputError, match="budget 100 can't be met"):
        plan_jobs(small_index, split, (100,), (0,), {"scratch": []}, fewest=75)
