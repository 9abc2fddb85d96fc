"""Plans over random histories: files of the archive are real and empty, shards are names and sets of cases."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_shards.archive.cases import Archive, ArchiveCase
from data_shards.plan import ShardPlan, fingerprint, plan_shards

SETTINGS = "{}"
SEEDED = settings(max_examples=200, deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Archive:
    root = tmp_path_factory.mktemp("archive")
    cases = []
    for i in range(14):
        path = root / f"scan_{i:02d}.nii"
        path.write_bytes(bytes(i))
        cases.append(ArchiveCase(f"scan_{i:02d}", f"scan_{i:02d}", (path,), None))
    return Archive(root, "Set", ("MR",), ("background",), tuple(cases))


def of(archive: Archive, numbers) -> Archive:
    """The archive with only these of its cases."""
    return replace(archive, cases=tuple(archive.cases[i] for i in sorted(numbers)))


def planned(archive: Archive, volumes_per_shard: int, finished: dict[str, tuple[str, ...]]) -> list[ShardPlan]:
    """A plan, after checking all that holds for any plan."""
    plans = plan_shards(archive, SETTINGS, volumes_per_shard, ".tar", finished)
    assert sorted(case.case for plan in plans for case in plan.cases) == [case.case for case in archive.cases]
    assert len({plan.name for plan in plans}) == len(plans)
    for plan in plans:
        assert 1 <= len(plan.cases) == len(plan.fingerprints)
        assert [fingerprint(case, archive, SETTINGS) for case in plan.cases] == list(plan.fingerprints)
        assert plan.archive == replace(archive, cases=())
        assert plan.is_finished == (finished.get(plan.name) == plan.fingerprints)
        assert plan.is_finished or len(plan.cases) <= volumes_per_shard
    return plans


def as_stored(plans: list[ShardPlan]) -> dict[str, tuple[str, ...]]:
    return {plan.name: plan.fingerprints for plan in plans}


@SEEDED
@given(st.integers(1, 14), st.integers(1, 5), st.data())
def test_an_interrupted_build_goes_on_with_the_plan_of_a_fresh_one(archive, num_cases, volumes_per_shard, data):
    part = of(archive, range(num_cases))
    fresh = planned(part, volumes_per_shard, {})
    finished = data.draw(st.sets(st.sampled_from([plan.name for plan in fresh])))
    plans = planned(part, volumes_per_shard, {n: marks for n, marks in as_stored(fresh).items() if n in finished})
    assert as_stored(plans) == as_stored(fresh) and list(as_stored(plans)) == list(as_stored(fresh))
    assert {plan.name for plan in plans if plan.is_finished} == finished


@SEEDED
@given(st.sets(st.integers(0, 13), min_size=1), st.sets(st.integers(0, 13), min_size=1), st.integers(1, 5), st.data())
def test_a_shard_is_kept_exactly_when_all_its_cases_are_still_there(archive, before, after, volumes_per_shard, data):
    stored = as_stored(planned(of(archive, before), volumes_per_shard, {}))
    finished = {name: stored[name] for name in data.draw(st.sets(st.sampled_from(sorted(stored))))}
    there = of(archive, after)
    plans = planned(there, volumes_per_shard, finished)
    marks = {fingerprint(case, archive, SETTINGS) for case in there.cases}
    kept = {name: of_shard for name, of_shard in finished.items() if set(of_shard) <= marks}
    assert as_stored([plan for plan in plans if plan.is_finished]) == kept
    # the rest in as few shards as can be, under the lowest free numbers, in the order of the archive
    new = [plan for plan in plans if not plan.is_finished]
    num_waiting = len(marks) - sum(map(len, kept.values()))
    assert [len(plan.cases) for plan in new[:-1]] == [volumes_per_shard] * max(0, len(new) - 1)
    assert len(new) == -(-num_waiting // volumes_per_shard)
    free = [f"shard-{k:05d}.tar" for k in range(40) if f"shard-{k:05d}.tar" not in kept]
    assert [plan.name for plan in new] == free[: len(new)]
    in_turn = [case.case for plan in new for case in plan.cases]
    assert in_turn == sorted(in_turn)


@SEEDED
@given(
    st.lists(st.tuples(st.sets(st.integers(0, 13), min_size=1), st.integers(0, 8)), min_size=2, max_size=6),
    st.integers(1, 4),
)
# scans 2 and 4 go, the build of the shard for 3 and 5 is killed before it clears away the old one of 4 and 5; 4 returns
@example([({0, 1, 2, 3, 4, 5}, 8), ({0, 1, 3, 5}, 7), ({0, 1, 3, 4, 5}, 8)], 2)
def test_no_history_of_grown_shrunk_and_stopped_builds_puts_a_case_into_two_shards(archive, history, volumes_per_shard):
    """Each step: the cases that are there, and after how many shards the build is killed (8 = it ends)."""
    stored: dict[str, tuple[str, ...]] = {}
    for numbers, num_built in history:
        plans = planned(of(archive, numbers), volumes_per_shard, stored)
        waiting = [plan for plan in plans if not plan.is_finished]
        stored |= as_stored(waiting[:num_built])
        if num_built == 8:  # its end clears away what is in no plan
            stored = as_stored(plans)


@pytest.mark.parametrize("name", ["shard-00000.zarr", "shard-00000.tar"])
def test_shards_of_the_other_format_are_never_kept(archive, name):
    fresh = as_stored(plan_shards(archive, SETTINGS, 20, ".tar", {}))
    (plan,) = plan_shards(archive, SETTINGS, 20, ".tar", {name: fresh["shard-00000.tar"]})
    assert plan.name == "shard-00000.tar" and plan.is_finished == name.endswith(".tar")


@pytest.mark.parametrize(
    ("change", "is_seen"),
    [
        pytest.param(lambda p, c, a: (c, a, SETTINGS), False, id="nothing"),
        pytest.param(lambda p, c, a: (c, a, "{1}"), True, id="a setting"),
        pytest.param(lambda p, c, a: (replace(c, subject="anna"), a, SETTINGS), True, id="the person"),
        pytest.param(lambda p, c, a: (replace(c, session="2"), a, SETTINGS), True, id="the session"),
        pytest.param(lambda p, c, a: (replace(c, modality="CT"), a, SETTINGS), True, id="the modality"),
        pytest.param(lambda p, c, a: (replace(c, case="other"), a, SETTINGS), True, id="the name"),
        pytest.param(lambda p, c, a: (replace(c, label_path=p), a, SETTINGS), True, id="a label"),
        pytest.param(lambda p, c, a: (c, replace(a, class_names=("x",)), SETTINGS), True, id="the classes"),
        pytest.param(lambda p, c, a: (c, replace(a, name="other"), SETTINGS), False, id="the archive's name"),
        pytest.param(lambda p, c, a: (p.write_bytes(b"12345"), c, a, SETTINGS)[1:], True, id="the size"),
        pytest.param(lambda p, c, a: (os.utime(p, ns=(1, 1)), c, a, SETTINGS)[1:], True, id="the time"),
        pytest.param(lambda p, c, a: (p.unlink(), c, a, SETTINGS)[1:], True, id="the file is gone"),
    ],
)
def test_a_fingerprint_sees_what_shapes_a_shard(tmp_path, change, is_seen):
    path = tmp_path / "scan.nii"
    path.write_bytes(b"1234")
    case = ArchiveCase("scan", "scan", (path,), None)
    archive = Archive(tmp_path, "Set", ("MR",), ("background",), (case,))
    before = fingerprint(case, archive, SETTINGS)
    assert (fingerprint(*change(path, case, archive)) != before) == is_seen


def test_every_slice_of_a_series_counts_and_folders_inside_it_do_not(tmp_path):
    folder = tmp_path / "series"
    (folder / "inner").mkdir(parents=True)
    for name in ("a", "b"):
        (folder / name).write_bytes(b"1")
    case = ArchiveCase("scan", "scan", (folder,), None, series_uid="1.2")
    archive = Archive(tmp_path, "Set", ("MR",), ("background",), (case,))
    before = fingerprint(case, archive, SETTINGS)
    (folder / "inner" / "c").write_bytes(b"1")
    assert fingerprint(case, archive, SETTINGS) == before
    (folder / "b").write_bytes(b"22")
    assert fingerprint(case, archive, SETTINGS) != before


def test_the_archive_elsewhere_has_the_same_fingerprints(tmp_path):
    marks = []
    for place in ("one", "two"):
        path = tmp_path / place / "scan.nii"
        path.parent.mkdir()
        path.write_bytes(b"1234")
        os.utime(path, ns=(5, 5))
        case = ArchiveCase("scan", "scan", (Path(path),), None)
        marks.append(fingerprint(case, Archive(path.parent, "Set", ("MR",), ("background",), (case,)), SETTINGS))
    assert marks[0] == marks[1]
