"""`maetrain demo`: the main job, from an archive to the report, in one command."""

import os
import shlex
import sys
import time
from pathlib import Path

from cluster.comparison import compare_arms
from cluster.console import say
from cluster.gather import wait_for_gpus
from cluster.grid import Comparison
from cluster.pipeline import (
    Timings,
    fit_channels,
    make_archive,
    make_encoder,
    make_setup,
    make_shards,
    make_untrained,
    pretrain_stage,
)
from cluster.pretrain import check_setup, fit_workers
from cluster.reporting import check_encoder
from cluster.session import ray_session
from cluster.stages import LOCK
from cluster.storage import check_storage
from cluster.store import open_store, own_store
from cluster.tracked import tracked
from data_shards.archive.identity import read_identity
from data_shards.archive.layout import Archive, read_archive
from data_shards.errors import InputError
from data_shards.formats.files import absolute, locked
from maetrain.checkpoint.fingerprint import fingerprint
from maetrain.finetune.plan import pretrain_pool
from maetrain.recipes.config import SCRATCH, UNTRAINED, RunConfig
from maetrain.tracking.work import Tracking


def run_demo(config: RunConfig, data: Path | None, out: Path, address: str | None) -> Path:
    """Everything; returns the report's page. What is finished is kept, what depends on a change is redone."""
    timings: Timings = {}
    started = time.perf_counter()
    identity = read_identity(config.shards.privacy, os.environ)
    given = read_archive(data, identity) if data is not None else None  # a wrong path is said before anything is made
    with locked(out / LOCK):
        archive = given or read_archive(make_archive(config, out, timings), identity)
        persons = len({case.subject for case in archive.cases})
        say(f"{archive.name}: {len(archive.cases)} scans of {persons} persons in {archive.root}")
        page = _run(config, archive, out, address, timings)
    # in the environment's folder, which nobody may have activated
    words = [str(Path(sys.executable).with_name("maetrain")), "mlflow", "up", str(out / "mlflow"), "--store"]
    say(f"MLflow: {shlex.join([*words, own_store(out)])}")
    say(f"done in {time.perf_counter() - started:.0f} s")
    return page


def _run(config: RunConfig, archive: Archive, out: Path, address: str | None, timings: Timings) -> Path:
    with ray_session(address, config.cluster.object_store_mib) as resources:
        resources = wait_for_gpus(config.cluster, resources)
        check_storage(absolute(out), {str(archive.root): "--data"})
        index = make_shards(archive, config.shards.model_copy(update={"format": "zarr"}), out, timings)
        tar_index = make_shards(archive, config.shards.model_copy(update={"format": "webdataset"}), out, timings)
        config = fit_workers(fit_channels(config, index), resources)
        split = config.split.of(index)
        say(f"split: {len(split.test)} test, {len(split.monitor)} monitor, {len(split.train)} training persons")
        arms: dict[str, list[str]] = {arm: [] for arm in config.sweep.arms}
        if unknown := sorted({*arms} - {SCRATCH, "mae", UNTRAINED}):
            raise InputError(f"sweep.arms: the demo makes no encoder for {unknown[0]!r}; use `maetrain sweep` for it")
        pool = pretrain_pool(index, split)
        stage = pretrain_stage(config, index, pool, out)
        # what can be known to fail later fails now
        Comparison(config, index, archive, split, arms, {}, out).check()
        if "mae" in arms:
            check_setup(make_setup(config, index, pool, stage.folder), index.sha256, config.cluster, resources)

        root = open_store(out, None)
        what = {"archive": str(archive.root.resolve()), "index": tar_index.sha256}
        work = fingerprint(what | {"config": config.model_dump(mode="json")})
        with tracked(root, f"demo {archive.name}", work) as parent:
            tracking = Tracking(root.uri, root.experiment_id, parent.run_id)
            parent.tags({"kind": "demo"})
            parent.dataset(index.name, index.sha256, str(index.root), "pretrain")
            parent.dataset(tar_index.name, tar_index.sha256, str(tar_index.root), "finetune")
            if UNTRAINED in arms:
                arms[UNTRAINED] = [str(folder) for folder in make_untrained(config, tar_index, out)]
            if "mae" in arms:
                handover = make_encoder(config, index, stage, pool, resources, tracking, timings)
                check_encoder(tar_index, split, config, handover)
                arms["mae"] = [str(handover)]
            # labelled volumes come out of the other format: both are read for real
            comparison = Comparison(config, tar_index, archive, split, arms, {}, out, pretrains=True)
            return compare_arms(comparison, resources, parent, tracking, timings)
