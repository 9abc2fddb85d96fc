"""One thread in the driver that brings the journals of running jobs to MLflow while they grow.

So curves are seen while jobs run, and nobody waits: not the jobs, which write files, nor the sweep, which starts the
thread and goes on. When the store is away the thread keeps its place in every journal and asks again after longer and
longer pauses. What is left when the sweep ends stays in the journals for the next call with them.
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from maetrain.tracking.deliver import Delivery
from maetrain.tracking.patience import first_line, give_up, is_passing
from maetrain.tracking.work import Tracking

LONGEST_PAUSE_S = 30.0
GRACE_S = 60.0  # a call under way ends by itself within it


class Courier:
    """Starts at once; `watch` journals, which need not be there yet, and `close` it in the end."""

    def __init__(self, tracking: Tracking, every_s: float = 3.0, say: Callable[[str], None] = print) -> None:
        self.tracking, self.every_s, self.say = tracking, every_s, say
        self._deliveries: dict[Path, Delivery] = {}
        self._refused: set[Path] = set()
        self._is_away = False
        self._closing = threading.Event()
        self._patience_s = 0.0
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)
        self._thread.start()

    def watch(self, journal: Path) -> None:
        """A journal that starts over is noticed; watching it twice does no harm."""
        self._deliveries.setdefault(journal, Delivery(journal, self.tracking, self.say))

    def close(self, patience_s: float) -> list[Path]:
        """Delivers what is left and returns the journals that could not be delivered, for a later call with them.

        A store that doesn't answer is waited for `patience_s`. Nobody may write the journals any more: runs without
        an end are marked as killed.
        """
        self._patience_s = patience_s
        self._closing.set()
        self._thread.join(patience_s + GRACE_S)
        return [path for path, delivery in list(self._deliveries.items()) if delivery.is_behind]

    def _run(self) -> None:
        pause_s = self.every_s
        while not self._closing.wait(pause_s):
            pause_s = self.every_s if self._round() else min(2 * pause_s, LONGEST_PAUSE_S)
        self._refused.clear()
        deadline = time.monotonic() + self._patience_s
        while not self._round(is_last=True):
            if time.monotonic() >= deadline:
                give_up()
                break
            time.sleep(min(self.every_s, 1.0))

    def _round(self, is_last: bool = False) -> bool:
        """Forwards every journal; False where the store was away, which two failures in a row are taken for."""
        failures: list[Exception] = []
        num_in_a_row = 0
        for path, delivery in list(self._deliveries.items()):
            if path in self._refused:
                continue
            try:
                delivery.forward()
                if is_last:
                    delivery.give_up()
                num_in_a_row = 0
            except Exception as error:
                if is_passing(error):
                    failures.append(error)
                    num_in_a_row += 1
                    self._deliveries[path] = self._deliveries.pop(path)  # the others go first at the next round
                else:
                    self._refuse(path, delivery, error)
            if num_in_a_row == 2:
                break
        self._tell(failures)
        return not failures

    def _refuse(self, path: Path, delivery: Delivery, error: Exception) -> None:
        """The store said no, as when somebody has deleted the run: tried once more, from the start, at the end."""
        self._refused.add(path)
        delivery.restart()
        self.say(f"{path}: MLflow takes no more of it ({first_line(error)})")

    def _tell(self, failures: list[Exception]) -> None:
        if failures and not self._is_away:
            self.say(
                f"the MLflow store does not answer ({first_line(failures[0])}): "
                "runs are kept in their journals and logged later"
            )
        elif self._is_away and not failures:
            self.say("the MLflow store answers again")
        self._is_away = bool(failures)
