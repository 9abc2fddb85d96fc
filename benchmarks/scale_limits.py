"""What one size needs, beside what there is: the nominal plan of a size, and its limits.

Nominal: MFU as measured, eager, 400 Gb/s a GPU, 2 crops a GPU, ZeRO 2, a checkpoint at the run's end, when the curve
is longest.
"""

from functools import cache
from typing import NamedTuple

from benchmarks import scale_constants as c
from benchmarks import scale_failures as failures
from benchmarks import scale_model as model
from benchmarks import scale_storage as storage
from benchmarks.scale_counts import CROP_DHW, RATIO, Counts, count
from maetrain.models.mae import MaeConfig
from maetrain.models.sizes import CONFIGS
from maetrain.train.config import PretrainConfig
from maetrain.train.memory import USABLE, MemoryEstimate, estimate

STRAGGLER_STEPS = 2000

counted = cache(count)


@cache
def slowest_of(gpus: int, variation: float, seed: int) -> float:
    return failures.slowest_of(gpus, variation, STRAGGLER_STEPS, seed)


class Plan(NamedTuple):
    """One size, its crops a GPU, and a step of it."""

    gpus: int
    crops: int  # a GPU and step
    counts: Counts
    step: model.Step

    @property
    def crops_per_s(self) -> float:
        return self.gpus * self.crops / self.step.total_s

    @property
    def steps(self) -> float:
        """Of the run."""
        return c.RUN_CROPS / (self.gpus * self.crops)

    @property
    def size(self) -> storage.Size:
        """Of the run's last checkpoint."""
        return storage.Size(self.counts.parameters, self.gpus, self.steps)


def plan_of(gpus: int, seed: int, crops: int = c.MICRO_BATCH, net_bytes_per_s: float = c.FAST_NET_BYTES_PER_S) -> Plan:
    counts = counted(crops, False)
    slowest = slowest_of(gpus, c.STEP_VARIATION, seed)
    return Plan(gpus, crops, counts, model.step(counts, gpus, net_bytes_per_s=net_bytes_per_s, slowest=slowest))


def memory(gpus: int, stage: int, crops: int = c.MICRO_BATCH) -> MemoryEstimate:
    """As the training itself estimates it before it starts; one reader a GPU."""
    config = PretrainConfig(
        mae=MaeConfig(mode="visible", ratio=RATIO),
        crop_DHW=CROP_DHW,
        global_batch=gpus * crops,
        micro_batch=crops,
        zero_stage=stage,
        precision="bf16",
        loader_workers=1,
    )
    return estimate(CONFIGS["synapse"](1), config, gpus, "cuda")


def restart_s(gpus: int, resume_s: float) -> float:
    """From a failure to the next useful step; a spare node stands by."""
    return c.DETECT_S + model.start_s(gpus) + resume_s + c.FIRST_BATCH_S


class Need(NamedTuple):
    """What a size needs of something, and what there is."""

    what: str
    need: float
    have: float
    unit: str
    is_setting: bool = False

    @property
    def ratio(self) -> float:
        return self.need / self.have


def needs(gpus: int, seed: int) -> list[Need]:
    """All limits of one size."""
    plan, slow = plan_of(gpus, seed), plan_of(gpus, seed, net_bytes_per_s=c.SLOW_NET_BYTES_PER_S)
    nodes, size = model.nodes_of(gpus), plan.size
    bytes_per_s, gets = plan.crops_per_s * model.crop_bytes(), plan.crops_per_s * model.gets_per_crop()
    stall_s, resume_s = sum(storage.stall_s(size).values()), sum(storage.resume_s(size).values())
    allowed_s = c.STOP_SHARE * c.CHECKPOINT_EVERY * plan.step.total_s
    epoch_s = c.SCANS / plan.crops_per_s
    mtbf_s = model.mtbf_s(gpus, preemptible=True)
    needed = memory(gpus, 2)
    host_bytes = min(gpus, c.GPUS_PER_NODE) * needed.host_bytes
    return [
        Need("GPU memory, ZeRO 2", needed.device_bytes / 1e9, USABLE * c.GPU_BYTES / 1e9, "GB"),
        Need("host memory of a node", host_bytes / 1e9, USABLE * c.NODE_MEMORY_BYTES / 1e9, "GB"),
        Need("CPU cores that read", plan.crops_per_s / nodes / model.loader_crops_per_s(), c.CORES_PER_NODE, "a node"),
        Need("reading from a node's own drives", bytes_per_s / nodes / 1e9, c.DRIVE_READ_BYTES_PER_S / 1e9, "GB/s"),
        Need("archive on a node's drives", c.SCANS * c.VOLUME_BYTES / 1e12, c.NODE_DRIVE_BYTES / 1e12, "TB"),
        Need("reading from the shared file system", bytes_per_s / 1e9, c.STORAGE_BYTES_PER_S / 1e9, "GB/s"),
        Need("requests to one bucket prefix", gets, c.GETS_PER_S, "GET/s"),
        Need(
            "communication, 400 Gb/s a GPU, against local work", plan.step.comm_s * 1e3, plan.step.local_s * 1e3, "ms"
        ),
        Need(
            "communication, 100 Gb/s a node, against local work", slow.step.comm_s * 1e3, slow.step.local_s * 1e3, "ms"
        ),
        Need("launches against arithmetic", plan.step.launch_s * 1e3, plan.step.compute_s * 1e3, "ms"),
        Need("global batch", gpus * c.MICRO_BATCH, c.PROVEN_BATCH, "crops"),
        Need(
            f"stall of a checkpoint, every {c.CHECKPOINT_EVERY} steps, at 5 % of the time",
            stall_s,
            allowed_s,
            "s",
            is_setting=True,
        ),
        Need("curve in a checkpoint against the state", size.curve_bytes / 1e9, size.state_bytes / 1e9, "GB"),
        Need("resume against the group's start", resume_s, model.start_s(gpus), "s"),
        Need(
            "resume out of a bucket against the group's start",
            resume_s + storage.bucket_s(size),
            model.start_s(gpus),
            "s",
        ),
        Need("restart against MTBF, preemptible", restart_s(gpus, resume_s), mtbf_s, "s"),
        Need(
            "start of the group, at 5 % of the run",
            model.start_s(gpus),
            c.STOP_SHARE * plan.steps * plan.step.total_s,
            "s",
        ),
        Need("order of an epoch against the epoch", c.SCANS * c.ORDER_S_PER_SCAN, epoch_s, "s"),
    ]
