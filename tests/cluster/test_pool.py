"""Jobs on warm actors: nothing is lost when actors die, hang or fail, and actors are used again and again."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.pool import Failed, JobPool, Limits
from cluster.session import Resources
from data_shards.errors import InputError

pytestmark = pytest.mark.runs


@ray.remote(num_cpus=0.5)
class Hand:
    """Does what a job's name says; `folder` remembers how often each was tried."""

    def __init__(self, folder: Path, bad_start: bool = False) -> None:
        self.folder = folder
        if bad_start:
            os._exit(1)

    def ready(self) -> None:
        pass

    def run(self, job: str) -> tuple[str, int]:
        with open(self.folder / job, "a") as tries:
            tries.write("x")
        first = (self.folder / job).stat().st_size == 1
        what = job.split("-")[0]
        if what == "dies" or (what == "dies_once" and first):
            os._exit(1)
        if what == "hangs" or (what == "hangs_once" and first):
            time.sleep(60)
        if what == "slow":
            time.sleep(2)
        if what == "raises" or (what == "raises_once" and first):
            raise RuntimeError("out of luck")
        if what == "wrong":
            raise InputError("budget 99 can't be met")
        return job, os.getpid()


@dataclass
class Crew:
    actors: Sequence[Any]
    killed: bool = False

    def kill(self) -> None:
        self.killed = True
        for actor in self.actors:
            ray.kill(actor)


@dataclass
class Notes:
    """A board that remembers."""

    heard: list[tuple[str, str]] = field(default_factory=list)

    def running(self, job: str) -> None:
        self.heard.append(("running", job))

    def again(self, job: str, why: str) -> None:
        self.heard.append(("again", job))

    def done(self, job: str, result: Any) -> None:
        self.heard.append(("done", job))

    def failed(self, job: str, why: str) -> None:
        self.heard.append(("failed", job))

    def tick(self) -> None:
        pass


class Fixture:
    def __init__(self, folder: Path, slots: int = 2, **limits: Any) -> None:
        self.folder, self.crews, self.notes = folder, list[Crew](), Notes()
        self.bad_start, self.ranks = False, 1
        self.pool: JobPool[str] = JobPool(self._start, lambda: slots, Limits(**limits))

    def _start(self) -> Crew:
        self.crews.append(Crew([Hand.remote(self.folder, self.bad_start) for _ in range(self.ranks)]))
        return self.crews[-1]

    @staticmethod
    def _call(crew: Crew, job: str) -> list[ray.ObjectRef]:
        # only the first rank does what the name says: which rank comes how far before its crew is killed, nobody knows
        return [actor.run.remote(f"fine-{job}-{rank}" if rank else job) for rank, actor in enumerate(crew.actors)]

    def run(self, *jobs: str) -> dict[str, Any]:
        with self.pool:
            return self.part(*jobs)

    def part(self, *jobs: str) -> dict[str, Any]:
        return dict(self.pool.run(jobs, self._call, self.notes))

    def tries(self, job: str) -> int:
        return (self.folder / job).stat().st_size


def test_two_warm_actors_do_all_jobs_each_once(ray_resources: Resources, tmp_path: Path) -> None:
    fixture = Fixture(tmp_path)
    names = [f"fine-{i}" for i in range(20)]
    results = fixture.run(*names)
    assert {job: name for job, (name, _) in results.items()} == {name: name for name in names}
    assert len(fixture.crews) == 2 and len({pid for _, pid in results.values()}) <= 2
    assert all(fixture.tries(name) == 1 for name in names)
    assert all(crew.killed for crew in fixture.crews), "no actor outlives the sweep"
    for name in names:
        assert [what for what, job in fixture.notes.heard if job == name] == ["running", "done"]


def test_what_dies_hangs_or_fails_once_is_done_at_the_second_try(ray_resources: Resources, tmp_path: Path) -> None:
    fixture = Fixture(tmp_path, timeout_s=3, retries=1)
    names = ["dies_once", "hangs_once", "raises_once", "fine-1", "fine-2"]
    results = fixture.run(*names)
    assert {name for name, _ in results.values()} == set(names)
    assert [fixture.tries(name) for name in names] == [2, 2, 2, 1, 1]
    assert sorted(job for what, job in fixture.notes.heard if what == "again") == sorted(names[:3])


def test_a_job_that_fails_in_every_try_is_given_up_and_the_others_are_done(
    ray_resources: Resources, tmp_path: Path
) -> None:
    fixture = Fixture(tmp_path, timeout_s=2, retries=1)
    results = fixture.run("dies", "hangs", "raises", "wrong", "fine-1")
    assert results.pop("fine-1")[0] == "fine-1"
    assert all(isinstance(result, Failed) for result in results.values())
    assert {job: result.tries for job, result in results.items()} == {"dies": 2, "hangs": 2, "raises": 2, "wrong": 1}
    assert "worker died" in results["dies"].why
    assert results["hangs"].why == "took longer than 2 s (sweep.job_timeout_s)"
    assert "out of luck" in results["raises"].why
    assert results["wrong"].why == "budget 99 can't be met", "wrong input is not tried again"


def test_what_failed_is_not_looked_at_again(ray_resources: Resources, tmp_path: Path) -> None:
    """Three idle slots whose last jobs failed are no three workers that did not start."""
    fixture = Fixture(tmp_path, slots=4, retries=0)
    with fixture.pool:
        fixture.part(*(f"slow-{i}" for i in range(4)))
        results = fixture.part("slow", "raises-1", "raises-2", "raises-3")
    assert results.pop("slow")[0] == "slow" and all(isinstance(result, Failed) for result in results.values())
    assert len(fixture.crews) == 4 and len(results) == 3


def test_a_rank_that_fails_takes_its_group_along_and_the_job_is_tried_again(
    ray_resources: Resources, tmp_path: Path
) -> None:
    fixture = Fixture(tmp_path, slots=1, retries=1)
    fixture.ranks = 2
    assert fixture.run("raises_once", "fine")["raises_once"][0] == "raises_once"
    assert fixture.crews[0].killed and len(fixture.crews) == 2
    assert fixture.tries("raises_once") == 2 and fixture.tries("fine") == 1


def test_workers_that_never_start_end_the_sweep_with_a_reason(ray_resources: Resources, tmp_path: Path) -> None:
    fixture = Fixture(tmp_path)
    fixture.bad_start = True
    with pytest.raises(InputError, match="3 workers in a row did not start"):
        fixture.run("fine")
    assert all(crew.killed for crew in fixture.crews)


def test_a_sweep_that_is_broken_off_leaves_no_actor(ray_resources: Resources, tmp_path: Path) -> None:
    fixture = Fixture(tmp_path)
    with fixture.pool as pool:
        running = pool.run(["fine", "hangs"], fixture._call, fixture.notes)
        assert next(running)[0] == "fine"
    assert all(crew.killed for crew in fixture.crews)


def test_workers_stay_warm_from_one_run_to_the_next(ray_resources: Resources, tmp_path: Path) -> None:
    fixture = Fixture(tmp_path)
    with fixture.pool:
        first, second = fixture.part("fine-1", "fine-2"), fixture.part("fine-3", "fine-4")
    assert len(fixture.crews) == 2
    assert {pid for _, pid in second.values()} <= {pid for _, pid in first.values()}
