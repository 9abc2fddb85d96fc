"""The pretraining loop under Ray Train.

Ray Train starts the ranks, makes their process group and starts them again; the loop itself
(`maetrain.train.pretrain`) goes on from the newest committed checkpoint in its folder. Ray's own checkpoint
registration is not used: it registers late, so a worker that dies after `report()` would resume from the
checkpoint before (docs/decisions/0004).
"""

import shutil
import threading
import uuid

import pyarrow.fs
import ray
from ray.train.torch import TorchTrainer
from ray.train.v2.api.config import FailureConfig, ScalingConfig
from ray.train.v2.api.config import RunConfig as RayRunConfig
from upath import UPath

from cluster.console import Bar, say
from cluster.controller import callbacks
from cluster.desk import open_desk
from cluster.progress import Progress
from cluster.rank import run_rank
from cluster.session import Resources
from cluster.signals import gentle_stop
from data_shards.errors import InputError
from data_shards.formats.files import location
from maetrain.masking.units import MaskUnitGrid
from maetrain.recipes.config import ClusterConfig, RunConfig
from maetrain.tracking.tracker import Tracker
from maetrain.train.config import PretrainSetup
from maetrain.train.memory import estimate
from maetrain.train.resume import check_bound
from maetrain.train.wishes import Stopped

_COLLECT_EVERY_S = 0.2


def fit_workers(config: RunConfig, resources: Resources) -> RunConfig:
    """One rank a GPU where there are GPUs but fewer than ranks asked for; the global batch stays, by accumulation."""
    (fewest, most), gpus = config.cluster.workers, int(resources.gpus)
    if not 0 < gpus < fewest:
        return config
    say(f"{gpus} GPU{'s' if gpus > 1 else ''} here: {gpus} instead of {fewest} pretraining workers")
    workers = gpus if fewest == most else (gpus, most)
    return config.model_copy(update={"cluster": config.cluster.model_copy(update={"pretrain_workers": workers})})


def check_setup(setup: PretrainSetup, shard_index_sha256: str, cluster: ClusterConfig, resources: Resources) -> None:
    """All mistakes that can be known before any worker starts. Raises InputError."""
    (fewest, most), cpus_per_worker = cluster.workers, cluster.cpus_per_worker
    check_bound(setup, shard_index_sha256)
    grid = MaskUnitGrid(setup.pretrain.crop_DHW, setup.pretrain.mae.unit_of(setup.model))
    grid.num_hidden(setup.pretrain.mae.ratio)
    setup.pretrain.accumulation(most)
    if fewest * cpus_per_worker > resources.cpus:
        raise InputError(
            f"cluster.pretrain_workers = {fewest} with {cpus_per_worker:g} CPU cores each need more than the "
            f"{resources.cpus:g} there are; use cluster.cpus_per_worker={resources.cpus / fewest:.2g}"
        )


def run_pretraining(
    setup: PretrainSetup,
    cluster: ClusterConfig,
    resources: Resources,
    bar: Bar,
    tracker: Tracker,
) -> None:
    """Trains to the end in a Ray Train group; the results are in `setup.run_dir`.

    Raises InputError for a user's mistake that the ranks found, Stopped after SIGTERM or Ctrl-C.
    """
    fewest, most = cluster.workers
    use_gpu = resources.gpus >= fewest
    desk = open_desk(cluster.max_failures)
    run_dir = location(setup.run_dir)
    ray_files, file_system = run_dir / "ray", None
    if isinstance(ray_files, UPath):  # Ray's own client for buckets would not know the endpoint that ours is told
        file_system = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(ray_files.fs))
    trainer = TorchTrainer(
        run_rank,
        train_loop_config={"setup": setup.model_dump_json(), "desk": desk},
        scaling_config=ScalingConfig(
            num_workers=most if fewest == most else (fewest, most),
            use_gpu=use_gpu,
            resources_per_worker={"CPU": cluster.cpus_per_worker, "GPU": int(use_gpu)},
            elastic_resize_monitor_interval_s=cluster.resize_check_s,
        ),
        run_config=RayRunConfig(  # type: ignore[arg-type]  # typed as the class of Ray Train's first version
            # a fresh name: Ray would resume whatever ran under a reused one
            name=f"pretrain-{uuid.uuid4().hex[:8]}",
            storage_path=ray_files.path if isinstance(ray_files, UPath) else str(ray_files),
            storage_filesystem=file_system,
            # the desk counts failures, those in a row without a checkpoint between them
            failure_config=FailureConfig(max_failures=-1),
            callbacks=callbacks(desk, cluster.grace_s),
        ),
    )
    for line in estimate(setup.model, setup.pretrain, most, "cuda" if use_gpu else "cpu").lines():
        say(f"  {line.strip()}")
    progress = Progress(setup.pretrain.steps, setup.pretrain.log_every, bar, tracker)
    training = _Training(trainer)
    try:
        with gentle_stop(lambda reason: desk.ask.remote(reason, stop=True), cluster.grace_s) as signal_number:
            training.start()
            is_running = True
            while is_running:
                training.join(_COLLECT_EVERY_S)
                is_running = training.is_alive()  # asked before collecting: what came last is collected, too
                for message in ray.get(desk.collect.remote()):
                    progress.hear(message)
            refusal, stopped = ray.get(desk.endings.remote())
    except (ray.exceptions.RayActorError, ray.exceptions.RaySystemError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"the Ray cluster is gone ({first}): start it again; the same command goes on from the newest checkpoint"
        ) from None
    finally:
        if file_system is None:
            shutil.rmtree(ray_files, ignore_errors=True)  # only of use to Ray's own way of resuming
    if refusal:
        raise InputError(refusal)
    if stopped:
        raise Stopped(stopped, signal_number())
    if training.error:
        raise training.error


class _Training(threading.Thread):
    """fit() beside the main thread, which stays free for signals: in the main thread Ray would abort at Ctrl-C."""

    def __init__(self, trainer: TorchTrainer) -> None:
        super().__init__(daemon=True)
        self.trainer = trainer
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.trainer.fit()
        except Exception as error:
            self.error = error
