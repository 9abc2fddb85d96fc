"""The words of the report are as honest as its numbers."""

import pytest

from maetrain.report.results import analyse
from maetrain.report.verdict import (
    HELPS,
    HURTS,
    NOTHING,
    UNCONFIRMED,
    control_sentence,
    headline,
    summary_rows,
    verdict,
)

from .builders import comparison, make_inputs, make_rows, saving

NAN = float("nan")


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
    other = analyse(make_rows(arms=("Scratch", "mae"), num_subjects=3), make_inputs())
    assert other.headline == "Nothing could be compared: no arm is called scratch, only Scratch and mae."


def test_the_terminal_table_has_a_row_a_budget() -> None:
    header, first, second = summary_rows([comparison(1, 0.02, 0.04), comparison(4, NAN, NAN, 1.0)])
    assert header[:3] == ("labelled", "scratch", "mae")
    assert first == ("1", "0.600", "0.630", "+0.030 (+0.020 to +0.040)", "0.001")
    assert second[3] == "+0.010"  # one person has no interval
    assert all(text.isascii() for line in (header, first, second) for text in line)


def test_labels_saved_are_in_the_headline_where_they_can_be_told_from_none() -> None:
    helps = [comparison(1, 0.02, 0.04), comparison(4, 0.02, 0.04)]
    text = headline(helps, [saving(1, 1.8, 1.2, 2.5), saving(4, 9.0, 6.0, float("inf"))])
    said = "The largest saving of labels: what mae reaches with 4 labelled persons takes scratch 9 persons"
    assert f"{said} (6 to more than 32)." in text
    assert "reaches with 1 " not in text, "the surest alone"
    assert "takes scratch" not in headline(helps, [saving(4, 9.0, 3.9, 20.0)]), "its interval holds no saving"
    one_helps = [comparison(1, 0.02, 0.04), comparison(4, -0.01, 0.04)]
    assert "takes scratch" not in headline(one_helps, [saving(4, 9.0, 6.0, 20.0)]), "nothing is confirmed with 4"
    assert "takes scratch" not in headline([comparison(4, -0.04, -0.02)], [saving(4, 0.0, 0.0, 2.0)])


def test_a_saving_beyond_the_curve_counts_only_as_far_as_the_curve_goes() -> None:
    inf, helps = float("inf"), [comparison(b, 0.02, 0.04) for b in (1, 8, 32)]
    last = saving(32, inf, inf, inf)
    assert "takes scratch" not in headline(helps, [last]), "more than 32 for 32: no number of labels saved"
    text = headline(helps, [saving(1, 1.8, 1.5, 2.5), last])
    assert "with 1 labelled person takes scratch 1.8 persons (1.5 to 2.5)." in text
    text = headline(helps, [saving(1, 1.8, 1.5, 2.5), saving(8, inf, inf, inf), last])
    assert "with 8 labelled persons takes scratch more than 32 persons (more than 32)." in text, "4 times at least"


def test_many_budgets_make_no_endless_headline() -> None:
    budgets = (1, 2, 4, 8, 16)
    text = headline([comparison(b, 0.06 / b - 0.002, 0.06 / b + 0.002) for b in budgets])
    assert "+0.004 to +0.060 with 1, 2, 4, 8 and 16 labelled persons, most with 1: +0.060" in text
    assert text.count("interval") == 1


def test_what_was_never_pretrained_is_not_called_pretraining() -> None:
    assert headline([comparison(1, 0.01, 0.03)]).startswith("Pretraining raised mean Dice: ")
    for arm in ("random-mae", "unet"):
        assert headline([comparison(1, 0.01, 0.03, arm=arm)]).startswith(f"{arm} raised mean Dice over scratch: ")
        assert headline([comparison(1, -0.01, 0.03, arm=arm)]).startswith(
            f"{arm} bought nothing measurable over scratch"
        )


@pytest.mark.parametrize(
    ("differences", "said"),
    [
        ((0.02, -0.01, 0.03, -0.05), "\N{MINUS SIGN}0.050 to +0.030 with"),
        ((-0.02, -0.01, -0.03, -0.05), "\N{MINUS SIGN}0.010 to \N{MINUS SIGN}0.050 with"),
    ],
)
def test_a_range_of_differences_holds_them_all(differences: tuple[float, ...], said: str) -> None:
    found = [comparison(2**i, d - 0.002, d + 0.002, p=0.5) for i, d in enumerate(differences)]
    assert f"a difference in mean Dice of {said} 1, 2, 4 and 8 labelled persons" in headline(found)


def test_the_control_is_judged_by_its_interval() -> None:
    same = comparison(1, -0.01, 0.02, arm="random-mae")
    moved = comparison(4, 0.01, 0.03, p=0.9, arm="random-mae")
    assert "does not differ from scratch beyond the interval at any budget" in control_sentence([same])
    text = control_sentence([same, moved])
    assert "differs from scratch beyond the interval: +0.020 (95 % interval +0.010 to +0.030) with 4 labelled" in text
