"""The masked autoencoder: what is hidden stays hidden, and each prediction stands for its own unit."""

import pytest
import torch
from torch import Tensor

from data_shards.errors import InputError
from maetrain.losses.reconstruction import normalise_units
from maetrain.masking.units import (
    MaskUnitGrid,
    cut_units,
    from_units,
    sample_hidden_BG,
    split_units,
    spread_units,
    to_units,
)
from maetrain.models.blocks import draw_drops_K2B
from maetrain.models.encoder import Encoder
from maetrain.models.mae import MaeConfig, MaskedAutoencoder, rebuilt_units
from maetrain.models.mae_decoder import ToVoxels, sincos_positions_GE

from ..small import SMALL, SMALL_MAE, noise

CROP = (16, 24, 16)
GRID = MaskUnitGrid(CROP, (8, 8, 8))
SEEDS = torch.tensor([11, 12])


MODES = ("dense", "visible")


def autoencoder(mode: str, **changes: object) -> MaskedAutoencoder:
    torch.manual_seed(0)
    return MaskedAutoencoder(SMALL, SMALL_MAE.model_copy(update={"mode": mode, **changes})).eval()


@pytest.fixture(scope="module", params=MODES)
def network(request: pytest.FixtureRequest) -> MaskedAutoencoder:
    return autoencoder(request.param)


def features(network: MaskedAutoencoder, volume: Tensor, is_hidden_BG: Tensor) -> list[Tensor]:
    if network.mae.mode == "dense":
        return network.encode_dense(volume, is_hidden_BG, GRID)
    return network.encode_visible(cut_units(volume, GRID), split_units(is_hidden_BG)[0], GRID)


def test_what_hidden_voxels_hold_changes_no_feature_and_no_gradient_of_the_encoder(network: MaskedAutoencoder) -> None:
    volume = noise(2, 1, *CROP)
    is_hidden_BG = sample_hidden_BG(GRID, SEEDS, 0.5)
    is_hidden = spread_units(is_hidden_BG, GRID, GRID.unit_DHW)[:, None]
    other = torch.where(is_hidden, 1e3 * noise(2, 1, *CROP, seed=1), volume)
    found = []
    for crop in (volume, other):
        feats = features(network, crop, is_hidden_BG)
        network.zero_grad()
        sum(f.square().mean() for f in feats).backward()
        found.append((feats, [p.grad.clone() for p in network.encoder.parameters()]))
    for one, two in zip(*found, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    with torch.no_grad():
        one, two = network(volume, SEEDS), network(other, SEEDS)
    assert torch.equal(one.is_hidden_BG, is_hidden_BG)
    assert torch.equal(one.pred_BMP, two.pred_BMP) and one.loss != two.loss


@torch.no_grad()
def test_the_loss_compares_each_hidden_unit_with_its_own_voxels(network: MaskedAutoencoder) -> None:
    volume = noise(2, 1, *CROP)
    output = network(volume, SEEDS)
    units_BGP = to_units(volume, GRID)
    errors = []
    for b in range(2):
        hidden = output.is_hidden_BG[b].nonzero()[:, 0]
        assert hidden.tolist() == output.hidden_BM[b].tolist()
        errors.append((output.pred_BMP[b] - units_BGP[b, hidden]).square())
    torch.testing.assert_close(output.loss, torch.stack(errors).mean())


@torch.no_grad()
def test_visible_voxels_move_the_prediction_and_count_nothing_in_the_loss(network: MaskedAutoencoder) -> None:
    volume = noise(2, 1, *CROP)
    is_hidden = spread_units(sample_hidden_BG(GRID, SEEDS, 0.5), GRID, GRID.unit_DHW)[:, None]
    one, two = network(volume, SEEDS), network(torch.where(is_hidden, volume, -volume), SEEDS)
    assert not torch.equal(one.pred_BMP, two.pred_BMP)


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_there_is_one_prediction_for_each_value_of_each_hidden_unit(mode: str, channels: int) -> None:
    config = SMALL.model_copy(update={"in_channels": channels})
    output = MaskedAutoencoder(config, SMALL_MAE.model_copy(update={"mode": mode}))(noise(2, channels, *CROP), SEEDS)
    assert output.pred_BMP.shape == (2, 6, channels * 8**3)
    assert output.loss.shape == () and output.loss.dtype == torch.float32
    assert output.is_hidden_BG.sum(1).tolist() == [6, 6]


@torch.no_grad()
def test_predicted_values_are_ordered_as_the_units_voxels_are() -> None:
    """Channel, then D, H, W: a head that writes each voxel's own place must give `to_units` of a map of places."""
    head = ToVoxels((8, 8, 4), channels=2, width=32)
    a, b, c = head.coarse_DHW
    (d, h, w), inner = head.fine_DHW, 32
    places = torch.arange(2 * 8 * 8 * 4.0).view(1, 2, 8, 8, 4)
    cells = places.view(2, a, d, b, h, c, w).permute(1, 3, 5, 0, 2, 4, 6).reshape(a * b * c, -1)
    # token 1 lights one channel a cell; LayerNorm is passed by, the last layer's columns hold the cells' voxels
    head.norm, head.to_cells = torch.nn.Identity(), torch.nn.Linear(32, a * b * c * inner)
    head.to_cells.weight.zero_(), head.to_cells.bias.fill_(-1e4)
    head.to_cells.bias.view(a * b * c, inner)[torch.arange(a * b * c), torch.arange(a * b * c)] = 1e4
    head.to_voxels.weight.zero_(), head.to_voxels.bias.zero_()
    head.to_voxels.weight[:, : a * b * c] = cells.T / 1e4
    torch.testing.assert_close(head(torch.zeros(1, 1, 32))[0, 0], places.flatten(), atol=1e-2, rtol=1e-4)


@torch.no_grad()
def test_a_sample_has_the_same_mask_and_prediction_whatever_its_batch(network: MaskedAutoencoder) -> None:
    volume = noise(2, 1, *CROP)
    together, alone = network(volume, SEEDS), network(volume[1:], SEEDS[1:])
    assert torch.equal(together.is_hidden_BG[1:], alone.is_hidden_BG)
    torch.testing.assert_close(together.pred_BMP[1:], alone.pred_BMP, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("mode", MODES)
def test_the_tokens_a_unit_is_joined_from_lie_where_the_unit_lies(mode: str) -> None:
    """Only the changed unit's own shallow tokens may change, and they must: windows of 2 stay inside these units."""
    network, volume = autoencoder(mode), noise(1, 1, *CROP)
    is_hidden_BG = torch.zeros(1, 12, dtype=torch.bool)
    is_hidden_BG[0, [1, 6]] = True
    visible = (~is_hidden_BG[0]).nonzero()[:, 0].tolist()
    places = visible if mode == "visible" else list(range(12))
    changed = 7
    voxels = to_units(volume, GRID).clone()
    voxels[0, changed] += 1.0
    before, after = (features(network, v, is_hidden_BG)[0][0] for v in (volume, from_units(voxels, GRID)))
    moved = (before - after).abs().amax(dim=(1, 2))
    assert int(moved.argmax()) == places.index(changed)
    if mode == "visible":
        assert (moved > 0).sum() == 1


@torch.no_grad()
@pytest.mark.parametrize("mode", MODES)
def test_a_normalised_target_does_not_know_a_units_brightness_and_contrast(mode: str) -> None:
    network = autoencoder(mode, normalise_target=True)
    volume = noise(2, 1, *CROP)
    is_hidden = spread_units(sample_hidden_BG(GRID, SEEDS, 0.5), GRID, GRID.unit_DHW)[:, None]
    brighter = torch.where(is_hidden, 3 * volume + 5, volume)
    torch.testing.assert_close(network(volume, SEEDS).loss, network(brighter, SEEDS).loss, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("mode", MODES)
def test_blank_regions_and_excluded_voxels_do_not_count(mode: str) -> None:
    network = autoencoder(mode, ignore_flat=0.0)
    volume = noise(2, 1, *CROP)
    volume[:, :, :9] = -3.0  # air, or a blanked face; the voxels beside it still have a neighbour that varies
    counts = torch.ones(2, *CROP, dtype=torch.bool)
    counts[:, :, 20:] = False
    output = network(volume, SEEDS, counts)
    counting = counts.clone()
    counting[:, :8] = False
    errors = []
    for b in range(2):
        chosen, wanted = (to_units(x, GRID)[b, output.hidden_BM[b]] for x in (counting[:, None], volume))
        errors.append((output.pred_BMP[b] - wanted)[chosen].square().mean())
    torch.testing.assert_close(output.loss, torch.stack(errors).mean())


@torch.no_grad()
def test_the_picture_shows_hidden_units_as_predicted_and_the_rest_as_it_is(network: MaskedAutoencoder) -> None:
    volume = noise(2, 1, *CROP)
    output = network(volume, SEEDS)
    units = to_units(volume, GRID)
    shown = rebuilt_units(output, units, normalised=False)
    assert torch.equal(shown[~output.is_hidden_BG], units[~output.is_hidden_BG])
    assert torch.equal(shown[output.is_hidden_BG], output.pred_BMP.flatten(0, 1))
    hidden = torch.stack([units[b, output.hidden_BM[b]] for b in range(2)])
    perfect = output._replace(pred_BMP=normalise_units(hidden))
    torch.testing.assert_close(rebuilt_units(perfect, units, normalised=True), units, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_gradients_reach_every_parameter(mode: str) -> None:
    network = autoencoder(mode)
    network(noise(2, 1, *CROP), SEEDS).loss.backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not idle


def test_the_encoder_inside_has_the_names_of_an_encoder_alone(network: MaskedAutoencoder) -> None:
    inside = {n.removeprefix("encoder.") for n in network.state_dict() if n.startswith("encoder.")}
    assert inside == set(Encoder(SMALL).state_dict())


@torch.no_grad()
def test_it_runs_in_bfloat16(network: MaskedAutoencoder) -> None:
    half = autoencoder(network.mae.mode)
    half.load_state_dict(network.state_dict())
    volume = noise(2, 1, *CROP)
    loss = half.to(torch.bfloat16)(volume.to(torch.bfloat16), SEEDS).loss
    torch.testing.assert_close(loss.float(), network(volume, SEEDS).loss, atol=0.02, rtol=0.02)


def test_under_bf16_autocast_the_loss_is_near_that_of_fp32(network: MaskedAutoencoder) -> None:
    volume = noise(2, 1, *CROP)
    exact = network(volume, SEEDS).loss.item()
    with torch.autocast("cpu", torch.bfloat16):
        output = network(volume, SEEDS)
    assert output.pred_BMP.dtype == torch.bfloat16 and output.loss.dtype == torch.float32
    assert 0 < abs(output.loss.item() - exact) < 0.01


@pytest.mark.parametrize("recompute", [(), ("stem", 0, 1, 2)], ids=["kept", "recomputed"])
@pytest.mark.parametrize("mode", MODES)
def test_drop_path_makes_the_same_decisions_for_a_sample_whatever_its_batch(mode: str, recompute: tuple) -> None:
    """Loss and gradients of a batch are the means of its samples' own, though many branches are dropped."""
    config = SMALL.model_copy(update={"drop_path": 0.5, "recompute": recompute})
    torch.manual_seed(0)
    network = MaskedAutoencoder(config, SMALL_MAE.model_copy(update={"mode": mode})).train().double()
    for parameter in network.parameters():  # else the encoder hardly moves the prediction
        parameter.data.mul_(20.0 if parameter.ndim > 1 else 1.0)
    volume, seeds = noise(4, 1, *CROP).double(), torch.tensor([11, 12, 13, 14])

    def loss_and_gradients(chosen: slice) -> list[Tensor]:
        network.zero_grad()
        loss = network(volume[chosen], seeds[chosen]).loss
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in network.parameters())]

    together = loss_and_gradients(slice(0, 4))
    alone = zip(*(loss_and_gradients(slice(b, b + 1)) for b in range(4)), strict=True)
    for got, want in zip(together, alone, strict=True):
        torch.testing.assert_close(got, torch.stack(want).mean(0), atol=1e-5, rtol=1e-5)
    assert abs(together[0] - network.eval()(volume, seeds).loss) > 0.01, "nothing was dropped"


@pytest.mark.parametrize("mode", MODES)
def test_each_branch_of_the_encoder_is_dropped_by_its_own_draws(mode: str) -> None:
    network, used = autoencoder(mode).train(), []
    for stage in network.encoder.stages:
        for block in stage.blocks:
            block.drop_path.register_forward_pre_hook(lambda _, inputs: used.append(inputs[1]))
    network(noise(2, 1, *CROP), SEEDS)
    assert torch.equal(torch.stack(used), draw_drops_K2B(SEEDS, 6).flatten(0, 1))


@pytest.mark.parametrize("mode", MODES)
def test_drop_path_draws_nothing_from_torch_s_own_generator(mode: str) -> None:
    network, volume = autoencoder(mode).train(), noise(2, 1, *CROP)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    network(volume, SEEDS)
    assert torch.equal(torch.rand(3), expected)


@torch.no_grad()
@pytest.mark.parametrize("mode", MODES)
def test_without_drop_path_training_computes_what_eval_does(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = SMALL.model_copy(update={"drop_path": 0.0})
    network, volume = MaskedAutoencoder(config, SMALL_MAE.model_copy(update={"mode": mode})), noise(2, 1, *CROP)
    monkeypatch.setattr("maetrain.models.mae.draw_drops_K2B", lambda *_: pytest.fail("drew"))
    assert torch.equal(network.train()(volume, SEEDS).pred_BMP, network.eval()(volume, SEEDS).pred_BMP)


@pytest.mark.parametrize("mode", MODES)
def test_torch_compile_takes_the_whole_of_it_in_one_graph(mode: str) -> None:
    network, volume, seeds = autoencoder(mode).train(), noise(4, 1, *CROP), torch.arange(4)
    sizes = (4, 3, 4)  # passes of a step may differ by a sample
    wanted = [network(volume[:size], seeds[:size]) for size in sizes]
    network.reconstruct = torch.compile(network.reconstruct, backend="eager", fullgraph=True)  # type: ignore[method-assign]
    for size, want in zip(sizes, wanted, strict=True):
        got = network(volume[:size], seeds[:size])
        torch.testing.assert_close(got.pred_BMP, want.pred_BMP)
        torch.testing.assert_close(got.loss, want.loss)


def test_the_published_faults_and_visible_units_do_not_go_together() -> None:
    published = SMALL.model_copy(update={"published": "cubic"})
    with pytest.raises(InputError, match="model.published=no, or mae.mode=dense"):
        MaskedAutoencoder(published, SMALL_MAE.model_copy(update={"mode": "visible"}))
    MaskedAutoencoder(published, SMALL_MAE.model_copy(update={"mode": "dense"}))


def test_no_two_units_have_the_same_position() -> None:
    positions = sincos_positions_GE((4, 5, 3), 24, torch.device("cpu"))
    assert positions.shape == (60, 24)
    distance = torch.cdist(positions, positions) + 1e9 * torch.eye(60)
    assert distance.min() > 0.05


def test_a_crop_that_is_no_multiple_of_the_unit_is_refused(network: MaskedAutoencoder) -> None:
    with pytest.raises(InputError, match="axis H"):
        network(noise(1, 1, 16, 20, 16), SEEDS[:1])


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(InputError, match="decoder_heads = 5 does not divide mae.decoder_dim = 12: use 4"):
        MaskedAutoencoder(SMALL, MaeConfig(decoder_dim=12, decoder_heads=5))


@pytest.mark.parametrize(
    ("unit", "axis"), [((12, 8, 8), "axis D; use 16"), ((8, 4, 8), "axis H; use 8"), ((8, 8, 20), "axis W; use 16")]
)
def test_a_unit_that_is_no_multiple_of_the_total_stride_is_refused(unit: tuple, axis: str) -> None:
    with pytest.raises(InputError, match=axis):
        MaskedAutoencoder(SMALL, SMALL_MAE.model_copy(update={"unit_DHW": unit}))


@torch.no_grad()
@pytest.mark.parametrize("mode", MODES)
def test_a_unit_may_be_several_of_the_deepest_tokens(mode: str) -> None:
    output = autoencoder(mode, unit_DHW=(8, 24, 16))(noise(2, 1, 16, 48, 16), SEEDS)
    assert output.is_hidden_BG.shape == (2, 4) and output.pred_BMP.shape == (2, 2, 8 * 24 * 16)
