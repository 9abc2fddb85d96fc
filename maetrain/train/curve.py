"""The loss curve of a run, one JSON line a step.

It is part of every checkpoint, so that a resumed run has each step once. A copy lies beside
the checkpoints: report and tracker need no server.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


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
    """Points in order of steps. Their text grows with them: a checkpoint of a long run must not wait for it."""

    def __init__(self, points: Iterable[StepInfo] = ()) -> None:
        super().__init__(points)
        self._lines = [point.line() for point in self]

    def append(self, point: StepInfo) -> None:
        super().append(point)
        self._lines.append(point.line())

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
        return "".join(self._lines)
