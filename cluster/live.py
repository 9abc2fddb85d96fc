"""A sweep as it runs: how many jobs wait, run, are done or failed, the best Dice, the time left, and who runs now.

On a terminal a table that stays in place; in a file or a job's log a line now and then.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table

from cluster.console import console, say
from maetrain.finetune.config import FinetuneJob
from maetrain.finetune.job import JobResult

_SHOWN = 8  # running jobs in the table
_LINE_EVERY_S = 60.0


@dataclass
class SweepBoard:
    """The state of every job. `results`: those kept from earlier calls count as done from the start."""

    title: str
    jobs: Sequence[FinetuneJob]
    results: dict[FinetuneJob, JobResult] = field(default_factory=dict)
    started: dict[FinetuneJob, float] = field(default_factory=dict)  # of those that run
    failures: dict[FinetuneJob, str] = field(default_factory=dict)
    retries: int = 0

    def __post_init__(self) -> None:
        self._kept = len(self.results)
        self._began = self._said = time.monotonic()
        self._live: Live | None = None

    def running(self, job: FinetuneJob) -> None:
        self.started[job] = time.monotonic()

    def again(self, job: FinetuneJob, why: str) -> None:
        self.started.pop(job, None)
        self.retries += 1
        say(f"  {job.name}: tried again: {why}")

    def done(self, job: FinetuneJob, result: JobResult) -> None:
        self.started.pop(job, None)
        self.results[job] = result

    def failed(self, job: FinetuneJob, why: str) -> None:
        self.started.pop(job, None)
        self.failures[job] = why
        say(f"  {job.name}: FAILED: {why}")

    def tick(self) -> None:
        if self._live is not None:
            self._live.update(self.table())
        elif time.monotonic() - self._said >= _LINE_EVERY_S:
            self._said = time.monotonic()
            say(f"  {self.title}: {self.line()}")

    @property
    def best(self) -> JobResult | None:
        """The job with the highest Dice on the test persons; of trials, on their validation persons."""
        return max(self.results.values(), key=_dice, default=None)

    def left_s(self) -> float | None:
        """Seconds until the last job will have ended, at the pace of this call; None before its first job has."""
        here = len(self.results) + len(self.failures) - self._kept
        if not here:
            return None
        left = len(self.jobs) - len(self.results) - len(self.failures)
        return (time.monotonic() - self._began) / here * left

    def line(self) -> str:
        done, failed, running = len(self.results), len(self.failures), len(self.started)
        waiting = len(self.jobs) - done - failed - running
        parts = [f"{waiting} waiting", f"{running} running", f"{done} done", f"{failed} failed"]
        if self.best is not None:
            parts.append(f"best Dice {_dice(self.best):.3f} ({self.best.job.name})")
        if (left := self.left_s()) is not None:
            parts.append(f"{_clock(left)} left")
        return ", ".join(parts)

    def table(self) -> Table:
        now = time.monotonic()
        table = Table(title=f"  {self.title}: {self.line()}", title_justify="left", box=SIMPLE_HEAD, title_style="")
        table.add_column("running")
        table.add_column("for", justify="right")
        oldest = sorted(self.started.items(), key=lambda item: item[1])
        for job, since in oldest[:_SHOWN]:
            table.add_row(job.name, _clock(now - since))
        if len(oldest) > _SHOWN:
            table.add_row(f"and {len(oldest) - _SHOWN} more", "")
        return table

    @contextmanager
    def shown(self, on: Console = console) -> Iterator["SweepBoard"]:
        """The table stays in place on a terminal while the block runs; its last line stays behind."""
        if on.is_terminal:
            with Live(self.table(), console=on, refresh_per_second=2, transient=True) as self._live:
                yield self
            self._live = None
        else:
            yield self
        say(f"  {self.title}: {self.line()}")


def _dice(result: JobResult) -> float:
    return result.test_dice if result.test_dice is not None else result.kept_dice


def _clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
