"""Steps to the baseline's final Dice, by hand, and how sure their ratio is."""

import math

import numpy as np
import pytest

from maetrain.report.convergence import convergence
from maetrain.report.inputs import Curve


def curve(arm: str, seed: int, dice: list[float], budget: int = 1) -> Curve:
    return Curve(budget=budget, arm=arm, seed=seed, steps=[0, 100, 200], dice=dice)


def test_both_arms_are_measured_at_the_baselines_final_dice() -> None:
    curves = [curve("scratch", 0, [0.0, 0.3, 0.5]), curve("scratch", 1, [0.0, 0.5, 0.7])]
    curves += [curve("mae", 0, [0.0, 0.6, 0.7]), curve("mae", 1, [0.0, 0.6, 0.7]), curve("mae", 9, [0.9, 0.9, 0.9])]
    (found,) = convergence(curves)
    assert (found.n_seeds, found.target_dice) == (2, pytest.approx(0.6))
    assert (found.baseline_steps, found.arm_steps, found.ratio) == pytest.approx((200.0, 100.0, 0.5))


def test_an_arm_that_never_gets_there_and_one_that_was_never_run() -> None:
    (never,) = convergence([curve("scratch", 0, [0.0, 0.8, 0.8]), curve("mae", 0, [0.0, 0.1, 0.2])])
    assert (never.baseline_steps, never.arm_steps, never.ratio) == (100.0, math.inf, math.inf)
    assert math.isnan(never.low) and math.isnan(never.high), "one seed has no spread"
    assert convergence([curve("mae", 0, [0.0, 0.1, 0.2])]) == []


@pytest.mark.parametrize(("mae", "ratio"), [([0.5, 0.6, 0.7], 1.0), ([0.3, 0.6, 0.7], math.inf)])
def test_a_baseline_that_ends_where_it_began(mae: list[float], ratio: float) -> None:
    (found,) = convergence([curve("scratch", 0, [0.5, 0.4, 0.5]), curve("mae", 0, mae)])
    assert (found.baseline_steps, found.ratio) == (0.0, ratio)


def test_a_seed_that_ended_early_keeps_its_last_dice() -> None:
    early = Curve(budget=1, arm="scratch", seed=0, steps=[0, 300], dice=[0.0, 0.8])
    late = Curve(budget=1, arm="scratch", seed=1, steps=[0, 300, 1000], dice=[0.0, 0.4, 0.82])
    mae = [Curve(budget=1, arm="mae", seed=s, steps=[0, 300, 1000], dice=[0.0, 0.7, 0.7]) for s in (0, 1)]
    (found,) = convergence([early, late, *mae])
    assert (found.target_dice, found.baseline_steps, found.arm_steps) == (pytest.approx(0.81), 1000.0, math.inf)


def test_an_arm_that_is_there_from_the_start_needs_no_step() -> None:
    (found,) = convergence([curve("scratch", 0, [0.2, 0.3, 0.5]), curve("mae", 0, [0.6, 0.7, 0.8])])
    assert (found.baseline_steps, found.arm_steps, found.ratio) == (200.0, 0.0, 0.0)


def test_equal_seeds_leave_no_doubt_and_unequal_ones_do() -> None:
    ways = {"scratch": [0.0, 0.3, 0.6], "mae": [0.0, 0.6, 0.8]}
    same = [curve(arm, s, dice) for arm, dice in ways.items() for s in range(5)]
    (found,) = convergence(same)
    assert (found.low, found.high) == pytest.approx((0.5, 0.5))
    rng = np.random.default_rng(0)
    moved = [c.model_copy(update={"dice": [0.0, *(np.array(c.dice[1:]) + rng.normal(0, 0.03, 2))]}) for c in same]
    (unsure,) = convergence(moved)
    assert unsure.low < unsure.ratio < unsure.high and unsure.low > 0.2
    (fewer,) = convergence([c for c in moved if c.seed < 2])
    assert fewer.high - fewer.low > unsure.high - unsure.low


def test_another_budget_does_not_change_the_interval() -> None:
    rng, curves = np.random.default_rng(0), []
    for budget in (1, 4):
        for s in range(9):
            curves += [curve("scratch", s, [0.1, 0.4, 0.6 + rng.normal(0, 0.05)], budget)]
            curves += [curve("mae", s, [0.1, 0.5, 0.9 + rng.normal(0, 0.05)], budget)]
    alone, both = convergence([c for c in curves if c.budget == 4])[0], convergence(curves)[1]
    assert both == alone and both.low < both.ratio < both.high
