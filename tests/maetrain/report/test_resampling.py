"""Intervals have the spread of both levels, and cover the truth as often as they say."""

import math

import numpy as np
import pytest
from scipy import stats

from maetrain.report.resampling import (
    dice_by_job,
    draw,
    few_factor,
    first_crossing,
    interval,
    resampled_means,
    tails,
    widened,
)

from .builders import row


def test_a_person_is_the_mean_of_cases_and_a_case_of_classes() -> None:
    rows = [
        row(1, "mae", 7, "a0", "anna", "front", 0.2), row(1, "mae", 7, "a0", "anna", "back", 0.4),
        row(1, "mae", 7, "a1", "anna", "front", 0.9), row(1, "mae", 7, "a1", "anna", "back", 0.9),
        row(1, "mae", 7, "b0", "aaron", "front", 0.5), row(1, "mae", 7, "b0", "aaron", "back", 0.6),
    ]  # fmt: skip
    (by_seed,) = dice_by_job(rows).values()
    assert by_seed[7] == pytest.approx([0.55, 0.6]), "aaron before anna"


def test_the_bootstrap_has_the_spread_of_its_two_levels() -> None:
    # A table of persons + seeds without interaction: the variance of the mean is the sum of both levels'
    # plug-in variances over their sizes. Seeds drawn anew for each person would give far less.
    person_P, seed_S = np.linspace(-0.1, 0.1, 20), np.array([-0.05, 0.0, 0.05])
    draws = draw(20, 3, np.random.default_rng(0), 20_000)
    means_R = resampled_means(person_P[:, None] + seed_S, draws)
    expected = person_P.var() / 20 + seed_S.var() / 3
    assert means_R.var() == pytest.approx(expected, rel=0.05)
    assert means_R.mean() == pytest.approx(0.0, abs=0.001)


def test_a_widened_table_has_the_unbiased_spread_of_both_levels_and_its_mean() -> None:
    person_P, seed_S = np.linspace(-0.1, 0.1, 20), np.array([-0.05, 0.0, 0.05])
    table_PS = 0.6 + person_P[:, None] + seed_S
    means_R = resampled_means(widened(table_PS, 1.0), draw(20, 3, np.random.default_rng(0), 20_000))
    expected = person_P.var(ddof=1) / 20 + seed_S.var(ddof=1) / 3
    assert means_R.var() == pytest.approx(expected, rel=0.05)
    assert widened(table_PS, 2.5).mean() == pytest.approx(0.6)
    other_PS = np.random.default_rng(1).normal(size=(20, 3))
    assert widened(table_PS, 1.7) - widened(other_PS, 1.7) == pytest.approx(widened(table_PS - other_PS, 1.7))


def test_the_factor_is_students_where_one_level_has_all_the_spread() -> None:
    def student(freedom: int) -> float:
        return float(stats.t.ppf(0.975, freedom) / stats.norm.ppf(0.975))

    seeds_PS = np.zeros((20, 3)) + np.array([-0.05, 0.0, 0.05])
    persons_PS = np.zeros((20, 3)) + np.linspace(-1, 1, 20)[:, None]
    assert few_factor(seeds_PS) == pytest.approx(student(2)) and few_factor(persons_PS) == pytest.approx(student(19))
    assert student(19) < few_factor(seeds_PS + 0.1 * persons_PS) < student(2)
    assert few_factor(np.ones((20, 3))) == 1.0
    assert few_factor(persons_PS[:, :1]) == pytest.approx(student(19)), "one seed has no spread to know"


@pytest.mark.parametrize(("num_seeds", "luck"), [(5, 0.01), (5, 0.03), (10, 0.01)])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(num_seeds: int, luck: float) -> None:
    """34 persons, effects of persons, seeds and both together; trials that hit are binomial with p = 0.95."""
    trials, rng = 400, np.random.default_rng(5)
    hits = 0
    for trial in range(trials):
        person_P1, seed_1S = rng.normal(0, 0.04, (34, 1)), rng.normal(0, luck, (1, num_seeds))
        table_PS = 0.02 + person_P1 + seed_1S + rng.normal(0, 0.03, (34, num_seeds))
        low, high = interval(table_PS, np.random.default_rng(trial), 400)
        hits += low <= 0.02 <= high
    fewest, most = stats.binom.interval(0.998, trials, 0.95)
    assert fewest <= hits <= most, f"{hits} of {trials}"


def test_one_person_has_no_interval() -> None:
    assert all(math.isnan(end) for end in interval(np.array([[0.1, 0.2]]), np.random.default_rng(0)))


def test_tails_are_values_also_where_some_are_infinite() -> None:
    assert tails(np.array([-np.inf] * 10 + [1.0] * 80 + [np.inf] * 10)) == (-np.inf, np.inf)
    assert tails(np.array([2.0] * 99 + [np.inf])) == (2.0, 2.0)
    assert tails(np.arange(100.0)) == (2.0, 97.0), "of the values around a percentile the outer one"


@pytest.mark.parametrize(
    ("values", "target", "expected"),
    [
        ([0.0, 0.5, 1.0], 0.75, 150.0),  # between two points
        ([0.0, 0.5, 1.0], 0.5, 100.0),  # on a point
        ([0.2, 0.5, 1.0], 0.2, 0.0),  # on the first
        ([0.2, 0.5, 1.0], 0.1, -math.inf),  # there before the first
        ([0.0, 0.5, 0.4], 0.45, 90.0),  # a dip: the first crossing counts
        ([0.5, 0.3, 0.7], 0.6, 175.0),  # a dip before
        ([0.0, 0.5, 0.4], 0.6, math.inf),  # never
    ],
)
def test_the_first_crossing_by_hand(values: list[float], target: float, expected: float) -> None:
    others = [[0.0, 0.0, 0.0], [0.9, 0.9, 0.9]]  # rows do not mix
    found = first_crossing(np.array([0.0, 100.0, 200.0]), np.array([values, *others]), np.array([target, 0.5, 0.5]))
    assert found == pytest.approx([expected, math.inf, -math.inf])
