"""The stages between archive and encoder: each is done once for its inputs, and says why when it is done again.

OUT/archive-KEY    synthetic scans, when no archive is given
OUT/shards/FORMAT-KEY    OUT/pretrain/mae-KEY    OUT/jobs/NAME-KEY
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.console import progress_bar, say
from cluster.pretrain import run_pretraining
from cluster.session import Resources
from cluster.shards import build_shards
from cluster.stages import Stage
from cluster.tracked import tracked
from data_shards.archive.cases import relative
from data_shards.archive.layout import Archive
from data_shards.build import BuildConfig
from data_shards.formats.files import absolute, location, published
from data_shards.formats.index import ShardIndex
from data_shards.ingest import size_and_time
from data_shards.synthetic import write_archive
from maetrain.checkpoint.fingerprint import fingerprint
from maetrain.evaluate.pictures import reconstruction
from maetrain.recipes.config import RunConfig
from maetrain.tracking.system import SystemMetrics
from maetrain.tracking.tracker import Tracker
from maetrain.tracking.work import Tracking
from maetrain.train.config import PretrainSetup
from maetrain.train.export import export_encoder
from maetrain.train.picture import rebuilt_crop
from maetrain.train.resume import FREE
from maetrain.train.untrained import hand_over_untrained

Timings = dict[str, float]


@contextmanager
def timed(stage: Stage, timings: Timings) -> Iterator[None]:
    """Marks the stage finished unless it raises, and keeps how long it took."""
    started = time.perf_counter()
    yield
    seconds = time.perf_counter() - started
    stage.finish(seconds)
    timings[stage.name] = seconds


def make_archive(config: RunConfig, out: Path, timings: Timings) -> Path:
    """The synthetic archive of `config`, written once."""
    stage = Stage(out, "archive", config.synthetic.model_dump(mode="json"))
    say(f"archive: {stage.state()}")
    if not stage.is_finished:
        with timed(stage, timings):
            write_archive(stage.folder, config.synthetic)
    return stage.folder


def archive_inputs(archive: Archive) -> dict[str, tuple[int, int] | None]:
    """Names, sizes and times of an archive's files: what tells a changed archive from the same one."""
    root = archive.root
    paths = {p for case in archive.cases for p in (*case.image_paths, case.label_path) if p is not None}
    paths |= {p for p in (root / "dataset.json", root / "subjects.json") if p.is_file()}
    return {relative(p, root): size_and_time(p) for p in sorted(paths)}


def make_shards(archive: Archive, config: BuildConfig, out: Path, timings: Timings) -> ShardIndex:
    """The shards of an archive in the format of `config`."""
    inputs = {
        "files": archive_inputs(archive),
        "names": fingerprint({case.case: case.subject for case in archive.cases}),
        "build": config.model_dump(mode="json", exclude={"max_quarantined_share", "privacy"}),
    }
    stage = Stage(out / "shards", config.format, inputs)
    say(f"shards, {config.format}: {stage.state()}")
    if not stage.is_finished:
        with timed(stage, timings):
            build_shards(archive, stage.folder, config)
    index = ShardIndex.load(stage.folder)
    for bad in index.quarantined:
        say(f"  quarantined: {bad.reason}")
    return index


def fit_channels(config: RunConfig, index: ShardIndex) -> RunConfig:
    """The model with as many input channels as the shards have."""
    channels = len(index.channel_names)
    if config.model.in_channels == channels:
        return config
    say(f"model.in_channels = {channels}, for {', '.join(index.channel_names)}")
    return config.model_copy(update={"model": config.model.model_copy(update={"in_channels": channels})})


def make_setup(config: RunConfig, index: ShardIndex, pool: tuple[str, ...], run_dir: Path) -> PretrainSetup:
    return PretrainSetup(
        model=config.model,
        pretrain=config.pretrain,
        shards=absolute(index.root),
        pool_subjects=pool,
        run_dir=absolute(run_dir),
    )


def pretrain_stage(config: RunConfig, index: ShardIndex, pool: tuple[str, ...], out: Path) -> Stage:
    """All that the encoder depends on, the number of workers too: it changes the order of the sums."""
    inputs = {
        "shard_index_sha256": index.sha256,
        "pool_subjects": list(pool),
        "model": config.model.encoder_settings(),
        "pretrain": config.pretrain.model_dump(mode="json", exclude=set(FREE)),
        "workers": config.cluster.pretrain_workers,
    }
    return Stage(out / "pretrain", "mae", inputs)


def pretrain_and_export(
    setup: PretrainSetup, config: RunConfig, index: ShardIndex, resources: Resources, tracker: Tracker
) -> Path:
    """Pretrains in `setup.run_dir`, hands the encoder over there, and draws what it rebuilds."""
    run_dir = location(setup.run_dir)
    setup = setup.model_copy(update={"tracker_run_id": tracker.run_id})
    with progress_bar("pretraining") as bar, SystemMetrics(tracker):
        run_pretraining(setup, config.cluster, resources, bar, tracker)
    with published(run_dir / "handover") as folder:
        export_encoder(run_dir, folder)
        tracker.file(folder / "contract.json", "handover")
    with tempfile.TemporaryDirectory() as scratch:
        picture = Path(scratch) / "reconstruction.png"
        reconstruction(picture, *rebuilt_crop(run_dir, index, setup))
        tracker.file(picture, "reconstructions")
        (run_dir / picture.name).write_bytes(picture.read_bytes())
    return run_dir / "handover"


def make_encoder(
    config: RunConfig,
    index: ShardIndex,
    stage: Stage,
    pool: tuple[str, ...],
    resources: Resources,
    tracking: Tracking,
    timings: Timings,
) -> Path:
    """The pretraining stage, with a run of its own in the tracker; returns the handover's folder."""
    setup = make_setup(config, index, pool, stage.folder)
    say(f"pretraining: {stage.state()}")
    if stage.is_finished:
        tracking.adopt(stage.key)
        return stage.folder / "handover"
    with timed(stage, timings), tracked(tracking, "pretrain", stage.key) as tracker:
        tracker.tags({"kind": "pretrain", "pretrain_run": stage.folder.name})
        tracker.params({"model": setup.model.model_dump(), "pretrain": setup.pretrain.model_dump()})
        tracker.dataset(index.name, index.sha256, str(index.root), "pretrain")
        return pretrain_and_export(setup, config, index, resources, tracker)


def make_untrained(config: RunConfig, index: ShardIndex, out: Path) -> list[Path]:
    """A handover of an encoder of zero pretraining steps for each seed of the sweep: as `scratch` draws one for each.

    Were one draw shared by all seeds, its luck would look like a difference between the arms.
    """
    return [_untrained(config, index, out, seed) for seed in config.sweep.seeds]


def _untrained(config: RunConfig, index: ShardIndex, out: Path, seed: int) -> Path:
    """Written once for its settings."""
    settings = {"seed": seed, "mae": config.pretrain.mae.model_dump(mode="json")}
    inputs = {"shard_index_sha256": index.sha256, "model": config.model.encoder_settings(), **settings}
    stage = Stage(out / "pretrain", "untrained", inputs)
    if not stage.is_finished:
        with timed(stage, {}):
            hand_over_untrained(config.model, config.pretrain, index, seed, stage.folder / "handover")
    return stage.folder / "handover"
