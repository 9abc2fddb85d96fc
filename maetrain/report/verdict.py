"""The numbers in words: verdict per budget, headline, warnings, and the rows of the terminal table.

A difference is called real only when its 95 % interval excludes zero and Holm's p is below 0.05; an interval that
excludes zero without such a p is "unconfirmed". A budget that shows nothing is named in the headline like the others.
"""

import math
from collections.abc import Mapping, Sequence

from maetrain.evaluate.scores import ScoreRow
from maetrain.report.inputs import ReportInputs
from maetrain.report.statistics import BudgetComparison

ALPHA = 0.05
ENOUGH_SUBJECTS = 20
HELPS, HURTS, UNCONFIRMED, NOTHING = "helps", "hurts", "unconfirmed", "no measurable difference"


def verdict(comparison: BudgetComparison) -> str:
    """One of HELPS, HURTS, UNCONFIRMED, NOTHING."""
    if not (comparison.low > 0 or comparison.high < 0):  # NaN ends here too
        return NOTHING
    if comparison.p_holm >= ALPHA:
        return UNCONFIRMED
    return HELPS if comparison.low > 0 else HURTS


def headline(comparisons: Sequence[BudgetComparison]) -> str:
    """What pretraining bought, in one to four plain sentences; every budget occurs in it."""
    if not comparisons:
        return "Nothing could be compared: no test case was scored by both arms with the same budget and seed."
    by_verdict = {name: [c for c in comparisons if verdict(c) == name] for name in (HELPS, HURTS, UNCONFIRMED, NOTHING)}
    if len(by_verdict[NOTHING]) == len(comparisons):
        largest = max(comparisons, key=lambda c: abs(c.difference))
        where = f"with {persons([c.budget for c in comparisons])} to learn from"
        return (
            f"Pretraining bought nothing measurable: {where}, no difference in Dice can be told from zero. "
            f"The largest was {difference_text(largest)} with {persons([largest.budget])}."
        )
    sentences = []
    for name, verb in ((HELPS, "raised"), (HURTS, "lowered")):
        if by_verdict[name]:
            parts = [f"{difference_text(c)} with {persons([c.budget])}" for c in by_verdict[name]]
            sentences.append(f"Pretraining {verb} mean Dice: {join(parts)}.")
    if by_verdict[UNCONFIRMED]:
        parts = [f"{difference_text(c)} with {persons([c.budget])}" for c in by_verdict[UNCONFIRMED]]
        sentences.append(f"Not confirmed by the corrected p, a difference in mean Dice of {join(parts)}.")
    if by_verdict[NOTHING]:
        sentences.append(f"No measurable difference with {persons([c.budget for c in by_verdict[NOTHING]])}.")
    first, label, rest = " ".join(sentences).partition("95 % interval ")
    return first + label + rest.replace(label or "95 % interval ", "")  # said once is enough


def resolution_warning(n_subjects: int) -> str | None:
    """The sentence for a test set too small to resolve a point of Dice; None from ENOUGH_SUBJECTS persons on."""
    if n_subjects >= ENOUGH_SUBJECTS:
        return None
    count = "1 test person" if n_subjects == 1 else f"{n_subjects} test persons"
    return (
        f"Only {count}: fewer than {ENOUGH_SUBJECTS} can't resolve a difference of one point of Dice (0.01). "
        "Read the intervals, not the means."
    )


def gather_warnings(
    rows: Sequence[ScoreRow],
    inputs: ReportInputs,
    comparisons: Sequence[BudgetComparison],
    other_arms: Mapping[str, Sequence[BudgetComparison]],
    baseline: str,
    arm: str,
) -> list[str]:
    """Everything that limits what the page may be taken to show, the gravest first."""
    found = []
    if inputs.overlap is None:
        found.append("Whether test persons are in the pretraining pool was not checked.")
    elif inputs.overlap.by_person or inputs.overlap.by_voxel_hash:
        found.append(
            f"Test persons are in the pretraining pool ({inputs.overlap.by_person} by person, "
            f"{inputs.overlap.by_voxel_hash} by voxel hash): the comparison is void."
        )
    smallest = min([c.n_subjects for c in comparisons], default=inputs.test_subjects)
    found += [text] if (text := resolution_warning(smallest)) else []
    if comparisons and (floor := min(1.0, 2.0 ** (1 - smallest)) * len(comparisons)) >= ALPHA:
        found.append(
            f"With {_count(smallest, 'test person')} and {_count(len(comparisons), 'budget')} the smallest possible "
            f"p (Holm) is {min(1.0, floor):.2g}: no effect, however large, could be confirmed."
        )
    if (seeds := min([c.n_seeds for c in comparisons], default=0)) == 1:
        found.append("Only 1 seed: the intervals say nothing about the luck of a training run.")
    elif 1 < seeds < 5:
        found.append(
            f"Only {seeds} seeds: how much the luck of a training run matters is known roughly, the intervals run "
            "narrow and p says nothing about it. A small difference may be luck even where it is called real."
        )
    for name, found_there in other_arms.items():
        if moved := [c.budget for c in found_there if verdict(c) in (HELPS, HURTS)]:
            found.append(
                f"The other arm {name} also differs from {baseline} with {persons(moved)}. If it is a control that "
                "should change nothing, differences of that size are luck."
            )
    keys = {name: {(r.budget, r.seed, r.case, r.class_name) for r in rows if r.arm == name} for name in (baseline, arm)}
    if unpaired := len(keys[baseline] ^ keys[arm]):
        found.append(f"{_count(unpaired, 'score')} of one arm without a counterpart in the other: not compared.")
    return found


def summary_rows(comparisons: Sequence[BudgetComparison]) -> list[tuple[str, ...]]:
    """Header and one row per budget for the terminal table, in plain ASCII, within 80 columns."""
    baseline, arm = (comparisons[0].baseline_arm, comparisons[0].arm) if comparisons else ("scratch", "mae")
    header: tuple[str, ...] = ("labelled", baseline, arm, "difference (95 % interval)", "p (Holm)")
    return [header] + [
        (
            str(c.budget),
            f"{c.baseline_mean:.3f}",
            f"{c.arm_mean:.3f}",
            f"{c.difference:+.3f}" + ("" if math.isnan(c.low) else f" ({c.low:+.3f} to {c.high:+.3f})"),
            p_text(c.p_holm),
        )
        for c in comparisons
    ]


def p_text(p: float) -> str:
    """A p value with the digits that mean something."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def signed(value: float) -> str:
    """Three digits with a true plus or minus sign."""
    text = f"{value:+.3f}"
    return "0.000" if text in ("+0.000", "-0.000") else text.replace("-", "\N{MINUS SIGN}")


def interval_text(comparison: BudgetComparison) -> str:
    """'low to high', or a dash when one person gives no interval."""
    if math.isnan(comparison.low):
        return "\N{EN DASH}"
    return f"{signed(comparison.low)} to {signed(comparison.high)}"


def difference_text(comparison: BudgetComparison) -> str:
    """'+0.032 (95 % interval +0.012 to +0.051)'."""
    if math.isnan(comparison.low):
        return f"{signed(comparison.difference)} (no interval from one test person)"
    return f"{signed(comparison.difference)} (95 % interval {interval_text(comparison)})"


def persons(budgets: Sequence[int]) -> str:
    """'1, 2 and 4 labelled persons'."""
    noun = "labelled person" if list(budgets) == [1] else "labelled persons"
    return f"{join([str(b) for b in budgets])} {noun}"


def join(parts: Sequence[str]) -> str:
    """'a, b and c'."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
