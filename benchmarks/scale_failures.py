"""Lost time from failures: Young's and Daly's formulas, and a simulation by events beside them.

mtbf_s: mean time between failures of the whole group, exponentially distributed. interval_s: useful work between two
checkpoints. save_s: what a checkpoint keeps the group from working. restart_s: from a failure to the next useful step.
A failure takes the work since the last checkpoint with it; a restart can fail, too.
"""

import math
import random

import numpy as np


def young_interval_s(save_s: float, mtbf_s: float) -> float:
    """J. W. Young, A first order approximation to the optimum checkpoint interval (1974)."""
    return math.sqrt(2 * save_s * mtbf_s)


def daly_interval_s(save_s: float, mtbf_s: float) -> float:
    """J. T. Daly, A higher order estimate of the optimum checkpoint interval (2006)."""
    if save_s >= 2 * mtbf_s:
        return mtbf_s
    ratio = math.sqrt(save_s / (2 * mtbf_s))
    return math.sqrt(2 * save_s * mtbf_s) * (1 + ratio / 3 + ratio**2 / 9) - save_s


def lost_share_first_order(interval_s: float, save_s: float, restart_s: float, mtbf_s: float) -> float:
    """Saving, and per failure the restart and half an interval; good while all of them are far below mtbf_s."""
    return save_s / (interval_s + save_s) + (restart_s + (interval_s + save_s) / 2) / mtbf_s


def lost_share(interval_s: float, save_s: float, restart_s: float, mtbf_s: float) -> float:
    """Share of the wall time that is not useful work, exact for exponential failures (Daly 2006)."""
    wall_s = mtbf_s * math.exp(restart_s / mtbf_s) * math.expm1((interval_s + save_s) / mtbf_s)
    return 1 - interval_s / wall_s


def simulated_lost_share(
    interval_s: float, save_s: float, restart_s: float, mtbf_s: float, failures: int, seed: int
) -> float:
    """The same from `failures` drawn failures. How long it runs till the next one does not depend on the past."""
    generator = random.Random(seed)
    useful_s = wall_s = 0.0
    for _ in range(failures):
        ran_s = generator.expovariate(1 / mtbf_s)
        useful_s += interval_s * (ran_s // (interval_s + save_s))
        wall_s += ran_s
        while (ran_s := generator.expovariate(1 / mtbf_s)) < restart_s:
            wall_s += ran_s
        wall_s += restart_s
    return 1 - useful_s / wall_s


def slowest_of(ranks: int, variation: float, steps: int, seed: int) -> float:
    """Mean over `steps` of the slowest rank's time, where a rank's time has mean 1 and deviation `variation`.

    Ranks are drawn independently in every step; a rank that is slow for ever costs its whole lag in addition.
    """
    if ranks == 1:
        return 1.0
    times = np.random.default_rng(seed).standard_normal((steps, ranks)).max(axis=1)
    return 1 + variation * float(times.mean())
