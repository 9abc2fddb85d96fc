"""Layer-wise learning rates: which parameter is how deep."""

import pytest
import torch

from maetrain.finetune.layers import layer_groups, layer_of
from maetrain.models.segmentation import NNFormer

from ..small import SMALL

DEPTHS = (2, 2, 2)
NEW = "encoder.stages.0.blocks.0.attn.bias.table"


def names(network: NNFormer) -> set[str]:
    return set(dict(network.named_parameters()))


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("encoder.stem.block1.conv1.weight", 0),
        ("encoder.stem.norm.bias", 0),
        ("encoder.stages.0.blocks.0.attn.qkv.weight", 1),
        ("encoder.stages.0.blocks.1.attn.bias.table", 2),
        ("encoder.norms.0.weight", 2),
        ("encoder.downs.0.conv.weight", 3),
        ("encoder.stages.1.blocks.0.mlp.fc1.weight", 3),
        ("encoder.downs.1.norm.weight", 5),
        ("encoder.stages.2.blocks.1.norm2.weight", 6),
        ("encoder.norms.2.weight", 6),
        ("decoder.0.up.conv.weight", 7),
        ("heads.0.conv.bias", 7),
    ],
)
def test_a_parameter_lies_as_deep_as_its_block(name: str, layer: int) -> None:
    assert name in dict(NNFormer(SMALL, 3).named_parameters())
    assert layer_of(name, DEPTHS) == layer


def test_rates_fall_by_the_decay_from_block_to_block_and_every_parameter_is_in_one_group() -> None:
    network = NNFormer(SMALL, 3)
    groups = layer_groups(network, 0.5, names(network))
    assert [group["rate_scale"] for group in groups] == [0.5**k for k in range(7, -1, -1)]
    inside = [id(p) for group in groups for p in group["params"]]
    assert sorted(inside) == sorted(id(p) for p in network.parameters())
    assert {id(p) for p in groups[0]["params"]} == {id(p) for p in network.encoder.stem.parameters()}


def test_without_decay_there_is_one_group_in_the_networks_order() -> None:
    network = NNFormer(SMALL, 3)
    (group,) = layer_groups(network, 1.0, names(network))
    assert group["rate_scale"] == 1 and all(a is b for a, b in zip(group["params"], network.parameters(), strict=True))


def test_a_stem_far_below_hardly_moves() -> None:
    network = NNFormer(SMALL, 3)
    before = {name: p.clone() for name, p in network.named_parameters()}
    optimizer = torch.optim.SGD(layer_groups(network, 0.1, names(network) - {NEW}), lr=1.0)
    for group in optimizer.param_groups:
        group["lr"] *= group["rate_scale"]
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    moved = {name: (p - before[name]).abs().max().item() for name, p in network.named_parameters()}
    assert moved["heads.0.conv.weight"] == pytest.approx(1.0)
    assert moved["encoder.stages.2.blocks.1.mlp.fc1.weight"] == pytest.approx(0.1, rel=1e-3)
    assert moved["encoder.stem.block1.conv1.weight"] < 1e-6
    assert moved[NEW] == pytest.approx(1.0), "what starts anew is not slowed"
