"""Jobs on warm Ray actors: one actor a slot, used for job after job, replaced when it dies or takes too long.

Ray tasks would keep processes warm as well, but tell neither when a job began (a timeout would count its waiting) nor
how to end one that hangs. A dead driver takes its actors with it.

The state of every job is told to a `Board` as it changes: waiting, running, done, failed.
"""

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, Self, TypeVar

import ray

from cluster.session import result_of
from data_shards.errors import InputError

J = TypeVar("J", bound=Hashable)
K = TypeVar("K", contravariant=True)
_LOOK_EVERY_S = 0.5  # for timeouts and new room
_ROOM_EVERY_S = 5.0
_FAILED_STARTS = 3  # in a row, then no worker will ever start


class Crew(Protocol):
    """The actors of one slot, each with a method `ready`."""

    @property
    def actors(self) -> Sequence[Any]: ...

    def kill(self) -> None: ...


class Board(Protocol[K]):
    """Who watches; called in the driver."""

    def running(self, job: K) -> None: ...

    def again(self, job: K, why: str) -> None:
        """Failed, and waits for another try."""

    def done(self, job: K, result: Any) -> None: ...

    def failed(self, job: K, why: str) -> None: ...

    def tick(self) -> None:
        """Called several times a second."""


@dataclass(frozen=True)
class Limits:
    """`timeout_s` of a job, 0 = none; `retries` after a failure that another try may not meet."""

    timeout_s: float = 0.0
    retries: int = 2


@dataclass(frozen=True)
class Failed:
    """A job that is given up: its last reason, and how often it was tried."""

    why: str
    tries: int


@dataclass
class _Worker(Generic[J]):
    """One slot. `job` None while it is idle or starting."""

    crew: Crew
    pending: set[ray.ObjectRef]  # of its start, or of its job
    answers: list[ray.ObjectRef] = field(default_factory=list)
    job: J | None = None
    is_ready: bool = False
    since: float = 0.0


class JobPool(Generic[J]):
    """`start()` gives the crew of one slot; `room()` says how many slots there are now.

    Used as a context, after which no actor is left; between two runs they stay warm.
    """

    def __init__(self, start: Callable[[], Crew], room: Callable[[], int], limits: Limits) -> None:
        self._start, self._room, self._limits = start, room, limits
        self._workers: list[_Worker[J]] = []
        self._failed_starts = 0
        self._slots, self._looked = 0, -_ROOM_EVERY_S

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.crew.kill()
        self._workers.clear()

    def run(
        self, jobs: Sequence[J], call: Callable[[Any, J], list[ray.ObjectRef]], board: Board[J]
    ) -> Iterator[tuple[J, Any]]:
        """(job, its result or a `Failed`), as they end. One run at a time, and to its end, or the pool is closed.

        `call(crew, job)` starts a job and gives one reference per actor; the first one's value is the result.
        """
        self._call, self._board = call, board
        self._waiting, self._tries = deque(jobs), dict.fromkeys(jobs, 0)
        while self._waiting or any(worker.job is not None for worker in self._workers):
            self._fill()
            yield from self._advance()
            self._board.tick()

    def _fill(self) -> None:
        """As many workers as there are slots and jobs for them; idle ones get a job."""
        if time.monotonic() - self._looked >= _ROOM_EVERY_S:
            self._slots, self._looked = max(self._room(), 1), time.monotonic()
        for worker in self._workers:
            if worker.is_ready and worker.job is None and self._waiting:
                self._give(worker, self._waiting.popleft())
        busy = sum(worker.job is not None for worker in self._workers)
        wanted = min(self._slots, busy + len(self._waiting))
        while len(self._workers) < wanted:
            crew = self._start()
            self._workers.append(_Worker(crew, {actor.ready.remote() for actor in crew.actors}))

    def _give(self, worker: _Worker[J], job: J) -> None:
        self._tries[job] += 1
        worker.job, worker.answers = job, self._call(worker.crew, job)
        worker.pending, worker.since = set(worker.answers), time.monotonic()
        self._board.running(job)

    def _advance(self) -> Iterator[tuple[J, Any]]:
        """What has ended since the last look."""
        references = [reference for worker in self._workers for reference in worker.pending]
        if not references:
            return
        ray.wait(references, timeout=_LOOK_EVERY_S)
        ended, _ = ray.wait(references, num_returns=len(references), timeout=0)  # all that have, before any is late
        for worker in list(self._workers):
            if finished := worker.pending & set(ended):
                yield from self._one_ended(worker, finished)
        limit = self._limits.timeout_s
        for worker in list(self._workers):
            if limit and worker.job is not None and time.monotonic() - worker.since > limit:
                yield from self._lost(worker, f"took longer than {limit:g} s (sweep.job_timeout_s)")

    def _one_ended(self, worker: _Worker[J], finished: set[ray.ObjectRef]) -> Iterator[tuple[J, Any]]:
        try:
            for reference in finished:
                result_of(reference)
        except InputError as error:
            # wrong input stays wrong
            yield from self._ended_badly(worker, str(error), may_retry=False)
            return
        except ray.exceptions.RayTaskError as error:
            yield from self._ended_badly(worker, _line(error, -1), may_retry=True)
            return
        except ray.exceptions.RayError as error:
            yield from self._lost(worker, f"its worker died ({_line(error, 0)})")
            return
        worker.pending -= finished
        if worker.pending:
            return
        if not worker.is_ready:
            worker.is_ready, self._failed_starts = True, 0
            return
        job, result = worker.job, ray.get(worker.answers[0])
        assert job is not None
        worker.job = None
        self._board.done(job, result)
        yield job, result

    def _lost(self, worker: _Worker[J], why: str) -> Iterator[tuple[J, Any]]:
        worker.crew.kill()
        self._workers.remove(worker)
        if worker.job is None:
            self._failed_starts += 1
            if self._failed_starts >= _FAILED_STARTS:
                raise InputError(f"{_FAILED_STARTS} workers in a row did not start: {why}; see Ray's logs")
            return
        yield from self._ended_badly(worker, why, may_retry=True)

    def _ended_badly(self, worker: _Worker[J], why: str, may_retry: bool) -> Iterator[tuple[J, Any]]:
        job, worker.job = worker.job, None
        worker.pending, worker.answers = set(), []
        if job is None:  # while it was starting
            yield from self._lost(worker, why)
            return
        if len(worker.crew.actors) > 1 and worker in self._workers:
            # the other ranks wait for the one that failed
            worker.crew.kill()
            self._workers.remove(worker)
        if may_retry and self._tries[job] <= self._limits.retries:
            self._waiting.append(job)
            self._board.again(job, why)
            return
        self._board.failed(job, why)
        yield job, Failed(why, self._tries[job])


def _line(error: BaseException, which: int) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[which]
