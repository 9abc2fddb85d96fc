"""Two-level bootstrap over test persons and seeds: the interval of every mean in the report.

Each resample draws persons, then seeds, with replacement; the drawn seeds are the same for all its persons, because one
seed is one trained pair of models that every person is scored with. Drawing seeds anew for each person would let the
luck of a training run average out over persons, and the interval come out too narrow.

Percentiles of such resamples alone are too narrow with few seeds or persons: the plug-in variance of n values is short
of (n - 1) / n, and a spread known from n values asks for Student's t instead of the normal law. With 3 seeds, 34
persons and the seeds' luck as large as in small trainings they cover 83 % instead of 95 %. So a table is widened before
it is resampled (`widened`): its persons' and seeds' deviations by sqrt(n / (n - 1)), all of it by the ratio of t's to
the normal quantile at Satterthwaite's degrees of freedom. Its mean stays. Simulated coverage: decision 0016.

P persons, S seeds, R resamples.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from maetrain.evaluate.scores import ScoreRow

NUM_RESAMPLES = 2000
_TAILS = (0.025, 0.975)

# (budget, arm) -> seed -> Dice (P,) of the test persons, sorted by name
Jobs = dict[tuple[int, str], dict[int, np.ndarray]]


@dataclass(frozen=True)
class Draws:
    """How often each person and each seed is drawn in each resample."""

    persons_RP: np.ndarray
    seeds_RS: np.ndarray


def dice_by_job(rows: Iterable[ScoreRow]) -> Jobs:
    """Mean over the classes of a case, then over the cases of a person. The rows must make one table (`check_rows`)."""
    classes: dict[tuple[int, str, int, str, str], list[float]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.key):
        classes[row.budget, row.arm, row.seed, row.subject, row.case].append(row.dice)
    cases: dict[tuple[int, str, int, str], list[float]] = defaultdict(list)
    for (*person, _), values in classes.items():
        cases[tuple(person)].append(float(np.mean(values)))  # type: ignore[index]
    persons: dict[tuple[int, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (budget, arm, seed, _), values in sorted(cases.items()):
        persons[budget, arm][seed].append(float(np.mean(values)))
    return {job: {seed: np.array(dice_P) for seed, dice_P in by_seed.items()} for job, by_seed in persons.items()}


def table_PS(by_seed: Mapping[int, np.ndarray], seeds: Sequence[int]) -> np.ndarray:
    return np.stack([by_seed[seed] for seed in seeds], axis=1)


def draw(num_persons: int, num_seeds: int, rng: np.random.Generator, num_resamples: int = NUM_RESAMPLES) -> Draws:
    persons_RP, seeds_RS = (rng.multinomial(n, np.full(n, 1 / n), size=num_resamples) for n in (num_persons, num_seeds))
    return Draws(persons_RP, seeds_RS)


def resampled_means(values_PS: np.ndarray, draws: Draws) -> np.ndarray:
    """Means (R,) of the resampled tables."""
    return ((draws.persons_RP @ values_PS) * draws.seeds_RS).sum(axis=1) / values_PS.size


def few_factor(values_PS: np.ndarray) -> float:
    """How much wider than normal an interval of the table's mean must be, at least 1: Student's t over the normal.

    Degrees of freedom by Satterthwaite from the variances of the mean that persons and seeds contribute; a single seed
    (or person) has no spread to know and contributes none.
    """
    num_persons, num_seeds = values_PS.shape
    levels = [(values_PS.mean(axis=1), num_persons), (values_PS.mean(axis=0), num_seeds)]
    parts = [(float(means.var(ddof=1)) / n, n - 1) for means, n in levels if n > 1]
    total = sum(variance for variance, _ in parts)
    if total <= 0:
        return 1.0
    freedom = total**2 / sum(variance**2 / df for variance, df in parts)
    return float(stats.t.ppf(_TAILS[1], freedom) / stats.norm.ppf(_TAILS[1]))


def widened(values_PS: np.ndarray, factor: float) -> np.ndarray:
    """The table with the same mean and deviations from it that are honest about few persons and seeds.

    Linear in the table for a given factor, so the difference of two widened arms is the widened difference.
    """
    num_persons, num_seeds = values_PS.shape
    mean = values_PS.mean()
    persons_P1 = values_PS.mean(axis=1, keepdims=True) - mean
    seeds_1S = values_PS.mean(axis=0, keepdims=True) - mean
    rest_PS = values_PS - mean - persons_P1 - seeds_1S
    return mean + factor * (_unbiased(num_persons) * persons_P1 + _unbiased(num_seeds) * seeds_1S + rest_PS)


def interval(
    values_PS: np.ndarray,
    rng: np.random.Generator,
    num_resamples: int = NUM_RESAMPLES,
    limits: tuple[float, float] = (-math.inf, math.inf),
) -> tuple[float, float]:
    """95 % interval of the table's mean, within `limits`: what a value can be.

    NaN with one person, who says nothing about others.
    """
    if values_PS.shape[0] < 2:
        return math.nan, math.nan
    draws = draw(values_PS.shape[0], values_PS.shape[1], rng, num_resamples)
    low, high = tails(resampled_means(widened(values_PS, few_factor(values_PS)), draws))
    return max(low, limits[0]), min(high, limits[1])


def tails(values_R: np.ndarray) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile, each one of the values, so that infinite ones (never reached) do no harm."""
    low, high = np.quantile(values_R, _TAILS[0], method="lower"), np.quantile(values_R, _TAILS[1], method="higher")
    return float(low), float(high)


def first_crossing(xs_N: np.ndarray, curves_RN: np.ndarray, targets_R: np.ndarray) -> np.ndarray:
    """Where each curve first reaches its target, linear between the points of rising xs_N.

    -inf where the first point is above the target already, inf where no point reaches it. A curve that dips
    afterwards has been there all the same: the first crossing counts.
    """
    reached_RN = curves_RN >= targets_R[:, None]
    at_R = reached_RN.argmax(axis=1)
    before_R, rows_R = np.maximum(at_R - 1, 0), np.arange(len(curves_RN))
    start_R, end_R = curves_RN[rows_R, before_R], curves_RN[rows_R, at_R]
    rise_R = np.where(at_R > 0, end_R - start_R, 1.0)
    found_R = xs_N[before_R] + np.where(at_R > 0, targets_R - start_R, 0.0) / rise_R * (xs_N[at_R] - xs_N[before_R])
    found_R = np.where(curves_RN[:, 0] > targets_R, -np.inf, found_R)
    return np.where(reached_RN.any(axis=1), found_R, np.inf)


def _unbiased(n: int) -> float:
    return math.sqrt(n / (n - 1)) if n > 1 else 1.0
