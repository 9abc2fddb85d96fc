"""Who is tested, who is watched, who is trained on, and in which order label budgets take persons in.

Always persons, never cases. The test persons are drawn first. Budgets are nested: budget k is the first k persons of
one permutation per seed, and the smallest budget holds every class. Pure functions of names and a seed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data_shards.errors import InputError
from data_shards.formats.index import ShardIndex
from data_shards.order.streams import stream

_MAX_REDRAWS = 2000


@dataclass(frozen=True)
class Split:
    """Persons, each in one part only: `test` for the report, `monitor` for curves during training, `train`."""

    test: tuple[str, ...]
    monitor: tuple[str, ...]
    train: tuple[str, ...]


def classes_by_subject(index: ShardIndex) -> dict[str, frozenset[int]]:
    """For every labelled person the targets (counted from 1) that their scans hold some of; may be none."""
    targets = index.labels.targets
    found: dict[str, frozenset[int]] = {}
    for volume in index.volumes.take(index.volumes.labelled):
        held = frozenset(k for k, target in enumerate(targets, 1) if {*target.values} & {*volume.label_classes})
        found[volume.subject] = found.get(volume.subject, frozenset()) | held
    return found


def make_split(
    classes_by_subject: Mapping[str, frozenset[int]], test_share: float, num_monitor: int, seed: int
) -> Split:
    """Draw round(test_share * persons) test persons (at least 1), then `num_monitor`; the others train.

    Takes labelled persons only. Raises InputError when nobody is left to train on.
    """
    persons = sorted(classes_by_subject)
    num_test = max(1, round(test_share * len(persons)))
    if len(persons) < num_test + num_monitor + 1:
        raise InputError(
            f"{len(persons)} labelled persons are too few for {num_test} test, {num_monitor} monitor and at least "
            "1 training person: add labelled scans or lower the test share and the number of monitor persons"
        )
    drawn = [persons[i] for i in stream(seed, "split").permutation(len(persons))]
    test, monitor = drawn[:num_test], drawn[num_test : num_test + num_monitor]
    return Split(tuple(sorted(test)), tuple(sorted(monitor)), tuple(sorted(drawn[num_test + num_monitor :])))


def budget_order(
    train: Sequence[str], classes_by_subject: Mapping[str, frozenset[int]], smallest_budget: int, seed: int
) -> tuple[str, ...]:
    """A permutation of `train` whose first `smallest_budget` persons together hold every foreground class.

    Every class means every class that any labelled person has, test persons too. Drawn again until it holds;
    raises InputError naming a class that is missing when it can't be, or when the budget exceeds the persons.
    """
    budget_subjects(train, smallest_budget)
    wanted: frozenset[int] = frozenset().union(*classes_by_subject.values())
    persons = sorted(train)
    nowhere = wanted.difference(*(classes_by_subject[person] for person in persons))
    if nowhere:
        raise InputError(
            f"class {min(nowhere)} occurs in none of the {len(persons)} training persons: "
            "draw another split (seed) or add labelled scans"
        )
    missing: frozenset[int] = wanted
    for attempt in range(_MAX_REDRAWS):
        order = [persons[i] for i in stream(seed, "budget", attempt).permutation(len(persons))]
        missing = wanted.difference(*(classes_by_subject[person] for person in order[:smallest_budget]))
        if not missing:
            return tuple(order)
    raise InputError(
        f"no {smallest_budget} training persons found in {_MAX_REDRAWS} draws that hold every class, "
        f"class {min(missing)} was missing in the last: raise the smallest of sweep.budgets"
    )


def budget_subjects(order: Sequence[str], budget: int) -> tuple[str, ...]:
    """The first `budget` persons of `order`. InputError when there are fewer."""
    if not 1 <= budget <= len(order):
        raise InputError(
            f"budget {budget} can't be met, there are {len(order)} training persons: "
            f"set sweep.budgets to numbers from 1 to {len(order)}"
        )
    return tuple(order[:budget])
