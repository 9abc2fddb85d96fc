"""The published networks: their outputs where reference files are at hand, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from data_shards.errors import InputError
from maetrain.models.published import PublishedArguments, load_published, published_config, published_name
from maetrain.models.segmentation import NNFormer

from ..small import noise

CUBIC = {"crop_size": (16, 32, 32), "embedding_dim": 12, "num_classes": 3, "num_heads": (1, 2, 3, 6)}
CUBIC |= {"window_size": (4, 4, 2, 1), "deep_supervision": True}
ACDC = {"crop_size": (14, 64, 64), "embedding_dim": 12, "num_classes": 3, "num_heads": (1, 2, 3, 6)}
ACDC |= {
    "patch_size": (1, 4, 4),
    "window_size": ((3, 2, 2), (3, 2, 2), (7, 4, 4), (3, 2, 2)),
    "deep_supervision": False,
}
ACDC |= {"down_stride": ((1, 4, 4), (1, 8, 8), (2, 16, 16), (4, 32, 32))}


def random_weights(arguments: dict, decoder_heads: tuple[int, ...]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    parsed = PublishedArguments.model_validate(arguments)
    network = NNFormer(published_config(parsed, decoder_heads), parsed.num_classes)
    return {published_name(name): tensor for name, tensor in network.state_dict().items()}


@torch.no_grad()
@pytest.mark.parametrize("variant", ["synapse", "tumor", "acdc"])
def test_logits_and_features_are_the_published_networks(real_data: Path, variant: str) -> None:
    with safe_open(real_data / "nnformer_reference" / f"{variant}.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        config = json.loads(file.metadata()["config"])
    weights = {name.removeprefix("weight."): t for name, t in tensors.items() if name.startswith("weight.")}
    network = load_published(weights, config)
    assert not network.training
    x = tensors["input"].float()
    for kind, maps in (("logits", network(x)), ("feature", network.encoder(x))):
        assert len(maps) == sum(name.startswith(kind) for name in tensors)
        for i, got in enumerate(maps):
            assert got.shape == tensors[f"{kind}.{i}"].shape
            assert (got - tensors[f"{kind}.{i}"]).abs().max() <= 1e-4, f"{kind} {i}"


@torch.no_grad()
@pytest.mark.parametrize(
    ("arguments", "decoder_heads", "features", "logits"),
    [
        (CUBIC, (1, 2, 3), [(8, 8, 8), (4, 4, 4), (2, 2, 2), (1, 1, 1)], [(16, 32, 32), (8, 16, 16), (4, 8, 8)]),
        (ACDC, (2, 3, 6), [(14, 16, 16), (14, 8, 8), (7, 4, 4), (3, 2, 2)], [(14, 64, 64)]),
    ],
)
def test_maps_have_the_published_sizes(arguments: dict, decoder_heads: tuple, features: list, logits: list) -> None:
    weights = random_weights(arguments, decoder_heads)
    weights["model_down.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(64, 64)  # a buffer, ignored
    network = load_published(weights, arguments)
    assert network.config.decoder_heads == decoder_heads, "read off the weights"
    volume = noise(1, 1, *arguments["crop_size"])
    assert [f.shape[2:] for f in network.encoder(volume)] == [torch.Size(s) for s in features]
    assert [f.shape[2:] for f in network(volume)] == [torch.Size(s) for s in logits]


def test_every_tensor_keeps_its_value_and_has_a_name_of_its_own() -> None:
    weights = random_weights(CUBIC, (1, 2, 3))
    loaded = load_published(weights, CUBIC).state_dict()
    assert len(weights) == len(loaded)
    assert all(torch.equal(weights[published_name(name)], tensor) for name, tensor in loaded.items())
    for name in (
        "model_down.patch_embed.proj1.norm2.weight",
        "model_down.layers.1.downsample.reduction.bias",
        "model_down.norm3.weight",
        "decoder.layers.2.Upsample.up.weight",
        "decoder.layers.0.blocks.0.attn.kv.weight",
        "decoder.layers.0.blocks.1.attn.qkv.weight",
        "final.2.up.bias",
    ):
        assert name in weights


def test_weights_that_do_not_fit_are_refused() -> None:
    weights = random_weights(CUBIC, (1, 2, 3))
    with pytest.raises(InputError, match="1 tensors are missing, the first is model_down.norm0.weight"):
        load_published({n: t for n, t in weights.items() if n != "model_down.norm0.weight"}, CUBIC)
    with pytest.raises(InputError, match="1 tensors have no place here, the first is extra"):
        load_published(weights | {"extra": torch.zeros(1)}, CUBIC)
    with pytest.raises(InputError, match=r"norm0.weight is \(5,\), the arguments make it \(12,\)"):
        load_published(weights | {"model_down.norm0.weight": torch.zeros(5)}, CUBIC)
    with pytest.raises(InputError, match="decoder.layers.0.blocks.0.attn.relative_position_bias_table is missing"):
        load_published({}, CUBIC)
    with pytest.raises(InputError, match="published config: depth"):
        load_published(weights, CUBIC | {"depth": 2})
    with pytest.raises(InputError, match="runs with patch_size"):
        load_published(weights, ACDC | {"down_stride": ((1, 4, 4), (2, 8, 8), (4, 16, 16), (8, 32, 32))})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_heads": (5, 2, 3, 4)}, "does not divide the width"),
        ({"num_heads": (1, 2)}, "num_heads has 2 entries"),
        ({"window_size": (-2, 2, 2, 1)}, "has an axis below 1"),
        ({"depths": ()}, "depths"),
        ({"depths": (2, 2, 2, 10**5)}, "depths.3"),
        ({"crop_size": (0, 0, 0)}, "crop_size.0"),
        ({"crop_size": (-32, 32, 32)}, "crop_size.0"),
    ],
)
def test_arguments_that_make_no_network_are_refused_in_one_line(changes: dict, said: str) -> None:
    with pytest.raises(InputError, match=said) as refused:
        load_published(random_weights(CUBIC, (1, 2, 3)), CUBIC | changes)
    assert "\n" not in str(refused.value)


def test_weights_that_are_no_numbers_are_refused_by_name() -> None:
    weights, norm = random_weights(CUBIC, (1, 2, 3)), "model_down.norm0.weight"
    for bad in (weights[norm].to("meta"), weights[norm].int(), weights[norm].numpy()):
        with pytest.raises(InputError, match=f"{norm} is no tensor of floating-point"):
            load_published(weights | {norm: bad}, CUBIC)
    table = "decoder.layers.0.blocks.0.attn.relative_position_bias_table"
    with pytest.raises(InputError, match="not offsets x heads"):
        load_published(weights | {table: torch.zeros(7)}, CUBIC)
    with pytest.raises(InputError, match="no mapping of the constructor's arguments"):
        load_published(weights, None)  # type: ignore[arg-type]
    load_published({name: t.half() for name, t in weights.items()}, CUBIC)


@torch.no_grad()
def test_a_crop_whose_windows_differ_is_refused() -> None:
    network = load_published(random_weights(CUBIC, (1, 2, 3)), CUBIC)
    with pytest.raises(ValueError, match=r"window here is \(4, 4, 4\).*needs \(2, 2, 2\)"):
        network(noise(1, 1, 8, 16, 16))


def test_every_decoder_block_behind_the_first_is_shifted_in_the_published_network_alone() -> None:
    arguments = PublishedArguments.model_validate(CUBIC | {"depths": (3, 2, 2, 2)})
    published = published_config(arguments, (1, 2, 3))
    with torch.device("meta"):
        for config, want in (
            (published, [True, True]),
            (published.model_copy(update={"published": "no"}), [True, False]),
        ):
            assert [block.shifted for block in NNFormer(config, 3).decoder[0].blocks] == want
