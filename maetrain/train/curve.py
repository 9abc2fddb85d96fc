"""The loss curve of a run, one JSON line a step.

It is part of every checkpoint, so that a resumed run has each step once. A copy lies beside
the checkpoints: report and tracker need no server.
"""

import json
import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

MOST_POINTS = 5000  # of a series in the experiment tracker: MLflow's pages slow down above 10 000


class StepInfo(NamedTuple):
    """What one optimizer step was like. Times and memory are means over the ranks, loss that over the samples.

    A skipped step has a loss or a gradient norm that is no number. num_replaced, num_skipped, num_starts: samples whose
    scan could not be read (all ranks, since the last start), steps skipped and starts of the run, up to here.
    """

    step: int
    loss: float
    learning_rate: float = math.nan
    gradient_norm: float = math.nan
    step_s: float = math.nan
    data_wait_s: float = math.nan
    comm_wait_s: float = math.nan
    volumes_per_s: float = math.nan
    memory_bytes: float = math.nan
    num_replaced: int = 0
    num_skipped: int = 0
    num_starts: int = 1

    def line(self) -> str:
        """JSON, with null for what is no number."""
        values = ((k, None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in self._asdict().items())
        return json.dumps(dict(values)) + "\n"


class Curve(list[StepInfo]):
    """Points in order of steps."""

    @classmethod
    def parse(cls, text: str) -> "Curve":
        """ValueError for what is no curve."""
        read = (json.loads(line) for line in text.splitlines())
        try:
            return cls(StepInfo(**{k: math.nan if v is None else v for k, v in point.items()}) for point in read)  # type: ignore[arg-type]
        except (AttributeError, TypeError) as error:
            raise ValueError(f"not a curve: {error}") from None

    @classmethod
    def load(cls, path: Path) -> "Curve":
        """Empty where there is no file yet."""
        return cls.parse(path.read_text()) if path.is_file() else cls()

    def text(self) -> str:
        return "".join(point.line() for point in self)


class RunningCurve:
    """What a run that goes on holds of its curve: every rank the last `window` points, the first one more.

    `lines`, on the first rank: a line for every step so far. There `points` are also all those done since the last
    commit, or since the start.
    """

    def __init__(self, window: int, points: Sequence[StepInfo] = (), lines: list[str] | None = None) -> None:
        self.window, self.points, self.lines = window, list(points), lines

    def append(self, point: StepInfo) -> None:
        self.points.append(point)
        if self.lines is None:
            del self.points[: -self.window]
        else:
            self.lines.append(point.line())

    def points_after(self, step: int) -> list[StepInfo]:
        return [point for point in self.points if point.step > step]

    def committed(self, step: int) -> None:
        """Lets go of what neither the next commit nor the window needs."""
        told = sum(point.step <= step for point in self.points)
        del self.points[: max(0, min(told, len(self.points) - self.window))]


def first_lines(lines: Sequence[str], count: int) -> str:
    """The text of the first `count`; other threads may append more meanwhile."""
    return "".join(islice(lines, count))


def log_spacing(steps: int, log_every: int) -> int:
    """Steps between points in the experiment tracker: `log_every`, more where that would be too many of them."""
    return max(log_every, -(-steps // MOST_POINTS))


def points_at(lines: Sequence[str], every: int) -> Curve:
    """Of a curve's lines, one a step from 1: every `every`-th point, and the last."""
    chosen = [*lines[every - 1 :: every], *(lines[-1:] if len(lines) % every else [])]
    return Curve.parse("".join(chosen))
