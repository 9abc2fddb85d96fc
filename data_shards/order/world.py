"""Who am I among the training processes: a value handed in, never looked up in the environment down here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class World:
    """Rank `rank` of `size` data-parallel processes; 0 <= rank < size, else ValueError."""

    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 <= self.rank < self.size:
            raise ValueError(f"rank {self.rank} of world size {self.size}: need size >= 1 and 0 <= rank < size")
