"""Counts a masked autoencoder of the Synapse variant without computing it: on torch's meta device, in a second.

Counted are parameters, floating-point operations, kernels launched, and bytes kept for the backward pass. Among the
kernels are four a crop that draw the mask on the CPU: they take its time, too.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from maetrain.models.config import Triple
from maetrain.models.mae import MaeConfig, MaskedAutoencoder
from maetrain.models.sizes import CONFIGS

CROP_DHW: Triple = (64, 128, 128)
RATIO = 0.75
# they move no data, but their schema doesn't say so
_NO_KERNEL = ("aten::_unsafe_view", "aten::lift_fresh", "aten::_local_scalar_dense")


class Counts(NamedTuple):
    """Of one step of `batch` crops on one GPU; 2 FLOPs a multiply-add."""

    parameters: int
    forward_flops: float
    flops: float
    kernels: int
    saved_bytes: float


class _Kernels(TorchDispatchMode):
    """Counts operators that are no mere view."""

    def __init__(self) -> None:
        super().__init__()
        self.launched = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returns = func._schema.returns
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
        self.launched += not is_view and func._schema.name not in _NO_KERNEL
        return func(*args, **(kwargs or {}))


def count(batch: int, recompute: bool, variant: str = "synapse") -> Counts:
    """One forward and backward pass in bf16, visible units only; `recompute`: of stem and all stages."""
    config = CONFIGS[variant](1)
    if recompute:
        config = config.model_copy(update={"recompute": ("stem", *range(config.num_stages))})
    with torch.device("meta"):
        network = MaskedAutoencoder(config, MaeConfig(mode="visible", ratio=RATIO)).to(torch.bfloat16)
        volume_BCDHW = torch.empty(batch, 1, *CROP_DHW, dtype=torch.bfloat16)
    seeds_B = torch.arange(batch)
    network(volume_BCDHW, seeds_B)  # fills caches, which would count as kernels of the first step
    weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    saved: dict[int, tuple[int, Any]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = (storage.nbytes(), storage)  # held, so that no address comes twice
        return tensor

    with FlopCounterMode(display=False) as counter, _Kernels() as kernels:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = network(volume_BCDHW, seeds_B).loss
        forward = counter.get_total_flops()
        loss.backward()
    return Counts(
        sum(parameter.numel() for parameter in network.parameters()),
        float(forward),
        float(counter.get_total_flops()),
        kernels.launched,
        float(sum(size for size, _ in saved.values())),
    )
