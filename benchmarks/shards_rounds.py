"""Contenders in rounds: ours right before each peer, every round, so what else the machine does falls on both.

Rates are things a second, and a ratio is ours over the peer's of the same round: above 1 ours is faster.
"""

import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from benchmarks.shards_volumes import Triple

Rate = Callable[[int], float]  # the number of the round -> things a second
Contender = TypeVar("Contender")


@dataclass(frozen=True)
class Settings:
    """Sizes of a run. `seconds`: of one measurement, where things are counted by time."""

    crops_DHW: tuple[Triple, ...]
    rounds: int
    seconds: float
    say: Callable[[str], None]


@dataclass
class Result:
    """Markdown lines, and what did not run."""

    lines: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def add(self, other: "Result") -> None:
        self.lines += other.lines
        self.failed += other.failed

    def attempt(self, name: str, make: Callable[[], Contender], settings: Settings) -> Contender | None:
        """What `make` gives. None, and a line in `failed`, where a peer is absent or was changed by its makers."""
        try:
            return make()
        except Exception as error:  # whatever it says, the others are measured all the same
            self.failed.append(
                f"{name} does not run here: {type(error).__name__}: {str(error).strip().splitlines()[:1]}"
            )
            settings.say(self.failed[-1])
            return None

    def attempt_all(
        self, makers: Mapping[str, Callable[[], Contender | None]], settings: Settings
    ) -> dict[str, Contender]:
        """Those contenders that run."""
        made = {name: self.attempt(name, make, settings) for name, make in makers.items()}
        return {name: contender for name, contender in made.items() if contender is not None}


@dataclass
class Duel:
    """One peer's rates, and ours measured right before each of them."""

    ours: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.ours, self.peer, strict=True)]


def in_rounds(ours: Rate, peers: Mapping[str, Rate], settings: Settings) -> dict[str, Duel]:
    """All peers against us. The order of peers turns by one every round."""
    duels = {name: Duel() for name in peers}
    names = list(peers)
    for number in range(settings.rounds):
        for name in (names[(number + k) % len(names)] for k in range(len(names))):
            duels[name].ours.append(ours(number))
            duels[name].peer.append(peers[name](number))
        said = ", ".join(f"{name} {duel.ratios[-1]:.2f}" for name, duel in duels.items())
        settings.say(f"round {number + 1}/{settings.rounds}, ours / peer: {said}")
    return duels


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """median (lowest-highest)"""
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def duel_table(duels: Mapping[str, Duel], what: str, megabytes: Mapping[str, float]) -> list[str]:
    """Markdown: a row a contender. `megabytes`: of a volume on disk, by contender, ours under "ours"."""
    ours = [rate for duel in duels.values() for rate in duel.ours]
    lines = [f"| contender | {what} | ours / peer | MB a volume |", "|---|---|---|---|"]
    if ours:
        lines.append(f"| **ours** | {spread(ours, '.1f')} | | {megabytes['ours']:.2f} |")
    for name, duel in duels.items():
        lines.append(f"| {name} | {spread(duel.peer, '.1f')} | {spread(duel.ratios)} | {megabytes[name]:.2f} |")
    return [*lines, ""]


def same_voxels(name: str, found: np.ndarray, expected: np.ndarray) -> None:
    """Ends the run where a peer reads other voxels than we: its speed would say nothing."""
    if found.dtype != expected.dtype or not np.array_equal(found, expected):
        raise SystemExit(f"{name}: its crop {found.dtype}{found.shape} is not ours, {expected.dtype}{expected.shape}")


def warm(folder: Path) -> None:
    """Reads every file once, so that all of it lies in the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                while file.read(1 << 24):
                    pass


@contextmanager
def one_core() -> Iterator[None]:
    """All threads of this process on one core: what a contender reaches, it reaches with one core's work."""
    before = os.sched_getaffinity(0)
    _pin({max(before)})
    try:
        yield
    finally:
        _pin(before)


def _pin(cores: set[int]) -> None:
    for thread in os.listdir("/proc/self/task"):  # threads made earlier keep their own mask
        os.sched_setaffinity(int(thread), cores)
