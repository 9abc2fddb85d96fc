"""The memory of a step's activations, counted on torch's meta device, where tensors have sizes and no content."""

import weakref
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from maetrain.models.config import NNFormerConfig, Triple
from maetrain.models.mae import MaeConfig, MaskedAutoencoder


@lru_cache(maxsize=64)
def activation_bytes(
    model: NNFormerConfig, mae: MaeConfig, crop_DHW: Triple, batch: int, precision: str = "fp32"
) -> int:
    """The most that forward and backward pass of one micro-batch hold at a time, without weights and gradients.

    `torch.compile` needs less.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    with torch.device("meta"):
        network = MaskedAutoencoder(model, mae).to(dtype)
        volume_BCDHW = torch.zeros(batch, model.in_channels, *crop_DHW, dtype=dtype)
    held = _Held(network.parameters(), volume_BCDHW)
    with held:
        loss = network(volume_BCDHW, torch.zeros(batch, dtype=torch.int64, device="cpu")).loss
        loss.backward()
    return held.most


class _Held(TorchDispatchMode):
    """Bytes of the tensors made under it that are alive, and of `volume`; neither weights nor their gradients.

    Torch's own `MemTracker` says the same, but lies in a private module that takes seconds to import.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], volume: Tensor) -> None:
        super().__init__()
        self.now = self.most = volume.untyped_storage().nbytes()
        # of storages that are alive; 0 for what is counted already, or not to be
        self._sizes = {volume.untyped_storage()._cdata: 0}
        for parameter in parameters:
            self._sizes[parameter.untyped_storage()._cdata] = 0
            parameter.register_post_accumulate_grad_hook(self._is_gradient)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage())._cdata not in self._sizes:
                self._sizes[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._forget, storage._cdata)
        self.most = max(self.most, self.now)
        return result

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)

    def _is_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        key = parameter.grad.untyped_storage()._cdata
        self.now -= self._sizes[key]
        self._sizes[key] = 0
