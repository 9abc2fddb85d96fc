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
_MAX_TRIED = 20_000  # persons looked at in the search for a few that hold every class


@dataclass(frozen=True)
class Split:
    """Persons, each in one part only: `test` for the report, `monitor` for curves during training, `train`."""

    test: tuple[str, ...]
    monitor: tuple[str, ...]
    train: tuple[str, ...]


def classes_by_subject(index: ShardIndex) -> dict[str, frozenset[str]]:
    """For every labelled person the names of the targets that their scans hold some of; may be none."""
    targets = index.labels.targets
    found: dict[str, frozenset[str]] = {}
    for volume in index.volumes.take(index.volumes.labelled):
        held = frozenset(target.name for target in targets if {*target.values} & {*volume.label_classes})
        found[volume.subject] = found.get(volume.subject, frozenset()) | held
    return found


def make_split(
    classes_by_subject: Mapping[str, frozenset[str]], test_share: float, num_monitor: int, seed: int
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
    train: Sequence[str], classes_by_subject: Mapping[str, frozenset[str]], smallest_budget: int, seed: int
) -> tuple[str, ...]:
    """A permutation of `train` whose first `smallest_budget` persons together hold every foreground class.

    Every class means every class that any labelled person has, test persons too. Drawn again until it holds; where
    classes are so rare that chance does not find them, some persons who hold all are drawn first. InputError naming a
    class that is missing when it can't be, or when the budget exceeds the persons.
    """
    budget_subjects(train, smallest_budget)
    wanted: frozenset[str] = frozenset().union(*classes_by_subject.values())
    persons = sorted(train)
    nowhere = wanted.difference(*(classes_by_subject[person] for person in persons))
    if nowhere:
        raise InputError(
            f"class {min(nowhere)} occurs in none of the {len(persons)} training persons: "
            "draw another split (seed) or add labelled scans"
        )
    missing: frozenset[str] = wanted
    for attempt in range(_MAX_REDRAWS):
        order = [persons[i] for i in stream(seed, "budget", attempt).permutation(len(persons))]
        missing = wanted.difference(*(classes_by_subject[person] for person in order[:smallest_budget]))
        if not missing:
            return tuple(order)
    covering = _covering(order, classes_by_subject, wanted, smallest_budget, [_MAX_TRIED])
    if covering is None:
        raise InputError(
            f"no {smallest_budget} training persons found who together hold every class, "
            f"class {min(missing)} was missing in the last draw: raise the smallest of sweep.budgets"
        )
    others = [person for person in order if person not in covering]
    first = [*covering, *others[: smallest_budget - len(covering)]]
    shuffled = stream(seed, "budget", "first").permutation(len(first))
    return (*(first[i] for i in shuffled), *others[smallest_budget - len(covering) :])


def _covering(
    order: Sequence[str], held: Mapping[str, frozenset[str]], wanted: frozenset[str], most: int, left: list[int]
) -> list[str] | None:
    """At most `most` persons who hold all of `wanted`, the earlier in `order` the likelier; None where there are none.

    Of the rarest class still wanted somebody must be among them: those are tried one after the other. `left`: how many
    may still be tried in all, so that it ends with thousands of classes, too.
    """
    if not wanted:
        return []
    if not most:
        return None
    rarest = min(sorted(wanted), key=lambda name: sum(name in held[person] for person in order))
    for person in order:
        if rarest in held[person]:
            left[0] -= 1
            if left[0] < 0:
                return None
            if (rest := _covering(order, held, wanted - held[person], most - 1, left)) is not None:
                return [person, *rest]
    return None


def budget_subjects(order: Sequence[str], budget: int) -> tuple[str, ...]:
    """The first `budget` persons of `order`. InputError when there are fewer."""
    if not 1 <= budget <= len(order):
        raise InputError(
            f"budget {budget} can't be met, there are {len(order)} training persons: "
            f"set sweep.budgets to numbers from 1 to {len(order)}"
        )
    return tuple(order[:budget])
