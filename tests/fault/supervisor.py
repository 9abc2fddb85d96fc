"""What starts a run again and again, and what can be seen of the run from outside, while something kills it.

As systemd or a kubelet would: a head that ended takes its nodes with it, for they serve no other; a driver that did not
end well is started again with the same command.
"""

import logging
import math
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from .driver import Run, step_of
from .ray_cluster import RayCluster

log = logging.getLogger("chaos")

_START_S = 90.0  # for `ray start`
LEAVE_S = 120.0  # for a driver whose head is gone
_RESUMED = re.compile(r"resumed at step (\d+) ")


class Platform:
    """Starts again what has ended. Never waits: what it starts can be killed while it starts."""

    def __init__(self, cluster: RayCluster, start_driver: Callable[[], Run]) -> None:
        self.cluster, self.start_driver = cluster, start_driver
        self.driver: Run | None = None
        self.driver_starts, self.ends = 0, Counter[str]()
        self.stuck = 0  # drivers that did not end by themselves after their head had
        self._starts: dict[int, tuple[subprocess.Popen, float]] = {}
        self._orphaned_at = math.inf  # since when the driver's head is gone

    @property
    def is_finished(self) -> bool:
        return self.driver is not None and self.driver.process.poll() == 0

    def has_ray(self, i: int) -> bool:
        """Whether Ray runs on host i, or is being started there."""
        return i in self._starts or self.cluster.is_running(i)

    def tend(self) -> None:
        for i in range(len(self.cluster.hosts)):
            if not self._tend_ray(i):
                break  # nothing else can start without the head
        else:
            self._tend_driver()

    def _tend_ray(self, i: int) -> bool:
        """Whether the driver and the other nodes need not wait for host i."""
        host = self.cluster.hosts[i]
        if i in self._starts:
            process, began = self._starts[i]
            code = process.poll()
            if code is None and time.monotonic() - began < _START_S:
                return i > 0
            del self._starts[i]
            if code != 0:
                self.ends[f"ray start: {code}"] += 1
        if not self.cluster.is_running(i):
            if i == 0:  # the nodes of a head that is gone serve nobody
                if self.driver is not None and self.driver.process.poll() is None:
                    self._orphaned_at = min(self._orphaned_at, time.monotonic())
                for node in range(1, len(self.cluster.hosts)):
                    self._starts.pop(node, None)
                    self.cluster.hosts[node].kill()
            host.kill(self._spared)
            log.info("start %s", "node" if i else "head")
            self._starts[i] = self.cluster.begin(i), time.monotonic()
            return i > 0
        return True

    @property
    def _spared(self) -> list[int]:
        return [] if self.driver is None else [self.driver.group]

    def _tend_driver(self) -> None:
        if self.driver is not None:
            code = self.driver.process.poll()
            if code is None and time.monotonic() - self._orphaned_at > LEAVE_S:
                log.error("the driver did not notice that its head is gone; its log is %s", self.driver.log_file)
                self.stuck += 1
                self.driver.kill()
            if code is None or code == 0:
                return
            last = (self.driver.log.splitlines() or [""])[-1]
            self.ends[f"driver: {code}"] += 1
            log.info("the driver ended with %s: %s", code, last[-300:])
        self._orphaned_at = math.inf
        self.driver = self.start_driver()
        self.driver_starts += 1
        log.info("start driver")


class Watch:
    """The run from outside: where its groups went on, as the driver says, and which checkpoints they began."""

    def __init__(self, checkpoints: Path) -> None:
        self.checkpoints = checkpoints
        self.resumed_at, self.group_starts = 0, 0
        self._file, self._at = Path(), 0
        self._seen = set(self._folders())
        self._begun = (0, "", 0.0)  # newest: step, attempt, when it was seen first
        self._step_s, self._gap = math.inf, 0  # between the last two

    @property
    def attempt(self) -> str:
        """The start of the group that began the newest checkpoint."""
        return self._begun[1]

    def reached(self) -> int:
        """The step that was done last. Guessed, to a few steps: nothing tells the steps between two checkpoints."""
        step, _, began = self._begun
        return step + min(int((time.monotonic() - began) / self._step_s), 2 * self._gap)

    def look(self, log_file: Path) -> None:
        if log_file != self._file:
            self._file, self._at = log_file, 0
        with log_file.open("rb") as file:
            file.seek(self._at)
            text = file.read()
        text = text[: 1 + text.rfind(b"\n")]
        self._at += len(text)
        for match in _RESUMED.finditer(text.decode(errors="replace")):
            self.resumed_at = int(match[1])
            self.group_starts += 1
        for folder in sorted(set(self._folders()) - self._seen):
            self._seen.add(folder)
            step, attempt, now = step_of(folder), folder.rpartition("-")[2], time.monotonic()
            if attempt == self.attempt and step > self._begun[0]:
                self._gap = step - self._begun[0]
                self._step_s = (now - self._begun[2]) / self._gap
            self._begun = step, attempt, now

    def _folders(self) -> list[str]:
        return [path.name for path in self.checkpoints.glob("step-*")]
