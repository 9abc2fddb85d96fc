"""The budget at which scratch reaches what mae reaches, by hand and by simulation."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from maetrain.evaluate.scores import ScoreRow
from maetrain.report.labels_saved import labels_saved

from .builders import make_rows, row


def table(scratch: dict[int, float], mae: dict[int, float], num_persons: int = 3, num_seeds: int = 2) -> list[ScoreRow]:
    """Every person and seed alike."""
    return [
        row(budget, arm, s, f"c{p}", f"p{p}", "front", dice)
        for arm, curve in (("scratch", scratch), ("mae", mae))
        for budget, dice in curve.items()
        for s in range(num_seeds)
        for p in range(num_persons)
    ]


@pytest.mark.parametrize(
    ("scratch", "mae", "expected"),
    [
        ({1: 0.4, 2: 0.5, 4: 0.6}, 0.5, 2.0),  # what scratch has with 2
        ({1: 0.4, 2: 0.5, 4: 0.6}, 0.55, math.sqrt(8)),  # half way from 2 to 4, in log2
        ({1: 0.4, 2: 0.5, 4: 0.6}, 0.6, 4.0),  # its last point
        ({1: 0.4, 2: 0.5, 4: 0.6}, 0.61, math.inf),  # more than the largest budget
        ({1: 0.4, 2: 0.5, 4: 0.6}, 0.4, 1.0),  # nothing saved
        ({1: 0.4, 2: 0.5, 4: 0.6}, 0.39, 0.0),  # fewer than the smallest: it hurts
        ({1: 0.4, 2: 0.6, 4: 0.5, 8: 0.7}, 0.55, 2**0.75),  # a dip: the first crossing counts
    ],
)
def test_the_equivalent_budget_by_hand(scratch: dict[int, float], mae: float, expected: float) -> None:
    (found,) = labels_saved(table(scratch, {1: mae}))
    assert (found.equivalent, found.ratio) == pytest.approx((expected, expected))
    assert (found.low, found.high) == pytest.approx((expected, expected)), "all persons and seeds agree"
    assert (found.smallest_budget, found.largest_budget) == (1, max(scratch))


def test_the_ratio_is_over_the_arms_own_budget() -> None:
    one, four = labels_saved(table({1: 0.4, 4: 0.6}, {1: 0.5, 4: 0.5}))
    assert (one.equivalent, one.ratio) == pytest.approx((2.0, 2.0))
    assert (four.equivalent, four.ratio, four.ratio_low) == pytest.approx((2.0, 0.5, 0.5))


def test_without_a_curve_or_a_shared_seed_nothing_is_said() -> None:
    rows = table({1: 0.4, 2: 0.5}, {1: 0.5})
    assert labels_saved([r for r in rows if r.budget == 1]) == []
    assert labels_saved([r for r in rows if r.arm == "scratch"]) == []
    assert labels_saved([]) == []
    assert labels_saved([replace(r, seed=r.seed + 10) if r.arm == "mae" else r for r in rows]) == []
    # a budget without scratch at it has no place in the table, and one seed of one job less counts everywhere
    assert labels_saved(rows + [replace(r, budget=3) for r in rows if r.arm == "mae"]) == labels_saved(rows)
    assert labels_saved([r for r in rows if r.key[:3] != (2, "scratch", 1)])[0].n_seeds == 1


def test_one_person_has_a_value_and_no_interval() -> None:
    (found,) = labels_saved(table({1: 0.4, 2: 0.5}, {1: 0.5}, num_persons=1))
    assert found.equivalent == pytest.approx(2.0) and math.isnan(found.low) and math.isnan(found.ratio_high)


def test_what_makes_a_person_hard_cancels() -> None:
    """One draw for the whole curve: a draw of hard persons lowers scratch and mae alike."""
    rows = table({1: 0.4, 2: 0.5, 4: 0.6}, {1: 0.55}, num_persons=12)
    moved = [replace(r, dice=r.dice + 0.03 * int(r.subject[1:]) - 0.15) for r in rows]
    (found,) = labels_saved(moved)
    assert (found.low, found.high) == pytest.approx((math.sqrt(8), math.sqrt(8)))


def test_the_order_of_rows_changes_nothing() -> None:
    rows = make_rows(lambda b, arm: 0.02 * b + 0.03 * (arm == "mae"), budgets=(1, 2, 4), num_subjects=6)
    shuffled = [rows[i] for i in np.random.default_rng(5).permutation(len(rows))]
    assert labels_saved(shuffled) == labels_saved(rows)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Scratch gains 0.05 a doubling, mae starts 0.05 higher: it saves half the labels. 24 persons, 5 seeds."""
    trials, rng, hits = 200, np.random.default_rng(2), 0
    for trial in range(trials):
        rows = []
        person_P = rng.normal(0, 0.04, 24)
        for budget in (1, 2, 4, 8):
            for arm in ("scratch", "mae"):
                own_P = rng.normal(0, 0.02, 24)  # how a person takes to this arm and budget, whatever the seed
                for s in range(5):
                    dice_P = 0.5 + 0.05 * (math.log2(budget) + (arm == "mae")) + person_P + own_P
                    dice_P = dice_P + rng.normal(0, 0.01) + rng.normal(0, 0.02, 24)
                    rows += [row(budget, arm, s, f"c{p}", f"p{p}", "front", float(d)) for p, d in enumerate(dice_P)]
        two = labels_saved(rows, seed=trial, num_resamples=300)[1]
        hits += two.low <= 4.0 <= two.high
    fewest, most = stats.binom.interval(0.998, trials, 0.95)
    assert fewest <= hits <= most, f"{hits} of {trials}"
