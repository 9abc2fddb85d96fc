"""Made-up score tables for the tests of the report."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maetrain.evaluate.scores import ScoreRow
from maetrain.report.inputs import Curve, Overlap, Picture, PretrainCurve, Quarantined, ReportInputs
from maetrain.report.labels_saved import LabelsSaved
from maetrain.report.page import write_report
from maetrain.report.results import analyse
from maetrain.report.statistics import BudgetComparison

Effect = Callable[[int, str], float]


def no_effect(budget: int, arm: str) -> float:
    return 0.0


def make_rows(
    effect: Effect = no_effect,
    num_subjects: int = 24,
    budgets: tuple[int, ...] = (1, 4),
    arms: tuple[str, ...] = ("scratch", "mae"),
    num_seeds: int = 3,
    noise: float = 0.01,
    person_spread: float = 0.08,
    seed: int = 0,
    class_names: Sequence[str] = ("front", "back"),
) -> list[ScoreRow]:
    """Dice = 0.5 + person + effect(budget, arm) + noise; odd persons have two cases."""
    rng = np.random.default_rng(seed)
    persons = rng.normal(0, person_spread, num_subjects)
    return [
        ScoreRow(budget, arm, s, f"case_{p:02d}_{scan}", f"person_{p:02d}", name, float(dice), 2.5, 0.75)
        for budget in budgets
        for arm in arms
        for s in range(num_seeds)
        for p in range(num_subjects)
        for scan in range(1 + p % 2)
        for name in class_names
        if (dice := np.clip(0.5 + persons[p] + effect(budget, arm) + rng.normal(0, noise), 0, 1)) >= 0
    ]


def row(budget: int, arm: str, seed: int, case: str, subject: str, class_name: str, dice: float) -> ScoreRow:
    return ScoreRow(budget, arm, seed, case, subject, class_name, dice, 1.0, 0.5)


def make_inputs(**changes: object) -> ReportInputs:
    fields: dict[str, object] = {
        "title": "A report",
        "test_subjects": 24,
        "pool_volumes": 100,
        "overlap": Overlap(by_person=0, by_voxel_hash=0),
        "tolerance_mm": 1.5,
        "curves": [
            Curve(budget=b, arm=a, seed=s, steps=[0, 100, 200], dice=[0.1, 0.4, 0.5 + 0.1 * (a == "mae")])
            for b in (1, 4)
            for a in ("scratch", "mae")
            for s in (0, 1)
        ],
        "pretrain_curve": PretrainCurve(steps=[1, 2, 3], loss=[0.9, 0.5, 0.4], volumes_per_s=[10.0, 11.0, 10.5]),
        "pictures": [
            Picture(kind="reconstruction", caption="original and reconstructed", path="one.png"),
            Picture(kind="overlay", caption="label and prediction", path="lost.png"),
        ],
        "config_yaml": "sweep:\n  budgets: [1, 4]\n",
        "provenance": {"commit": "abc123", "shard index sha256": "feed"},
        "quarantined": [Quarantined(case="bad_case", path="imagesTr/bad.nii.gz", reason="cut off")],
        "notes": ["Synthetic volumes."],
    }
    return ReportInputs.model_validate(fields | changes)


def report(rows: Sequence[ScoreRow], inputs: ReportInputs, inputs_dir: Path, out_dir: Path, **more: Any) -> Path:
    """The page of a report on what `analyse` finds; more: its further arguments."""
    return write_report(rows, inputs, analyse(rows, inputs, **more), inputs_dir, out_dir)


def comparison(
    budget: int,
    low: float,
    high: float,
    p: float = 0.001,
    n_subjects: int = 30,
    n_seeds: int = 5,
    arm: str = "mae",
) -> BudgetComparison:
    middle = 0.01 if low != low else (low + high) / 2
    return BudgetComparison(budget, n_subjects, n_seeds, "scratch", arm, 0.6, 0.6 + middle, middle, low, high, p, p)


def saving(budget: int, equivalent: float, low: float, high: float) -> LabelsSaved:
    """Of a curve from 1 to 32 labelled persons."""
    ratios = equivalent / budget, low / budget, high / budget
    return LabelsSaved(budget, 30, 5, "scratch", "mae", 0.7, equivalent, low, high, *ratios, 1, 32)
