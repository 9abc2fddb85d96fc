"""The optimizer under DeepSpeed ZeRO: the one file of the training loop that knows DeepSpeed.

DeepSpeed shards gradients and optimizer state over the ranks. Its own checkpoints are pickles tied to the
world size, so state leaves and enters here as fragments (`maetrain.checkpoint.fragments`) instead, read from
where ZeRO keeps its fp32 master copy.
"""

import logging
import os
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from maetrain.checkpoint.fragments import Fragment
from maetrain.models.mae import MaeOutput, MaskedAutoencoder
from maetrain.train.config import PretrainConfig
from maetrain.train.group import RankInfo

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
# DeepSpeed insists on a local rank; a process that no launcher started is the first on its machine
os.environ.setdefault("LOCAL_RANK", "0")

import deepspeed

# On CPUs DeepSpeed compiles an all-reduce of its own at the first start: 45 s, a compiler on every node, and a lock in
# the user's cache on which every later run waits for ever if that start was killed. gloo does the same sum.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

MOMENTS = ("exp_avg", "exp_avg_sq")


def no_decay(name: str, parameter: Tensor) -> bool:
    """Biases, norms, the mask token and bias tables are not decayed."""
    return parameter.ndim <= 1 or name.endswith("bias.table")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    decayed = [p for n, p in model.named_parameters() if not no_decay(n, p)]
    plain = [p for n, p in model.named_parameters() if no_decay(n, p)]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


class Engine:
    """A model, its AdamW, and their state spread over the ranks."""

    def __init__(self, model: MaskedAutoencoder, config: PretrainConfig, who: RankInfo) -> None:
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        if config.compile:
            model.reconstruct = torch.compile(model.reconstruct)  # type: ignore[method-assign]
        model.to(who.device)
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
                "gradient_clipping": config.clip_norm,
                "zero_optimization": {"stage": config.zero_stage},
                "zero_allow_untested_optimizer": True,
                "bf16": {"enabled": config.precision == "bf16"},
                "steps_per_print": 10**9,
            },
        )
        self.who = who
        self.has_zero = config.zero_stage > 0
        self.dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32

    def __call__(self, volume_BCDHW: Tensor, seeds_B: Tensor) -> MaeOutput:
        return self.wrapped(volume_BCDHW.to(self.who.device, self.dtype, non_blocking=True), seeds_B)

    def backward(self, loss: Tensor) -> None:
        self.wrapped.backward(loss)

    def step(self, learning_rate: float) -> None:
        """One micro step; DeepSpeed moves the weights when the accumulation is complete."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.wrapped.step()

    def gradient_norm(self) -> float:
        """Norm of the last step's gradients over all ranks, before clipping."""
        norm = self.wrapped.get_global_grad_norm()
        return float(norm) if norm is not None else float("nan")

    def save_fragments(self) -> list[Fragment]:
        """This rank's part of weights (fp32 master) and AdamW moments; all ranks' parts together are the whole."""
        fragments = []
        for index, held in enumerate(self._held()):
            if not self.has_zero and index % self.who.world_size != self.who.rank:
                continue  # without ZeRO every rank holds everything: share the writing
            fragments.append(Fragment("weight", held.name, held.start, held.values))
            for moment in MOMENTS:
                values = self._state(held.holder)[moment].flatten()[held.offset : held.offset + held.values.numel()]
                fragments.append(Fragment(moment, held.name, held.start, values))
        return fragments

    def load_full(self, tensors: dict[str, dict[str, Tensor]], steps_done: int) -> None:
        """`tensors`: kind -> parameter -> full tensor, as `assemble` gives them."""
        with torch.no_grad():
            for name, parameter in self.wrapped.module.named_parameters():
                parameter.copy_(tensors["weight"][name])
            for held in self._held():
                end = held.start + held.values.numel()
                held.values.copy_(tensors["weight"][held.name].flatten()[held.start : end])
                state = self._state(held.holder)
                state["step"] = torch.tensor(float(steps_done), device=held.holder.device)
                for moment in MOMENTS:
                    part = state[moment].view(-1)[held.offset : held.offset + held.values.numel()]
                    part.copy_(tensors[moment][held.name].flatten()[held.start : end])

    def _state(self, holder: Tensor) -> dict[str, Tensor]:
        """AdamW's state of one flat tensor, zeros before the first step."""
        base = self.optimizer.optimizer if self.has_zero else self.optimizer
        state = base.state[holder]
        if not state:
            state["step"] = torch.tensor(0.0, device=holder.device)
            state.update({moment: torch.zeros_like(holder.data) for moment in MOMENTS})
        return state

    def _held(self) -> Iterator["_Held"]:
        for name, parameter in self.wrapped.module.named_parameters():
            if not self.has_zero:
                yield _Held(name, 0, parameter.data.view(-1), parameter, 0)
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
