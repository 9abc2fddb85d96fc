"""Convergence: how many optimizer steps an arm needs for the Dice at which the baseline ends.

The curves are mean Dice over the monitor persons, who are neither test nor training persons. Only that mean is
recorded, so the interval of the ratio resamples seeds (pairs of curves) and takes the monitor persons as they are; the
curves' spread over seeds is widened first, as in `resampling`, because few seeds know it badly.

N points of a curve, S seeds, R resamples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from maetrain.report.inputs import Curve
from maetrain.report.resampling import NUM_RESAMPLES, first_crossing, tails


@dataclass(frozen=True)
class Convergence:
    """Steps until each arm's mean validation curve first reaches the baseline's final Dice.

    ratio = arm_steps / baseline_steps: 0.5 means half the steps. arm_steps and ratio are inf when the arm never gets
    there. low, high: 95 % interval of the ratio over seeds, NaN with a single seed.
    """

    budget: int
    n_seeds: int
    baseline_arm: str
    arm: str
    target_dice: float
    baseline_steps: float
    arm_steps: float
    ratio: float
    low: float
    high: float


def convergence(
    curves: Sequence[Curve],
    baseline: str = "scratch",
    arm: str = "mae",
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> list[Convergence]:
    """Per budget, the steps both arms need for the baseline's final validation Dice, on means over shared seeds.

    The baseline's own first crossing is the yardstick, not its last step: on a plateau it got there earlier too.
    Random: the resampling of seeds only, drawn from (seed, budget).
    """
    found = []
    for budget in sorted({curve.budget for curve in curves}):
        base, own = (
            {c.seed: c for c in curves if c.budget == budget and c.arm == name and c.steps} for name in (baseline, arm)
        )
        seeds = sorted(base.keys() & own.keys())
        if not seeds:
            continue
        (base_N, base_SN), (own_N, own_SN) = (on_one_grid([of[s] for s in seeds]) for of in (base, own))
        if not (len(base_N) and len(own_N)):
            continue
        base_steps, own_steps = (
            float(steps_1[0])
            for steps_1 in _steps_needed(base_N, base_SN.mean(axis=0)[None], own_N, own_SN.mean(axis=0)[None])
        )
        ratio = float(_ratio(np.array([base_steps]), np.array([own_steps]))[0])
        low = high = math.nan
        if (num_seeds := len(seeds)) > 1:
            rng = np.random.default_rng([seed, budget])
            counts_RS = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=num_resamples)
            needed = _steps_needed(base_N, _resampled(base_SN, counts_RS), own_N, _resampled(own_SN, counts_RS))
            low, high = tails(_ratio(*needed))
        target = float(base_SN[:, -1].mean())
        found.append(Convergence(budget, num_seeds, baseline, arm, target, base_steps, own_steps, ratio, low, high))
    return found


def on_one_grid(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray]:
    """(steps (N,), Dice (S, N)) of several seeds, on all their steps from where every one has begun.

    One that ended early keeps its last Dice: that is what it was scored with.
    """
    start = max(c.steps[0] for c in curves)
    steps_N = np.array(sorted({step for c in curves for step in c.steps if step >= start}), dtype=float)
    return steps_N, np.array([np.interp(steps_N, c.steps, c.dice) for c in curves])


def _resampled(curves_SN: np.ndarray, counts_RS: np.ndarray) -> np.ndarray:
    """Mean curves (R, N) of resampled seeds, whose deviations are widened by what n seeds don't know."""
    n = len(curves_SN)
    factor = math.sqrt(n / (n - 1)) * stats.t.ppf(0.975, n - 1) / stats.norm.ppf(0.975)
    mean_N = curves_SN.mean(axis=0)
    return mean_N + factor * (counts_RS @ (curves_SN - mean_N)) / n


def _steps_needed(
    base_N: np.ndarray, base_RN: np.ndarray, own_N: np.ndarray, own_RN: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Steps (R,) at which baseline and arm first reach the baseline's last value; the first step where it is above."""
    base_R, own_R = (
        first_crossing(steps_N, curve_RN, base_RN[:, -1]) for steps_N, curve_RN in ((base_N, base_RN), (own_N, own_RN))
    )
    return np.maximum(base_R, base_N[0]), np.maximum(own_R, own_N[0])


def _ratio(base_R: np.ndarray, own_R: np.ndarray) -> np.ndarray:
    """own / base; where the baseline was there from the start, 1 if the arm was, too, and else inf."""
    from_start_R = np.where(own_R <= 0, 1.0, np.inf)
    return np.where(base_R > 0, own_R / np.where(base_R > 0, base_R, 1.0), from_start_R)
