"""The optimizer under DeepSpeed ZeRO: the one file of the training loop that knows DeepSpeed.

DeepSpeed shards gradients and optimizer state over the ranks. Its own checkpoints are pickles tied to the
world size, so state leaves and enters here as fragments (`maetrain.checkpoint.fragments`) instead, read from
where ZeRO keeps its fp32 master copy. They are the same for every ZeRO stage, with and without offload.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isfinite
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from maetrain.checkpoint.fragments import Fragment
from maetrain.models.mae import MaeOutput, MaskedAutoencoder
from maetrain.train.config import PretrainConfig
from maetrain.train.group import RankInfo

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
# DeepSpeed insists on a local rank; a process that no launcher started is the first on its machine
os.environ.setdefault("LOCAL_RANK", "0")


@contextmanager
def _absent(name: str) -> Iterator[None]:
    """As where the module is not installed, unless it is imported already."""
    is_here = name in sys.modules
    sys.modules.setdefault(name, None)  # type: ignore[arg-type]
    try:
        yield
    finally:
        if not is_here:
            del sys.modules[name]


# DeepSpeed's autotuner, which is not used here, takes MLflow along where it finds it: a quarter of a rank's start
with _absent("mlflow"):
    import deepspeed

# On CPUs DeepSpeed compiles an all-reduce of its own at the first start: 45 s, a compiler on every node, and a lock in
# the user's cache on which every later run waits for ever if that start was killed. gloo does the same sum.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

MOMENTS = ("exp_avg", "exp_avg_sq")
# ZeRO 3 leaves parameters up to this many elements gathered on every rank: cheaper than a gather for each use
PERSISTENT_ELEMENTS = 100_000
# DeepSpeed's own 5e8 is more than the whole network: the gradients would wait in one bucket for the end of the backward
# pass, in a buffer of 2 GB, and nothing would overlap
BUCKET_ELEMENTS = 2**24


def no_decay(name: str, parameter: Tensor) -> bool:
    """Biases, norms, the mask token and bias tables are not decayed."""
    return parameter.ndim <= 1 or name.endswith("bias.table")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    decayed = [p for n, p in model.named_parameters() if not no_decay(n, p)]
    plain = [p for n, p in model.named_parameters() if no_decay(n, p)]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


class Engine:
    """A model, its AdamW, and their state spread over the ranks.

    A step whose gradients have no finite norm over all ranks is skipped on every rank: weights, moments and AdamW's
    step count stay as they were. `skipped` tells whether the last one was.
    """

    def __init__(self, model: MaskedAutoencoder, config: PretrainConfig, who: RankInfo) -> None:
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        self._linear = nn.functional.linear
        if config.compile:
            model.reconstruct = torch.compile(model.reconstruct)  # type: ignore[method-assign]
        model.to(who.device)
        on_gpu = who.device.type == "cuda"
        self.shapes = {name: list(p.shape) for name, p in model.named_parameters()}
        optimizer = torch.optim.AdamW(
            parameter_groups(model, config.weight_decay), lr=config.learning_rate, betas=(0.9, 0.95), fused=True
        )
        self.wrapped, self.optimizer, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            dist_init_required=False,
            config={
                "train_micro_batch_size_per_gpu": config.micro_batch,
                "gradient_accumulation_steps": config.accumulation(who.world_size),
                "gradient_clipping": config.clip_norm if config.zero_stage else 0.0,  # without ZeRO: `_clip`
                "zero_optimization": {
                    "stage": config.zero_stage,
                    "overlap_comm": config.overlap_comm and on_gpu,
                    "reduce_bucket_size": BUCKET_ELEMENTS,
                    "stage3_param_persistence_threshold": PERSISTENT_ELEMENTS,
                    "offload_optimizer": {"device": "cpu", "pin_memory": on_gpu} if config.offload else None,
                },
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,  # torch's AdamW in CPU memory, too
                "bf16": {"enabled": config.precision == "bf16", "check_grad_overflow": True},
                "steps_per_print": 10**9,
            },
        )
        self.who = who
        self.zero_stage, self.clip_norm = config.zero_stage, config.clip_norm
        self.skipped, self._norm = False, float("nan")
        self.dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32

    def __call__(self, volume_BCDHW: Tensor, seeds_B: Tensor) -> MaeOutput:
        return self.wrapped(volume_BCDHW.to(self.who.device, self.dtype, non_blocking=True), seeds_B)

    def backward(self, loss: Tensor, weight: float = 1.0) -> None:
        """The step follows the mean of `weight` x `loss` over its micro-batches and ranks."""
        self.wrapped.backward(loss * weight)

    def step(self, learning_rate: float) -> None:
        """One micro step; DeepSpeed moves the weights when the accumulation is complete."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        is_last = self.wrapped.is_gradient_accumulation_boundary()
        if is_last and not self.zero_stage:
            self._clip()
        self.wrapped.step()
        if is_last:
            if self.zero_stage:  # it has left the step out where its norm is not finite
                self._norm = float(self.wrapped.get_global_grad_norm())
            self.skipped = not isfinite(self._norm)

    def _clip(self) -> None:
        """Clips the gradients all ranks share; where their norm isn't finite AdamW gets none, and does nothing."""
        self._norm = float(clip_grad_norm_(self.wrapped.module.parameters(), self.clip_norm or float("inf")))
        if not isfinite(self._norm):
            self.wrapped.zero_grad()

    def gradient_norm(self) -> float:
        """Norm of the last step's gradients over all ranks, before clipping; inf or nan where it was skipped."""
        return self._norm

    def close(self) -> None:
        """Takes off DeepSpeed's hooks; this engine can't be used again, another can be made.

        TODO(zero-3): DeepSpeed 0.19.8 holds on to a ZeRO-3 model and its state until the process ends.
        """
        self.wrapped.destroy()
        nn.functional.linear = self._linear  # ZeRO 3 has put its own there, which rounds otherwise in bf16

    def save_fragments(self) -> list[Fragment]:
        """This rank's part of weights (fp32 master) and AdamW moments; all ranks' parts together are the whole."""
        fragments = []
        for index, held in enumerate(self._held()):
            if not self.zero_stage and index % self.who.world_size != self.who.rank:
                continue  # without ZeRO every rank holds everything: share the writing
            fragments.append(Fragment("weight", held.name, held.start, held.values))
            for moment in MOMENTS:
                values = self._state(held.holder)[moment].flatten()[held.offset : held.offset + held.values.numel()]
                fragments.append(Fragment(moment, held.name, held.start, values))
        return fragments

    def load(self, weight: Callable[[str], Tensor], run: Callable[[str, str, int, int], Tensor], updates: int) -> None:
        """Takes the state from `weight(parameter)`, full, and `run(kind, parameter, start, stop)`, flat.

        Between two optimizer steps, on all ranks, each of which asks for all weights in the same order (under ZeRO 3
        for none) and then for the runs it holds. `updates`: how many steps moved the weights.
        """
        with torch.no_grad():
            if self.zero_stage < 3:
                for name, parameter in self.wrapped.module.named_parameters():
                    parameter.copy_(weight(name))
            for held in self._held():
                end = held.start + held.values.numel()
                held.values.copy_(run("weight", held.name, held.start, end))
                state = self._state(held.holder)
                state["step"] = torch.tensor(float(updates), device=held.holder.device)
                for moment in MOMENTS:
                    part = state[moment].view(-1)[held.offset : held.offset + held.values.numel()]
                    part.copy_(run(moment, held.name, held.start, end))
            if self.zero_stage == 3:
                self._share_master()

    def _share_master(self) -> None:
        """ZeRO 3: the parts that passes gather follow the master copy, and what was gathered before is dropped."""
        for partition, master in zip(
            self.optimizer.fp16_partitioned_groups_flat, self.optimizer.fp32_partitioned_groups_flat, strict=True
        ):
            partition.data.copy_(master.data)
        self.optimizer.parameter_offload.partition_all_parameters()

    def _state(self, holder: Tensor) -> dict[str, Tensor]:
        """AdamW's state of one flat tensor, zeros before the first step."""
        base = self.optimizer.optimizer if self.zero_stage else self.optimizer
        state = base.state[holder]
        if not state:
            state["step"] = torch.tensor(0.0, device=holder.device)
            state.update({moment: torch.zeros_like(holder.data) for moment in MOMENTS})
        return state

    def _held(self) -> Iterator["_Held"]:
        for name, parameter in self.wrapped.module.named_parameters():
            if self.zero_stage == 0:
                yield _Held(name, 0, parameter.data.view(-1), parameter, 0)
            elif self.zero_stage == 3:
                index, offset, length = self.optimizer.grad_position[self.optimizer.get_param_id(parameter)]
                flat, start = self.optimizer.fp32_partitioned_groups_flat[index], length * self.who.rank
                if (length := min(length, parameter.ds_numel - start)) > 0:  # the last parts are padded, or all padding
                    yield _Held(name, start, flat.data[offset : offset + length], flat, offset)
            elif (mapping := parameter._hp_mapping) is not None:
                flat = self.optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
                start, offset = mapping.lp_fragment_address.start, mapping.hp_fragment_address.start
                yield _Held(name, start, mapping.hp_fragment.data, flat, offset)


class _Held(NamedTuple):
    """A run of one parameter whose master copy is on this rank, as a view into `holder` at `offset`."""

    name: str
    start: int
    values: Tensor
    holder: Tensor
    offset: int
