"""What ties a run to its folder: the configuration it is bound to, and going on from its newest checkpoint.

The first rank chooses the checkpoint and checks every file of it. The weights come from it by broadcast; of AdamW's
state each rank reads the runs of elements it will hold, so storage gives out a checkpoint about twice, whatever the
number of ranks. The curve is the first rank's; the others hear of its end.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from data_shards.errors import InputError
from data_shards.formats.files import is_there, location, text_of, write_text
from maetrain.checkpoint.commit import (
    CheckpointManifest,
    Found,
    forget_copies,
    local_file,
    newest_committed,
    read_committed,
    step_folders,
    sweep_orphans,
)
from maetrain.checkpoint.fingerprint import differences, fingerprint
from maetrain.checkpoint.fragments import RunReader
from maetrain.checkpoint.writer import persistently
from maetrain.train.config import PretrainSetup
from maetrain.train.curve import Curve, RunningCurve
from maetrain.train.engine import Engine
from maetrain.train.group import RankInfo, barrier, from_first
from maetrain.train.state import RunState
from maetrain.train.watch import SPIKE_WINDOW

RUN = "run.json"
CURVE, EVENTS = "curve.jsonl", "events.jsonl"

# how a run is saved, logged, guarded and fed: none of it moves the curve
FREE = frozenset({
    "checkpoint_every", "keep_checkpoints", "log_every", "loader_workers", "max_damaged_share", "compile",
    "overlap_comm", "max_failed_checkpoints", "storage_timeout_s", "spike_mads", "stall_timeout_s", "max_skipped_steps",
})  # fmt: skip
# these change the order of sums, as the number of ranks does: differences of rounding
_ROUNDING = frozenset({"micro_batch", "zero_stage", "offload"})


class Restored(NamedTuple):
    """Where a run stands: after a start, or when it goes back."""

    step: int
    samples_seen: int
    state: RunState
    curve: RunningCurve
    events: list[str]
    is_fork: bool = False


def bound_settings(setup: PretrainSetup, shard_index_sha256: str) -> dict:
    """What a run's curve depends on. How it is saved, logged and spread over ranks may change between starts."""
    return {
        "model": setup.model.encoder_settings(),
        "pretrain": setup.pretrain.model_dump(mode="json", exclude=set(FREE | _ROUNDING)),
        "pool_subjects": sorted(setup.pool_subjects),
        "shard_index_sha256": shard_index_sha256,
    }


def check_bound(setup: PretrainSetup, shard_index_sha256: str) -> None:
    """InputError where the run's folder holds a run with other settings."""
    path = location(setup.run_dir) / RUN

    def look() -> str | None:
        try:
            return text_of(path)
        except FileNotFoundError:
            return None

    try:
        if (text := persistently(look, setup.pretrain.storage_timeout_s)) is None:
            return
        bound = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path}: garbled ({error}); remove the folder, or give another one") from None
    if changed := differences(bound, bound_settings(setup, shard_index_sha256)):
        raise InputError(
            f"{path.parent} holds a run with other settings ({'; '.join(changed)}): give the old settings to go on "
            f"with it, or another folder; --fork {path.parent} there begins with its weights"
        )


def bind_run(setup: PretrainSetup, shard_index_sha256: str, who: RankInfo) -> None:
    """The first start writes the settings into the run's folder; a later start with others is refused."""
    check_bound(setup, shard_index_sha256)
    barrier(who)
    path = location(setup.run_dir) / RUN

    def bind() -> None:
        if not is_there(path):
            write_text(path, json.dumps(bound_settings(setup, shard_index_sha256), indent=1, sort_keys=True))

    if who.is_first:
        persistently(bind, setup.pretrain.storage_timeout_s)


def checkpoint_of(place: Path) -> tuple[Path, CheckpointManifest]:
    """The newest committed checkpoint of the run in `place`, or `place` itself if it is a checkpoint.

    InputError where there is none whose hashes hold.
    """
    if place.name.startswith("step-"):
        try:
            return place, read_committed(place)
        except ValueError as error:
            raise InputError(f"damaged checkpoint: {error}; give another one, or the run's folder") from None
    found = newest_committed(place / "checkpoints")
    if found.path is None or found.manifest is None:
        why = f" ({found.skipped[0]})" if found.skipped else ""
        raise InputError(f"{place}: no committed checkpoint there{why}; give the folder of a pretraining run")
    return found.path, found.manifest


def restore(
    setup: PretrainSetup, engine: Engine, shard_index_sha256: str, who: RankInfo, say: Callable[[str], None]
) -> Restored | None:
    """Fills the engine from the newest committed checkpoint, of this run or else of the one it is forked from.

    None where there is neither. The first rank says what it passed over.
    """
    found, is_fork = from_first(_choose(setup, say) if who.is_first else (Found(None, None, ()), False), who)
    if found.path is None or found.manifest is None:
        return None
    manifest, state = found.manifest, RunState.model_validate(found.manifest.state)
    if not is_fork and manifest.fingerprint != fingerprint(bound_settings(setup, shard_index_sha256)):
        raise InputError(f"{found.path} belongs to a run with other settings; give another folder")
    samples_seen = manifest.samples_seen
    if is_fork:
        _check_fork(setup, engine, found.path, manifest)
        state = RunState(updates=state.updates, forked_from=f"{found.path} at step {manifest.step}")
        samples_seen -= samples_seen % setup.pretrain.global_batch
    lines, recent, events = _read_curve(found.path, manifest) if who.is_first else ([], Curve(), [])
    recent, events = from_first((recent, events), who)
    reader = RunReader(found.path, manifest)
    engine.load(lambda name: _weight(reader, name, who), reader.run, state.updates)
    if manifest.step > 0:
        say(f"{'forked' if is_fork else 'resumed'} at step {manifest.step} from {found.path}")
    forget_copies()
    curve = RunningCurve(SPIKE_WINDOW, recent, lines if who.is_first else None)
    return Restored(manifest.step, samples_seen, state, curve, events, is_fork)


def _read_curve(folder: Path, manifest: CheckpointManifest) -> tuple[list[str], Curve, list[str]]:
    """All lines of the curve, its last points, and the events."""
    files = {file.name: file for file in manifest.files}
    curve, events = (
        local_file(folder, files[name]).read_text().splitlines(keepends=True) if name in files else []
        for name in (CURVE, EVENTS)
    )
    return curve, Curve.parse("".join(curve[-SPIKE_WINDOW:])), events


def _choose(setup: PretrainSetup, say: Callable[[str], None]) -> tuple[Found, bool]:
    """On the first rank: the checkpoint to go on from, and whether it is another run's."""
    checkpoints, timeout_s = location(setup.run_dir) / "checkpoints", setup.pretrain.storage_timeout_s
    found = persistently(lambda: newest_committed(checkpoints, say), timeout_s)
    with suppress(OSError):  # tidying: the next start does it again
        sweep_orphans(checkpoints)
    if found.path is None and setup.fork:
        place = location(setup.fork)
        return Found(*persistently(lambda: checkpoint_of(place), timeout_s), ()), True
    if found.path is None and found.skipped and persistently(lambda: step_folders(checkpoints), timeout_s):
        say("no checkpoint is whole: the run starts from the beginning")
    return found, False


def _check_fork(setup: PretrainSetup, engine: Engine, path: Path, manifest: CheckpointManifest) -> None:
    if manifest.tensor_shapes != engine.shapes:
        old = PretrainSetup.model_validate(manifest.config)
        ours, theirs = ({"model": s.model.model_dump(mode="json"), "mae": s.pretrain.mae.model_dump(mode="json")}
                        for s in (setup, old))  # fmt: skip
        changed = "; ".join(differences(theirs, ours)) or "its parameters have other shapes"
        raise InputError(f"--fork {path}: another network ({changed}): a fork goes on with the same one")
    if manifest.step >= setup.pretrain.steps:
        raise InputError(f"--fork {path}: has done {manifest.step} steps; give pretrain.steps above that to go on")


def _weight(reader: RunReader, name: str, who: RankInfo) -> Tensor:
    """A full parameter, float32, read by the first rank and sent to the others."""
    shape = reader.shapes[name]
    weight = reader.full("weight", name) if who.is_first else torch.empty(shape)
    if who.world_size > 1:
        weight = weight.to(who.device)
        dist.broadcast(weight, 0)
    return weight
