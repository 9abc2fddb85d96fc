"""Paired statistics over test persons and seeds: from scores per case to one comparison per budget.

The value of a case is its mean Dice over the foreground classes, of a person the mean over his or her cases. Arms are
paired by (seed, case, class), so what makes a person easy or hard cancels. That leaves a table persons x seeds of
differences for each budget:

- Interval: two-level bootstrap over persons and seeds (`resampling`), 95 %.
- p: Wilcoxon signed-rank over the persons' mean differences, two-sided, zeros dropped; Holm over the budgets.

P persons, S seeds.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from maetrain.evaluate.scores import ScoreRow, check_rows
from maetrain.report.resampling import NUM_RESAMPLES, dice_by_job, interval, table_PS


@dataclass(frozen=True)
class BudgetComparison:
    """One budget: mean Dice of both arms over the same (person, seed) pairs, and what lies between them.

    low, high: 95 % interval of the difference arm - baseline, NaN with a single person.
    p_holm: p_wilcoxon corrected over the budgets compared.
    """

    budget: int
    n_subjects: int
    n_seeds: int
    baseline_arm: str
    arm: str
    baseline_mean: float
    arm_mean: float
    difference: float
    low: float
    high: float
    p_wilcoxon: float
    p_holm: float


@dataclass(frozen=True)
class ArmPoint:
    """Mean Dice of one arm at one budget with its own, unpaired 95 % interval (NaN with a single person)."""

    budget: int
    arm: str
    mean: float
    low: float
    high: float
    n_subjects: int
    n_seeds: int


@dataclass(frozen=True)
class ClassMean:
    """Mean scores of one class over persons and seeds, for one budget and arm."""

    budget: int
    arm: str
    class_name: str
    dice: float
    hd95_mm: float
    surface_dice: float
    n_subjects: int
    n_seeds: int


def compare(
    rows: Sequence[ScoreRow],
    baseline: str = "scratch",
    arm: str = "mae",
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> list[BudgetComparison]:
    """Compare two arms at every budget where they share at least one seed; sorted by budget.

    Random: the resampling only, drawn from (seed, budget), so neither the order of the rows nor the other budgets
    change an interval. InputError where the rows don't make one table, so where jobs have different test sets.
    """
    check_rows(rows)
    jobs = dice_by_job(rows)
    found = []
    for budget in sorted({budget for budget, _ in jobs}):
        base, other = jobs.get((budget, baseline), {}), jobs.get((budget, arm), {})
        seeds = sorted(base.keys() & other.keys())
        if not seeds:
            continue
        base_PS, arm_PS = table_PS(base, seeds), table_PS(other, seeds)
        difference_PS = arm_PS - base_PS
        low, high = interval(difference_PS, np.random.default_rng([seed, budget]), num_resamples, (-1.0, 1.0))
        p = wilcoxon_p(difference_PS.mean(axis=1))
        found.append((budget, difference_PS.shape, float(base_PS.mean()), float(arm_PS.mean()), low, high, p))
    p_holm = holm([p for *_, p in found])
    return [
        BudgetComparison(
            budget, n, s, baseline, arm, base_mean, arm_mean, arm_mean - base_mean, low, high, p, corrected
        )
        for (budget, (n, s), base_mean, arm_mean, low, high, p), corrected in zip(found, p_holm, strict=True)
    ]


def arm_curve(rows: Sequence[ScoreRow], seed: int = 0, num_resamples: int = NUM_RESAMPLES) -> list[ArmPoint]:
    """Mean Dice with interval per (budget, arm), sorted by both: the label-efficiency curve."""
    check_rows(rows)
    points = []
    for (budget, arm), by_seed in sorted(dice_by_job(rows).items()):
        dice_PS = table_PS(by_seed, sorted(by_seed))
        low, high = interval(dice_PS, np.random.default_rng([seed, budget]), num_resamples, (0.0, 1.0))
        points.append(ArmPoint(budget, arm, float(dice_PS.mean()), low, high, *dice_PS.shape))
    return points


def per_class_table(rows: Sequence[ScoreRow]) -> list[ClassMean]:
    """Mean of each score per (budget, arm, class): over a person's cases, then over persons and seeds.

    Classes keep the order in which they first occur in the rows.
    """
    check_rows(rows)
    order: dict[str, int] = {}
    grouped: dict[tuple[int, str, str], dict[tuple[str, int], list[tuple[float, float, float]]]] = {}
    for row in rows:
        order.setdefault(row.class_name, len(order))
        persons = grouped.setdefault((row.budget, row.arm, row.class_name), {})
        persons.setdefault((row.subject, row.seed), []).append((row.dice, row.hd95_mm, row.surface_dice))
    table = []
    for (budget, arm, name), persons in sorted(grouped.items(), key=lambda item: (*item[0][:2], order[item[0][2]])):
        dice, hd95_mm, surface = np.mean([np.mean(persons[key], axis=0) for key in sorted(persons)], axis=0)
        num_persons, num_seeds = (len(set(part)) for part in zip(*persons, strict=True))
        table.append(ClassMean(budget, arm, name, float(dice), float(hd95_mm), float(surface), num_persons, num_seeds))
    return table


def wilcoxon_p(differences_P: np.ndarray) -> float:
    """Two-sided signed-rank p of the persons' mean differences; 1 when all are zero or there is one person.

    Exact up to 50 persons without ties (scipy's choice). Dust of rounding (1e-12) counts as zero and as a tie.
    """
    rounded = np.round(differences_P, 12)
    nonzero = rounded[rounded != 0]
    if nonzero.size < 2:
        return 1.0  # one signed rank can be + or -: both are as extreme
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # small samples with ties: the normal approximation is named so
        return float(stats.wilcoxon(nonzero).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction, in the order given: the i-th smallest of m times (m - i + 1), never falling."""
    corrected = [0.0] * len(p_values)
    running = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, p_values[i] * (len(p_values) - rank)))
        corrected[i] = running
    return corrected
