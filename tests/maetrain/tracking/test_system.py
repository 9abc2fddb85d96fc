"""A machine's load is logged under MLflow's names, ever more rarely."""

import threading
import time
from collections.abc import Mapping

import psutil
import pytest
import torch

from maetrain.tracking import system
from maetrain.tracking.system import SystemMetrics, interval_s, system_sample
from maetrain.tracking.tracker import NullTracker

from .stores import wait_for


class Remembering(NullTracker):
    def __init__(self) -> None:
        self.points: list[tuple[int, Mapping[str, float]]] = []

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.points.append((step, metrics))


def test_the_names_are_those_of_mlflows_own_monitor_and_the_values_those_of_the_machine() -> None:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor

    theirs = CPUMonitor()
    theirs.collect_metrics()
    sample = system_sample()
    assert {f"system/{name}" for name in theirs.aggregate_metrics()} < set(sample)
    memory = psutil.virtual_memory()
    assert sample["system/system_memory_usage_percentage"] == pytest.approx(100 * memory.used / memory.total, abs=5)
    assert sample["system/process_memory_megabytes"] == pytest.approx(psutil.Process().memory_info().rss / 1e6, rel=0.2)


def test_the_cpu_is_counted_from_the_start_on() -> None:
    tracker = Remembering()
    with SystemMetrics(tracker, every_s=1000):
        wait_for(lambda: any(t.name == "system-metrics" for t in threading.enumerate()), "the thread")
        until = time.process_time() + 0.5
        while time.process_time() < until:
            pass
    ((_, values),) = tracker.points
    assert values["system/cpu_utilization_percentage"] > 5


def test_a_gpu_in_use_is_sampled_under_mlflows_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: (30_000_000, 40_000_000))
    monkeypatch.setattr(torch.cuda, "utilization", lambda gpu: 70)
    assert {k: v for k, v in system_sample().items() if "gpu" in k} == {
        "system/gpu_1_memory_usage_megabytes": 10.0,
        "system/gpu_1_memory_usage_percentage": 25.0,
        "system/gpu_1_utilization_percentage": 70.0,
    }


def test_samples_come_at_once_after_each_interval_and_at_the_end() -> None:
    tracker = Remembering()
    with SystemMetrics(tracker, every_s=0.01, sample=lambda: {"system/a": 1.0}):
        wait_for(lambda: len(tracker.points) > 5, "six samples")
        before = len(tracker.points)
    assert len(tracker.points) > before
    assert [step for step, _ in tracker.points] == list(range(1, len(tracker.points) + 1))
    assert not any(thread.name == "system-metrics" for thread in threading.enumerate())


def test_a_run_that_goes_on_has_each_step_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = Remembering()
    monkeypatch.setattr(tracker, "last_step", lambda metric: 7 * (metric in system_sample()), raising=True)
    with SystemMetrics(tracker, every_s=1000):
        pass
    assert [step for step, _ in tracker.points] == [8]


def test_an_error_of_the_work_is_not_hidden() -> None:
    with pytest.raises(ValueError, match="work"), SystemMetrics(NullTracker(), every_s=1000):
        raise ValueError("work")


@pytest.mark.parametrize(("hours", "most"), [(1, 90), (24, 180), (30 * 24, 280)])
def test_points_are_bounded_however_long_the_run(hours: int, most: int) -> None:
    count, now_s = 0, 0.0
    while (now_s := now_s + interval_s(count, 10.0)) <= hours * 3600:
        count += 1
    assert most * 0.9 < count < most
    assert interval_s(0, 10.0) == interval_s(system.POINTS_AN_INTERVAL - 1, 10.0) == 10.0
