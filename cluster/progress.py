"""What a pretraining run says to people, MLflow and Prometheus.

The bar shows each step as it comes. MLflow gets the points of committed steps alone, so that each step stands there
once, whatever is repeated; a run that was stopped between a commit and the logging of its points catches up.
"""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from ray.util.metrics import Gauge

from cluster.console import Bar, console, say
from maetrain.tracking.tracker import Tracker
from maetrain.train.curve import StepInfo, log_spacing

_BAR_EVERY_S = 0.2


class Committed(NamedTuple):
    step: int
    points: list[StepInfo]


def measures(info: StepInfo) -> dict[str, float]:
    """Name -> value, of those that are numbers."""
    values = {
        "loss": info.loss,
        "learning_rate": info.learning_rate,
        "gradient_norm": info.gradient_norm,
        "volumes_per_s": info.volumes_per_s,
        "step_s": info.step_s,
        "data_wait_s": info.data_wait_s,
        "comm_wait_s": info.comm_wait_s,
        "memory_mib": info.memory_bytes / 2**20,
        "restarts": info.num_starts - 1,
        "skipped_steps": info.num_skipped,
        "replaced_samples": info.num_replaced,
    }
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}


class Progress:
    """On the driver. `log_every`: steps between logged points, more where a run is so long that they were too many."""

    def __init__(self, steps: int, log_every: int, bar: Bar, tracker: Tracker) -> None:
        self.steps, self.log_every = steps, log_spacing(steps, log_every)
        self.bar, self.tracker = bar, tracker
        self.last_logged = tracker.last_step("loss")
        bar.start(steps)

    def hear(self, message: Any) -> None:
        if isinstance(message, StepInfo):
            self._show(message)
        elif isinstance(message, Committed):
            self._log(message)
        else:
            say(f"  {message}")

    def _show(self, info: StepInfo) -> None:
        note = f"loss {info.loss:.3f} {info.volumes_per_s:.1f} crops/s"
        if console.width < 110:
            self.bar.to(info.step, note)
            return
        waits = 100 * (info.data_wait_s + info.comm_wait_s) / info.step_s
        restarts = f", {info.num_starts - 1} restarts" if info.num_starts > 1 else ""
        skipped = f", {info.num_skipped} skipped" if info.num_skipped else ""
        self.bar.to(
            info.step,
            f"{note}, norm {info.gradient_norm:.2g}, rate {info.learning_rate:.1e}, {waits:.0f} % waits, "
            f"{info.memory_bytes / 2**30:.1f} GiB{restarts}{skipped}",
        )

    def _log(self, committed: Committed) -> None:
        for info in committed.points:
            if info.step > self.last_logged and (info.step % self.log_every == 0 or info.step == self.steps):
                self.tracker.metrics(measures(info), info.step)
                self.last_logged = info.step
        self.bar.to(committed.step)


def throttled(post: Callable[[StepInfo], None]) -> Callable[[StepInfo], None]:
    """At most five a second of them."""
    last = -math.inf

    def maybe(info: StepInfo) -> None:
        nonlocal last
        if time.monotonic() - last >= _BAR_EVERY_S:
            last = time.monotonic()
            post(info)

    return maybe


class RankMetrics:
    """On the first rank: the same measures through Ray's metrics, for Prometheus: `maetrain_pretrain_loss` etc."""

    def __init__(self, run: str) -> None:
        self.tags, self._gauges = {"run": run}, dict[str, Gauge]()

    def step(self, info: StepInfo) -> None:
        for name, value in {**measures(info), "step": float(info.step)}.items():
            self._set(name, value)

    def committed(self, step: int) -> None:
        self._set("committed_step", float(step))

    def _set(self, name: str, value: float) -> None:
        if name not in self._gauges:
            self._gauges[name] = Gauge(f"maetrain_pretrain_{name}", f"maetrain pretraining: {name}", ("run",))
        self._gauges[name].set(value, self.tags)
