"""MAE pretraining: one loop for one process, torchrun and Ray Train.

Everything random is drawn from (seed, purpose, step or sample), so nothing of it needs saving, and the state of a run
is its weights, its AdamW moments, the number of samples seen and a few counts. The loop doesn't know who started it.
"""

import json
import math
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from data_shards.errors import InputError
from data_shards.formats.files import is_remote, location
from data_shards.formats.index import ShardIndex
from data_shards.loading.pretrain import PretrainBatch, pretrain_batches
from data_shards.order.streams import stream_seed
from data_shards.order.world import World
from maetrain.models.mae import MaskedAutoencoder
from maetrain.train.comm_clock import CommClock, comm_clock
from maetrain.train.config import PretrainSetup
from maetrain.train.curve import RunningCurve, StepInfo
from maetrain.train.engine import Engine
from maetrain.train.events import SeenPass, event_line, named, passes_of_all, suspects
from maetrain.train.group import RankInfo, from_first, memory_in_use, sums_over_ranks
from maetrain.train.memory import check, device_type, estimate, free_memory
from maetrain.train.prefetch import on_device
from maetrain.train.profiling import profiled
from maetrain.train.resume import Restored, bind_run, restore
from maetrain.train.saving import OnCommit, Saver
from maetrain.train.schedule import warmup_cosine
from maetrain.train.stall import stall_guard, tell_stalls
from maetrain.train.state import RunState
from maetrain.train.watch import SPIKE_WINDOW, Verdict, Watch, is_spike
from maetrain.train.wishes import Stopped, Wishes


def pool_of(index: ShardIndex, subjects: tuple[str, ...]) -> list[int]:
    """Positions in the index of all scans of `subjects`. InputError where that is nothing."""
    pool: list[int] = index.volumes.where("subject", subjects).tolist()
    if not pool:
        raise InputError(f"{index.root}: none of its {len(index.volumes)} scans may be seen by pretraining; add scans")
    return pool


def pretrain(
    setup: PretrainSetup,
    who: RankInfo,
    on_step: Callable[[StepInfo], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
    on_commit: OnCommit = lambda _step, _points: None,
    wishes: Wishes | None = None,
) -> None:
    """Runs, or goes on with, the run in `setup.run_dir`. Its loss curve is a file of each checkpoint there; curve.jsonl
    beside them is a copy.

    The first rank alone calls `on_step` (each step), `say` and `on_commit` (a committed step, and the points of the
    curve since the one before; at a start, those that an experiment tracker wants, up to where it goes on). `wishes` is
    how the outside asks for a checkpoint or a stop. Raises InputError for settings that don't fit the data, the memory
    or the run in `run_dir`, for losses that stay non-finite and for storage that takes no checkpoints, Stopped after a
    stop wished for.
    """
    config, run_dir = setup.pretrain, location(setup.run_dir)
    index = ShardIndex.load(setup.shards)
    pool = pool_of(index, setup.pool_subjects)
    needed = estimate(setup.model, config, who.world_size, device_type(who.device))
    check(needed, *free_memory(who.device), who.ranks_on_node)
    bind_run(setup, index.sha256, who)
    attempt = from_first(uuid.uuid4().hex[:8], who)
    aside = Path(tempfile.gettempdir()) / f"maetrain-{run_dir.name}" if is_remote(run_dir) else run_dir
    name = f"rank-{who.rank:05d}-{attempt}"
    if not who.is_first:
        say = _nothing
    else:
        tell_stalls(aside / "stalls", say)

    with (
        comm_clock(who.device) as clock,
        stall_guard(config.stall_timeout_s, aside / "stalls", name) as alive,
        profiled(aside / "profile" if setup.profile else None, name, say) as traced,
    ):
        torch.manual_seed(stream_seed(config.seed, "init"))
        engine = Engine(MaskedAutoencoder(setup.model, config.mae), config, who)
        saver = Saver(setup, index.sha256, engine, who, attempt, say, on_commit)
        loop = _Loop(setup, who, index, pool, engine, saver, wishes or Wishes(), clock, on_step, say, alive, traced)
        loop.run()


def _nothing(_: str) -> None:
    pass


class _Loop:
    """One start of a run, until it is finished, or stops."""

    def __init__(
        self,
        setup: PretrainSetup,
        who: RankInfo,
        index: ShardIndex,
        pool: list[int],
        engine: Engine,
        saver: Saver,
        wishes: Wishes,
        clock: CommClock,
        on_step: Callable[[StepInfo], None],
        say: Callable[[str], None],
        alive: Callable[[], None],
        traced: Callable[[], None],
    ) -> None:
        self.setup, self.config, self.who, self.index, self.pool = setup, setup.pretrain, who, index, pool
        self.engine, self.saver, self.wishes, self.clock = engine, saver, wishes, clock
        self.on_step, self.say, self.alive, self.traced = on_step, say, alive, traced
        self.accumulation = self.config.accumulation(who.world_size)
        self.num_replaced = 0
        self.curve, self.events = RunningCurve(SPIKE_WINDOW), list[str]()

    def run(self) -> None:
        place = self._restore()
        tracker_run_id = self.setup.tracker_run_id or place.state.tracker_run_id
        start = {"num_starts": place.state.num_starts + 1, "tracker_run_id": tracker_run_id}
        self.watch = Watch(self.config.max_skipped_steps, place.state.model_copy(update=start))
        while not self._train(place):
            self.saver.settle(self.alive)
            events = self.events  # of the steps that are gone, too: they say why
            place = self._restore()
            self.events = events
            self.watch.back_at(place.state)

    def _restore(self) -> Restored:
        """Where the run stands: its own newest checkpoint, or else its beginning, which is saved at once."""
        restored = restore(self.setup, self.engine, self.index.sha256, self.who, self.say)
        start = RunningCurve(SPIKE_WINDOW, lines=[] if self.who.is_first else None)
        place = restored or Restored(0, 0, RunState(), start, [])
        self.curve, self.events = place.curve, place.events
        if restored is not None and not restored.is_fork:
            self.saver.go_on_from(place.step, place.curve)
        return place

    def _train(self, place: Restored) -> bool:
        """From `place` to the end of the run: True. False where it has to go back."""
        config, batches, is_owed = self.config, self._batches(place), False
        if self.saver.last_committed < 0:  # also shows at once whether the folder can be written
            self._save_now(place.step, place.samples_seen)
        for step in range(place.step + 1, config.steps + 1):
            samples_seen = place.samples_seen + (step - place.step) * config.global_batch
            info, passes, asked = self._step(step, batches)
            verdict = self.watch.see(step, self.engine.skipped)
            info = info._replace(num_skipped=self.watch.state.num_skipped)
            self._look_at(info, passes)
            self.curve.append(info)
            if self.who.is_first:
                self.on_step(info)
            self.alive()
            self.traced()
            if verdict is Verdict.STOP:
                self.saver.tell_events(self.events)
                raise InputError(self._diagnosis(step))
            if verdict is Verdict.GO_BACK:
                self.say(f"step {step}: {config.max_skipped_steps} skipped in a row; back, and on in another order")
                return False
            is_owed = is_owed or asked.save or step % config.checkpoint_every == 0
            # not while steps are skipped: what a run may go back to must be good
            if is_owed and self.saver.is_idle and not self.engine.skipped:
                self._save(step, samples_seen)
                is_owed = False
            if asked.stop and step < config.steps:
                self._save_now(step, samples_seen)
                raise Stopped(f"stopped at step {step}, which is saved; the same command goes on from there")
        self._save_now(config.steps, place.samples_seen + (config.steps - place.step) * config.global_batch)
        return True

    def _batches(self, place: Restored) -> Iterator[PretrainBatch]:
        config = self.config
        batches = pretrain_batches(
            self.index,
            self.pool,
            config.crop_DHW,
            config.micro_batch,
            World(self.who.rank, self.who.world_size),
            config.seed,
            samples_seen=place.samples_seen,
            num_workers=config.loader_workers,
            mirror=config.mirror_DHW,
            crops_per_volume=config.crops_per_volume,
            min_foreground=config.min_foreground,
            max_damaged_share=config.max_damaged_share,
            on_damage=self.say,
            pin_memory=self.who.device.type == "cuda",
            global_batch=config.global_batch,
            order=self.watch.state.order,
        )
        return on_device(batches, self.who.device)

    def _step(self, step: int, batches: Iterator[PretrainBatch]) -> tuple[StepInfo, list[SeenPass], "_Asked"]:
        """One optimizer step, and what came of the sums over ranks."""
        config, engine = self.config, self.engine
        started, waited_s, learning_rate = time.perf_counter(), 0.0, self._learning_rate(step)
        self.clock.take_s()
        losses, weights, keys = [], [], []
        for _ in range(self.accumulation):
            asked_at = time.perf_counter()
            batch = next(batches)
            waited_s += time.perf_counter() - asked_at
            output = engine(batch.volume_BCDHW, batch.seeds_B)
            engine.backward(output.loss, batch.weight)
            engine.step(learning_rate)
            losses.append(output.loss.detach().float())
            weights.append(batch.weight)
            keys.append(batch.keys)
            self.num_replaced += batch.num_replaced
        losses_P = torch.stack(losses)
        mean_loss = (losses_P * losses_P.new_tensor(weights)).mean()
        if self.who.device.type == "cuda":
            torch.cuda.synchronize(self.who.device)
        measures = [self.num_replaced, waited_s, self.clock.take_s(), memory_in_use(self.who.device)]
        flags = [*measures, *self.wishes.flags(), *self.saver.flags()]
        computed = time.perf_counter()
        sums = sums_over_ranks(torch.cat([mean_loss[None], mean_loss.new_tensor(flags)]), self.who)
        ended = time.perf_counter()
        loss, replaced, data_wait_s, comm_wait_s, memory_bytes, wants_save, wants_stop = sums[:7]
        if wants_save:
            self.wishes.save = None
        self.saver.heed(sums[7:])
        self.watch.committed(self.saver.last_committed)
        ranks = self.who.world_size
        info = StepInfo(
            step,
            loss / ranks,
            learning_rate,
            engine.gradient_norm(),
            step_s=ended - started,
            data_wait_s=data_wait_s / ranks,
            comm_wait_s=comm_wait_s / ranks + ended - computed,
            volumes_per_s=config.global_batch / (ended - started),
            memory_bytes=memory_bytes / ranks,
            num_replaced=round(replaced),
            num_starts=self.watch.state.num_starts,
        )
        passes = [SeenPass(*seen) for seen in zip(losses_P.tolist(), keys, strict=True)]
        return info, passes, _Asked(wants_save > 0, wants_stop > 0)

    def _look_at(self, info: StepInfo, mine: list[SeenPass]) -> None:
        """Notes a skipped step or a spike with the cases in it."""
        skipped = self.engine.skipped
        before = [point.loss for point in self.curve.points[-SPIKE_WINDOW:] if math.isfinite(point.loss)]
        if not skipped and not is_spike(info.loss, before, self.config.spike_mads):
            return
        cases = suspects(passes_of_all(mine, self.who), skipped)
        kind = "skipped" if skipped else "spike"
        self.events.append(event_line(kind, info.step, info.loss, info.gradient_norm, cases))
        self.say(f"step {info.step} {kind}: loss {info.loss:.4g}, gradient {info.gradient_norm:.4g}; {named(cases)}")

    def _diagnosis(self, step: int) -> str:
        events = [json.loads(line) for line in self.events]
        recent = [e for e in events if e["kind"] == "skipped" and e["step"] > step - self.config.max_skipped_steps]
        seen = sorted({case for event in recent for case in event["cases"]})
        return (
            f"loss or gradient was no number in {self.config.max_skipped_steps} steps in a row up to step {step}, in "
            f"another order of samples, too. In these steps were {named(seen)}: look at them, or lower "
            f"pretrain.learning_rate. Step {self.saver.last_committed} is the last good checkpoint"
        )

    def _save(self, step: int, samples_seen: int) -> None:
        state = self.watch.state.model_copy(update={"learning_rate": self._learning_rate(step)})
        self.saver.begin(step, samples_seen, state, self.curve, self.events)

    def _learning_rate(self, step: int) -> float:
        """Of the step with this number, from 1."""
        config = self.config
        return warmup_cosine(max(step, 1) - 1, config.learning_rate, config.warmup_steps, config.steps)

    def _save_now(self, step: int, samples_seen: int) -> None:
        """Returns when `step` is committed."""
        self.saver.settle(self.alive)
        while self.saver.last_committed != step:
            self._save(step, samples_seen)
            self.saver.settle(self.alive)


class _Asked(NamedTuple):
    """What any rank wishes."""

    save: bool
    stop: bool
