"""Which cases of a budget validate instead of training: always out of the budget itself, by person where that can be.

Pure. With a budget of one person with one scan there is nothing to hold out: the last weights are the result then.
"""

from collections.abc import Sequence

from data_shards.loading.labelled import LabelledCase


def hold_out(
    cases: Sequence[LabelledCase], subjects: Sequence[str], share: float
) -> tuple[list[LabelledCase], list[LabelledCase]]:
    """(training, validation) cases; `share` (0..0.5) of the persons, the last ones of the budget's order.

    At least one person of two or more; of a single person the share of the scans, at least one of two or more.
    """
    if not share:
        return list(cases), []
    if len(subjects) > 1:
        held_out = set(subjects[num_training(len(subjects), share) :])
        return [c for c in cases if c.subject not in held_out], [c for c in cases if c.subject in held_out]
    if len(cases) > 1:
        cut = len(cases) - _count(len(cases), share)
        return list(cases[:cut]), list(cases[cut:])
    return list(cases), []


def num_training(budget: int, share: float) -> int:
    """Persons of a budget that some scans are left to train on."""
    return budget - _count(budget, share) if share and budget > 1 else budget


def _count(of: int, share: float) -> int:
    return max(1, round(of * share))
