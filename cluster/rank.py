"""One rank of a pretraining group: the loop, and what it hears from and says to the world outside."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
import ray.train

from cluster.controller import PROCESS_WISHES
from cluster.progress import Committed, RankMetrics, throttled
from data_shards.errors import InputError
from maetrain.train.config import PretrainSetup
from maetrain.train.curve import StepInfo
from maetrain.train.group import RankInfo, from_first, joined_group
from maetrain.train.pretrain import pretrain
from maetrain.train.wishes import Stopped, Wishes

_ASK_EVERY_S = 0.5
_PREEMPTION_EVERY_S = 2.0


def run_rank(config: dict) -> None:
    """What Ray Train runs in each worker."""
    desk: Any = config["desk"]
    setup = PretrainSetup.model_validate_json(config["setup"])
    with joined_group() as who:
        refusal = from_first(ray.get(desk.start.remote()) if who.is_first else None, who)
        if refusal:
            return
        metrics = RankMetrics(setup.run_dir.rstrip("/").rsplit("/", 1)[-1])
        show = throttled(desk.post.remote)

        def on_step(info: StepInfo) -> None:
            show(info)
            metrics.step(info)

        def on_commit(step: int, points: Sequence[StepInfo]) -> None:
            metrics.committed(step)
            desk.committed.remote(step)
            desk.post.remote(Committed(step, list(points)))

        with listening(desk, who) as wishes:
            try:
                pretrain(setup, who, on_step, desk.post.remote, on_commit, wishes)
            except Stopped as stopped:
                ray.get(desk.stop.remote(str(stopped)))
            except InputError as error:
                ray.get(desk.refuse.remote(str(error)))
                raise
        if who.is_first:
            ray.get(desk.endings.remote())  # what was posted before has arrived when this has


@contextmanager
def listening(desk: Any, who: RankInfo) -> Iterator[Wishes]:
    """The wishes of this rank: from the desk (first rank), from nodes about to be taken away, from SIGTERM."""
    wishes, ended = PROCESS_WISHES, threading.Event()
    wishes.save = wishes.stop = None

    def ask_desk() -> None:
        number, _, stops = ray.get(desk.asked.remote())
        heard = 0 if stops else number  # what an earlier start was asked for is done
        while not ended.wait(_ASK_EVERY_S):
            number, reason, stops = ray.get(desk.asked.remote())
            if number > heard:
                heard = number
                wishes.save = reason
                wishes.stop = reason if stops else None

    def watch_nodes() -> None:
        known = None
        while not ended.wait(_PREEMPTION_EVERY_S):
            # a barrier over the ranks' threads of this kind, which no step waits for
            info = ray.train.get_preemption_info()
            if info is not None and info != known:
                known, wishes.save = info, "a node is about to be taken away"

    for target in (ask_desk, watch_nodes) if who.is_first else (watch_nodes,):
        threading.Thread(target=target, daemon=True).start()
    try:
        yield wishes
    finally:
        ended.set()
