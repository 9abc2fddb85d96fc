"""Numbers in words: nothing is said twice, and a sign is kept where it matters."""

import math

import pytest

from maetrain.report.wording import ends_text, interval_text, ratio_text, reach_text

from .builders import comparison, saving


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.0003, 0.013, "+0.000 to +0.013"),  # excludes zero, so it may be called real
        (-0.02, -0.0004, "\N{MINUS SIGN}0.020 to \N{MINUS SIGN}0.000"),
        (0.0, 0.02, "0.000 to +0.020"),
        (-1e-17, 0.02, "0.000 to +0.020"),
        (math.nan, math.nan, "\N{EN DASH}"),
    ],
)
def test_an_interval_that_excludes_zero_shows_it(low: float, high: float, said: str) -> None:
    assert interval_text(comparison(1, low, high)) == said


@pytest.mark.parametrize(
    ("low", "high", "persons", "times"),
    [
        (2.0, 16.0, "2 to 16", "0.50 to 4.00"),
        (0.0, 8.0, "at most 1 to 8", "\N{LESS-THAN OR EQUAL TO} 0.25 to 2.00"),
        (8.0, math.inf, "8 to more than 32", "2.00 to > 8"),
        (math.inf, math.inf, "more than 32", "> 8"),
        (0.0, 0.0, "at most 1", "\N{LESS-THAN OR EQUAL TO} 0.25"),
        (8.0, 8.0, "8 to 8", "2.00 to 2.00"),
        (math.nan, math.nan, "\N{EN DASH}", "\N{EN DASH}"),
    ],
)
def test_what_lies_beyond_the_curve_is_said_once(low: float, high: float, persons: str, times: str) -> None:
    saved = saving(4, 8.0, low, high)
    assert ends_text(reach_text, saved.low, saved.high, saved) == persons
    assert ends_text(ratio_text, saved.ratio_low, saved.ratio_high, saved) == times
