"""`maetrain sweep`."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster.comparison import compare_arms
from cluster.console import say
from cluster.elsewhere import read_elsewhere
from cluster.gather import wait_for_gpus
from cluster.grid import Comparison
from cluster.order import SweepOrder
from cluster.pipeline import fit_channels, make_untrained
from cluster.reporting import check_encoder
from cluster.session import ray_session
from cluster.stages import LOCK
from cluster.storage import check_storage
from cluster.store import open_store
from cluster.tracked import tracked
from data_shards.archive.identity import read_identity
from data_shards.archive.layout import read_archive
from data_shards.errors import InputError
from data_shards.formats.files import absolute, locked
from data_shards.formats.index import ShardIndex
from data_shards.splits import Split
from maetrain.checkpoint.handover import read_pool
from maetrain.recipes.config import SCRATCH, UNTRAINED, RunConfig
from maetrain.tracking.work import Tracking


def run_sweep_verb(order: SweepOrder, out: Path, address: str | None, uri: str | None) -> None:
    order = order.tracked_at(uri)
    config = order.config
    index = ShardIndex.load(order.shards)
    identity = read_identity(config.shards.privacy, os.environ)
    archive = read_archive(order.data, identity)
    config = fit_channels(config, index)
    if SCRATCH not in config.sweep.arms:
        say(f"sweep.arms has no {SCRATCH}: the report compares each arm with it, and will compare nothing")
    split = config.split.of(index)
    with locked(out / LOCK):
        arms = _arms(config, index, split, order.handovers, out)
        pools = [scan for encoders in arms.values() for folder in encoders for scan in read_pool(Path(folder))]
        elsewhere = {
            name: read_elsewhere(name, folder, index, split, pools, identity)
            for name, folder in order.elsewhere.items()
        }
        comparison = Comparison(config, index, archive, split, arms, elsewhere, out)
        comparison.check()
        root = open_store(out, order.tracking_uri)
        order.save(out)
        with ray_session(address, config.cluster.object_store_mib) as resources:
            resources = wait_for_gpus(config.cluster, resources)
            handovers = {folder: f"--handover {arm}" for arm, folders in arms.items() for folder in folders}
            others = {str(folder): f"--elsewhere {name}" for name, folder in order.elsewhere.items()}
            read = {absolute(index.root): "--shards", str(order.data): "--data", **handovers, **others}
            check_storage(absolute(out), read)
            with tracked(root, f"sweep {out.name}", comparison.work) as parent:
                parent.tags({"kind": "sweep"})
                parent.dataset(index.name, index.sha256, str(index.root), "finetune")
                tracking = Tracking(root.uri, root.experiment_id, parent.run_id)
                compare_arms(comparison, resources, parent, tracking, {})


def _arms(
    config: RunConfig, index: ShardIndex, split: Split, handovers: Mapping[str, Sequence[Path]], out: Path
) -> dict[str, list[str]]:
    """arm -> the folders of its encoders. InputError for an arm that has none, or one that does not fit."""
    arms: dict[str, list[str]] = {arm: [] for arm in config.sweep.arms}
    if unknown := sorted({*handovers} - {*arms}):
        raise InputError(
            f"--handover {unknown[0]}=...: no arm of that name; sweep.arms = {list(arms)}, add {unknown[0]} to it"
        )
    for arm in arms:
        if arm == SCRATCH:
            if arm in handovers:
                raise InputError(f"--handover {SCRATCH}=...: {SCRATCH} starts from random weights; name it otherwise")
            continue
        folders = handovers.get(arm) or (make_untrained(config, index, out) if arm == UNTRAINED else ())
        if not folders:
            others = ",".join(other for other in arms if other != arm)
            raise InputError(
                f"the arm `{arm}` needs an encoder: give --handover {arm}=FOLDER, or sweep.arms=[{others}]"
            )
        if len(folders) > len(config.sweep.seeds):
            raise InputError(
                f"--handover {arm}=...: {len(folders)} encoders for {len(config.sweep.seeds)} of sweep.seeds, which "
                "take one each: give more sweep.seeds, or fewer encoders"
            )
        for folder in folders:
            check_encoder(index, split, config, folder)
        arms[arm] = [str(folder.resolve()) for folder in folders]
    return arms
