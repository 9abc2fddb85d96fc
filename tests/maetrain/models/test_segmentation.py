"""The segmentation network: any crop, all parameters in use, and as large as the published ones."""

import pytest
import torch

from maetrain.models.config import NNFormerConfig, Triple
from maetrain.models.segmentation import NNFormer

from ..small import SMALL, noise

FOUR_STAGES = {
    "depths": (2, 2, 2, 2),
    "windows": ((4, 4, 4), (4, 4, 4), (8, 8, 8), (4, 4, 4)),
    "down_strides": ((2, 2, 2),) * 3,
    "decoder_depths": (2, 2, 2),
}
SYNAPSE = NNFormerConfig(
    in_channels=1,
    embed_dim=192,
    num_heads=(6, 12, 24, 48),
    decoder_heads=(6, 12, 24),
    stem_strides=((2, 2, 2), (1, 2, 2)),
    supervised_scales=3,
    **FOUR_STAGES,
)
TUMOR = NNFormerConfig(
    in_channels=4,
    embed_dim=96,
    num_heads=(3, 6, 12, 24),
    decoder_heads=(6, 12, 24),  # the published slip: 24, 12, 6 from deep to shallow
    stem_strides=((2, 2, 2), (2, 2, 2)),
    **FOUR_STAGES,
)


@pytest.mark.parametrize(
    ("config", "classes", "millions"),
    [pytest.param(SYNAPSE, 14, 150.05, id="Synapse"), pytest.param(TUMOR, 4, 37.6, id="Tumor")],
)
def test_the_published_variants_have_the_published_number_of_parameters(
    config: NNFormerConfig, classes: int, millions: float
) -> None:
    with torch.device("meta"):
        network = NNFormer(config, classes)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.005)


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 16, 16), (17, 13, 22), (9, 20, 11), (3, 5, 1), (1, 1, 1)])
def test_logits_have_the_size_of_the_volume_whatever_it_is(size: Triple) -> None:
    network = NNFormer(SMALL, 3).eval()
    (logits,) = network(noise(2, 1, *size))
    assert logits.shape == (2, 3, *size) and logits.isfinite().all()


@torch.no_grad()
def test_supervised_scales_come_full_resolution_first() -> None:
    network = NNFormer(SMALL.model_copy(update={"supervised_scales": 2}), 3).eval()
    assert [logits.shape for logits in network(noise(1, 1, 16, 24, 16))] == [(1, 3, 16, 24, 16), (1, 3, 8, 12, 8)]


@torch.no_grad()
def test_a_network_in_eval_mode_gives_the_same_twice_and_samples_apart() -> None:
    torch.manual_seed(0)
    network, volumes = NNFormer(SMALL, 3).eval(), noise(2, 1, 10, 9, 12)
    (once,), (twice,), (alone,) = network(volumes), network(volumes), network(volumes[1:])
    assert torch.equal(once, twice)
    torch.testing.assert_close(once[1:], alone, atol=1e-5, rtol=1e-5)


def test_gradients_reach_every_parameter() -> None:
    torch.manual_seed(0)
    network = NNFormer(SMALL.model_copy(update={"supervised_scales": 2, "drop_path": 0.0}), 3)
    sum((logits * noise(*logits.shape)).sum() for logits in network(noise(1, 1, 16, 16, 16))).backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not idle


def test_a_voxel_far_outside_the_windows_and_the_skips_of_an_edge_still_sees_the_whole_crop_at_the_neck() -> None:
    network = NNFormer(SMALL, 3).eval()
    volume = noise(1, 1, 16, 16, 16).requires_grad_()
    (gradient,) = torch.autograd.grad(network(volume)[0][0, :, 0, 0, 0].sum(), volume)
    assert gradient[0, 0, 15, 15, 15] != 0


def test_torch_compile_takes_the_network_in_one_graph_at_an_odd_size() -> None:
    torch.manual_seed(0)
    network = NNFormer(SMALL.model_copy(update={"drop_path": 0.0}), 3)
    volume = noise(1, 1, 18, 24, 20)
    (want,) = network(volume)
    (got,) = torch.compile(network, backend="eager", fullgraph=True)(volume)
    torch.testing.assert_close(got, want)
