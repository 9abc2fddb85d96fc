"""The networks of the published code, weights and outputs to the letter.

Their weights go into the same classes as ours; `NNFormerConfig.published` switches the windows, masks and bias rows to
what that code computes. Source: Zhou et al., IEEE TIP 2023, arXiv:2109.03201, and its code (nnFormer_synapse, _tumor,
_acdc). What it does otherwise than the paper means, and what is therefore repeated here and nowhere else:

- offsets inside a window share rows of the bias table (`windows.row_strides`);
- padded tokens are attended to, and carry the projection's bias; ACDC's shifted windows have no mask;
- where the map's smallest side fits into the window, that side is the window on every axis;
- the Tumor network's decoder has the heads of the next deeper stage (they are read off the weights);
- every decoder block behind the first is shifted; ACDC drops an odd last slice at the deepest downsampling.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from data_shards.errors import InputError
from maetrain.models.config import NNFormerConfig, Triple
from maetrain.models.segmentation import NNFormer

ACDC_DOWN_STRIDE = ((1, 4, 4), (1, 8, 8), (2, 16, 16), (4, 32, 32))


_Side = Annotated[int, Field(ge=1)]


class PublishedArguments(BaseModel):
    """The published constructor's arguments, with the defaults of its Synapse and Tumor files."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    crop_size: tuple[_Side, _Side, _Side] = Field((64, 128, 128), description="voxels along D, H, W")
    embedding_dim: int = Field(192, ge=2, multiple_of=2)
    input_channels: int = Field(1, ge=1)
    num_classes: int = Field(14, ge=1)
    depths: tuple[Annotated[int, Field(ge=1, le=64)], ...] = Field((2, 2, 2, 2), min_length=2)
    num_heads: tuple[int, ...] = (6, 12, 24, 48)
    patch_size: tuple[Literal[1, 2, 4], Literal[1, 2, 4], Literal[1, 2, 4]] = Field(
        (2, 4, 4), description="the stem's stride; its two blocks halve 4 twice and 2 once"
    )
    window_size: tuple[int | Triple, ...] = Field((4, 4, 8, 4), description="per stage, a side or D, H, W")
    deep_supervision: bool = True
    down_stride: tuple[Triple, ...] | None = Field(None, description="ACDC only: total stride of every stage")

    @property
    def is_acdc(self) -> bool:
        return self.down_stride is not None or any(not isinstance(w, int) for w in self.window_size)


def published_config(arguments: PublishedArguments, decoder_heads: tuple[int, ...]) -> NNFormerConfig:
    """Our configuration of the network those arguments make. `decoder_heads`: shallow to deep."""
    stages = len(arguments.depths)
    firsts, seconds = zip(*[{1: (1, 1), 2: (2, 1), 4: (2, 2)}[p] for p in arguments.patch_size], strict=True)
    downs: tuple[Triple, ...] = ((2, 2, 2),) * (stages - 1)
    windows = tuple((w, w, w) if isinstance(w, int) else w for w in arguments.window_size)
    if arguments.is_acdc:
        if arguments.down_stride not in (None, ACDC_DOWN_STRIDE) or arguments.patch_size[0] != 1 or stages != 4:
            raise InputError(
                f"published ACDC network: patch_size {arguments.patch_size}, down_stride {arguments.down_stride} over "
                f"{stages} stages; its code runs with patch_size (1, 4, 4) and down_stride {ACDC_DOWN_STRIDE}"
            )
        downs = ((1, 2, 2), (2, 2, 2), (2, 2, 2))
    config = NNFormerConfig(
        in_channels=arguments.input_channels,
        embed_dim=arguments.embedding_dim,
        depths=arguments.depths,
        num_heads=arguments.num_heads,
        windows=windows,
        stem_strides=(firsts, seconds),
        down_strides=downs,
        decoder_depths=arguments.depths[:-1],
        decoder_heads=decoder_heads,
        supervised_scales=stages - 1 if arguments.deep_supervision else 1,
        published="acdc" if arguments.is_acdc else "cubic",
    )
    if arguments.is_acdc:
        return config
    # the table is as large as the window that the crop leaves
    sides = [min(*size, *window) for size, window in zip(config.map_sizes(arguments.crop_size), windows, strict=True)]
    return config.model_copy(update={"windows": tuple((side,) * 3 for side in sides)})


def load_published(weights: Mapping[str, Tensor], config: Mapping) -> NNFormer:
    """The published network in eval mode.

    `weights`: tensors in the published naming (its `relative_position_index` buffers may be among them).
    `config`: arguments of the published constructor; those not given have its defaults.

    `network(x)` gives the logits, full resolution first; `network.encoder(x)` the four normed maps, (B, E, D, H, W).
    Input: crops of `crop_size`. Raises InputError (a ValueError) where arguments or weights don't fit together.
    """
    if not isinstance(config, Mapping):
        raise InputError(f"published config: {type(config).__name__} is no mapping of the constructor's arguments")
    given = {name: t for name, t in weights.items() if not name.endswith("relative_position_index")}
    for name, tensor in given.items():
        if not isinstance(tensor, Tensor) or tensor.is_meta or not tensor.is_floating_point():
            raise InputError(
                f"published weights: {name} is no tensor of floating-point numbers; load it with its values"
            )
    try:
        arguments = PublishedArguments.model_validate(dict(config))
        return _filled(arguments, given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"published config: {where + ': ' if where else ''}{first['msg']}") from None


def _filled(arguments: PublishedArguments, given: Mapping[str, Tensor]) -> NNFormer:
    """The network of those arguments with those weights. ValidationError for arguments that make none."""
    heads = []
    for stage in range(len(arguments.depths) - 1):
        table = f"decoder.layers.{stage}.blocks.0.attn.relative_position_bias_table"
        if table not in given:
            raise InputError(
                f"published weights: {table} is missing; give the whole network's, in the published naming"
            )
        if given[table].ndim != 2:
            raise InputError(f"published weights: {table} is {tuple(given[table].shape)}, not offsets x heads")
        heads.append(given[table].shape[1])
    network = NNFormer(published_config(arguments, tuple(heads)), arguments.num_classes)
    own = network.state_dict()
    names = {published_name(name): name for name in own}
    if missing := sorted(names.keys() - given.keys()):
        raise InputError(f"published weights: {len(missing)} tensors are missing, the first is {missing[0]}")
    if unknown := sorted(given.keys() - names.keys()):
        raise InputError(f"published weights: {len(unknown)} tensors have no place here, the first is {unknown[0]}")
    for theirs, ours in names.items():
        if given[theirs].shape != own[ours].shape:
            raise InputError(
                f"published weights: {theirs} is {tuple(given[theirs].shape)}, the arguments make it "
                f"{tuple(own[ours].shape)}: crop_size, window_size or widths are another network's"
            )
    network.load_state_dict({ours: given[theirs].to(torch.float32) for theirs, ours in names.items()})
    return network.eval()


def published_name(name: str) -> str:
    """Our name of a tensor of the segmentation network -> the published code's."""
    part, *path = name.split(".")
    if part == "heads":
        return ".".join(["final", path[0], "up", path[-1]])
    if part == "encoder":
        return "model_down." + _encoder_name(path)
    stage, inner, *rest = path
    if inner == "up":
        rest = ["Upsample", "up" if rest[0] == "conv" else rest[0], *rest[1:]]
    elif inner == "skip_block":
        rest = ["blocks", "0", *_block_name(rest)]
    else:
        rest = ["blocks", str(int(rest[0]) + 1), *_block_name(rest[1:])]
    return ".".join(["decoder", "layers", stage, *rest])


def _encoder_name(path: list[str]) -> str:
    part, *rest = path
    if part == "stem":
        return ".".join(["patch_embed", rest[0].replace("block", "proj"), *rest[1:]])
    if part == "downs":
        return ".".join(["layers", rest[0], "downsample", rest[1].replace("conv", "reduction"), rest[2]])
    if part == "norms":
        return f"norm{rest[0]}.{rest[1]}"
    return ".".join(["layers", rest[0], "blocks", rest[2], *_block_name(rest[3:])])


def _block_name(path: list[str]) -> list[str]:
    return ["attn", "relative_position_bias_table"] if path == ["attn", "bias", "table"] else path
