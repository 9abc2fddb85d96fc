"""What one size needs, beside what there is: the nominal plan of a size, and its limits.

Nominal: MFU 0.25, eager launches, 400 Gb/s a GPU, 2 crops a GPU, ZeRO 2; checkpoints as in decision 0003, so training
waits for them and every rank reads all files at resume.
"""

from functools import cache
from typing import NamedTuple

from benchmarks import scale_constants as c
from benchmarks import scale_failures as failures
from benchmarks import scale_model as model
from benchmarks.scale_counts import Counts, count

STRAGGLER_STEPS = 2000

counted = cache(count)


@cache
def slowest_of(gpus: int, variation: float, seed: int) -> float:
    return failures.slowest_of(gpus, variation, STRAGGLER_STEPS, seed)


class Nominal(NamedTuple):
    """One size with the nominal assumptions."""

    gpus: int
    counts: Counts
    step: model.Step

    @property
    def crops_per_s(self) -> float:
        return self.gpus * c.MICRO_BATCH / self.step.total_s


def nominal(gpus: int, seed: int, net_bytes_per_s: float = c.FAST_NET_BYTES_PER_S) -> Nominal:
    counts = counted(c.MICRO_BATCH, False)
    slowest = slowest_of(gpus, c.STEP_VARIATION, seed)
    return Nominal(gpus, counts, model.step(counts, gpus, net_bytes_per_s=net_bytes_per_s, slowest=slowest))


def restart_s(gpus: int, way: model.Resume) -> float:
    """From a failure to the next useful step; a spare node stands by."""
    parameters = counted(c.MICRO_BATCH, False).parameters
    return c.DETECT_S + model.start_s(gpus) + model.resume_s(parameters, gpus, way) + c.FIRST_BATCH_S


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
    plan, slow = nominal(gpus, seed), nominal(gpus, seed, c.SLOW_NET_BYTES_PER_S)
    parameters, nodes = plan.counts.parameters, model.nodes_of(gpus)
    bytes_per_s, gets = plan.crops_per_s * model.crop_bytes(), plan.crops_per_s * model.gets_per_crop()
    way, save_s = model.resumes(parameters, gpus)[0], sum(model.save_s(parameters, gpus).values())
    allowed_s = c.STOP_SHARE * c.CHECKPOINT_EVERY * plan.step.total_s
    epoch_s = c.SCANS / plan.crops_per_s
    steps = c.RUN_CROPS / (gpus * c.MICRO_BATCH)
    mtbf_s = model.mtbf_s(gpus, preemptible=True)
    return [
        Need(
            "GPU memory, ZeRO 2", sum(model.memory_bytes(plan.counts, gpus, 2).values()) / 1e9, c.GPU_BYTES / 1e9, "GB"
        ),
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
        Need("checkpoint every 100 steps, at 5 % of the time", save_s, allowed_s, "s", True),
        Need("resume against the group's start", model.resume_s(parameters, gpus, way), model.start_s(gpus), "s"),
        Need("restart against MTBF, preemptible", restart_s(gpus, way), mtbf_s, "s"),
        Need(
            "start of the group, at 5 % of the run", model.start_s(gpus), c.STOP_SHARE * steps * plan.step.total_s, "s"
        ),
        Need("order of an epoch against the epoch", c.SCANS * c.ORDER_S_PER_SCAN, epoch_s, "s"),
        Need("points of a metric, every 5 steps", steps / c.LOG_EVERY, c.SERIES_POINTS, "points", True),
    ]
