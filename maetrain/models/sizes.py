"""Named networks: three published ones and three for smaller organs and machines.

| name    | total stride | stages | first width | parameters, of them encoder (default channels, classes) |
|---------|--------------|--------|-------------|---------------------------------------------------------|
| tiny    | 8, 8, 8      | 3      | 32          | 1.06 M, 0.85 M                                          |
| small   | 8, 8, 8      | 3      | 64          | 4.20 M, 3.39 M                                          |
| base    | 16, 16, 16   | 4      | 64          | 16.6 M, 13.2 M                                          |
| synapse | 16, 32, 32   | 4      | 192         | 150.05 M, 119.0 M                                       |
| acdc    | 4, 32, 32    | 4      | 96          | 37.16 M, 29.5 M                                         |
| tumor   | 32, 32, 32   | 4      | 96          | 37.61 M, 29.8 M                                         |

`synapse`, `acdc` and `tumor` have the widths, depths, windows and heads of Zhou et al. (IEEE TIP 2023,
arXiv:2109.03201) without the faults of the published code (`published.py` has those). All take crops of any size from
24^3; the published crops are 64x128x128, 14x160x160 and 128x128x128 voxels.
"""

from collections.abc import Callable
from typing import Any

from maetrain.models.config import NNFormerConfig
from maetrain.models.segmentation import NNFormer

_FOURS = ((4, 4, 4),) * 3


def _tiny(in_channels: int) -> NNFormerConfig:
    return NNFormerConfig(
        in_channels=in_channels, embed_dim=32, num_heads=(1, 2, 4), decoder_heads=(1, 2), windows=_FOURS
    )


def _small(in_channels: int) -> NNFormerConfig:
    return NNFormerConfig(
        in_channels=in_channels, embed_dim=64, num_heads=(2, 4, 8), decoder_heads=(2, 4), windows=_FOURS
    )


def _base(in_channels: int) -> NNFormerConfig:
    return _four_stages(
        in_channels,
        embed_dim=64,
        num_heads=(2, 4, 8, 16),
        decoder_heads=(2, 4, 8),
        windows=(*_FOURS, (4, 4, 4)),
        stem_strides=((2, 2, 2), (1, 1, 1)),
        supervised_scales=2,
    )


def _synapse(in_channels: int) -> NNFormerConfig:
    return _four_stages(
        in_channels,
        embed_dim=192,
        num_heads=(6, 12, 24, 48),
        decoder_heads=(6, 12, 24),
        windows=_CUBES,
        stem_strides=((2, 2, 2), (1, 2, 2)),
        supervised_scales=3,
    )


def _acdc(in_channels: int) -> NNFormerConfig:
    return _four_stages(
        in_channels,
        embed_dim=96,
        num_heads=(3, 6, 12, 24),
        decoder_heads=(3, 6, 12),
        windows=((3, 5, 5), (3, 5, 5), (7, 10, 10), (3, 5, 5)),
        stem_strides=((1, 2, 2), (1, 2, 2)),
        down_strides=((1, 2, 2), (2, 2, 2), (2, 2, 2)),
    )


def _tumor(in_channels: int) -> NNFormerConfig:
    return _four_stages(
        in_channels,
        embed_dim=96,
        num_heads=(3, 6, 12, 24),
        decoder_heads=(6, 12, 24),  # not (3, 6, 12): a slip of the published code that its weights carry
        windows=_CUBES,
        stem_strides=((2, 2, 2), (2, 2, 2)),
    )


_CUBES = ((4, 4, 4), (4, 4, 4), (8, 8, 8), (4, 4, 4))


def _four_stages(in_channels: int, **settings: Any) -> NNFormerConfig:
    shared = {"depths": (2, 2, 2, 2), "decoder_depths": (2, 2, 2), "down_strides": ((2, 2, 2),) * 3}
    return NNFormerConfig(in_channels=in_channels, **(shared | settings))


CONFIGS: dict[str, Callable[[int], NNFormerConfig]] = {
    "tiny": _tiny,
    "small": _small,
    "base": _base,
    "synapse": _synapse,
    "acdc": _acdc,
    "tumor": _tumor,
}


def tiny(in_channels: int = 1, num_classes: int = 2) -> NNFormer:
    """Small organs in crops from 24^3 on a laptop: three stages behind a stem of stride 2."""
    return NNFormer(_tiny(in_channels), num_classes)


def small(in_channels: int = 1, num_classes: int = 2) -> NNFormer:
    """As `tiny`, twice as wide."""
    return NNFormer(_small(in_channels), num_classes)


def base(in_channels: int = 1, num_classes: int = 2) -> NNFormer:
    """Organs in crops of 48^3 to 96^3: four stages behind a stem of stride 2."""
    return NNFormer(_base(in_channels), num_classes)


def synapse(in_channels: int = 1, num_classes: int = 14) -> NNFormer:
    """Zhou et al.'s network for abdominal CT, 150 M parameters; crop 64 x 128 x 128."""
    return NNFormer(_synapse(in_channels), num_classes)


def acdc(in_channels: int = 1, num_classes: int = 4) -> NNFormer:
    """Zhou et al.'s network for thick-sliced cardiac MR, 37 M parameters; crop 14 x 160 x 160."""
    return NNFormer(_acdc(in_channels), num_classes)


def tumor(in_channels: int = 4, num_classes: int = 4) -> NNFormer:
    """Zhou et al.'s network for brain tumours in four MR contrasts, 38 M parameters; crop 128^3."""
    return NNFormer(_tumor(in_channels), num_classes)
