"""Labels saved: the budget at which scratch reaches what a pretrained arm reaches with k labelled persons.

Read off scratch's own curve of mean Dice, linear between its budgets in log2 of the budget, since each next one is
about twice the last. The first crossing counts: where scratch's curve dips (by luck, or because more persons did not
help), the smallest budget at which it was good enough stands, so that a dip never makes labels look saved. Beyond the
curve's ends nothing is guessed: the answer is then "more than the largest budget" or "at most the smallest".

The interval resamples persons, then seeds, as for the differences (`resampling`), with one draw for all budgets and
both arms: a drawn person or seed is in the whole curve or not at all.

B budgets, R resamples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maetrain.evaluate.scores import ScoreRow, check_rows
from maetrain.report.resampling import (
    NUM_RESAMPLES,
    dice_by_job,
    draw,
    few_factor,
    first_crossing,
    resampled_means,
    table_PS,
    tails,
    widened,
)


@dataclass(frozen=True)
class LabelsSaved:
    """What the arm reaches with `budget` persons takes the baseline `equivalent` persons, `ratio` times as many.

    equivalent: labelled persons; 0 = at most smallest_budget, inf = more than largest_budget, the ends of the
    baseline's curve. low, high: its 95 % interval, NaN with a single test person. ratio and its ends: over `budget`.
    """

    budget: int
    n_subjects: int
    n_seeds: int
    baseline_arm: str
    arm: str
    target_dice: float
    equivalent: float
    low: float
    high: float
    ratio: float
    ratio_low: float
    ratio_high: float
    smallest_budget: int
    largest_budget: int


def labels_saved(
    rows: Sequence[ScoreRow],
    baseline: str = "scratch",
    arm: str = "mae",
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> list[LabelsSaved]:
    """One value per budget that both arms have, over the seeds that all their jobs share.

    [] where the baseline has no two budgets, or no seed is shared. Random: the resampling only, drawn from `seed`.
    """
    check_rows(rows)
    jobs = {job: by_seed for job, by_seed in dice_by_job(rows).items() if job[1] in (baseline, arm)}
    budgets = sorted(budget for budget, name in jobs if name == baseline)
    shared = [budget for budget in budgets if (budget, arm) in jobs]
    used = [(budget, baseline) for budget in budgets] + [(budget, arm) for budget in shared]
    seeds = sorted(set.intersection(*(set(jobs[job]) for job in used))) if used else []
    if len(budgets) < 2 or not seeds:
        return []
    tables = {job: table_PS(jobs[job], seeds) for job in used}
    curve_BPS = np.stack([tables[b, baseline] for b in budgets])
    num_persons = curve_BPS.shape[1]
    draws = draw(num_persons, len(seeds), np.random.default_rng([seed]), num_resamples)

    def persons_needed(curves_RB: np.ndarray, targets_R: np.ndarray) -> np.ndarray:
        return np.exp2(first_crossing(np.log2(budgets), curves_RB, targets_R))

    found = []
    for budget in shared:
        own_PS = tables[budget, arm]
        equivalent = float(persons_needed(curve_BPS.mean(axis=(1, 2))[None], np.array([own_PS.mean()]))[0])
        low = high = math.nan
        if num_persons > 1:
            factor = few_factor(own_PS - _table_at(equivalent, budgets, curve_BPS))
            curves_RB = np.stack([resampled_means(widened(base_PS, factor), draws) for base_PS in curve_BPS], axis=1)
            low, high = tails(persons_needed(curves_RB, resampled_means(widened(own_PS, factor), draws)))
        found.append(
            LabelsSaved(
                budget,
                num_persons,
                len(seeds),
                baseline,
                arm,
                float(own_PS.mean()),
                equivalent,
                low,
                high,
                equivalent / budget,
                low / budget,
                high / budget,
                budgets[0],
                budgets[-1],
            )  # fmt: skip
        )
    return found


def _table_at(num_labelled: float, budgets: Sequence[int], curve_BPS: np.ndarray) -> np.ndarray:
    """Dice (P, S) at a place of the curve, its nearest end for places beyond."""
    place = float(np.clip(num_labelled, budgets[0], budgets[-1]))
    after = max(1, int(np.searchsorted(budgets, place)))
    before_log2, place_log2, after_log2 = np.log2([budgets[after - 1], place, budgets[after]])
    share = (place_log2 - before_log2) / (after_log2 - before_log2)
    return np.asarray((1 - share) * curve_BPS[after - 1] + share * curve_BPS[after])
