"""Layer-wise learning rates: the deeper a pretrained part lies below the decoder, the less it moves.

After the finetuning of BEiT and MAE (Bao et al. 2022, arXiv:2106.08254; He et al. 2022, arXiv:2111.06377): every window
block of the encoder is a layer, the stem lies below the first one, the decoder and its heads above the last.
"""

from collections.abc import Container

from torch import nn

from maetrain.models.segmentation import NNFormer


def layer_of(name: str, depths: tuple[int, ...]) -> int:
    """The layer of a parameter of `NNFormer`: 0 the stem, 1 to N the N = sum(depths) blocks, N + 1 all else.

    A downsampling belongs to the block behind it, a stage's norm to the block before it.
    """
    part, *path = name.split(".")
    if part != "encoder":
        return sum(depths) + 1
    if path[0] == "stem":
        return 0
    stage = int(path[1])
    before = sum(depths[:stage])
    if path[0] == "downs":
        return before + depths[stage] + 1
    if path[0] == "norms":
        return before + depths[stage]
    return before + int(path[3]) + 1  # stages.S.blocks.B


def layer_groups(network: NNFormer, decay: float, pretrained: Container[str]) -> list[dict]:
    """Parameter groups for an optimizer, `rate_scale` = decay ** (layers above) in each; 0 < decay <= 1.

    Names that are not in `pretrained` start anew and learn at the full rate. With decay 1 there is one group.
    """
    depths = network.config.depths
    top = sum(depths) + 1
    by_layer: dict[int, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        layer = layer_of(name, depths) if decay < 1 and name in pretrained else top
        by_layer.setdefault(layer, []).append(parameter)
    return [
        {"params": parameters, "rate_scale": decay ** (top - layer)} for layer, parameters in sorted(by_layer.items())
    ]
