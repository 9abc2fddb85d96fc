"""The numbers judged: verdict per budget, headline, what the control shows, and the rows of the terminal table.

A difference is called real only when its 95 % interval excludes zero and Holm's p is below 0.05; an interval that
excludes zero without such a p is "unconfirmed". A budget that shows nothing is named in the headline like the others.
"""

import math
from collections.abc import Sequence

from maetrain.report.labels_saved import LabelsSaved
from maetrain.report.statistics import BudgetComparison
from maetrain.report.wording import difference_text, ends_text, join, p_text, persons, reach_text, signed

ALPHA = 0.05
PREFERRED_ARM = "mae"
CONTROL = "random-mae"  # pretrained for zero steps: the same way of transfer, with nothing learnt
HELPS, HURTS, UNCONFIRMED, NOTHING = "helps", "hurts", "unconfirmed", "no measurable difference"


def differs(comparison: BudgetComparison) -> bool:
    """Whether the interval excludes zero; there is none (NaN) from one person."""
    return comparison.low > 0 or comparison.high < 0


def verdict(comparison: BudgetComparison) -> str:
    """One of HELPS, HURTS, UNCONFIRMED, NOTHING."""
    if not differs(comparison):
        return NOTHING
    if comparison.p_holm >= ALPHA:
        return UNCONFIRMED
    return HELPS if comparison.low > 0 else HURTS


def headline(comparisons: Sequence[BudgetComparison], saved: Sequence[LabelsSaved] = ()) -> str:
    """What pretraining bought, in one to five plain sentences; every budget occurs in it."""
    if not comparisons:
        return "Nothing could be compared: no test case was scored by both arms with the same budget and seed."
    by_verdict = {name: [c for c in comparisons if verdict(c) == name] for name in (HELPS, HURTS, UNCONFIRMED, NOTHING)}
    if len(by_verdict[NOTHING]) == len(comparisons):
        largest = max(comparisons, key=lambda c: abs(c.difference))
        where = f"with {persons([c.budget for c in comparisons])} to learn from"
        return (
            f"{_subject(largest)} bought nothing measurable{_over(largest)}: {where}, no difference in Dice "
            f"can be told from zero. The largest was {difference_text(largest)} with {persons([largest.budget])}."
        )
    sentences = []
    for name, verb in ((HELPS, "raised"), (HURTS, "lowered")):
        if found := by_verdict[name]:
            sentences.append(f"{_subject(found[0])} {verb} mean Dice{_over(found[0])}: {_differences(found)}.")
    sentences += [text] if (text := saved_sentence(comparisons, saved)) else []
    if by_verdict[UNCONFIRMED]:
        sentences.append(
            f"Not confirmed by the corrected p, a difference in mean Dice of {_differences(by_verdict[UNCONFIRMED])}."
        )
    if by_verdict[NOTHING]:
        sentences.append(f"No measurable difference with {persons([c.budget for c in by_verdict[NOTHING]])}.")
    first, label, rest = " ".join(sentences).partition("95 % interval ")
    return first + label + rest.replace(label or "95 % interval ", "")  # said once is enough


def _subject(comparison: BudgetComparison) -> str:
    """Whose doing it was: a control or another's network is no pretraining."""
    return "Pretraining" if comparison.arm == PREFERRED_ARM else comparison.arm


def _over(comparison: BudgetComparison) -> str:
    return "" if comparison.arm == PREFERRED_ARM else f" over {comparison.baseline_arm}"


def _differences(found: Sequence[BudgetComparison]) -> str:
    """Each difference with its budget; of more than three, their range and the largest."""
    if len(found) <= 3:
        return join([f"{difference_text(c)} with {persons([c.budget])}" for c in found])
    ends = sorted(c.difference for c in found)
    largest = max(found, key=lambda c: abs(c.difference))
    if ends[-1] < 0:
        ends.reverse()  # the smaller loss first
    return (
        f"{signed(ends[0])} to {signed(ends[-1])} with {persons([c.budget for c in found])}, "
        f"most with {largest.budget}: {difference_text(largest)}"
    )


def saved_sentence(comparisons: Sequence[BudgetComparison], saved: Sequence[LabelsSaved]) -> str:
    """The largest saving of labels that can be told from none, at a budget where pretraining helps; '' for none."""
    helped = {c.budget for c in comparisons if verdict(c) == HELPS}
    told = [s for s in saved if s.budget in helped and _surely_saved(s) > 1]
    if not told:
        return ""
    best = max(told, key=lambda s: (_surely_saved(s), s.ratio))
    return (
        f"The largest saving of labels: what {best.arm} reaches with {persons([best.budget])} takes "
        f"{best.baseline_arm} {reach_text(best.equivalent, best)} persons "
        f"(95 % interval {ends_text(reach_text, best.low, best.high, best)})."
    )


def _surely_saved(saved: LabelsSaved) -> float:
    """Times the labels at the interval's low end; beyond the baseline's curve, what the curve's end tells."""
    return min(saved.ratio_low, saved.largest_budget / saved.budget)


def control_sentence(comparisons: Sequence[BudgetComparison]) -> str:
    """Whether a control, which should change nothing, differs from the baseline beyond the interval."""
    arm, baseline = comparisons[0].arm, comparisons[0].baseline_arm
    if not (moved := [c for c in comparisons if differs(c)]):
        return f"The control {arm} does not differ from {baseline} beyond the interval at any budget."
    parts = [f"{difference_text(c)} with {persons([c.budget])}" for c in moved]
    return (
        f"The control {arm} differs from {baseline} beyond the interval: {join(parts)}. It should change nothing: "
        "differences of that size are luck, or the transfer itself does something."
    )


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
