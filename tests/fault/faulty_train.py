"""`python -m tests.fault.faulty_train FAULTS.json SETUP.json`: `python -m maetrain.train SETUP.json` with faults in it.

A fault strikes when its rank comes to its moment, once for a file of faults: the start after it goes on undisturbed. So
it hits between two given lines, which no signal from outside does. Runs alone, under torchrun and in `ranks.Group`.
"""

import contextlib
import json
import math
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

if __name__ == "__main__":  # before DeepSpeed, which would import MLflow
    import maetrain.train.engine  # noqa: F401

import deepspeed.runtime.zero.muon.original_muon  # noqa: F401  # takes a second that each rank would take again
from pydantic import BaseModel, ConfigDict, Field

from data_shards.loading.pretrain import PretrainBatch
from maetrain.checkpoint import commit
from maetrain.checkpoint.commit import MANIFEST, CheckpointFile, CheckpointManifest, step_of
from maetrain.models.mae import MaeOutput
from maetrain.train import __main__ as program
from maetrain.train import pretrain, resume, saving
from maetrain.train.engine import Engine

Moment = Literal[
    "start",  # before the folder is bound
    "chosen",  # the first rank has chosen a checkpoint, nobody has read of it (at a start behind the first)
    "restore",  # some of the state is loaded
    "forward",  # the loss of a step is there
    "backward",  # its gradients are summed
    "update",  # the weights are moved, the sums over ranks not made
    "part",  # before a rank's file is written
    "part half",  # half of it is there
    "part end",  # it is there, nobody knows
    "texts",  # all ranks' files are there; before curve and events
    "manifest",  # all but the manifest is there
    "manifest checked",  # the files are looked for, the manifest is not written
    "manifest half",  # half of it is there, under its temporary name
    "committed",  # it is there
    "tidied half",  # copies are written, half of the first folder to be removed is gone
    "end",  # the run is complete
]


class Fault(BaseModel):
    """`step`: of the training or of the checkpoint; none = the first time. `last`: strikes from `step` up to it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    at: Moment
    do: Literal["kill", "term", "pause", "sleep", "hold", "nan", "slow"]
    rank: int | None = Field(0, description="none = each")
    step: int | None = None
    last: int | None = None
    seconds: float = 0.1

    def is_due(self, at: Moment, rank: int, step: int) -> bool:
        if at != self.at or self.rank not in (None, rank):
            return False
        return self.step is None or self.step <= step <= (self.last or self.step)


class Faults(BaseModel):
    """`record`: folder for what each rank trains on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    faults: tuple[Fault, ...] = ()
    record: str | None = None


class Planted:
    """The faults of one process. `step` is the one that the training is at."""

    def __init__(self, path: Path) -> None:
        self.path, self.plan = path, Faults.model_validate_json(path.read_text())
        self.rank = int(os.environ.get("RANK", "0"))
        self.step = 0

    def come(self, at: Moment, step: int | None = None) -> bool:
        """This rank is there: all that is due strikes. True where a loss should be no number."""
        step, is_nan = self.step if step is None else step, False
        for number, fault in enumerate(self.plan.faults):
            if not fault.is_due(at, self.rank, step):
                continue
            if fault.do in ("nan", "slow"):
                is_nan = is_nan or fault.do == "nan"
                if fault.do == "slow":
                    time.sleep(fault.seconds)
                continue
            try:
                self.path.with_suffix(f".{number}.{self.rank}.struck").open("x").close()
            except FileExistsError:
                continue
            strike(fault)
        return is_nan


def strike(fault: Fault) -> None:
    print(f"fault: {fault.do} at {fault.at}", flush=True)
    if fault.do == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault.do == "term":
        os.kill(os.getpid(), signal.SIGTERM)
    if fault.do == "pause":
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(0.5)  # the kernel stops this thread only after another has heard of it
    if fault.do == "sleep":
        time.sleep(3600)
    if fault.do == "hold":  # hours in C, with the interpreter's lock held
        re.match("(a+)+$", "a" * 40 + "b")


def plant(faults: Planted) -> None:
    """Puts the moments into the program."""
    _in_training(faults)
    _in_restore(faults)
    _in_saving(faults)


def _in_training(faults: Planted) -> None:
    step, batches = pretrain._Loop._step, pretrain.pretrain_batches
    forward, update = Engine.__call__, Engine.step
    backward, run = Engine.backward, program.pretrain

    def count(loop: Any, number: int, *rest: Any) -> Any:
        faults.step = number
        return step(loop, number, *rest)

    def poisoned(engine: Engine, *inputs: Any) -> MaeOutput:
        output = forward(engine, *inputs)
        return output._replace(loss=output.loss * math.nan) if faults.come("forward") else output

    def after_backward(engine: Engine, *inputs: Any) -> None:
        backward(engine, *inputs)
        faults.come("backward")

    def after_update(engine: Engine, rate: float) -> None:
        update(engine, rate)
        faults.come("update")

    def to_the_end(*inputs: Any, **more: Any) -> Any:
        curve = run(*inputs, **more)
        faults.come("end")
        return curve

    pretrain._Loop._step = count  # type: ignore[method-assign]
    Engine.__call__ = poisoned  # type: ignore[method-assign]
    Engine.backward = after_backward  # type: ignore[method-assign]
    Engine.step = after_update  # type: ignore[method-assign]
    program.pretrain = to_the_end
    if faults.plan.record:
        pretrain.pretrain_batches = _recorded(batches, faults, Path(faults.plan.record))


def _recorded(batches: Callable[..., Iterator[PretrainBatch]], faults: Planted, folder: Path) -> Callable:
    def recorded(*inputs: Any, **more: Any) -> Iterator[PretrainBatch]:
        size, start = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("START", "0"))
        with (folder / f"start-{start:03d}-rank-{faults.rank}.jsonl").open("a") as file:
            for batch in batches(*inputs, **more):
                line = {"start": start, "step": faults.step, "rank": faults.rank, "size": size}
                file.write(json.dumps({**line, "keys": batch.keys, "weight": batch.weight}) + "\n")
                file.flush()
                yield batch

    return recorded


def _in_restore(faults: Planted) -> None:
    bind, choose, load = pretrain.bind_run, resume._choose, Engine.load

    def before_bind(*inputs: Any) -> None:
        faults.come("start")
        bind(*inputs)

    def after_choice(*inputs: Any) -> Any:
        found = choose(*inputs)
        if found[0].path is not None:
            faults.come("chosen", step_of(found[0].path))
        return found

    def half_loaded(engine: Engine, weight: Callable, run: Callable, updates: int) -> None:
        count = 0

        def counted(*inputs: Any) -> Any:
            nonlocal count
            count += 1
            if count == 10:
                faults.come("restore", updates)
            return run(*inputs)

        load(engine, weight, counted, updates)

    pretrain.bind_run = before_bind
    resume._choose = after_choice
    Engine.load = half_loaded  # type: ignore[method-assign]


def _in_saving(faults: Planted) -> None:
    write_part, write_texts, put_manifest, write_manifest, remove = (
        saving.write_rank_file, saving.write_text_file, saving.commit, commit.write_text, commit.remove,
    )  # fmt: skip

    def part(folder: Path, rank: int, tensors: dict) -> CheckpointFile:
        step = step_of(folder)
        faults.come("part", step)
        if any(fault.is_due("part half", rank, step) for fault in faults.plan.faults):
            written = write_part(folder, rank, tensors)
            path = folder / written.name
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2])
            faults.come("part half", step)
        written = write_part(folder, rank, tensors)
        faults.come("part end", step)
        return written

    def texts(folder: Path, name: str, text: str) -> CheckpointFile:
        faults.come("texts", step_of(folder))
        return write_texts(folder, name, text)

    def manifest(folder: Path, content: CheckpointManifest) -> None:
        faults.come("manifest", content.step)
        if any(fault.is_due("manifest half", faults.rank, content.step) for fault in faults.plan.faults):
            text = content.model_dump_json(indent=1)
            half = folder / f".tmp-{MANIFEST}-1234"
            half.write_text(text[: len(text) // 2])
            faults.come("manifest half", content.step)
            half.unlink()
        put_manifest(folder, content)
        faults.come("committed", content.step)

    def after_check(path: Path, text: str) -> None:
        faults.come("manifest checked", step_of(path.parent))
        write_manifest(path, text)

    def half_removed(path: Path) -> None:
        if any(fault.is_due("tidied half", faults.rank, faults.step) for fault in faults.plan.faults):
            with contextlib.suppress(StopIteration):
                shutil.rmtree(path) if path.is_dir() and not any(path.iterdir()) else next(path.iterdir()).unlink()
            faults.come("tidied half")
        remove(path)

    saving.write_rank_file = part
    saving.write_text_file = texts
    saving.commit = manifest
    commit.write_text = after_check
    commit.remove = half_removed


def main(arguments: list[str]) -> int:
    faults, setup = arguments
    plant(Planted(Path(faults)))
    return program.main([setup])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
