"""The networks that are timed beside each other, each with its loss, an optimizer and one kind of input."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import now_s
from maetrain.models.config import Triple
from maetrain.models.mae import MaeConfig, MaskedAutoencoder
from maetrain.models.segmentation import NNFormer
from maetrain.models.sizes import CONFIGS

NAMES = ("dense", "visible", "segmentation", "swinunetr", "maevit")
RATIO = 0.75
PRECISIONS = ("fp32", "bf16", "bf16-weights")


class Case(NamedTuple):
    """What is measured: one network on one kind of input."""

    name: str
    variant: str
    crop_DHW: Triple
    batch: int
    channels: int
    precision: str
    device: str
    compiled: bool

    @property
    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device, torch.bfloat16) if self.precision == "bf16" else nullcontext()

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bf16-weights" else torch.float32


def build(case: Case) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """A network and its loss: the real one of a masked autoencoder, the mean square of all outputs otherwise."""
    torch.manual_seed(0)
    if case.name in ("dense", "visible"):
        config = CONFIGS[case.variant](case.channels)
        mae = MaskedAutoencoder(config, MaeConfig(mode=case.name, ratio=RATIO))
        if case.compiled:
            mae.reconstruct = torch.compile(mae.reconstruct)  # type: ignore[method-assign]
        seeds_B = torch.arange(case.batch)
        return mae, lambda x: mae(x, seeds_B).loss
    network = _network(case)
    called = torch.compile(network) if case.compiled else network

    def mean_square(x: Tensor) -> Tensor:
        outputs = called(x)
        if case.name == "maevit":  # (prediction, mask)
            outputs = outputs[:1]
        outputs = [outputs] if isinstance(outputs, Tensor) else outputs
        return torch.stack([out.float().square().mean() for out in outputs]).sum()

    return network, mean_square


def _network(case: Case) -> nn.Module:
    if case.name == "segmentation":
        return NNFormer(CONFIGS[case.variant](case.channels), num_classes=4)
    from monai.networks.nets import MaskedAutoEncoderViT, SwinUNETR

    if case.name == "swinunetr":
        return SwinUNETR(in_channels=case.channels, out_channels=4, feature_size=36)
    return MaskedAutoEncoderViT(
        case.channels,
        case.crop_DHW,
        16,
        hidden_size=384,
        mlp_dim=1536,
        num_layers=12,
        num_heads=6,
        masking_ratio=RATIO,
        decoder_hidden_size=384,
        decoder_mlp_dim=1536,
        decoder_num_layers=4,
        decoder_num_heads=6,
    )


class Runner:
    """A network on its device with an optimizer, ready to take steps."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.network, self.loss = build(case)
        self.network.to(case.device, case.dtype)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4, fused=True)
        generator = torch.Generator().manual_seed(1)
        shape = (case.batch, case.channels, *case.crop_DHW)
        self.volume_BCDHW = torch.randn(shape, generator=generator).to(case.device, case.dtype)

    def passes(self) -> None:
        """Forward and backward; the gradients stay."""
        with self.case.autocast:
            loss = self.loss(self.volume_BCDHW)
        loss.backward()

    def step(self) -> tuple[float, float]:
        """Seconds of forward + backward, and of the whole step with the optimizer."""
        started = now_s(self.case.device)
        self.passes()
        between = now_s(self.case.device)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return between - started, now_s(self.case.device) - started

    def flops(self) -> tuple[float, float]:
        """Floating-point operations (2 a multiply-add) of a forward pass, and of forward + backward."""
        with FlopCounterMode(display=False) as counter, self.case.autocast:
            loss = self.loss(self.volume_BCDHW)
            forward = counter.get_total_flops()
            loss.backward()
        self.optimizer.zero_grad(set_to_none=True)
        return float(forward), float(counter.get_total_flops())
