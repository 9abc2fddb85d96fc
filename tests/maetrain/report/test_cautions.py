"""What limits a result is said, and nothing is said of a sound one."""

import pytest

from maetrain.report.cautions import gather_warnings, resolution_warning
from maetrain.report.inputs import Overlap

from .builders import comparison, make_inputs, make_rows

SOUND = {"mae": [comparison(1, 0.01, 0.02)]}


def test_few_test_persons_are_warned_about() -> None:
    assert "Only 19 test persons: fewer than 20" in (resolution_warning(19) or "")
    assert resolution_warning(20) is None


def test_what_limits_the_result_is_listed() -> None:
    rows = [r for r in make_rows() if not (r.arm == "mae" and r.seed == 2 and r.budget == 1)]
    few = [comparison(1, -0.1, 0.1, n_subjects=4, n_seeds=1), comparison(4, -0.1, 0.1, n_subjects=4, n_seeds=2)]
    inputs = make_inputs(overlap=Overlap(by_person=2, by_voxel_hash=0))
    arms = {"mae": few, "random-mae": [comparison(4, 0.1, 0.2, arm="random-mae")]}
    text = "\n".join(gather_warnings(rows, inputs, arms, {}, "scratch", "mae"))
    assert text.startswith("Test persons are in the pretraining pool (2 by person")
    for part in (
        "Only 4 test persons",
        "is 0.25: no effect",
        "Only 1 seed",
        "The control random-mae differs",
        "mae lacks 1 of 6 jobs that other arms have (labelled persons: 1)",
    ):
        assert part in text
    assert "not checked" in gather_warnings(rows, make_inputs(overlap=None), {"mae": []}, {}, "scratch", "mae")[0]


def test_a_missing_job_of_any_arm_is_named() -> None:
    gone = {("large", 1, 2), ("large", 4, 0), ("random-mae", 4, 1)}
    arms = ("scratch", "mae", "large", "random-mae")
    rows = [r for r in make_rows(arms=arms) if (r.arm, r.budget, r.seed) not in gone]
    others = {arm: [comparison(1, -0.01, 0.02, arm=arm)] for arm in arms[1:]}
    assert gather_warnings(rows, make_inputs(), others, {}, "scratch", "mae") == [
        f"{arm} lacks {num} of 6 jobs that other arms have (labelled persons: {budgets}): "
        "what has no counterpart is not compared."
        for arm, num, budgets in (("large", 2, "1 and 4"), ("random-mae", 1, "4"))
    ]


def test_without_a_comparison_the_scored_persons_are_counted() -> None:
    text = "\n".join(gather_warnings(make_rows(num_subjects=3), make_inputs(), {"mae": []}, {}, "scratch", "mae"))
    assert "Only 3 test persons" in text


@pytest.mark.parametrize(("seeds", "said"), [(2, True), (3, True), (4, True), (5, False)])
def test_few_seeds_are_warned_about(seeds: int, said: bool) -> None:
    arms = {"mae": [comparison(1, 0.01, 0.02, n_seeds=seeds)]}
    found = gather_warnings(make_rows(), make_inputs(), arms, {}, "scratch", "mae")
    assert [text.startswith(f"Only {seeds} seeds") for text in found] == [True] * said


def test_fewer_seeds_of_another_arm_are_said_of_it() -> None:
    arms = {"mae": [comparison(1, 0.01, 0.02)]}
    arms |= {arm: [comparison(1, 0.01, 0.02, arm=arm, n_seeds=1)] for arm in ("swinunetr", "nnunet")}
    arms["unet"] = [comparison(1, 0.01, 0.02, arm="unet", n_seeds=3)]
    one, three = gather_warnings(make_rows(arms=("scratch", *arms)), make_inputs(), arms, {}, "scratch", "mae")
    assert one.startswith("Only 1 seed of swinunetr and nnunet: the intervals say nothing about")
    assert three.startswith("Only 3 seeds of unet: ")


def test_another_pretraining_that_helps_is_no_warning() -> None:
    arms = SOUND | {"mae-large": [comparison(1, 0.01, 0.02, arm="mae-large")]}
    rows = make_rows(arms=("scratch", "mae", "mae-large"))
    assert gather_warnings(rows, make_inputs(), arms, {}, "scratch", "mae") == []


def test_a_small_set_elsewhere_and_models_nobody_knows_are_named() -> None:
    elsewhere = {"siemens": make_rows(num_subjects=5, num_seeds=4)}
    few, strangers = gather_warnings(make_rows(), make_inputs(), SOUND, elsewhere, "scratch", "mae")
    assert few.startswith("Only 5 test persons in siemens")
    assert strangers.startswith("4 jobs in siemens without scores on the test persons")


def test_a_sound_comparison_has_no_warning() -> None:
    assert gather_warnings(make_rows(), make_inputs(), SOUND, {}, "scratch", "mae") == []
