"""`maetrain pretrain`. A module of its own: a verb waits for the imports of no other."""

from pathlib import Path
from typing import Any

from cluster.console import say
from cluster.gather import wait_for_gpus
from cluster.pipeline import fit_channels, make_setup, pretrain_and_export
from cluster.pretrain import check_setup, fit_workers
from cluster.session import ray_session
from cluster.storage import check_storage
from cluster.store import open_store
from cluster.tracked import tracked
from data_shards.formats.files import write_text
from data_shards.formats.index import ShardIndex
from maetrain.checkpoint.fingerprint import fingerprint
from maetrain.finetune.plan import pretrain_pool
from maetrain.recipes.config import RunConfig


def run_pretrain_verb(
    config: RunConfig,
    shards: Path,
    out: Path,
    address: str | None,
    uri: str | None,
    how: dict[str, Any],
    setup_only: Path | None,
) -> None:
    """`how`: the fields `fork` and `profile` of the setup."""
    index = ShardIndex.load(shards)
    config = fit_channels(config, index)
    split = config.split.of(index) if len(index.volumes.labelled) else None
    pool = pretrain_pool(index, split)
    left_out = f"; {len(split.test)} test and {len(split.monitor)} monitor persons are left out" if split else ""
    say(f"pretraining pool: {len(pool)} persons{left_out}")
    setup = make_setup(config, index, pool, out).model_copy(update=how)
    if setup_only:
        setup_only.parent.mkdir(parents=True, exist_ok=True)
        write_text(setup_only, setup.model_dump_json(indent=1))
        say(f"setup written; run it with: python -m maetrain.train {setup_only}")
        return
    tracking = open_store(out, uri)  # a wrong one is told before Ray starts
    with ray_session(address, config.cluster.object_store_mib) as resources:
        resources = wait_for_gpus(config.cluster, resources)
        config = fit_workers(config, resources)
        check_setup(setup, index.sha256, config.cluster, resources)
        check_storage(setup.run_dir, {setup.shards: "--shards"} | ({setup.fork: "--fork"} if setup.fork else {}))
        work = fingerprint({"run_dir": setup.run_dir})
        with tracked(tracking, f"pretrain {out.name}", work) as tracker:
            tracker.tags({"kind": "pretrain", "pretrain_run": out.name})
            tracker.params({"model": setup.model.model_dump(), "pretrain": setup.pretrain.model_dump()})
            tracker.dataset(index.name, index.sha256, str(index.root), "pretrain")
            handover = pretrain_and_export(setup, config, index, resources, tracker)
    say(f"encoder: {handover}")
