"""Named networks: the published parameter counts, and crops from 24^3."""

import pytest
import torch

from maetrain.models import sizes

from ..small import noise


@pytest.mark.parametrize(
    ("name", "millions", "channels", "classes"),
    [("synapse", 150.05, 1, 14), ("acdc", 37.16, 1, 4), ("tumor", 37.61, 4, 4)],
)
def test_the_published_variants_have_the_published_parameter_counts(
    name: str, millions: float, channels: int, classes: int
) -> None:
    with torch.device("meta"):
        network = getattr(sizes, name)(in_channels=channels, num_classes=classes)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


@torch.no_grad()
@pytest.mark.parametrize("name", ["tiny", "small", "base", "tumor"])
def test_every_size_takes_small_and_odd_crops(name: str) -> None:
    network = getattr(sizes, name)(in_channels=1, num_classes=3).eval()
    for crop in ((24, 24, 24), (25, 31, 27)):
        logits = network(noise(1, 1, *crop))
        assert logits[0].shape == (1, 3, *crop) and all(scale.isfinite().all() for scale in logits)


def test_there_is_a_function_for_every_named_configuration() -> None:
    assert sorted(sizes.CONFIGS) == ["acdc", "base", "small", "synapse", "tiny", "tumor"]
    with torch.device("meta"):
        for name, config in sizes.CONFIGS.items():
            assert getattr(sizes, name)(in_channels=2, num_classes=5).config == config(2)
