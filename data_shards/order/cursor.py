"""How far training has come: one number, good for any world size. It goes into every checkpoint."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cursor:
    """`samples_seen` over all ranks since the start of training, >= 0."""

    samples_seen: int = 0

    def __post_init__(self) -> None:
        if self.samples_seen < 0:
            raise ValueError(f"samples_seen must be >= 0, got {self.samples_seen}")

    def advance(self, num_samples: int) -> "Cursor":
        """The cursor after `num_samples` more (all ranks together)."""
        return Cursor(self.samples_seen + num_samples)

    def epoch(self, pool_size: int) -> int:
        """Finished epochs over a pool of `pool_size` samples."""
        return self.samples_seen // pool_size

    def to_json(self) -> dict[str, Any]:
        return {"samples_seen": self.samples_seen}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Cursor":
        return cls(samples_seen=int(value["samples_seen"]))
