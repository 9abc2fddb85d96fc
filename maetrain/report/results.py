"""Every number of the report, computed once from the scores and curves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data_shards.errors import InputError
from maetrain.evaluate.scores import ScoreRow
from maetrain.report.cautions import gather_warnings
from maetrain.report.convergence import Convergence, convergence
from maetrain.report.inputs import ReportInputs
from maetrain.report.labels_saved import LabelsSaved, labels_saved
from maetrain.report.statistics import ArmPoint, BudgetComparison, ClassMean, arm_curve, compare, per_class_table
from maetrain.report.verdict import CONTROL, PREFERRED_ARM, headline
from maetrain.report.wording import join


@dataclass(frozen=True)
class ArmResult:
    """One arm against the baseline. elsewhere: the same comparison on other sets of cases, by the set's name."""

    arm: str
    comparisons: list[BudgetComparison]
    saved: list[LabelsSaved]
    convergence: list[Convergence]
    elsewhere: dict[str, list[BudgetComparison]]


@dataclass(frozen=True)
class Results:
    """All numbers of the report. arms: every arm but the baseline, the main one first. styles: arm -> style number."""

    baseline: str
    arms: list[ArmResult]
    styles: dict[str, int]
    points: list[ArmPoint]
    classes: list[ClassMean]
    warnings: list[str]

    @property
    def arm(self) -> str:
        return self.arms[0].arm

    @property
    def comparisons(self) -> list[BudgetComparison]:
        """Of the main arm."""
        return self.arms[0].comparisons

    @property
    def num_test_subjects(self) -> int:
        """Persons in the scores, which are the same for every job."""
        return max((point.n_subjects for point in self.points), default=0)

    @property
    def headline(self) -> str:
        if self.baseline not in (scored := {point.arm for point in self.points}):
            return f"Nothing could be compared: no arm is called {self.baseline}, only {join(sorted(scored))}."
        return headline(self.comparisons, self.arms[0].saved)

    @property
    def elsewhere(self) -> list[str]:
        """Names of the other sets of cases."""
        return list(dict.fromkeys(name for one in self.arms for name in one.elsewhere))


def analyse(
    rows: Sequence[ScoreRow],
    inputs: ReportInputs,
    baseline: str = "scratch",
    arm: str | None = None,
    elsewhere: Mapping[str, Sequence[ScoreRow]] | None = None,
) -> Results:
    """Every number the report shows. Random only in the resampling, with a fixed seed.

    arm: the main one; None takes the first of `mae`, the other arms in the order of the alphabet, the control.
    Raises InputError for an arm without scores, and where the rows don't make one table.
    """
    elsewhere = elsewhere or {}
    scored = {row.arm for row in rows}
    main = main_arm(scored, baseline, arm)
    everywhere = scored | {curve.arm for curve in inputs.curves}
    others = sorted(everywhere - {baseline, main})
    found = [
        ArmResult(
            name,
            compare(rows, baseline, name),
            labels_saved(rows, baseline, name),
            convergence(inputs.curves, baseline, name),
            {place: compare(there, baseline, name) for place, there in elsewhere.items()},
        )
        for name in (main, *others)
    ]
    return Results(
        baseline=baseline,
        arms=found,
        styles={name: style for style, name in enumerate([baseline, main, *others]) if name in everywhere},
        points=arm_curve(rows),
        classes=per_class_table(rows),
        warnings=gather_warnings(rows, inputs, {a.arm: a.comparisons for a in found}, elsewhere, baseline, main),
    )


def main_arm(arms: set[str], baseline: str, wanted: str | None) -> str:
    """The arm the report is about, `wanted` where it is given and has scores."""
    others = sorted(arms - {baseline}, key=lambda name: (name != PREFERRED_ARM, name == CONTROL, name))
    if wanted is None:
        return others[0] if others else PREFERRED_ARM
    if wanted not in others:
        raise InputError(f"--arm {wanted}: no such arm beside {baseline!r} in the scores; there are {others}")
    return wanted
