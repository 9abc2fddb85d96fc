"""The loss curve of a run, one JSON line a step, rewritten whole at every checkpoint.

Kept beside the checkpoints so that the report and the tracker need no server, and so that a resumed run's curve
has each step once.
"""

import json
from pathlib import Path
from typing import NamedTuple

from maetrain.checkpoint.commit import write_atomically


class CurvePoint(NamedTuple):
    step: int
    loss: float
    volumes_per_s: float


class Curve(list[CurvePoint]):
    """Points in order of steps."""

    @classmethod
    def load(cls, path: Path) -> "Curve":
        """Empty where there is no file yet."""
        if not path.is_file():
            return cls()
        return cls(CurvePoint(**json.loads(line)) for line in path.read_text().splitlines())

    def until(self, step: int) -> "Curve":
        """The points up to and with `step`: what a run that resumes there keeps."""
        return Curve(point for point in self if point.step <= step)

    def save(self, path: Path) -> None:
        write_atomically(path, "".join(json.dumps(point._asdict()) + "\n" for point in self))
