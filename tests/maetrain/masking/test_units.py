"""Units are hidden by count and seed, and voxels find their unit and their way back."""

import re
from itertools import product
from typing import Literal

import pytest
import torch

from data_shards.errors import InputError
from maetrain.masking.units import (
    MaskUnitGrid,
    Triple,
    from_units,
    pick_units,
    sample_hidden_BG,
    split_units,
    spread_units,
    to_units,
)

GRID = MaskUnitGrid((8, 12, 6), (4, 2, 3))  # 2 x 6 x 2 units, no two axes alike


@pytest.mark.parametrize(
    ("ratio", "hidden"),
    [(0.05, 1), (0.5, 12), (0.6, 14), (0.7, 17), (0.75, 18), (0.95, 23)],
)
def test_every_sample_has_exactly_the_rounded_share_hidden(ratio: float, hidden: int) -> None:
    is_hidden_BG = sample_hidden_BG(GRID, torch.arange(50), ratio)
    assert is_hidden_BG.dtype == torch.bool and is_hidden_BG.shape == (50, 24)
    assert is_hidden_BG.sum(1).tolist() == [hidden] * 50


def test_a_mask_depends_on_the_samples_own_seed_alone() -> None:
    together = sample_hidden_BG(GRID, torch.tensor([7, 2**62 + 1, 7, 9]), 0.5)
    for row, seed in zip(together, (7, 2**62 + 1, 7, 9), strict=True):
        assert torch.equal(row, sample_hidden_BG(GRID, torch.tensor([seed]), 0.5)[0])
    assert not torch.equal(together[0], together[3]) and not torch.equal(together[0], together[1])
    before = torch.get_rng_state()
    torch.manual_seed(99)
    assert torch.equal(sample_hidden_BG(GRID, torch.tensor([7]), 0.5)[0], together[0]), "the global seed has no say"
    torch.set_rng_state(before)


def test_every_unit_is_hidden_equally_often() -> None:
    share_G = sample_hidden_BG(GRID, torch.arange(4000), 0.75).float().mean(0)
    # 4 standard deviations of a share of 0.75 over 4000 draws
    assert (share_G - 0.75).abs().max() < 4 * (0.75 * 0.25 / 4000) ** 0.5


def brute_force_unit(place: tuple[int, int, int], unit: Triple, grid: Triple) -> int:
    d, h, w = (p // u for p, u in zip(place, unit, strict=True))
    return (d * grid[1] + h) * grid[2] + w


@pytest.mark.parametrize("cells", [(4, 2, 3), (1, 1, 1), (2, 2, 1)])
def test_spread_units_agrees_with_a_loop_over_all_places(cells: Triple) -> None:
    is_hidden_BG = sample_hidden_BG(GRID, torch.tensor([1, 2]), 0.4)
    spread = spread_units(is_hidden_BG, GRID, cells)
    assert spread.shape == (2, *(g * c for g, c in zip(GRID.grid_DHW, cells, strict=True)))
    for b, *place in product(range(2), *map(range, spread.shape[1:])):
        unit = brute_force_unit((place[0], place[1], place[2]), cells, GRID.grid_DHW)
        assert spread[b, place[0], place[1], place[2]] == is_hidden_BG[b, unit]


def test_to_units_puts_each_voxel_into_its_own_unit() -> None:
    who = torch.arange(2 * 3 * 8 * 12 * 6).view(2, 3, 8, 12, 6)  # every voxel its own number
    units_BGP = to_units(who, GRID)
    assert units_BGP.shape == (2, 24, 3 * 24)
    for b, d, h, w in product(range(2), range(8), range(12), range(6)):
        unit = brute_force_unit((d, h, w), GRID.unit_DHW, GRID.grid_DHW)
        assert all(who[b, c, d, h, w] in units_BGP[b, unit] for c in range(3))


def test_from_units_is_the_inverse_of_to_units() -> None:
    who = torch.arange(2 * 3 * 8 * 12 * 6).view(2, 3, 8, 12, 6)
    assert torch.equal(from_units(to_units(who, GRID), GRID), who)


def test_hidden_voxels_are_the_voxels_of_hidden_units() -> None:
    is_hidden_BG = sample_hidden_BG(GRID, torch.tensor([5]), 0.5)
    per_voxel = to_units(spread_units(is_hidden_BG, GRID, GRID.unit_DHW)[:, None], GRID)
    assert torch.equal(per_voxel, is_hidden_BG[..., None].expand_as(per_voxel))


def test_a_crop_between_two_multiples_is_refused_with_the_numbers_and_both_ways_out() -> None:
    with pytest.raises(InputError) as error:
        MaskUnitGrid((96, 96, 80), (32, 32, 32))
    for part in ("(96, 96, 80)", "(32, 32, 32)", "axis W", "80 % 32 = 16", "64 or 96"):
        assert part in str(error.value)


@pytest.mark.parametrize("crop", [(0, 8, 8), (4, 8, 8), (-8, 8, 8)])
def test_a_crop_smaller_than_one_unit_is_refused(crop: Triple) -> None:
    with pytest.raises(InputError, match="axis D"):
        MaskUnitGrid(crop, (8, 8, 8))


@pytest.mark.parametrize(("ratio", "hidden"), [(0.01, 0), (0.99, 24)])
def test_a_ratio_that_leaves_nothing_hidden_or_nothing_visible_is_refused(ratio: float, hidden: int) -> None:
    with pytest.raises(InputError, match=f"{ratio} hides {hidden} of the 24 units"):
        sample_hidden_BG(GRID, torch.tensor([0]), ratio)


@pytest.mark.parametrize("side", [2, 3, 13, 16])
@pytest.mark.parametrize("ratio", [1e-6, 1 - 1e-6])
def test_the_ratios_advised_for_a_grid_work(side: int, ratio: float) -> None:
    grid = MaskUnitGrid((8 * side,) * 3, (8, 8, 8))
    with pytest.raises(InputError, match="use .* to .* or a larger crop") as refused:
        grid.num_hidden(ratio)
    low, high = re.findall(r"use (\S+) to (\S+) or", str(refused.value))[0]
    assert (grid.num_hidden(float(low)), grid.num_hidden(float(high))) == (1, side**3 - 1)


@pytest.mark.parametrize("ratio", [0.05, 0.2, 0.5, 0.7, 0.75, 0.9])
def test_a_crop_of_a_single_unit_is_refused_with_one_that_works(ratio: float) -> None:
    with pytest.raises(InputError, match="single mask unit") as refused:
        sample_hidden_BG(MaskUnitGrid((16, 16, 16), (16, 16, 16)), torch.tensor([0]), ratio)
    (advised,) = re.findall(r"a crop of (\d+)", str(refused.value))
    sample_hidden_BG(MaskUnitGrid((int(advised), 16, 16), (16, 16, 16)), torch.tensor([0]), ratio)


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.75, 0.9])
def test_blocks_hide_the_exact_number_and_depend_on_the_samples_seed_alone(ratio: float) -> None:
    grid = MaskUnitGrid((32, 48, 40), (8, 8, 8))
    seeds = torch.tensor([5, 6, 7])
    hidden = sample_hidden_BG(grid, seeds, ratio, "block")
    assert hidden.sum(1).tolist() == [round(ratio * 120)] * 3
    assert torch.equal(hidden[1:2], sample_hidden_BG(grid, seeds[1:2], ratio, "block"))
    assert not torch.equal(hidden[0], hidden[1])


def test_blocks_hang_together_more_than_single_units_do() -> None:
    grid = MaskUnitGrid((64, 64, 64), (8, 8, 8))

    def equal_neighbours(sampling: Literal["random", "block"]) -> float:
        hidden = sample_hidden_BG(grid, torch.arange(8), 0.5, sampling).view(8, 8, 8, 8)
        return float((hidden[:, 1:] == hidden[:, :-1]).float().mean())

    assert equal_neighbours("block") > 0.7 > 0.6 > equal_neighbours("random")


def test_visible_and_hidden_units_are_all_units_once_in_rising_order() -> None:
    hidden = sample_hidden_BG(MaskUnitGrid((16, 24, 16), (8, 8, 8)), torch.tensor([1, 2]), 0.75)
    visible_BV, hidden_BM = split_units(hidden)
    for b in range(2):
        assert hidden_BM[b].tolist() == hidden[b].nonzero()[:, 0].tolist()
        assert visible_BV[b].tolist() == (~hidden[b]).nonzero()[:, 0].tolist()
    units = torch.arange(24).view(2, 12, 1)
    assert pick_units(units, hidden_BM)[..., 0].tolist() == [hidden_BM[0].tolist(), (hidden_BM[1] + 12).tolist()]
