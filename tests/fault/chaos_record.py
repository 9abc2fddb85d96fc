"""The kills of a chaos run as values: drawn from a seed, recorded as they strike, counted in a table at the end."""

import math
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

Target = Literal["rank", "driver", "node", "head"]
WEIGHTS: dict[Target, int] = {"rank": 5, "driver": 2, "node": 2, "head": 1}
_LONGEST = 5  # means between two kills


class Draw(NamedTuple):
    """`targets` in order of preference: the first that is there is hit. `which`, 0 <= which < 1, picks among ranks.

    in_training: the time counts from when the last kill is got over, not from that kill.
    """

    wait_s: float
    in_training: bool
    targets: tuple[Target, ...]
    which: float
    spares_driver: bool


def draw_kills(seed: int, number: int, mean_s: float, in_training: float) -> list[Draw]:
    """`number` kills with exponential times between them, at most five means; a longer list begins with the shorter.

    in_training: share of them that wait for a training, 0 to 1; the first one does where any does.
    """
    dice = random.Random(seed)
    draws = []
    for i in range(number):
        wait_s = min(dice.expovariate(1 / mean_s), _LONGEST * mean_s)
        # of exponential times with these rates each is the shortest as often as its weight says
        times = {target: dice.expovariate(weight) for target, weight in WEIGHTS.items()}
        order = tuple(sorted(times, key=times.__getitem__))
        waits = dice.random() < (in_training if i else math.ceil(in_training))
        draws.append(Draw(wait_s, waits, order, which=dice.random(), spares_driver=dice.random() < 0.5))
    return draws


class KillRecord(BaseModel):
    """One kill and what came of it until the next one.

    wall_s: since the first start of the run, pauses of the script itself not counted. committed: newest step at the
    kill. reached: the step done last, to a few steps; none where no checkpoint was begun since the former kill. kept:
    where the next start went on, or, where none came so far, the newest step then committed. recovered_s: until a later
    start had committed a new step, or the one there five checkpoints more; none where the next kill was faster.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: int
    at: str
    wall_s: float
    target: Target
    spares_driver: bool = False
    committed: int
    kept: int
    reached: int | None
    recovered_s: float | None
    group_starts: int
    driver_starts: int

    @property
    def lost(self) -> int:
        """Steps that had to be done again."""
        return max(0, (self.reached or 0) - self.kept)


def read_records(path: Path) -> list[KillRecord]:
    """A line that its writer was killed in is left out."""
    if not path.is_file():
        return []
    return [KillRecord.model_validate_json(line) for line in path.read_text().splitlines() if line.endswith("}")]


def table(records: Sequence[KillRecord]) -> str:
    """Markdown, a row a target and one for all."""
    rows = [
        "| killed | kills | in training | group started again | driver started again | steps lost, median | largest "
        "| s to the next checkpoint, median | largest | killed again before |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for target in (*WEIGHTS, "all"):
        if own := [record for record in records if target in (record.target, "all")]:
            rows.append(f"| {target} | {' | '.join(_cells(own))} |")
    return "\n".join(rows) + "\n"


def _cells(records: Sequence[KillRecord]) -> list[str]:
    lost = [record.lost for record in records if record.reached is not None]
    recovered_s = [record.recovered_s for record in records if record.recovered_s is not None]
    return [
        str(len(records)),
        str(len(lost)),
        str(sum(record.group_starts for record in records)),
        str(sum(record.driver_starts for record in records)),
        f"{statistics.median(lost):.0f}" if lost else "",
        str(max(lost)) if lost else "",
        f"{statistics.median(recovered_s):.1f}" if recovered_s else "",
        f"{max(recovered_s):.1f}" if recovered_s else "",
        str(len(records) - len(recovered_s)),
    ]
