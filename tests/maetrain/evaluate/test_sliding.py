"""Windows, weights and probabilities are MONAI's, whatever the sizes, though only one window's height is kept."""

from itertools import product

import pytest
import torch
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from data_shards.errors import InputError
from maetrain.evaluate.predict import probabilities_KDHW
from maetrain.evaluate.sliding import ROWS_AT_ONCE, Sliding, probability_slabs
from maetrain.models.segmentation import NNFormer

from ..small import SMALL, noise
from .scans import Brightness

WINDOW = (8, 10, 12)


class Whereabouts(nn.Module):
    """Logits that depend on the voxel's place in its window, and on the batch only by the voxel: mix-ups show."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.places = nn.Parameter(noise(1, classes, *WINDOW, seed=5))
        self.batches: list[int] = []

    def forward(self, x_BCDHW: Tensor) -> list[Tensor]:
        assert tuple(x_BCDHW.shape[2:]) == WINDOW
        self.batches.append(len(x_BCDHW))
        return [self.places * (1 + x_BCDHW[:, :1])]


def by_monai(network: nn.Module, volume_CDHW: Tensor, how: Sliding) -> Tensor:
    logits = sliding_window_inference(
        volume_CDHW[None],
        WINDOW,
        how.windows_at_once,
        lambda x: network(x)[0],
        overlap=how.overlap,
        mode="gaussian",
        padding_mode="constant",
        cval=float(volume_CDHW.min()),
    )
    return torch.as_tensor(logits)[0].softmax(0)


@torch.no_grad()
@pytest.mark.parametrize(
    "size_DHW",
    [
        (8, 10, 12),  # one window
        (9, 10, 12),  # the second window is pushed back by all but a voxel
        (31, 25, 29),
        (16, 20, 24),
        (40, 11, 13),
        (3, 30, 13),  # padded along D, and cut again
        (33, 4, 5),  # padded along H and W
        (1, 1, 1),
    ],
)
@pytest.mark.parametrize("how", [Sliding(), Sliding(0.0, 3), Sliding(0.8, 5), Sliding(0.97, 1)])
def test_probabilities_are_monais(size_DHW: tuple[int, int, int], how: Sliding) -> None:
    if how.overlap > 0.9 and size_DHW[0] > 20:
        size_DHW = (12, 13, 14)  # a window a voxel
    network, volume = Whereabouts(), noise(1, *size_DHW)
    got = torch.cat(list(probability_slabs(network, volume, WINDOW, how)), dim=1)
    assert tuple(got.shape) == (3, *size_DHW)
    torch.testing.assert_close(got, by_monai(network, volume, how), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("size_DHW", [(21, 17, 30), (5, 17, 9)], ids=["windows", "padded"])
def test_an_nnformers_probabilities_are_monais(size_DHW: tuple[int, int, int]) -> None:
    torch.manual_seed(2)
    network = NNFormer(SMALL, 3).eval()
    network.heads[0].conv.weight.mul_(20)
    volume = noise(1, *size_DHW)
    got = probabilities_KDHW(network, volume, WINDOW)
    assert float(got.std()) > 0.05, "probabilities that are all alike would prove nothing"
    torch.testing.assert_close(got, by_monai(network, volume, Sliding()), atol=1e-5, rtol=0)


def test_each_channel_is_padded_by_its_own_minimum() -> None:
    class Seen(Whereabouts):
        def forward(self, x_BCDHW: Tensor) -> list[Tensor]:
            self.seen = x_BCDHW
            return super().forward(x_BCDHW)

    network, volume_CDHW = Seen(), torch.stack([noise(4, 6, 7, seed=1) + level for level in (0, -50)])
    probabilities_KDHW(network, volume_CDHW, WINDOW)
    assert network.seen.amin((2, 3, 4)).tolist() == [volume_CDHW.amin((1, 2, 3)).tolist()]
    assert network.seen[0, :, 0, 0, 0].tolist() == volume_CDHW.amin((1, 2, 3)).tolist(), "a corner is padding"


def test_slabs_are_low_and_leave_before_the_windows_end() -> None:
    network, volume = Whereabouts(), noise(1, 61, 10, 12)
    calls_at_slab = [len(network.batches) for _ in probability_slabs(network, volume, WINDOW, Sliding(0.5, 1))]
    heights = [slab.shape[1] for slab in probability_slabs(network, volume, WINDOW, Sliding(0.5, 1))]
    assert sum(heights) == 61 and max(heights) <= ROWS_AT_ONCE
    # 15 windows stand 4 rows apart: the first rows leave when the second one has been through the network
    assert calls_at_slab[:3] == [2, 3, 4] and calls_at_slab[-1] == 15


def test_high_windows_leave_in_small_slabs() -> None:
    heights = [slab.shape[1] for slab in probability_slabs(Brightness(), noise(1, 50, 4, 4), (40, 4, 4))]
    assert sum(heights) == 50 and max(heights) == ROWS_AT_ONCE


def test_windows_come_in_full_batches_across_the_rows_of_windows() -> None:
    network = Whereabouts()
    list(probability_slabs(network, noise(1, 31, 10, 12), WINDOW, Sliding(0.5, 4)))
    assert network.batches == [4, 3], "7 windows, one above the other"


@torch.no_grad()
@pytest.mark.parametrize("axes", [(0,), (2,), (0, 1), (0, 1, 2)])
def test_mirroring_averages_the_logits_of_all_flips(axes: tuple[int, ...]) -> None:
    network, volume = Whereabouts(), noise(1, 19, 14, 20)

    class Mirrored(nn.Module):
        """The mean, written as a loop over yes and no for every axis."""

        def forward(self, x_BCDHW: Tensor) -> list[Tensor]:
            outputs = []
            for flags in product((False, True), repeat=len(axes)):
                dims = [axis + 2 for axis, flag in zip(axes, flags, strict=True) if flag]
                outputs.append(torch.flip(network(torch.flip(x_BCDHW, dims))[0], dims))
            return [torch.stack(outputs).mean(0)]

    want = by_monai(Mirrored(), volume, Sliding())
    torch.testing.assert_close(probabilities_KDHW(network, volume, WINDOW, mirror_axes=axes), want, atol=1e-5, rtol=0)
    assert not torch.allclose(probabilities_KDHW(network, volume, WINDOW), want, atol=1e-2)


def test_no_gradient_is_kept() -> None:
    assert not any(slab.requires_grad for slab in probability_slabs(Whereabouts(), noise(1, 12, 10, 12), WINDOW))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (Sliding(overlap=1.0), "overlap 1.0: give a share from 0 to below 1"),
        (Sliding(overlap=-0.1), "overlap -0.1"),
        (Sliding(windows_at_once=0), "0 windows at once"),
        (Sliding(mirror_axes=(0, 0)), r"mirror axes \(0, 0\)"),
        (Sliding(mirror_axes=(3,)), r"mirror axes \(3,\)"),
    ],
)
def test_impossible_settings_are_refused(how: Sliding, said: str) -> None:
    with pytest.raises(InputError, match=said):
        next(probability_slabs(Whereabouts(), noise(1, 8, 10, 12), WINDOW, how))
