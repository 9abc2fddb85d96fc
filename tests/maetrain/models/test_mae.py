"""The masked autoencoder: what is hidden stays hidden, and each prediction stands for its own unit."""

import pytest
import torch

from data_shards.errors import InputError
from maetrain.losses.reconstruction import hidden_mse
from maetrain.masking.units import MaskUnitGrid, from_units, sample_hidden_BG, spread_units, to_units
from maetrain.models.encoder import Encoder
from maetrain.models.mae import MaeConfig, MaskedAutoencoder, sincos_positions_GE
from maetrain.models.windows import size_DHW

from ..small import SMALL, SMALL_MAE, noise

CROP = (16, 24, 16)
GRID = MaskUnitGrid(CROP, (8, 8, 8))
SEEDS = torch.tensor([11, 12])


@pytest.fixture(scope="module")
def network() -> MaskedAutoencoder:
    torch.manual_seed(0)
    return MaskedAutoencoder(SMALL, SMALL_MAE).eval()


@torch.no_grad()
def test_what_hidden_voxels_hold_changes_the_loss_and_nothing_else(network: MaskedAutoencoder) -> None:
    volume = noise(2, 1, *CROP)
    is_hidden_BG = sample_hidden_BG(GRID, SEEDS, 0.5)
    is_hidden = spread_units(is_hidden_BG, GRID, GRID.unit_DHW)[:, None]
    other = torch.where(is_hidden, 1e3 * noise(2, 1, *CROP, seed=1), volume)
    for a, b in zip(network.encode(volume, is_hidden_BG, GRID), network.encode(other, is_hidden_BG, GRID), strict=True):
        assert torch.equal(a, b)
    one, two = network(volume, SEEDS), network(other, SEEDS)
    assert torch.equal(one.is_hidden_BG, is_hidden_BG)
    assert torch.equal(one.pred_BGP, two.pred_BGP) and one.loss != two.loss


@torch.no_grad()
def test_visible_voxels_move_the_prediction_and_count_nothing_in_the_loss(network: MaskedAutoencoder) -> None:
    volume = noise(2, 1, *CROP)
    is_hidden = spread_units(sample_hidden_BG(GRID, SEEDS, 0.5), GRID, GRID.unit_DHW)[:, None]
    one, two = network(volume, SEEDS), network(torch.where(is_hidden, volume, -volume), SEEDS)
    assert not torch.equal(one.pred_BGP, two.pred_BGP)
    target_BGP = to_units(volume, GRID)  # of hidden units the same for both
    torch.testing.assert_close(two.loss, hidden_mse(two.pred_BGP, target_BGP, two.is_hidden_BG))


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 2])
def test_there_is_one_prediction_for_each_value_of_each_unit(channels: int) -> None:
    network = MaskedAutoencoder(SMALL.model_copy(update={"in_channels": channels}), SMALL_MAE).eval()
    output = network(noise(2, channels, *CROP), SEEDS)
    assert output.pred_BGP.shape == (2, 12, channels * 8**3)
    assert output.loss.shape == () and output.loss.dtype == torch.float32
    assert output.is_hidden_BG.sum(1).tolist() == [6, 6]


@torch.no_grad()
def test_a_sample_has_the_same_mask_and_prediction_whatever_its_batch(network: MaskedAutoencoder) -> None:
    volume = noise(2, 1, *CROP)
    together, alone = network(volume, SEEDS), network(volume[1:], SEEDS[1:])
    assert torch.equal(together.is_hidden_BG[1:], alone.is_hidden_BG)
    torch.testing.assert_close(together.pred_BGP[1:], alone.pred_BGP, atol=1e-5, rtol=1e-5)


def test_the_features_a_unit_is_predicted_from_lie_where_the_unit_lies(network: MaskedAutoencoder) -> None:
    """Every stage's map, cut by `to_units`, must order units as the voxels' cut does."""
    for stage, cells in enumerate(network.decoder.cells):
        stride = 2 ** (stage + 1)
        voxels = torch.arange(12.0).view(1, 12, 1).expand(1, 12, 512)
        coarse = torch.nn.functional.avg_pool3d(from_units(voxels, GRID), stride)
        units_BGP = to_units(coarse, MaskUnitGrid(size_DHW(coarse[:, 0]), cells))
        assert torch.equal(units_BGP[0].mean(-1), torch.arange(12.0)), f"stage {stage}"


@torch.no_grad()
def test_a_normalised_target_does_not_know_a_units_brightness_and_contrast() -> None:
    torch.manual_seed(0)
    network = MaskedAutoencoder(SMALL, SMALL_MAE.model_copy(update={"normalise_target": True})).eval()
    volume = noise(2, 1, *CROP)
    is_hidden = spread_units(sample_hidden_BG(GRID, SEEDS, 0.5), GRID, GRID.unit_DHW)[:, None]
    brighter = torch.where(is_hidden, 3 * volume + 5, volume)
    torch.testing.assert_close(network(volume, SEEDS).loss, network(brighter, SEEDS).loss, atol=1e-4, rtol=1e-4)


def test_gradients_reach_every_parameter() -> None:
    torch.manual_seed(0)
    network = MaskedAutoencoder(SMALL.model_copy(update={"drop_path": 0.0}), SMALL_MAE)
    network(noise(2, 1, *CROP), SEEDS).loss.backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not idle


def test_the_encoder_inside_has_the_names_of_an_encoder_alone(network: MaskedAutoencoder) -> None:
    inside = {n.removeprefix("encoder.") for n in network.state_dict() if n.startswith("encoder.")}
    assert inside == set(Encoder(SMALL).state_dict())


@torch.no_grad()
def test_it_runs_in_bfloat16(network: MaskedAutoencoder) -> None:
    half = MaskedAutoencoder(SMALL, SMALL_MAE).eval()
    half.load_state_dict(network.state_dict())
    volume = noise(2, 1, *CROP)
    loss = half.to(torch.bfloat16)(volume.to(torch.bfloat16), SEEDS).loss
    torch.testing.assert_close(loss.float(), network(volume, SEEDS).loss, atol=0.02, rtol=0.02)


def test_no_two_units_have_the_same_position() -> None:
    positions = sincos_positions_GE((4, 5, 3), 24, torch.device("cpu"))
    assert positions.shape == (60, 24)
    distance = torch.cdist(positions, positions) + 1e9 * torch.eye(60)
    assert distance.min() > 0.05


def test_a_crop_that_is_no_multiple_of_the_unit_is_refused(network: MaskedAutoencoder) -> None:
    with pytest.raises(InputError, match="axis H"):
        network(noise(1, 1, 16, 20, 16), SEEDS[:1])


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(InputError, match="decoder_heads = 5 does not divide mae.decoder_dim = 12"):
        MaskedAutoencoder(SMALL, MaeConfig(decoder_dim=12, decoder_heads=5))
