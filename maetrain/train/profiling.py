"""A torch profiler trace of some early steps, for chrome://tracing or Perfetto."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

SKIPPED, WARM_UP, TRACED = 2, 1, 3  # steps


@contextmanager
def profiled(folder: Path | None, name: str, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Gives what is to be called after each step; None = no profile. The trace is `folder`/`name`.json."""
    if folder is None:
        yield lambda: None
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"

    def write(trace: profile) -> None:
        trace.export_chrome_trace(str(path))
        say(f"profile of {TRACED} steps: {path}")

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    plan = schedule(wait=SKIPPED, warmup=WARM_UP, active=TRACED, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=write) as trace:
        yield trace.step
