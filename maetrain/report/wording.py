"""Numbers as the report writes them: signs, intervals, persons, and where a curve ends."""

import math
from collections.abc import Callable, Sequence

from maetrain.report.labels_saved import LabelsSaved
from maetrain.report.statistics import BudgetComparison

DASH = "\N{EN DASH}"


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
        return DASH
    return f"{_end(comparison.low)} to {_end(comparison.high)}"


def _end(value: float) -> str:
    """As `signed`, but +0.000 for a little more than nothing: the sign tells on which side of zero it is."""
    text = signed(value)
    if text != "0.000" or abs(value) < 1e-12:
        return text
    return ("+" if value > 0 else "\N{MINUS SIGN}") + text


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


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def reach_text(value: float, saved: LabelsSaved) -> str:
    """Labelled persons, as far as the baseline's curve goes: '8.3', 'at most 1', 'more than 32'."""
    if math.isnan(value):
        return DASH
    if math.isinf(value):
        return f"more than {saved.largest_budget}"
    return f"{value:.3g}" if value > 0 else f"at most {saved.smallest_budget}"


def ratio_text(value: float, saved: LabelsSaved) -> str:
    """Times the labels, as far as the baseline's curve goes: '2.1', '≤ 0.5', '> 8'."""
    if math.isnan(value):
        return DASH
    if math.isinf(value):
        return f"> {saved.largest_budget / saved.budget:.3g}"
    return f"{value:.2f}" if value > 0 else f"\N{LESS-THAN OR EQUAL TO} {saved.smallest_budget / saved.budget:.2g}"


def ends_text(text: Callable[..., str], low: float, high: float, *rest: object) -> str:
    """'low to high' in the words of `text`; once where there is no interval or all of it lies beyond a curve's end."""
    is_one = math.isnan(low) or (low == high and (low == 0 or math.isinf(low)))
    return text(low, *rest) if is_one else f"{text(low, *rest)} to {text(high, *rest)}"
