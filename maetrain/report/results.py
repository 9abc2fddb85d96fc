"""Every number of the report, computed once from the scores and curves."""

from collections.abc import Sequence
from dataclasses import dataclass

from maetrain.evaluate.scores import ScoreRow
from maetrain.report import verdict
from maetrain.report.inputs import ReportInputs
from maetrain.report.statistics import ArmPoint, BudgetComparison, Convergence, arm_curve, compare, convergence


@dataclass(frozen=True)
class Results:
    """All numbers of the report, computed once. other_arms: each further arm against the baseline, by name."""

    baseline: str
    arm: str
    styles: dict[str, int]
    comparisons: list[BudgetComparison]
    other_arms: dict[str, list[BudgetComparison]]
    points: list[ArmPoint]
    convergence: list[Convergence]
    warnings: list[str]


def analyse(rows: Sequence[ScoreRow], inputs: ReportInputs, baseline: str = "scratch", arm: str = "mae") -> Results:
    """Every number the report shows, from the scores and curves. Random only in the resampling, with a fixed seed."""
    arms = {row.arm for row in rows} | {curve.arm for curve in inputs.curves}
    others = sorted(arms - {baseline, arm})
    comparisons = compare(rows, baseline, arm)
    other_arms = {other: found for other in others if (found := compare(rows, baseline, other))}
    return Results(
        baseline=baseline,
        arm=arm,
        styles={name: style for style, name in enumerate([baseline, arm, *others]) if name in arms},
        comparisons=comparisons,
        other_arms=other_arms,
        points=arm_curve(rows),
        convergence=convergence(inputs.curves, baseline, arm),
        warnings=verdict.gather_warnings(rows, inputs, comparisons, other_arms, baseline, arm),
    )
