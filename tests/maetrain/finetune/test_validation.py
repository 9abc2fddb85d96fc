"""Validation cases come out of the budget itself, by person where that can be."""

import numpy as np
import pytest

from data_shards.loading.labelled import LabelledCase
from maetrain.finetune.validation import hold_out, num_training


def case(name: str, subject: str) -> LabelledCase:
    return LabelledCase(name, subject, np.zeros((1, 2, 2, 2), np.float32), np.zeros((2, 2, 2), np.uint8), (1, 1, 1))


CASES = [case(f"{person}{scan}", person) for person in "abcdefgh" for scan in "12"]


@pytest.mark.parametrize(
    ("persons", "share", "held_out"),
    [
        ("abcd", 0.25, {"d"}),
        ("dcba", 0.25, {"a"}),  # the last of the budget's order, whatever their names
        ("ab", 0.25, {"b"}),  # at least one of two
        ("abcdefgh", 0.25, {"g", "h"}),
        ("abcdefgh", 0.5, {"e", "f", "g", "h"}),
        ("abcd", 0.0, set()),
    ],
)
def test_persons_are_held_out_whole(persons: str, share: float, held_out: set[str]) -> None:
    cases = [c for c in CASES if c.subject in persons]
    training, validation = hold_out(cases, tuple(persons), share)
    assert {c.subject for c in validation} == held_out
    assert {c.subject for c in training} == set(persons) - held_out
    assert len(training) + len(validation) == len(cases)


@pytest.mark.parametrize(
    ("budget", "share", "left"), [(4, 0.25, 3), (4, 0.0, 4), (2, 0.1, 1), (1, 0.5, 1), (8, 0.5, 4)]
)
def test_persons_that_train_are_counted_beforehand(budget: int, share: float, left: int) -> None:
    assert num_training(budget, share) == left


def test_a_single_person_gives_a_scan_and_a_single_scan_nothing() -> None:
    training, validation = hold_out(CASES[:2], ("a",), 0.25)
    assert [c.case for c in training] == ["a1"] and [c.case for c in validation] == ["a2"]
    training, validation = hold_out(CASES[:1], ("a",), 0.25)
    assert [c.case for c in training] == ["a1"] and not validation
