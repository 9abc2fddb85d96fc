"""The memory each rank of a pretraining run will need, known before it starts and without allocating any of it.

Model states follow from the number of parameters and what DeepSpeed 0.19.8 keeps of each. Activations are counted
(`maetrain.train.activations`; a second for 150 M parameters and crops of 128^3). What a process needs beside that is
measured (benchmarks/training.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, prod
from pathlib import Path
from typing import Literal, NamedTuple

import psutil
import torch

from data_shards.errors import InputError
from data_shards.loading.pretrain import CACHE_BYTES
from maetrain.models.config import NNFormerConfig
from maetrain.models.mae import MaeConfig, MaskedAutoencoder
from maetrain.train.activations import activation_bytes
from maetrain.train.config import PretrainConfig
from maetrain.train.engine import BUCKET_ELEMENTS, PERSISTENT_ELEMENTS

DeviceType = Literal["cpu", "cuda"]

GIB = 2**30
MASTER, MOMENTS = 4, 8  # bytes of a parameter: an fp32 copy, and AdamW's two fp32 moments
# Private memory of a rank beside its tensors on 2 cores of a Xeon: 320 MiB once torch, DeepSpeed and Ray are imported,
# the rest kernels' caches and what malloc keeps back after the first steps.
HOST_PROCESS_BYTES = 500 * 2**20
# A reader process of the loader shares its parent's memory; its own is the index it walks and a crop under work.
READER_BYTES = 100 * 2**20
# TODO(gpu): an assumption, not measured here: CUDA context, cuBLAS and cuDNN workspaces, NCCL's channels.
CUDA_PROCESS_BYTES = GIB
# The share of what is free that an estimate may take; allocators round up and leave gaps.
USABLE = 0.95
# DeepSpeed without ZeRO joins gradients of up to this many elements in a copy, and sums that over the ranks
_JOINED_ELEMENTS = 500_000_000
# DeepSpeed's max_live_parameters and max_reuse_distance: what ZeRO 3 has gathered it keeps, until it is more than this
_LIVE_ELEMENTS = 1_000_000_000


class States(NamedTuple):
    """Bytes of the model's states on one rank."""

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        return sum(self)


def states(parameters: int, world_size: int, stage: int, weight_bytes: int = 4) -> States:
    """ZeRO's sharding (Rajbhandari et al. 2020, arXiv:1910.02054, figure 1) with what DeepSpeed keeps of a parameter.

    Weight and gradient in `weight_bytes` (4 fp32, 2 bf16), AdamW's moments in fp32. From stage 1 on there is a master
    copy in fp32 too, also of weights that are fp32 already: 20 bytes instead of 16 before they are shared out.
    """
    mine = ceil(parameters / world_size)
    return States(
        weights=weight_bytes * (mine if stage >= 3 else parameters),
        gradients=weight_bytes * (mine if stage >= 2 else parameters),
        optimizer=(MASTER + MOMENTS) * mine if stage >= 1 else MOMENTS * parameters,
    )


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one rank, part by part, and the run they are of."""

    model: NNFormerConfig
    config: PretrainConfig
    world_size: int
    device_type: DeviceType
    parameters: int
    weights: int
    gradients: int
    optimizer: int  # on the device
    activations: int  # the most that a micro-batch's forward and backward pass hold at a time
    buffers: int  # the most that reducing, gathering and updating hold beside
    offloaded: int  # master weights, moments and gradients in host memory
    start: int  # the network as it is built, on the host first
    snapshot: int  # this rank's part of a checkpoint, while it is written
    loader: int

    @property
    def _training(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.buffers

    @property
    def device_bytes(self) -> int:
        """On a GPU; 0 where training is in host memory."""
        return 0 if self.device_type == "cpu" else max(self._training, self.start) + CUDA_PROCESS_BYTES

    @property
    def host_bytes(self) -> int:
        training = self._training if self.device_type == "cpu" else 0
        return HOST_PROCESS_BYTES + self.loader + max(training + self.offloaded + self.snapshot, self.start)

    def lines(self) -> list[str]:
        """What a person may want to know, of a rank."""
        parts = {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "activations": self.activations,
            "buffers": self.buffers,
            "offloaded": self.offloaded,
            "snapshot": self.snapshot,
            "loader": self.loader,
        }
        named = ", ".join(f"{name} {_amount(part)}" for name, part in parts.items() if part)
        total = f"{_amount(self.host_bytes)} of host memory"
        ranks = f"{self.world_size} ranks without GPUs"
        if self.device_bytes:
            ranks, total = f"{self.world_size} ranks", f"{_amount(self.device_bytes)} of GPU memory, {total}"
        return [f"{self.parameters / 1e6:.1f} M parameters on {ranks}: each {total}", f"  {named}"]


def _amount(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f} GiB" if num_bytes >= 0.1 * GIB else f"{num_bytes / 2**20:.1f} MiB"


def estimate(model: NNFormerConfig, config: PretrainConfig, world_size: int, device_type: DeviceType) -> MemoryEstimate:
    """What each of `world_size` ranks will need at its peak. InputError for settings that don't fit each other."""
    stage, offload = config.zero_stage, config.offload
    weight_bytes = 2 if config.precision == "bf16" else 4
    sizes = _parameter_sizes(model, config.mae)
    parameters, mine = sum(sizes), ceil(sum(sizes) / world_size)
    accumulates = config.accumulation(world_size) > 1
    batch = min(config.micro_batch, ceil(config.global_batch / world_size))
    activations = activation_bytes(model, config.mae, config.crop_DHW, batch, config.precision)

    held = states(parameters, world_size, stage, weight_bytes)
    weights, gradients, optimizer, offloaded = held.weights, held.gradients, held.optimizer, 0
    if stage == 2 and accumulates:
        gradients *= 2  # the sum so far, and that of the pass
    if stage == 3 and world_size > 1:
        weights += weight_bytes * sum(n for n in sizes if n <= PERSISTENT_ELEMENTS)
    if offload:
        # the partition of the gradients in fp32; and in the weights' type for what goes to and fro
        offloaded = held.optimizer + (4 + weight_bytes) * mine + weight_bytes * max(sizes)
        if stage >= 2:
            gradients = 0
        if accumulates:
            offloaded += weight_bytes * mine
        optimizer = weight_bytes * max(sizes) if stage < 3 else 0

    crop_bytes = model.in_channels * prod(config.crop_DHW) * batch * 2  # as stored
    readers = config.loader_workers
    return MemoryEstimate(
        model=model,
        config=config,
        world_size=world_size,
        device_type=device_type,
        parameters=parameters,
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations,
        buffers=_buffers(config, sizes, world_size, weight_bytes, activations, gradients, device_type),
        offloaded=offloaded,
        start=4 * parameters,
        snapshot=(MASTER + MOMENTS) * mine,
        loader=(2 * readers + 4) * crop_bytes + readers * READER_BYTES if readers else CACHE_BYTES + 2 * crop_bytes,
    )


def _buffers(
    config: PretrainConfig,
    sizes: tuple[int, ...],
    world_size: int,
    weight_bytes: int,
    activations: int,
    gradients: int,
    device_type: DeviceType,
) -> int:
    """What is on the device beside states and activations, at the moment when all together is most."""
    stage, many, on_gpu = config.zero_stage, world_size > 1, device_type == "cuda"
    weights = weight_bytes * sum(sizes)
    if stage == 0:  # gradients are joined after the backward pass
        return max(min(4 * _JOINED_ELEMENTS, weights) * many - activations, 0)
    filled = min(weight_bytes * BUCKET_ELEMENTS, weights)
    bucket = weight_bytes * BUCKET_ELEMENTS if on_gpu else filled  # a CPU's takes the memory it is filled to
    # a parameter that is larger than the bucket is reduced alone
    alone = weight_bytes * max(sizes) if max(sizes) > BUCKET_ELEMENTS else 0
    joined = max(filled, alone) * many
    overlaps = config.overlap_comm and on_gpu and many
    if stage == 3:
        backward = bucket + alone + 2 * joined + min(weight_bytes * _LIVE_ELEMENTS, weights) * many
    elif stage == 2 or overlaps:
        backward = bucket * (1 + overlaps) + alone + joined
    else:  # after the backward pass, out of gradients that are given back one after another
        backward = bucket * on_gpu + max(joined - activations, 0)
    update = 0 if config.offload else 4 * ceil(sum(sizes) / world_size)  # the gradients as AdamW gets them
    # gloo gathers the new weights into a copy, when activations and gradients are gone
    gathered = 0 if on_gpu or stage == 3 else weights * many - gradients
    return max(backward, update - activations, gathered - activations)


@lru_cache(maxsize=64)
def _parameter_sizes(model: NNFormerConfig, mae: MaeConfig) -> tuple[int, ...]:
    with torch.device("meta"):
        return tuple(p.numel() for p in MaskedAutoencoder(model, mae).parameters())


def check(needed: MemoryEstimate, free_device_bytes: int, free_host_bytes: int, ranks_on_node: int) -> None:
    """InputError where a node with `ranks_on_node` ranks, a GPU each, has too little; it names a way out."""

    def fits(what: MemoryEstimate) -> bool:
        return (
            what.device_bytes <= USABLE * free_device_bytes
            and ranks_on_node * what.host_bytes <= USABLE * free_host_bytes
        )

    if fits(needed):
        return
    if needed.device_bytes > USABLE * free_device_bytes:
        lack = f"each GPU needs {needed.device_bytes / GIB:.2f} GiB, free are {free_device_bytes / GIB:.2f}"
    else:
        ranks = f"{ranks_on_node} ranks" if ranks_on_node > 1 else "one rank"
        lack = (
            f"{ranks} on this machine need {ranks_on_node * needed.host_bytes / GIB:.2f} GiB of host memory, free are "
            f"{free_host_bytes / GIB:.2f}"
        )
    way_out = next((words for words, what in _lighter(needed) if fits(what)), None)
    advice = f"use {way_out}" if way_out else "use a smaller pretrain.crop_DHW or model, or a machine with more memory"
    raise InputError(f"{lack} ({USABLE:.0%} of it may be used); {advice}")


def _lighter(needed: MemoryEstimate) -> Iterator[tuple[str, MemoryEstimate]]:
    """Settings that need less, each with its words; what costs least comes first."""
    model, config = needed.model, needed.config
    parts = ("stem", *range(model.num_stages))
    plain = {"zero_stage": config.zero_stage, "offload": config.offload}
    shards = [plain, plain | {"zero_stage": 3}]
    if needed.device_type == "cuda":
        shards += [
            plain | {"zero_stage": max(config.zero_stage, 1), "offload": True},
            {"zero_stage": 3, "offload": True},
        ]
    micro_batch = config.micro_batch
    while True:
        for recompute in dict.fromkeys((model.recompute, parts)):
            for settings in shards:
                changed = {**settings, "micro_batch": micro_batch}
                words = [f"pretrain.{k}={str(v).lower()}" for k, v in changed.items() if v != getattr(config, k)]
                if recompute != model.recompute:
                    words.append(f"model.recompute=[{','.join(map(str, parts))}]")
                if words:
                    lighter = model.model_copy(update={"recompute": recompute})
                    run = config.model_copy(update=changed)
                    yield " ".join(words), estimate(lighter, run, needed.world_size, needed.device_type)
        if micro_batch == 1:
            return
        micro_batch //= 2


def device_type(device: torch.device) -> DeviceType:
    return "cuda" if device.type == "cuda" else "cpu"


def free_memory(device: torch.device) -> tuple[int, int]:
    """Bytes that are free now: on `device`, and in host memory for this process (its container's limit counts)."""
    host = psutil.virtual_memory().available
    limit = container_free_bytes(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    host = host if limit is None else min(host, limit)
    return (torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else host), host


def container_free_bytes(membership: Path, mounted: Path) -> int | None:
    """What the memory control groups that hold this process leave it, v2 or v1; None where there is no limit.

    `membership`: /proc/self/cgroup, `mounted`: /sys/fs/cgroup. Cached file contents count as free.
    """
    try:
        groups = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        return None
    free = []
    for _, controllers, path in groups:
        if controllers == "":
            top, limit, usage, cached = mounted, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            top, cached = mounted / "memory", "total_inactive_file"
            limit, usage = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):  # inside a container the path may lead nowhere, its top is the group
            if top not in (folder, *folder.parents):
                break
            try:
                most = (folder / limit).read_text().strip()
                used = int((folder / usage).read_text())
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            except OSError:
                continue
            if most != "max" and int(most) < psutil.virtual_memory().total:
                free.append(int(most) - used + int(stat.get(cached, 0)))
    return max(min(free), 0) if free else None
