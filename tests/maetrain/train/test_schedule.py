"""The learning rate rises, peaks once, and ends at its floor."""

from itertools import pairwise

import pytest

from maetrain.train.schedule import warmup_cosine, warmup_poly


def test_it_rises_in_equal_steps_to_the_peak_and_falls_to_the_floor() -> None:
    rates = [warmup_cosine(step, 2.0, 4, 12) for step in range(12)]
    assert rates[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert rates[4] == pytest.approx(2.0) and rates[-1] == pytest.approx(0.02)
    assert all(a > b for a, b in pairwise(rates[4:]))
    # half way down the cosine: the mean of peak and floor
    assert (rates[7] + rates[8]) / 2 == pytest.approx(1.01)


@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (0, 5), (5, 5), (9, 5), (1, 2)])
def test_short_runs_stay_within_peak_and_zero(warmup: int, total: int) -> None:
    assert all(0 < warmup_cosine(step, 1.0, warmup, total) <= 1.0 for step in range(total + 1))


def test_without_warmup_the_first_step_has_the_peak() -> None:
    assert warmup_cosine(0, 3.0, 0, 10) == 3.0


def test_the_poly_decay_is_nnunets_after_its_warmup() -> None:
    rates = [warmup_poly(step, 2.0, 2, 12) for step in range(12)]
    assert rates[:2] == [1.0, 2.0] and rates[2] == 2.0
    assert rates[7] == pytest.approx(2 * 0.5**0.9) and 0 < rates[-1] == pytest.approx(2 * 0.1**0.9)
