"""The pretraining loop under Ray Train.

Ray Train starts the ranks, makes their process group and restarts them; the loop itself
(`maetrain.train.pretrain`) resumes from the newest committed checkpoint in its folder. Ray's own checkpoint
registration is not used: it registers late, so a worker that dies after `report()` would resume from the
checkpoint before (docs/decisions/0004).
"""

import shutil
import signal
import threading
import uuid
from pathlib import Path

import ray
from ray.train import FailureConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.queue import Empty, Queue

from cluster.console import Bar, say
from cluster.session import Resources
from data_shards.errors import InputError
from maetrain.masking.units import MaskUnitGrid
from maetrain.recipes.config import ClusterConfig, RunConfig
from maetrain.tracking.tracker import Tracker
from maetrain.train.config import PretrainSetup
from maetrain.train.group import joined_group
from maetrain.train.pretrain import StepInfo, pretrain
from maetrain.train.resume import check_bound


def fit_workers(config: RunConfig, resources: Resources) -> RunConfig:
    """One rank a GPU where there are GPUs but fewer than ranks asked for; the global batch stays, by accumulation."""
    wanted, gpus = config.cluster.pretrain_workers, int(resources.gpus)
    if not 0 < gpus < wanted:
        return config
    say(f"{gpus} GPU{'s' if gpus > 1 else ''} here: {gpus} instead of {wanted} pretraining workers")
    return config.model_copy(update={"cluster": config.cluster.model_copy(update={"pretrain_workers": gpus})})


def check_setup(setup: PretrainSetup, shard_index_sha256: str, cluster: ClusterConfig, resources: Resources) -> None:
    """All mistakes that can be known before any worker starts. Raises InputError."""
    workers, cpus_per_worker = cluster.pretrain_workers, cluster.cpus_per_worker
    check_bound(setup, shard_index_sha256)
    grid = MaskUnitGrid(setup.pretrain.crop_DHW, setup.pretrain.mae.unit_of(setup.model))
    grid.num_hidden(setup.pretrain.mae.ratio)
    setup.pretrain.accumulation(workers)
    if workers * cpus_per_worker > resources.cpus:
        raise InputError(
            f"cluster.pretrain_workers = {workers} with {cpus_per_worker:g} CPU cores each need more than the "
            f"{resources.cpus:g} there are; use cluster.cpus_per_worker={resources.cpus / workers:.2g}"
        )


def run_pretraining(
    setup: PretrainSetup,
    cluster: ClusterConfig,
    resources: Resources,
    bar: Bar,
    tracker: Tracker,
) -> None:
    """Trains to the end in a Ray Train group; the results are in `setup.run_dir`."""
    workers = cluster.pretrain_workers
    use_gpu = resources.gpus >= workers
    bar.start(setup.pretrain.steps)
    messages = Queue()
    ray_files = Path(setup.run_dir).resolve() / "ray"
    listener = _Listener(messages, setup.pretrain.log_every, bar, tracker)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"setup": setup.model_dump_json(), "messages": messages},
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": cluster.cpus_per_worker, "GPU": int(use_gpu)},
        ),
        run_config=ray.train.RunConfig(
            # a fresh name: Ray would resume whatever ran under a reused one
            name=f"pretrain-{uuid.uuid4().hex[:8]}",
            storage_path=str(ray_files),
            failure_config=FailureConfig(max_failures=cluster.max_failures),
        ),
    )
    listener.start()
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit()
    except SystemExit:
        # Ray aborts the group at Ctrl-C, and then leaves the program without a word
        raise KeyboardInterrupt from None
    except ray.train.TrainingFailedError as error:
        raise _users_mistake(error) or error from None
    finally:
        shutil.rmtree(ray_files, ignore_errors=True)  # only of use to Ray's own way of resuming
        # fit() leaves its handler behind, which would abort a group that is long gone
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, on_interrupt)
        listener.stop()
        messages.shutdown()


def _worker(config: dict) -> None:
    """One rank."""
    messages: Queue = config["messages"]
    setup = PretrainSetup.model_validate_json(config["setup"])
    with joined_group() as who:
        pretrain(setup, who, on_step=messages.put_nowait, say=messages.put_nowait)


def _users_mistake(error: BaseException) -> InputError | None:
    """The InputError inside a worker's failure, if that is what it was."""
    failures = getattr(error, "worker_failures", {}) or {}
    for failure in failures.values():
        seen: BaseException | None = failure
        while seen is not None:
            if isinstance(seen, InputError):
                return InputError(str(seen))
            seen = getattr(seen, "cause", None) or seen.__cause__
    return None


class _Listener(threading.Thread):
    """Takes what the first rank says to bar and tracker. A step repeated after any restart is logged once."""

    def __init__(self, messages: Queue, log_every: int, bar: Bar, tracker: Tracker) -> None:
        super().__init__(daemon=True)
        self.messages, self.log_every = messages, log_every
        self.bar, self.tracker = bar, tracker
        self.last_step, self.stopping = tracker.last_step("loss"), threading.Event()

    def run(self) -> None:
        while True:
            try:
                message = self.messages.get(timeout=0.5)
            except Empty:
                if self.stopping.is_set():
                    return
                continue
            if isinstance(message, StepInfo):
                self._step(message)
            else:
                say(f"  {message}")

    def _step(self, info: StepInfo) -> None:
        self.bar.to(info.step, f"loss {info.loss:.3f} {info.volumes_per_s:.1f} crops/s")
        if info.step > self.last_step and (info.step % self.log_every == 0 or info.step == info.steps):
            metrics = {
                "loss": info.loss,
                "learning_rate": info.learning_rate,
                "gradient_norm": info.gradient_norm,
                "volumes_per_s": info.volumes_per_s,
                "step_s": info.step_s,
                "data_wait_share": info.data_wait_s / info.step_s,
                "replaced_samples": float(info.num_replaced),
            }
            self.tracker.metrics(metrics, info.step)
        self.last_step = max(self.last_step, info.step)

    def stop(self) -> None:
        self.stopping.set()
        self.join(timeout=10)
