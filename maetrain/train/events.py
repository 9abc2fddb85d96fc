"""What happened to a run that its curve doesn't tell: skipped steps and spikes, with the samples that were in them."""

import json
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch.distributed as dist

from maetrain.train.group import RankInfo

MOST_NAMED = 20


class SeenPass(NamedTuple):
    """One forward pass of one rank: its mean loss, and the cases of its samples."""

    loss: float
    keys: tuple[str, ...]


def passes_of_all(mine: list[SeenPass], who: RankInfo) -> list[SeenPass]:
    """Those of all ranks. Every rank must call it."""
    gathered = [mine]
    if who.world_size > 1:
        gathered = [[] for _ in range(who.world_size)]
        dist.all_gather_object(gathered, mine)
    return [seen for passes in gathered for seen in passes]


def suspects(passes: Sequence[SeenPass], is_skip: bool) -> list[str]:
    """The cases to look at: of passes with a non-finite loss; else of all, or for a spike of the one that lost most."""
    worst = [seen for seen in passes if not math.isfinite(seen.loss)]
    if not worst:
        worst = list(passes) if is_skip else [max(passes, key=lambda seen: seen.loss)]
    return sorted({key for seen in worst for key in seen.keys})


def event_line(kind: str, step: int, loss: float, gradient_norm: float, cases: Sequence[str]) -> str:
    """One JSON line; numbers that are none as null."""
    loss_, norm = (value if math.isfinite(value) else None for value in (loss, gradient_norm))
    return json.dumps({"kind": kind, "step": step, "loss": loss_, "gradient_norm": norm, "cases": list(cases)}) + "\n"


def named(cases: Sequence[str]) -> str:
    more = f" and {len(cases) - MOST_NAMED} more" if len(cases) > MOST_NAMED else ""
    return ", ".join(cases[:MOST_NAMED]) + more
