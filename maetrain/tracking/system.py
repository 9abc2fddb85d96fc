"""What a run's machine was doing, under the names for which MLflow's pages have a tab of their own: "system/...".

CPU and memory are those of the whole machine, as MLflow's own monitor has them; a job that shares it has its own memory
besides. GPU: the one that the process trains on. MLflow's monitor asks its server at every sample and never stops
adding points; this one logs through any tracker, at ever longer intervals. Costs a thread that sleeps. Of pretraining,
which is tracked by the driver, it tells what the driver's machine was doing.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

import psutil
import torch

from maetrain.tracking.tracker import Tracker

EVERYWHERE = "system/system_memory_usage_percentage"  # a metric of every sample
POINTS_AN_INTERVAL = 20  # 8 minutes: 34 points, a day: 173, a month: 271


def system_sample() -> dict[str, float]:
    """Name -> value now. CPU: mean over the time since this thread's last call, 0 at the first."""
    memory = psutil.virtual_memory()
    return {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": memory.used / 1e6,
        EVERYWHERE: 100 * memory.used / memory.total,
        "system/process_memory_megabytes": psutil.Process().memory_info().rss / 1e6,
        **_gpu_sample(),
    }


def _gpu_sample() -> dict[str, float]:
    """Nothing before the process has touched a GPU: asking would take some hundred MB of it."""
    if not torch.cuda.is_initialized():
        return {}
    gpu = torch.cuda.current_device()
    free, total = torch.cuda.mem_get_info(gpu)
    sample = {
        f"system/gpu_{gpu}_memory_usage_megabytes": (total - free) / 1e6,
        f"system/gpu_{gpu}_memory_usage_percentage": 100 * (total - free) / total,
    }
    with suppress(ImportError, RuntimeError):  # it needs nvidia-ml-py, and a driver that tells
        sample[f"system/gpu_{gpu}_utilization_percentage"] = float(torch.cuda.utilization(gpu))
    return sample


class SystemMetrics:
    """`with SystemMetrics(tracker): ...` logs a sample every `every_s` seconds and one at the end.

    The interval doubles after every 20 points, so their number grows with the logarithm of the run's length. Points are
    counted from 1, in a run that goes on from its last one.
    """

    def __init__(
        self, tracker: Tracker, every_s: float = 10.0, sample: Callable[[], dict[str, float]] = system_sample
    ) -> None:
        self.tracker, self.every_s, self.sample = tracker, every_s, sample
        self._last = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system-metrics", daemon=True)

    def __enter__(self) -> "SystemMetrics":
        self._last = self.tracker.last_step(EVERYWHERE)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        self.sample()  # from here on the CPU's use is counted
        count, has_ended = 0, False
        while not has_ended:
            has_ended = self._ended.wait(interval_s(count, self.every_s))
            count += 1
            self.tracker.metrics(self.sample(), self._last + count)


def interval_s(count: int, every_s: float) -> float:
    """Before point number `count`."""
    return every_s * 2.0 ** (count // POINTS_AN_INTERVAL)
