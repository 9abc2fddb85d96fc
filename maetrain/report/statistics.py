"""Paired statistics over test persons and seeds: from scores per case to one comparison per budget.

The value of a case is its mean Dice over the foreground classes, of a person the mean over his or her cases.
Arms are paired by (seed, case, class), so what makes a person easy or hard cancels. That leaves a table
persons x seeds of differences for each budget:

- Interval: two-level bootstrap, 95 % percentiles. Each resample draws persons, then seeds, with replacement;
  the drawn seeds are the same for all its persons, because one seed is one trained pair of models that every
  person is scored with. Drawing seeds anew for each person would let the luck of a training run average out
  over persons, and the interval come out too narrow.
- p: Wilcoxon signed-rank over the persons' mean differences, two-sided, zeros dropped; Holm over the budgets.

With 2 or 3 seeds the spread between seeds is known only roughly, and percentile intervals run somewhat narrow.

P persons, S seeds, R resamples.
"""

import math
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from maetrain.evaluate.scores import ScoreRow, check_rows
from maetrain.report.inputs import Curve

NUM_RESAMPLES = 2000

_Key = tuple[int, str, str]  # seed, case, class


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


@dataclass(frozen=True)
class Convergence:
    """Steps until each arm's mean validation curve first reaches the baseline's final Dice.

    ratio = arm_steps / baseline_steps: 0.5 means half the steps. None when the arm never gets there.
    """

    budget: int
    n_seeds: int
    target_dice: float
    baseline_steps: float
    arm_steps: float | None
    ratio: float | None


def compare(
    rows: Sequence[ScoreRow],
    baseline: str = "scratch",
    arm: str = "mae",
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> list[BudgetComparison]:
    """Compare two arms at every budget where they share at least one (seed, case, class); sorted by budget.

    Random: the resampling only, drawn from (seed, budget), so neither the order of the rows nor the other
    budgets change an interval.
    """
    check_rows(rows)
    subject_of = {row.case: row.subject for row in rows}
    dice = _dice_by_job(rows)
    found = []
    for budget in sorted({row.budget for row in rows}):
        base, other = dice.get((budget, baseline), {}), dice.get((budget, arm), {})
        shared = base.keys() & other.keys()
        if not shared:
            continue
        base_PS = _grid_PS({key: base[key] for key in shared}, subject_of)
        arm_PS = _grid_PS({key: other[key] for key in shared}, subject_of)
        difference_PS = arm_PS - base_PS
        low, high = _interval(difference_PS, seed, budget, num_resamples)
        p = wilcoxon_p(np.nanmean(difference_PS, axis=1))
        base_mean, arm_mean = float(np.nanmean(base_PS)), float(np.nanmean(arm_PS))
        found.append((budget, difference_PS.shape, base_mean, arm_mean, low, high, p))
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
    subject_of = {row.case: row.subject for row in rows}
    points = []
    for (budget, arm), dice in sorted(_dice_by_job(rows).items()):
        dice_PS = _grid_PS(dice, subject_of)
        low, high = _interval(dice_PS, seed, budget, num_resamples)
        points.append(ArmPoint(budget, arm, float(np.nanmean(dice_PS)), low, high, *dice_PS.shape))
    return points


def per_class_table(rows: Sequence[ScoreRow]) -> list[ClassMean]:
    """Mean of each score per (budget, arm, class): over a person's cases, then over persons and seeds.

    Classes keep the order in which they first occur in the rows.
    """
    grouped: dict[tuple[int, str, str], list[ScoreRow]] = defaultdict(list)
    order: dict[str, int] = {}
    for row in rows:
        order.setdefault(row.class_name, len(order))
        grouped[row.budget, row.arm, row.class_name].append(row)
    table = []
    for (budget, arm, name), group in sorted(grouped.items(), key=lambda item: (*item[0][:2], order[item[0][2]])):
        subject_of = {row.case: row.subject for row in group}
        dice, hd95, surface = (
            float(np.nanmean(_grid_PS({(r.seed, r.case, name): getattr(r, score) for r in group}, subject_of)))
            for score in ("dice", "hd95_mm", "surface_dice")
        )
        table.append(ClassMean(budget, arm, name, dice, hd95, surface))
    return table


def convergence(curves: Sequence[Curve], baseline: str = "scratch", arm: str = "mae") -> list[Convergence]:
    """Per budget, the steps both arms need for the baseline's final validation Dice, on means over shared seeds.

    The baseline's own first crossing is the yardstick, not its last step: on a plateau it got there earlier too.
    """
    found = []
    for budget in sorted({curve.budget for curve in curves}):
        by_arm = {
            name: {c.seed: c for c in curves if c.budget == budget and c.arm == name and c.steps}
            for name in (baseline, arm)
        }
        seeds = sorted(by_arm[baseline].keys() & by_arm[arm].keys())
        if not seeds:
            continue
        base_steps, base_dice = mean_curve([by_arm[baseline][s] for s in seeds])
        arm_steps, arm_dice = mean_curve([by_arm[arm][s] for s in seeds])
        if not (len(base_steps) and len(arm_steps)):
            continue
        target = float(base_dice[-1])
        base_reach, arm_reach = (
            steps_to_reach(base_steps, base_dice, target),
            steps_to_reach(arm_steps, arm_dice, target),
        )
        assert base_reach is not None, "a curve reaches its own last value"
        ratio = arm_reach / base_reach if arm_reach is not None and base_reach > 0 else None
        found.append(Convergence(budget, len(seeds), target, base_reach, arm_reach, ratio))
    return found


def mean_curve(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray]:
    """(steps, mean Dice) over several seeds, on all their steps inside the range that every one of them covers."""
    start, end = max(c.steps[0] for c in curves), min(c.steps[-1] for c in curves)
    steps = np.array(sorted({step for c in curves for step in c.steps if start <= step <= end}), dtype=float)
    return steps, np.mean([np.interp(steps, c.steps, c.dice) for c in curves], axis=0)


def steps_to_reach(
    steps: Sequence[float] | np.ndarray, values: Sequence[float] | np.ndarray, target: float
) -> float | None:
    """First step at which the curve reaches the target, linear between its points; None if it never does."""
    steps_N, values_N = np.asarray(steps, float), np.asarray(values, float)
    reached = np.flatnonzero(values_N >= target)
    if reached.size == 0:
        return None
    i = int(reached[0])
    if i == 0:
        return float(steps_N[0])
    share = (target - values_N[i - 1]) / (values_N[i] - values_N[i - 1])
    return float(steps_N[i - 1] + share * (steps_N[i] - steps_N[i - 1]))


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


def bootstrap_means(values_PS: np.ndarray, rng: np.random.Generator, num_resamples: int) -> np.ndarray:
    """Means (R,) of tables resampled over persons, then seeds; NaN cells (never scored) are left out."""
    num_persons, num_seeds = values_PS.shape
    draws_RP = rng.multinomial(num_persons, np.full(num_persons, 1 / num_persons), size=num_resamples)
    draws_RS = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=num_resamples)
    there_PS = np.isfinite(values_PS)
    sums_R = ((draws_RP @ np.where(there_PS, values_PS, 0.0)) * draws_RS).sum(axis=1)
    counts_R = ((draws_RP @ there_PS.astype(float)) * draws_RS).sum(axis=1)
    return np.divide(sums_R, counts_R, out=np.full(num_resamples, np.nan), where=counts_R > 0)


def _interval(values_PS: np.ndarray, seed: int, budget: int, num_resamples: int) -> tuple[float, float]:
    if values_PS.shape[0] < 2:
        return math.nan, math.nan  # one person says nothing about others: no interval rather than a narrow one
    means_R = bootstrap_means(values_PS, np.random.default_rng([seed, budget]), num_resamples)
    low, high = np.nanpercentile(means_R, [2.5, 97.5])
    return float(low), float(high)


def _dice_by_job(rows: Iterable[ScoreRow]) -> dict[tuple[int, str], dict[_Key, float]]:
    grouped: dict[tuple[int, str], dict[_Key, float]] = defaultdict(dict)
    for row in rows:
        grouped[row.budget, row.arm][row.seed, row.case, row.class_name] = row.dice
    return dict(grouped)


def _grid_PS(values: Mapping[_Key, float], subject_of: Mapping[str, str]) -> np.ndarray:
    """Table persons x seeds, both sorted: mean over the classes of a case, then over the cases of a person."""
    by_case: dict[tuple[int, str], list[float]] = defaultdict(list)
    for (seed, case, _), value in sorted(values.items()):
        by_case[seed, case].append(value)
    by_person: dict[tuple[str, int], list[float]] = defaultdict(list)
    for (seed, case), numbers in by_case.items():
        by_person[subject_of[case], seed].append(float(np.mean(numbers)))
    row_of = {person: i for i, person in enumerate(sorted({person for person, _ in by_person}))}
    column_of = {seed: i for i, seed in enumerate(sorted({seed for _, seed in by_person}))}
    grid_PS = np.full((len(row_of), len(column_of)), np.nan)
    for (person, seed), numbers in by_person.items():
        grid_PS[row_of[person], column_of[seed]] = float(np.mean(numbers))
    return grid_PS
