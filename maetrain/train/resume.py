"""What ties a run to its folder: the configuration it is bound to, its checkpoints, and going on from them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch.distributed as dist

from data_shards.errors import InputError
from maetrain.checkpoint.commit import (
    CheckpointFile,
    CheckpointManifest,
    Found,
    commit,
    newest_committed,
    retain,
    step_dir,
    write_atomically,
    write_rank_file,
)
from maetrain.checkpoint.fingerprint import differences, fingerprint
from maetrain.checkpoint.fragments import assemble, to_named
from maetrain.train.config import PretrainSetup
from maetrain.train.engine import MOMENTS, Engine
from maetrain.train.group import RankInfo

RUN = "run.json"


class Done(NamedTuple):
    step: int
    samples_seen: int


_FREE = (
    "checkpoint_every", "keep_checkpoints", "log_every", "loader_workers", "max_damaged_share", "micro_batch",
    "compile",
)  # fmt: skip


def bound_settings(setup: PretrainSetup, shard_index_sha256: str) -> dict:
    """What a run's curve depends on. How often it is saved and logged, and where, may change between starts."""
    pretrain = setup.pretrain.model_dump(mode="json")
    for free in _FREE:
        del pretrain[free]
    return {
        "model": setup.model.encoder_settings(),
        "pretrain": pretrain,
        "pool_subjects": sorted(setup.pool_subjects),
        "shard_index_sha256": shard_index_sha256,
    }


def check_bound(setup: PretrainSetup, shard_index_sha256: str) -> None:
    """InputError where the run's folder holds a run with other settings."""
    path = Path(setup.run_dir) / RUN
    if not path.is_file():
        return
    try:
        bound = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: garbled ({error}); remove the folder, or give another one") from None
    if changed := differences(bound, bound_settings(setup, shard_index_sha256)):
        raise InputError(
            f"{path.parent} holds a run with other settings ({'; '.join(changed)}): "
            "give another folder, or the old settings to go on with it"
        )


def bind_run(setup: PretrainSetup, shard_index_sha256: str, who: RankInfo) -> None:
    """The first start writes the settings into the run's folder; a later start with others is refused."""
    check_bound(setup, shard_index_sha256)
    _barrier(who)
    path = Path(setup.run_dir) / RUN
    if who.is_first and not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(bound_settings(setup, shard_index_sha256), indent=1, sort_keys=True))


def restore(
    setup: PretrainSetup, engine: Engine, shard_index_sha256: str, who: RankInfo, say: Callable[[str], None]
) -> Done | None:
    """Loads the newest committed checkpoint on every rank. The first rank chooses it, and says what it passed over."""
    chosen: list[Found | None] = [None]
    if who.is_first:
        chosen = [newest_committed(Path(setup.run_dir) / "checkpoints", say)]
    if who.world_size > 1:
        dist.broadcast_object_list(chosen)
    found = chosen[0]
    if found is None or found.path is None or found.manifest is None:
        return None
    if found.manifest.fingerprint != fingerprint(bound_settings(setup, shard_index_sha256)):
        raise InputError(f"{found.path} belongs to a run with other settings; give another folder")
    if found.manifest.step > 0:
        engine.load_full(assemble(found.path, found.manifest, ("weight", *MOMENTS)), found.manifest.step)
        if who.is_first:
            say(f"resumed at step {found.manifest.step} from {found.path}")
    return Done(found.manifest.step, found.manifest.samples_seen)


def save_checkpoint(
    setup: PretrainSetup, engine: Engine, shard_index_sha256: str, step: int, samples_seen: int, who: RankInfo
) -> Path:
    """Called by every rank; returns when the checkpoint is committed."""
    checkpoints = Path(setup.run_dir) / "checkpoints"
    folder = step_dir(checkpoints, step)
    if who.is_first:
        shutil.rmtree(folder, ignore_errors=True)  # what a crash left of an earlier try
        folder.mkdir(parents=True)
    _barrier(who)
    mine = write_rank_file(folder, who.rank, to_named(engine.save_fragments()))
    files: list[CheckpointFile | None] = [mine]
    if who.world_size > 1:
        files = [None] * who.world_size
        dist.all_gather_object(files, mine)
    if who.is_first:
        settings = bound_settings(setup, shard_index_sha256)
        commit(
            folder,
            CheckpointManifest(
                step=step,
                samples_seen=samples_seen,
                world_size=who.world_size,
                shard_index_sha256=shard_index_sha256,
                fingerprint=fingerprint(settings),
                config=setup.model_dump(mode="json"),
                tensor_shapes=engine.shapes,
                state={"random": "drawn from (seed, purpose, step or sample); nothing to restore"},
                files=tuple(f for f in files if f is not None),
            ),
        )
        retain(checkpoints, setup.pretrain.keep_checkpoints, newest=folder)
    _barrier(who)
    return folder


def _barrier(who: RankInfo) -> None:
    if who.world_size > 1:
        dist.barrier()
