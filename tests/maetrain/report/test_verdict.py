"""The words of the report are as honest as its numbers."""

import pytest

from maetrain.report.inputs import Overlap
from maetrain.report.statistics import BudgetComparison
from maetrain.report.verdict import (
    HELPS,
    HURTS,
    NOTHING,
    UNCONFIRMED,
    gather_warnings,
    headline,
    resolution_warning,
    summary_rows,
    verdict,
)

from .builders import make_inputs, make_rows

NAN = float("nan")


def comparison(
    budget: int, low: float, high: float, p: float = 0.001, n_subjects: int = 30, n_seeds: int = 5
) -> BudgetComparison:
    middle = 0.01 if low != low else (low + high) / 2
    return BudgetComparison(budget, n_subjects, n_seeds, "scratch", "mae", 0.6, 0.6 + middle, middle, low, high, p, p)


@pytest.mark.parametrize(
    ("low", "high", "p", "expected"),
    [
        (0.01, 0.03, 0.001, HELPS),
        (-0.03, -0.01, 0.001, HURTS),
        (0.01, 0.03, 0.2, UNCONFIRMED),  # interval only
        (-0.01, 0.03, 0.001, NOTHING),  # p only
        (0.0, 0.0, 1.0, NOTHING),
        (NAN, NAN, 1.0, NOTHING),  # one person
    ],
)
def test_a_verdict_needs_interval_and_p(low: float, high: float, p: float, expected: str) -> None:
    assert verdict(comparison(1, low, high, p)) == expected


def test_a_pretraining_without_effect_is_called_so() -> None:
    text = headline([comparison(1, -0.02, 0.04), comparison(4, -0.01, 0.01)])
    assert text.startswith("Pretraining bought nothing measurable")
    assert "1 and 4 labelled persons" in text and "+0.010" in text


def test_every_budget_is_named_whatever_its_verdict() -> None:
    found = [
        comparison(1, 0.02, 0.04),
        comparison(2, -0.04, -0.02),
        comparison(4, 0.01, 0.03, 0.3),
        comparison(8, -0.01, 0.01),
    ]
    text = headline(found)
    assert "raised mean Dice: +0.030 (95 % interval +0.020 to +0.040) with 1 labelled person." in text
    assert "lowered mean Dice: −0.030 (−0.040 to −0.020) with 2 labelled persons." in text
    assert "Not confirmed" in text and "with 4 labelled persons" in text
    assert "No measurable difference with 8 labelled persons." in text


def test_no_comparison_is_said_too() -> None:
    assert headline([]).startswith("Nothing could be compared")
    assert len(summary_rows([])) == 1


def test_few_test_persons_are_warned_about() -> None:
    assert "Only 19 test persons" in (resolution_warning(19) or "")
    assert resolution_warning(20) is None


def test_the_terminal_table_has_a_row_a_budget() -> None:
    header, first, second = summary_rows([comparison(1, 0.02, 0.04), comparison(4, NAN, NAN, 1.0)])
    assert header[:3] == ("labelled", "scratch", "mae")
    assert first == ("1", "0.600", "0.630", "+0.030 (+0.020 to +0.040)", "0.001")
    assert second[3] == "+0.010"  # one person has no interval
    assert all(text.isascii() for line in (header, first, second) for text in line)


def test_what_limits_the_result_is_listed() -> None:
    rows = [r for r in make_rows() if not (r.arm == "mae" and r.seed == 2 and r.budget == 1)]
    few = [comparison(1, -0.1, 0.1, n_subjects=4, n_seeds=1), comparison(4, -0.1, 0.1, n_subjects=4, n_seeds=2)]
    inputs = make_inputs(overlap=Overlap(by_person=2, by_voxel_hash=0))
    text = "\n".join(gather_warnings(rows, inputs, few, {"random-mae": [comparison(4, 0.1, 0.2)]}, "scratch", "mae"))
    assert text.startswith("Test persons are in the pretraining pool (2 by person")
    for part in ("Only 4 test persons", "is 0.25: no effect", "Only 1 seed", "random-mae also differs", "72 scores"):
        assert part in text
    assert "not checked" in gather_warnings(rows, make_inputs(overlap=None), [], {}, "scratch", "mae")[0]


def test_a_sound_comparison_has_no_warning() -> None:
    assert gather_warnings(make_rows(), make_inputs(), [comparison(1, 0.01, 0.02)], {}, "scratch", "mae") == []
