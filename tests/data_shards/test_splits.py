from dataclasses import replace

import pytest

from data_shards.errors import InputError
from data_shards.splits import (
    budget_order,
    budget_subjects,
    classes_by_subject,
    make_split,
)
from tests.data_shards.formats.test_index import INDEX, VOLUME

PERSONS = {f"p{i:02d}": frozenset("ab" if i % 5 else "abc") for i in range(30)}  # every fifth has class c


@pytest.mark.parametrize(("share", "monitor", "num_test"), [(0.2, 3, 6), (0.0, 0, 1), (0.9, 2, 27)])
def test_a_split_puts_every_person_into_one_part(share, monitor, num_test):
    split = make_split(PERSONS, share, monitor, seed=0)
    assert (len(split.test), len(split.monitor)) == (num_test, monitor)
    assert sorted(split.test + split.monitor + split.train) == sorted(PERSONS)


def test_a_split_depends_on_seed_and_names_alone():
    split = make_split(PERSONS, 0.2, 3, seed=0)
    assert split == make_split(dict(reversed(PERSONS.items())), 0.2, 3, seed=0)
    assert split.test != make_split(PERSONS, 0.2, 3, seed=1).test


def test_too_few_persons_are_counted():
    with pytest.raises(InputError, match="3 labelled persons are too few for 1 test, 2 monitor"):
        make_split({name: PERSONS[name] for name in ("p00", "p01", "p02")}, 0.2, 2, seed=0)


@pytest.mark.parametrize("seed", range(10))
def test_budgets_are_nested_and_the_smallest_holds_every_class(seed):
    order = budget_order(sorted(PERSONS), PERSONS, smallest_budget=1, seed=seed)
    assert sorted(order) == sorted(PERSONS)
    budgets = [budget_subjects(order, k) for k in (1, 2, 8, 30)]
    assert all(set(small) < set(large) for small, large in zip(budgets, budgets[1:], strict=False))
    assert frozenset().union(*(PERSONS[p] for p in budgets[0])) == {*"abc"}


def test_seeds_draw_other_orders_and_the_same_seed_the_same():
    orders = [budget_order(sorted(PERSONS), PERSONS, 2, seed) for seed in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]


def test_a_class_that_no_training_person_has_is_named():
    train = [person for person in PERSONS if "c" not in PERSONS[person]]
    with pytest.raises(InputError, match="class c occurs in none of the 24"):
        budget_order(train, PERSONS, 2, seed=0)


def test_a_smallest_budget_that_can_not_hold_all_classes_is_named():
    alone = {"a": frozenset("x"), "b": frozenset("y")}
    with pytest.raises(InputError, match=r"no 1 training persons.*sweep\.budgets"):
        budget_order(["a", "b"], alone, 1, seed=0)
    assert set(budget_order(["a", "b"], alone, 2, seed=0)) == {"a", "b"}


def test_two_rare_classes_are_found_where_chance_would_need_thousands_of_draws():
    persons = [f"p{i:03d}" for i in range(200)]
    held = {p: frozenset("a") for p in persons} | {"p007": frozenset("ab"), "p150": frozenset("ac")}
    orders = [budget_order(persons, held, 2, seed) for seed in range(8)]
    assert all({*order[:2]} == {"p007", "p150"} and sorted(order) == persons for order in orders)
    assert len({order[0] for order in orders}) == 2 and len(set(orders)) == 8
    assert budget_order(persons, held, 2, 3) == budget_order(persons, held, 2, 3)


@pytest.mark.parametrize("budget", [0, -1, 4])
def test_a_budget_beyond_the_persons_names_both_numbers_and_the_setting(budget):
    with pytest.raises(InputError, match=rf"budget {budget} .* 3 training persons: set sweep\.budgets"):
        budget_subjects(("a", "b", "c"), budget)


def test_classes_come_from_all_labelled_scans_of_a_person():
    volumes = (
        replace(VOLUME, subject="anna", label_classes=(0, 1)),
        replace(VOLUME, subject="anna", label_classes=(0, 2)),
        replace(VOLUME, subject="bert", label_classes=(0,)),
        replace(VOLUME, subject="carl", has_label=False, label_classes=()),
    )
    assert classes_by_subject(replace(INDEX, volumes=volumes)) == {"anna": {"x", "y"}, "bert": set()}
