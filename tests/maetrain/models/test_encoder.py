"""The encoder takes any size, computes samples apart, and rests in eval mode."""

import re

import pytest
import torch

from data_shards.errors import InputError
from maetrain.models.config import Triple
from maetrain.models.encoder import Encoder
from maetrain.models.mae import MaskedAutoencoder
from maetrain.models.segmentation import NNFormer

from ..small import SMALL, SMALL_MAE, noise


def rounded_up(size: Triple, stride: int) -> Triple:
    d, h, w = (-(-n // stride) for n in size)
    return d, h, w


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 16, 16), (17, 13, 22), (9, 20, 11), (3, 5, 1), (1, 1, 1)])
def test_each_stage_gives_a_map_of_its_stride_rounded_up(size: Triple) -> None:
    feats = Encoder(SMALL).eval()(noise(2, 1, *size))
    assert [f.shape for f in feats] == [(2, 8 * 2**s, *rounded_up(size, 2 ** (s + 1))) for s in range(3)]
    assert all(f.isfinite().all() for f in feats)


@torch.no_grad()
def test_a_sample_does_not_depend_on_its_batch() -> None:
    encoder, volumes = Encoder(SMALL).eval(), noise(3, 1, 10, 12, 9)
    for together, alone in zip(encoder(volumes), encoder(volumes[1:2]), strict=True):
        torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_drop_path_acts_in_training_and_rests_in_eval() -> None:
    torch.manual_seed(0)
    encoder = Encoder(SMALL.model_copy(update={"drop_path": 0.6}))
    volume = noise(4, 1, 8, 8, 8)
    train = [encoder.train()(volume)[-1] for _ in range(2)]
    rest = [encoder.eval()(volume)[-1] for _ in range(2)]
    assert not torch.equal(*train) and torch.equal(*rest)


def test_drop_path_rises_from_nothing_to_its_setting() -> None:
    rates = [block.drop_path.rate for stage in Encoder(SMALL).stages for block in stage.blocks]
    assert rates[0] == 0 and rates[-1] == pytest.approx(0.2)
    assert rates == sorted(rates)


def test_every_second_block_is_shifted() -> None:
    assert [block.shifted for stage in Encoder(SMALL).stages for block in stage.blocks] == [False, True] * 3


@pytest.mark.parametrize(
    ("volume", "said"),
    [
        (torch.zeros(1, 24, 24, 24), "shape (1, 24, 24, 24): give (batch, channels, D, H, W)"),
        (torch.zeros(1, 1, 0, 24, 24), "each at least 1"),
        (torch.zeros(0, 1, 24, 24, 24), "each at least 1"),
        (torch.zeros(1, 1, 8, 8, 8, dtype=torch.int16), "torch.int16: give floating-point"),
        (torch.zeros(1, 2, 8, 8, 8), "2 channels, the network was made for 1"),
    ],
)
def test_what_is_no_volume_is_refused_by_every_network(volume: torch.Tensor, said: str) -> None:
    mae = MaskedAutoencoder(SMALL, SMALL_MAE)
    for network in (Encoder(SMALL), NNFormer(SMALL, 3), lambda x: mae(x, torch.zeros(len(x), dtype=torch.int64))):
        with pytest.raises(InputError, match=re.escape(said)):
            network(volume)
    with pytest.raises(InputError, match="1 mask seeds for 2 samples"):
        mae(torch.zeros(2, 1, 16, 16, 16), torch.tensor([0]))


def test_another_number_of_channels_is_refused() -> None:
    with pytest.raises(InputError, match="3 channels, the network was made for 1"):
        Encoder(SMALL)(noise(1, 3, 8, 8, 8))


@pytest.mark.parametrize("part", ["stem", 0, 1, 2])
def test_recomputed_activations_give_the_same_gradients(part: str | int) -> None:
    torch.manual_seed(0)
    plain, saving = (
        Encoder(SMALL.model_copy(update={"drop_path": 0.3, "recompute": parts})) for parts in ((), (part,))
    )
    saving.load_state_dict(plain.state_dict())
    for encoder in (plain, saving):
        torch.manual_seed(1)  # drop path
        sum(f.square().mean() for f in encoder(noise(2, 1, 16, 12, 8))).backward()
    for (name, p), q in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


def test_a_part_that_is_not_there_cannot_be_recomputed() -> None:
    with pytest.raises(ValueError, match="recompute names 3: use stem or a stage from 0 to 2"):
        type(SMALL)(**SMALL.model_dump() | {"recompute": (3,)})
