"""A finetuned network as ONNX: windows (batch, C, D, H, W) in, logits (batch, K, D, H, W) of full resolution out.

The window's size is the contract's, the batch is free. The file's metadata_props hold what else a program must know:
class_names, meaning, channel_names, window_DHW, preprocess, made_by and weights_sha256 as JSON. torch's exporter that
goes by torch.export (dynamo=True) writes it. It is silent about what it gets wrong (docs/decisions/0018): masks and
indices that the network keeps per size must be there before, or it takes stand-ins for constants. So the network runs
once before, and onnxruntime runs the file beside torch before it gets its name.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from data_shards.errors import InputError
from data_shards.formats.files import published
from maetrain.evaluate.model_folder import ModelContract, load_model
from maetrain.models.segmentation import NNFormer

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
MAX_DIFFERENCE = 1e-4  # of logits, where they are 1 or smaller; larger ones are compared by their share


class _FullResolution(nn.Module):
    def __init__(self, network: NNFormer) -> None:
        super().__init__()
        self.network = network

    def forward(self, window: Tensor) -> Tensor:
        return self.network(window)[0]


def export_onnx(model: Path, out: Path) -> float:
    """Writes the network in the folder `model` to `out`; the largest difference of a logit to torch's.

    InputError where the extra `onnx` is not installed, and where onnxruntime does not give torch's logits.
    """
    if absent := [name for name in PACKAGES if find_spec(name) is None]:
        raise InputError(f"ONNX needs the package {absent[0]}: pip install 'maetrain[onnx]'")
    network, contract = load_model(model)
    with published(out) as partial:
        write_onnx(network, contract, partial)
        difference = compare(network, contract, partial)
    return difference


@torch.no_grad()
def write_onnx(network: NNFormer, contract: ModelContract, out: Path) -> None:
    """Without a look at what comes out; `compare` takes it."""
    windows = torch.zeros(2, network.config.in_channels, *contract.window_DHW)
    single = _FullResolution(network)
    single(windows)  # fills the caches
    with _quiet():
        program = torch.onnx.export(
            single,
            (windows,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["window"],
            output_names=["logits"],
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(_metadata(contract))
    program.save(out)


@torch.no_grad()
def compare(network: NNFormer, contract: ModelContract, path: Path) -> float:
    """Largest difference of logits over random windows in batches of 1 and 3. InputError above MAX_DIFFERENCE."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    largest = 0.0
    for seed, batch in enumerate((1, 3)):
        shape = batch, network.config.in_channels, *contract.window_DHW
        windows = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        want = network(windows)[0]
        got = torch.from_numpy(session.run(["logits"], {"window": windows.numpy()})[0])
        difference = float((got - want).abs().max())
        if not difference <= MAX_DIFFERENCE * max(1.0, float(want.abs().max())):
            raise InputError(
                f"{path.name}: onnxruntime's logits differ from torch's by {difference:.2g}, logits reach "
                f"{float(want.abs().max()):.2g}; try the versions of constraints.txt"
            )
        largest = max(largest, difference)
    return largest


def _metadata(contract: ModelContract) -> dict[str, str]:
    names = {"class_names", "meaning", "channel_names", "window_DHW", "preprocess", "made_by", "weights_sha256"}
    return {name: json.dumps(value) for name, value in contract.model_dump(mode="json", include=names).items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes on packages that aren't there and don't matter."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
