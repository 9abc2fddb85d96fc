"""Statistics against planted effects, hand-worked numbers and an independent count of sign patterns."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from data_shards.errors import InputError
from maetrain.evaluate.scores import ScoreRow
from maetrain.report.statistics import (
    arm_curve,
    compare,
    holm,
    per_class_table,
    wilcoxon_p,
)

from .builders import make_rows, row


def planted(budget: int, arm: str) -> float:
    return {1: 0.05, 4: 0.0}[budget] if arm == "mae" else 0.0


def test_a_planted_effect_is_found_and_its_absence_too() -> None:
    helped, same = compare(make_rows(planted))
    assert (helped.budget, helped.n_subjects, helped.n_seeds) == (1, 24, 3)
    assert helped.low < 0.05 < helped.high
    assert helped.low > 0.03 and helped.p_holm < 0.001
    assert same.low < 0.0 < same.high
    assert abs(same.difference) < 0.005 and abs(same.low + same.high) < 0.01, "centred on zero"
    assert same.p_holm > 0.05
    assert helped.difference == pytest.approx(helped.arm_mean - helped.baseline_mean)


def test_a_harmful_pretraining_shows_as_negative() -> None:
    (result,) = compare(make_rows(lambda budget, arm: -0.04 * (arm == "mae"), budgets=(2,)))
    assert result.high < 0


def test_the_order_of_rows_changes_nothing() -> None:
    rows = make_rows(planted)
    shuffled = [rows[i] for i in np.random.default_rng(5).permutation(len(rows))]
    assert compare(shuffled) == compare(rows)
    assert arm_curve(shuffled) == arm_curve(rows)


def test_what_makes_a_person_hard_cancels() -> None:
    rows = make_rows(planted, person_spread=0.0)
    offsets = {f"person_{p:02d}": 0.4 * np.sin(p) for p in range(24)}
    moved = [replace(r, dice=float(r.dice + offsets[r.subject])) for r in rows]
    for before, after in zip(compare(rows), compare(moved), strict=True):
        assert (after.difference, after.low, after.high) == pytest.approx((before.difference, before.low, before.high))
        assert after.p_wilcoxon == pytest.approx(before.p_wilcoxon)
    wide, narrow = arm_curve(moved)[0], arm_curve(rows)[0]
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low), "unpaired intervals do feel it"


def test_another_budget_does_not_change_the_interval() -> None:
    rows = make_rows(planted)
    alone = compare([r for r in rows if r.budget == 1])[0]
    both = compare(rows)[0]
    assert (alone.low, alone.high, alone.p_wilcoxon) == (both.low, both.high, both.p_wilcoxon)
    assert both.p_holm == pytest.approx(min(1.0, 2 * alone.p_holm))


def test_a_person_with_many_scans_weighs_as_much_as_one_with_a_single_scan() -> None:
    rows = [row(1, "scratch", 0, f"a{i}", "anna", "front", 0.5) for i in range(9)]
    rows += [row(1, "mae", 0, f"a{i}", "anna", "front", 0.8) for i in range(9)]
    rows += [row(1, "scratch", 0, "b0", "bert", "front", 0.5), row(1, "mae", 0, "b0", "bert", "front", 0.6)]
    (result,) = compare(rows)
    assert result.difference == pytest.approx((0.3 + 0.1) / 2)
    assert (result.baseline_mean, result.arm_mean) == pytest.approx((0.5, 0.7))


def test_only_seeds_that_both_arms_have_are_compared() -> None:
    rows = make_rows(planted, budgets=(1,), num_subjects=8)
    lost = [r for r in rows if not (r.arm == "mae" and r.seed == 2)]
    # A wildly bad score without a counterpart must not move anything.
    bent = [replace(r, dice=0.0) if r.arm == "scratch" and r.seed == 2 else r for r in lost]
    assert compare(bent) == compare(lost)
    assert compare(lost)[0].n_seeds == 2
    assert compare([r for r in rows if r.arm == "mae"]) == []


@pytest.mark.parametrize("read", [compare, arm_curve, per_class_table])
def test_jobs_with_different_test_sets_are_refused(read: Callable[[list[ScoreRow]], object]) -> None:
    rows = [r for r in make_rows(num_subjects=3) if not (r.key[:3] == (4, "mae", 1) and r.case == "case_02_0")]
    with pytest.raises(InputError, match="different test sets are mixed: case 'case_02_0'"):
        read(rows)


def test_one_person_gives_a_difference_but_no_interval_and_no_significance() -> None:
    (result,) = compare(make_rows(planted, budgets=(1,), num_subjects=1))
    assert result.difference == pytest.approx(0.05, abs=0.02)
    assert math.isnan(result.low) and math.isnan(result.high)
    assert (result.p_wilcoxon, result.p_holm) == (1.0, 1.0)


def test_an_interval_holds_no_difference_that_two_dice_can_not_have() -> None:
    luck = {("scratch", 0): 0.9, ("scratch", 1): 0.2, ("mae", 0): 0.6, ("mae", 1): 0.8}  # two seeds, far apart
    rows = [row(1, arm, seed, f"case_{p}", f"p_{p}", "all", dice) for (arm, seed), dice in luck.items() for p in "abc"]
    (result,) = compare(rows)
    assert (result.low, result.high) == (-1.0, 1.0)


def test_identical_arms_differ_by_nothing() -> None:
    rows = make_rows(arms=("scratch",), budgets=(1,))
    (result,) = compare(rows + [replace(r, arm="mae") for r in rows])
    assert (result.difference, result.low, result.high, result.p_wilcoxon) == (0.0, 0.0, 0.0, 1.0)


def test_a_duplicated_row_is_refused() -> None:
    rows = make_rows(num_subjects=2)
    with pytest.raises(InputError, match="occurs twice"):
        compare([*rows, rows[0]])


@pytest.mark.parametrize("differences", [[0.3, -0.1, 0.2, 0.5, 0.4], [1, 2, 3, 4, 5, 6], [0.1, -0.2, 0.3, -0.4]])
def test_wilcoxon_agrees_with_counting_all_sign_patterns(differences: list[float]) -> None:
    ranks = stats.rankdata(np.abs(differences))
    mean = ranks.sum() / 2
    seen = abs(ranks[np.array(differences) > 0].sum() - mean)
    signs = itertools.product((0, 1), repeat=len(ranks))
    extreme = [abs(np.dot(s, ranks) - mean) >= seen - 1e-9 for s in signs]
    assert wilcoxon_p(np.array(differences)) == pytest.approx(np.mean(extreme))


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([0.0, 0.0, 0.0], 1.0),  # nothing differs
        ([1e-17, -1e-16], 1.0),  # dust of rounding
        ([0.4], 1.0),  # one person
        ([0.4, 0.0, 0.0], 1.0),  # one person who differs
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.0], 2 / 2**5),  # zeros are dropped
    ],
)
def test_wilcoxon_has_an_answer_where_there_is_little_to_test(differences: list[float], expected: float) -> None:
    assert wilcoxon_p(np.array(differences)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        ([], []),
        ([0.04], [0.04]),
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),  # 3 x 0.01; 2 x 0.03; 1 x 0.04 raised to 0.06
        ([0.5, 0.6], [1.0, 1.0]),  # capped
        ([0.02, 0.001, 0.02, 0.5], [0.06, 0.004, 0.06, 0.5]),  # a tie
    ],
)
def test_holm_by_hand(p_values: list[float], expected: list[float]) -> None:
    assert holm(p_values) == pytest.approx(expected)


CASES = (("a0", "anna"), ("a1", "anna"), ("b0", "bert"))


def test_the_class_table_holds_means_over_persons_and_keeps_the_order_of_classes() -> None:
    rows = [
        ScoreRow(1, "mae", 0, "a0", "anna", "tail", 0.2, 1.0, 0.1),
        ScoreRow(1, "mae", 0, "a1", "anna", "tail", 0.4, 3.0, 0.3),
        ScoreRow(1, "mae", 0, "b0", "bert", "tail", 0.9, 6.0, 0.8),
        *(ScoreRow(1, "mae", 0, case, person, "head", 0.5, 5.0, 0.5) for case, person in CASES),
    ]
    tail, head = per_class_table(rows)
    assert (tail.class_name, head.class_name) == ("tail", "head")
    assert (tail.dice, tail.hd95_mm, tail.surface_dice) == pytest.approx((0.6, 4.0, 0.5))
    assert (tail.n_subjects, tail.n_seeds, head.dice) == (2, 1, 0.5)
