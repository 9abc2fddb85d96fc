"""Formulas for one data-parallel run on N GPUs: step, reading, start, failures. Numbers in, numbers out.

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


def broadcast_s(bytes_: float, messages: int, gpus: int, net_bytes_per_s: float) -> float:
    """From one GPU to all, `bytes_` in as many messages."""
    if gpus == 1:
        return 0.0
    bytes_per_s = c.NVLINK_BYTES_PER_S if nodes_of(gpus) == 1 else min(c.NVLINK_BYTES_PER_S, net_bytes_per_s)
    return bytes_ / (c.NET_EFFICIENCY * bytes_per_s) + messages * math.ceil(math.log2(gpus)) * c.HOP_S


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
    tell_s: float  # metrics and messages of the first rank, for which the others wait

    @property
    def local_s(self) -> float:
        return max(self.compute_s, self.launch_s)

    @property
    def total_s(self) -> float:
        return self.local_s + self.wait_s + self.comm_s + self.tell_s


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
    wait_s = (slowest - 1) * local_s
    tell_s = c.METRICS_S + c.POST_S * min(1, c.MESSAGES_PER_S * (local_s + wait_s + comm_s))
    return Step(compute_s, launch_s, wait_s, comm_s, tell_s)


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


def start_s(gpus: int) -> float:
    """Until all ranks of a group run: the figure of two, and Ray's actors."""
    return c.GROUP_START_S + gpus / c.ACTORS_PER_S


def mtbf_s(gpus: int, preemptible: bool) -> float:
    """Of the whole group: any rank's failure stops all."""
    rate = gpus / c.GPU_MTBF_S
    if preemptible:
        rate += nodes_of(gpus) * c.PREEMPTIONS_PER_NODE_AND_H / 3600
    return 1 / rate
