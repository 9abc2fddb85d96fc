"""Checkpoints of a training group, written while it trains on. All ranks call the same methods at the same steps.

What a step waits for is the copy of this rank's state. A thread writes and hashes it; whether every rank's part is
there rides along in the sum over ranks that each step makes anyway; then rank 0's thread puts the manifest beside them.
One checkpoint is under way at a time. One that fails is told and given up; several in a row end the run.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from data_shards.errors import InputError
from data_shards.formats.files import is_remote, listed, location, remove, remove_half_written, write_text
from maetrain.checkpoint.commit import (
    CheckpointFile,
    CheckpointManifest,
    commit,
    retain,
    step_dir,
    write_rank_file,
    write_text_file,
)
from maetrain.checkpoint.fingerprint import fingerprint
from maetrain.checkpoint.fragments import to_named
from maetrain.checkpoint.writer import Background, persistently
from maetrain.train.config import PretrainSetup
from maetrain.train.curve import RunningCurve, StepInfo, first_lines, log_spacing, points_at
from maetrain.train.engine import Engine
from maetrain.train.group import RankInfo, sums_over_ranks
from maetrain.train.resume import CURVE, EVENTS, RUN, bound_settings
from maetrain.train.state import RunState

Value = TypeVar("Value")
OnCommit = Callable[[int, Sequence[StepInfo]], None]
_COPY_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class _UnderWay:
    folder: Path
    manifest: CheckpointManifest  # without its files
    curve: RunningCurve
    events: str
    is_late: bool = False


class Saver:
    """`on_commit`, on the first rank, hears each committed step and the points of the curve since the one before.

    Of a start, or of the run that it is a fork of, it hears those points that an experiment tracker wants.
    """

    def __init__(
        self,
        setup: PretrainSetup,
        shard_index_sha256: str,
        engine: Engine,
        who: RankInfo,
        attempt: str,
        say: Callable[[str], None],
        on_commit: OnCommit,
    ) -> None:
        self.setup, self.engine, self.who = setup, engine, who
        self.attempt, self.say, self.on_commit = attempt, say, on_commit
        self.run_dir = location(setup.run_dir)
        self.last_committed = -1
        self.failures = 0  # in a row
        self._parts: Background[CheckpointFile] = Background(setup.pretrain.storage_timeout_s)
        self._commits: Background[None] = Background(setup.pretrain.storage_timeout_s)
        self._manifest = CheckpointManifest(  # but for what changes from checkpoint to checkpoint
            step=0,
            samples_seen=0,
            world_size=who.world_size,
            shard_index_sha256=shard_index_sha256,
            fingerprint=fingerprint(bound_settings(setup, shard_index_sha256)),
            config=setup.model_dump(mode="json"),
            tensor_shapes=engine.shapes,
            state={},
            files=(),
        )
        self._under_way: _UnderWay | None = None
        self._is_committing = False

    @property
    def is_idle(self) -> bool:
        return self._under_way is None

    def go_on_from(self, step: int, curve: RunningCurve) -> None:
        """`step` is committed, by an earlier start or before the run went back to it."""
        self.last_committed = step
        if curve.lines is not None:
            with suppress(OSError):  # that start may have ended between the commit and the copy
                write_text(self.run_dir / CURVE, "".join(curve.lines))
            self.on_commit(step, self._points_to_log(curve, step))

    def begin(self, step: int, samples_seen: int, state: RunState, curve: RunningCurve, events: Sequence[str]) -> None:
        """Takes a copy of all state and starts to write it. Only when idle.

        The curve is not copied: it only grows, and the thread takes its first `step` lines.
        """
        assert self.is_idle
        folder = step_dir(self.run_dir / "checkpoints", step, self.attempt)
        changes = {"step": step, "samples_seen": samples_seen, "state": state.model_dump(mode="json")}
        manifest = self._manifest.model_copy(update=changes)
        self._under_way = _UnderWay(folder, manifest, curve, "".join(events))
        tensors = to_named(self.engine.save_fragments())
        self._parts.start(lambda: self._write_part(folder, tensors))

    def flags(self) -> list[float]:
        """This rank's share of the sums that `heed` wants.

        Part written, part failed, committed, commit failed, and whether one of them waits for its storage.
        """
        background = self._background
        done = background.is_done and not background.error, background.is_done and bool(background.error)
        waits = float(bool(background.trouble))
        return [0.0, 0.0, *map(float, done), waits] if self._is_committing else [*map(float, done), 0.0, 0.0, waits]

    def heed(self, sums: Sequence[float]) -> None:
        """`sums` of the flags of all ranks. Raises InputError when too many checkpoints in a row have failed."""
        written, failed, committed, commit_failed, waiting = (round(value) for value in sums)
        if self._under_way is None:
            return
        if waiting and not self._under_way.is_late:
            self._under_way = replace(self._under_way, is_late=True)
            reason = self._first_reason(self._background.trouble)
            self.say(f"checkpoint of step {self._under_way.manifest.step} waits for its storage: {reason}")
        if committed:
            self._finish(self._under_way)
        elif commit_failed or (failed and written + failed == self.who.world_size):
            self._give_up(self._under_way)
        elif written == self.who.world_size:
            files = self._gather(self._parts.take())
            self._is_committing = True
            if self.who.is_first:
                under_way = self._under_way
                manifest = under_way.manifest.model_copy(update={"files": tuple(f for f in files if f is not None)})
                self._commits.start(lambda: self._commit(under_way, manifest))

    def settle(self, alive: Callable[[], None]) -> None:
        """Waits until nothing is under way."""
        while not self.is_idle:
            self._background.wait(timeout_s=0.5)
            alive()
            self.heed(sums_over_ranks(torch.tensor(self.flags(), device=self.who.device), self.who))

    def tell_events(self, events: Sequence[str]) -> None:
        """Beside the checkpoints: no further one will hold them."""
        if self.who.is_first:
            with suppress(OSError):
                write_text(self.run_dir / EVENTS, "".join(events))

    def _write_part(self, folder: Path, tensors: dict[str, Tensor]) -> CheckpointFile:
        """In the rank's thread."""
        self._check_mounted()
        return write_rank_file(folder, self.who.rank, tensors)

    def _check_mounted(self) -> None:
        """A mount that has gone leaves an empty folder to write into. FileNotFoundError there: it may come back."""
        if RUN not in {path.name for path in listed(self.run_dir)}:  # listed, for NFS remembers what was not there
            raise FileNotFoundError(f"{self.run_dir / RUN}: is gone; is the disk mounted?")

    def _commit(self, under_way: _UnderWay, manifest: CheckpointManifest) -> None:
        """In rank 0's thread."""
        self._check_mounted()
        folder, lines = under_way.folder, under_way.curve.lines
        assert lines is not None
        texts = {CURVE: first_lines(lines, manifest.step), EVENTS: under_way.events}
        written = tuple(write_text_file(folder, name, text) for name, text in texts.items())
        commit(folder, manifest.model_copy(update={"files": (*manifest.files, *written)}))

        def copy() -> None:
            for name, text in texts.items():
                remove_half_written(self.run_dir / name)
                write_text(self.run_dir / name, text)

        with suppress(OSError):  # a copy, and tidying: the next checkpoint does both again, if there is one
            persistently(copy, _COPY_TIMEOUT_S)
            retain(folder.parent, self.setup.pretrain.keep_checkpoints, newest=folder)

    def _finish(self, done: _UnderWay) -> None:
        step = done.manifest.step
        if self.who.is_first:
            self._commits.take()
            self.on_commit(step, self._new_points(done.curve, step))
        done.curve.committed(step)
        self._under_way, self._is_committing = None, False
        self.last_committed, self.failures = step, 0

    def _new_points(self, curve: RunningCurve, step: int) -> Sequence[StepInfo]:
        if self.last_committed < 0:  # all there are: none, or those of the run that this one is a fork of
            return self._points_to_log(curve, step)
        return [point for point in curve.points_after(self.last_committed) if point.step <= step]

    def _points_to_log(self, curve: RunningCurve, step: int) -> Sequence[StepInfo]:
        """Of all up to `step`, those that an experiment tracker wants."""
        assert curve.lines is not None
        config = self.setup.pretrain
        return points_at(curve.lines[:step], log_spacing(config.steps, config.log_every))

    def _give_up(self, failed: _UnderWay) -> None:
        background = self._background
        reason = self._first_reason(background.error)
        if background.is_done:
            background.take()
        if self.who.is_first:
            if not is_remote(failed.folder):  # a bucket isn't full, and may not answer for minutes: retention tidies it
                with suppress(OSError):
                    remove(failed.folder)
            self.say(f"checkpoint of step {failed.manifest.step} failed: {reason}")
        self._under_way, self._is_committing = None, False
        self.failures += 1
        if self.failures >= self.setup.pretrain.max_failed_checkpoints:
            last = f"step {self.last_committed} is safe" if self.last_committed >= 0 else "none is committed"
            raise InputError(
                f"{self.failures} checkpoints in a row could not be stored, {last}; the last failed on {reason}: make "
                f"room or mend {self.run_dir}, then the same command goes on"
            )

    @property
    def _background(self) -> Background[CheckpointFile] | Background[None]:
        return self._commits if self._is_committing else self._parts

    def _first_reason(self, mine: str | None) -> str:
        """That of the first rank that has one. Every rank must call it."""
        reasons = self._gather(mine)
        return next(f"rank {rank}: {reason}" for rank, reason in enumerate(reasons) if reason)

    def _gather(self, mine: Value) -> list[Value | None]:
        gathered: list[Value | None] = [mine]
        if self.who.world_size > 1:
            gathered = [None] * self.who.world_size
            dist.all_gather_object(gathered, mine)
        return gathered
