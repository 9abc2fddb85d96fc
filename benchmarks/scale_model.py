"""Formulas for one data-parallel run on N GPUs: step, memory, reading, checkpoint, resume. Numbers in, numbers out.

Collectives are hierarchical: a ring over NVLink inside a node, then each GPU with its peers of the other nodes over its
share of the node's network. A ring's reduce-scatter or all-gather of S bytes over n members takes (n - 1) / n * S /
bandwidth + (n - 1) * latency; an all-reduce is both, or across nodes NCCL's double binary tree where that is shorter:
2 * S / bandwidth + 2 * log2(n) * latency.
"""

import math
from typing import NamedTuple

from benchmarks import scale_constants as c
from benchmarks.scale_counts import CROP_DHW, Counts

CHUNK = 32  # voxels a side
STATE_BYTES = 12  # a parameter's fp32 weight and two moments


def nodes_of(gpus: int) -> int:
    return -(-gpus // c.GPUS_PER_NODE)


def ring_s(bytes_: float, members: int, bytes_per_s: float) -> float:
    """A reduce-scatter, or an all-gather."""
    return (members - 1) / members * bytes_ / (c.NET_EFFICIENCY * bytes_per_s) + (members - 1) * c.HOP_S


def tree_s(bytes_: float, members: int, bytes_per_s: float) -> float:
    """An all-reduce."""
    return 2 * bytes_ / (c.NET_EFFICIENCY * bytes_per_s) + 2 * math.ceil(math.log2(members)) * c.HOP_S


def gather_s(bytes_: float, gpus: int, net_bytes_per_s: float) -> float:
    """A hierarchical all-gather, or reduce-scatter; `net_bytes_per_s`: of a node, shared by its GPUs' peers."""
    local = min(gpus, c.GPUS_PER_NODE)
    return ring_s(bytes_, local, c.NVLINK_BYTES_PER_S) + ring_s(bytes_, nodes_of(gpus), net_bytes_per_s)


def all_reduce_s(bytes_: float, gpus: int, net_bytes_per_s: float) -> float:
    """A hierarchical all-reduce."""
    local, nodes = min(gpus, c.GPUS_PER_NODE), nodes_of(gpus)
    across_s = min(2 * ring_s(bytes_, nodes, net_bytes_per_s), tree_s(bytes_, nodes, net_bytes_per_s))
    return 2 * ring_s(bytes_, local, c.NVLINK_BYTES_PER_S) + (across_s if nodes > 1 else 0.0)


def sent_bytes(parameters: int, gpus: int, stage: int) -> float:
    """What a GPU sends a step, bf16, in phases of (n - 1) / n of all parameters.

    Stage 0: an all-reduce is 2 phases. Stages 1 and 2: DeepSpeed 0.19.8 all-reduces its buckets, too
    (use_multi_rank_bucket_allreduce), and gathers the weights: 3. Stage 3: gather, gather again, reduce-scatter: 3.
    """
    return (2 if stage == 0 else 3) * 2 * parameters * (gpus - 1) / gpus


class Step(NamedTuple):
    """Seconds of one optimizer step on N GPUs, and how its time is made up."""

    compute_s: float  # arithmetic
    launch_s: float  # the CPU launches kernels; the longer of the two counts
    wait_s: float  # for the slowest rank
    comm_s: float  # not hidden behind the backward pass
    queue_s: float

    @property
    def local_s(self) -> float:
        return max(self.compute_s, self.launch_s)

    @property
    def total_s(self) -> float:
        return self.local_s + self.wait_s + self.comm_s + self.queue_s


def step(
    counts: Counts,
    gpus: int,
    mfu: float = c.MFU,
    net_bytes_per_s: float = c.FAST_NET_BYTES_PER_S,
    slowest: float = 1.0,
    bucket_elements: int = c.BUCKET_ELEMENTS,
    kernel_s: float = c.LAUNCH_S,
) -> Step:
    """ZeRO 1 or 2. Gradients go in buckets while the backward pass goes on; the last bucket can't hide.

    `slowest`: the slowest rank's time over the mean; `kernel_s`: CPU time a launched kernel, 0 = hidden.
    """
    compute_s, launch_s = counts.flops / (mfu * c.PEAK_FLOPS_PER_S), counts.kernels * kernel_s
    local_s = max(compute_s, launch_s)
    comm_s = 0.0
    if gpus > 1:
        buckets = math.ceil(counts.parameters / bucket_elements)
        bucket_s = all_reduce_s(2 * counts.parameters / buckets, gpus, net_bytes_per_s)
        exposed_s = max(bucket_s, buckets * bucket_s - local_s * 2 / 3)  # two thirds of a step are backward
        comm_s = exposed_s + gather_s(2 * counts.parameters, gpus, net_bytes_per_s)
    return Step(compute_s, launch_s, (slowest - 1) * local_s, comm_s, c.QUEUE_S)


def memory_bytes(counts: Counts, gpus: int, stage: int) -> dict[str, float]:
    """Of one GPU, bf16 with fp32 master; `counts` has the activations of the micro batch."""
    parameters = counts.parameters
    buckets = 2 * 2 * min(c.BUCKET_ELEMENTS, parameters) if gpus > 1 else 0  # two, for the overlap
    return {
        "weights": 2 * parameters / (gpus if stage == 3 else 1),
        "gradients": 2 * parameters / (gpus if stage >= 2 else 1),
        "master and moments": STATE_BYTES * parameters / (gpus if stage >= 1 else 1),
        "buckets": buckets,
        "activations": counts.saved_bytes,
        "other": c.OTHER_GPU_BYTES,
    }


def chunks_of_crop() -> float:
    """Expected number of 32^3 chunks that a crop at a random place touches."""
    return math.prod((side - 1) / CHUNK + 1 for side in CROP_DHW)


def crop_bytes() -> float:
    """What is read for one crop, compressed, in whole chunks."""
    return chunks_of_crop() * CHUNK**3 * c.STORED_BYTES_PER_VOXEL


def gets_per_crop() -> float:
    """One request a row of chunks. shards-cpu.md, s3: ct has 11.0, 16.0 and 22.3 for at most 9, 16 and 25 rows."""
    return math.prod(side // CHUNK + 1 for side in CROP_DHW[:2])


def loader_crops_per_s() -> float:
    """Of one core."""
    return c.LOADER_VOXELS_PER_S / math.prod(CROP_DHW)


def node_epoch_share(nodes: int) -> float:
    """Share of the archive's bytes that one node reads in an epoch of one crop a scan."""
    return crop_bytes() / c.VOLUME_BYTES / nodes


def save_s(parameters: int, gpus: int) -> dict[str, float]:
    """A checkpoint while training waits (decision 0003). Each rank writes one file of its part."""
    total, nodes = STATE_BYTES * parameters, nodes_of(gpus)
    return {
        "write": max(total / c.STORAGE_BYTES_PER_S, total / nodes / c.NODE_STORAGE_BYTES_PER_S) + c.RANK_FILE_S,
        "create files": gpus / c.FILES_PER_S,
        "hash": total / gpus / c.HASH_BYTES_PER_S,
        "commit": c.COMMIT_S + 2 * (gpus - 1) * c.HOP_S,
        "remove the old one": gpus * c.REMOVE_S,
    }


def stall_s(parameters: int, gpus: int) -> float:
    """What training waits for where a thread writes the checkpoint: the copy to the CPU."""
    return STATE_BYTES * parameters / gpus / c.HOST_COPY_BYTES_PER_S


class Resume(NamedTuple):
    """Bytes and files that all ranks together ask the storage for, and bytes that each rank puts together."""

    name: str
    bytes_: float
    opens: float
    bytes_per_rank: float


def resumes(parameters: int, gpus: int) -> list[Resume]:
    """Ways to read a checkpoint of as many ranks. ZeRO 1 and 2 want all weights (4 of 12 bytes) on every rank."""
    total, weights = STATE_BYTES * parameters, 4 * parameters
    return [
        Resume("every rank, all files", total * gpus, gpus**2, total),
        Resume("every rank, all weights and its moments", weights * gpus + total - weights, gpus**2, weights),
        Resume("once a node", total * nodes_of(gpus), gpus * nodes_of(gpus), total),
        Resume("every rank its part, weights gathered", total, gpus, total / gpus),
    ]


def resume_s(parameters: int, gpus: int, way: Resume) -> float:
    """The first rank's check of all hashes, then the reading, then the putting together."""
    read_s = max(way.bytes_ / c.STORAGE_BYTES_PER_S, way.bytes_ / nodes_of(gpus) / c.NODE_STORAGE_BYTES_PER_S)
    opens_s = way.opens / c.OPENS_PER_S + way.opens / gpus * c.OPEN_S
    check_s = STATE_BYTES * parameters / c.HASH_BYTES_PER_S + gpus / c.OPENS_PER_S
    return check_s + read_s + opens_s + way.bytes_per_rank / c.ASSEMBLE_BYTES_PER_S


def start_s(gpus: int) -> float:
    """Until all ranks of a group run: the figure of two, and Ray's actors."""
    return c.GROUP_START_S + gpus / c.ACTORS_PER_S


def mtbf_s(gpus: int, preemptible: bool) -> float:
    """Of the whole group: any rank's failure stops all."""
    rate = gpus / c.GPU_MTBF_S
    if preemptible:
        rate += nodes_of(gpus) * c.PREEMPTIONS_PER_NODE_AND_H / 3600
    return 1 / rate
