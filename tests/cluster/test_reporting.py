"""What the report's notes say of how a sweep was run."""

import pytest

from cluster.reporting import notes, several_versions
from data_shards.formats.index import ShardIndex, VolumeTable
from data_shards.preprocess import PreprocessConfig
from maetrain.finetune.config import FinetuneJob
from maetrain.finetune.job import JobResult
from maetrain.recipes.config import RunConfig

ARMS: dict[str, list[str]] = {"scratch": [], "mae": ["a", "b", "c"]}
RATES = {"scratch": 1e-3, "mae": 1e-4}


@pytest.fixture
def index() -> ShardIndex:
    return ShardIndex("zarr", "scans", ("MR",), ("background", "front"), PreprocessConfig(), VolumeTable.of([]), ())


def config(**sweep: object) -> RunConfig:
    return RunConfig.model_validate({"sweep": {"learning_rates": [1e-3, 1e-4], **sweep}})


@pytest.mark.parametrize(
    ("budgets", "tried", "said"),
    [
        ((1, 2, 4, 8), {4}, "serve 1, 2 and 8 labelled persons, too"),
        ((1, 4), {4}, "serve 1 labelled person, too"),
        ((4, 8), {4, 8}, ""),  # every budget and seed had trials of its own
    ],
)
def test_rates_of_budgets_without_trials_are_said_to_come_from_others(
    index: ShardIndex, budgets: tuple[int, ...], tried: set[int], said: str
) -> None:
    found = notes(config(budgets=budgets, trial_seeds=2), index, ARMS, RATES, tried)
    where = " and ".join(map(str, sorted(tried)))
    assert f"on validation persons with {where} labelled persons: scratch 0.001, mae 0.0001." in found[0]
    assert len(found) == (2 if said else 1) and said in found[-1]


@pytest.mark.parametrize(
    ("trial_seeds", "said"), [(1, "serve 1 labelled person and seeds 1 and 2, too"), (2, "person and seed 2, too")]
)
def test_seeds_without_trials_are_said_to_take_the_rates_of_others(
    index: ShardIndex, trial_seeds: int, said: str
) -> None:
    settings = config(budgets=(1, 4), seeds=(0, 1, 2), trial_seeds=trial_seeds)
    assert said in notes(settings, index, ARMS, RATES, {4})[1]


@pytest.mark.parametrize("pretrained", [2e-4, 1e-3])
def test_rates_that_were_not_searched_for_are_said_to_be_fixed(index: ShardIndex, pretrained: float) -> None:
    rates = {"learning_rate": 1e-3, "pretrained_learning_rate": pretrained}
    (said,) = notes(RunConfig.model_validate({"finetune": rates}), index, ARMS, {}, set())
    assert f"0.001 from scratch, {pretrained:g} from a pretrained encoder; fixed beforehand, not searched" in said


@pytest.mark.parametrize(("seeds", "said"), [((0, 1, 2, 3), "for 4 seeds: mae 3."), ((0, 1, 2), None)])
def test_fewer_encoders_than_seeds_are_said(index: ShardIndex, seeds: tuple[int, ...], said: str | None) -> None:
    settings = RunConfig.model_validate({"sweep": {"seeds": seeds, "trial_seeds": len(seeds)}})
    found = notes(settings, index, ARMS, RATES, {1, 2, 4})
    assert sum(said in text for text in found if said) == bool(said)
    assert len(found) == 1 + bool(said)


@pytest.mark.parametrize(("steps", "said"), [(5, True), (40, True), (41, False)])
def test_a_training_that_is_all_warm_up_is_said(index: ShardIndex, steps: int, said: bool) -> None:
    settings = RunConfig.model_validate({"finetune": {"steps": steps, "warmup_steps": 40}})
    found = notes(settings, index, ARMS, RATES, {1, 2, 4})
    assert (f"finetune.warmup_steps = 40, finetune.steps = {steps})" in found[0]) == said


@pytest.mark.parametrize(
    ("by", "said"),
    [
        ({"scratch": ["1a2b", "1a2b"], "mae": ["1a2b", "1a2b"]}, ""),
        ({"scratch": ["1a2b", "1a2b"], "mae": ["1a2b", "3c4d"]}, "(scratch by 1a2b; mae by 1a2b and 3c4d)"),
        ({"scratch": ["1a2b"], "mae": [None]}, "(scratch by 1a2b; mae by unknown)"),
    ],
)
def test_arms_of_different_versions_of_the_code_are_said(by: dict[str, list[str | None]], said: str) -> None:
    results = [result(arm, seed, commit) for arm, commits in by.items() for seed, commit in enumerate(commits)]
    found = several_versions(results)
    assert len(found) == bool(said) and all(said in text for text in found)


def result(arm: str, seed: int, commit: str | None) -> JobResult:
    job = FinetuneJob(budget=4, arm=arm, seed=seed, subjects=("a", "b", "c", "d"))
    times = {"training_s": 1, "scoring_s": 1, "seconds": 2}
    curve = {"monitor_steps": [0, 5], "monitor_dice": [0.1, 0.2], "test_dice": 0.3, "steps": 5, "kept_step": 5}
    made_by = {"commit": commit} if commit else {}
    return JobResult.model_validate({"job": job, "learning_rate": 1e-3, "made_by": made_by, **curve, **times})
