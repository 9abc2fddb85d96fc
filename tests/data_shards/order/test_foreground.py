"""Blocks of anatomy and crops that look for them, beside a count voxel by voxel."""

import itertools
import math
import zlib

import numpy as np
import pytest

from data_shards.order.crops import crop_start
from data_shards.order.foreground import BLOCK, ForegroundGrid, anatomy_start, pack_foreground
from data_shards.order.streams import stream

SHAPE = (40, 33, 64)  # 3 x 3 x 4 blocks, the last of the first two axes cut


def mask(share: float, seed: int = 0) -> np.ndarray:
    """Random voxels, denser in some blocks than in others."""
    rng = np.random.default_rng(seed)
    density = rng.random([math.ceil(n / BLOCK) for n in SHAPE]) * 2 * share
    density = np.kron(density, np.ones((BLOCK,) * 3))[tuple(slice(n) for n in SHAPE)]
    return rng.random(SHAPE) < density


def blocks_by_hand(is_foreground_DHW: np.ndarray) -> np.ndarray:
    shape = [math.ceil(n / BLOCK) for n in is_foreground_DHW.shape]
    grid = np.zeros(shape, bool)
    for place in np.ndindex(*shape):
        block = is_foreground_DHW[tuple(slice(BLOCK * p, BLOCK * (p + 1)) for p in place)]
        grid[place] = block.sum() >= 0.25 * block.size
    return grid


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 1.0])
def test_a_block_is_foreground_when_a_quarter_of_its_voxels_is_even_where_the_volume_cuts_it(share):
    is_foreground_DHW = mask(share)
    grid = ForegroundGrid(pack_foreground(is_foreground_DHW), SHAPE)
    assert np.array_equal(grid.is_foreground_DHW, blocks_by_hand(is_foreground_DHW))


def test_exactly_a_quarter_counts_and_one_voxel_less_does_not():
    for num_voxels, expected in ((16 * 16 * 4, True), (16 * 16 * 4 - 1, False)):
        is_foreground_DHW = np.zeros((16, 16, 16), bool)
        is_foreground_DHW.reshape(-1)[:num_voxels] = True
        assert ForegroundGrid(pack_foreground(is_foreground_DHW), (16, 16, 16)).is_foreground_DHW.item() == expected


@pytest.mark.parametrize("shape", [(1, 1, 1), (16, 16, 16), (17, 1, 48), (2, 300, 5)])
def test_any_shape_of_volume_has_a_grid(shape):
    is_foreground_DHW = np.zeros(shape, bool)
    is_foreground_DHW[..., shape[2] // 2 :] = True
    grid = ForegroundGrid(pack_foreground(is_foreground_DHW), shape)
    assert np.array_equal(grid.is_foreground_DHW, blocks_by_hand(is_foreground_DHW))


def test_the_share_of_a_crop_is_that_of_the_blocks_it_touches():
    is_foreground_DHW, rng = mask(0.25), np.random.default_rng(1)
    grid, blocks = ForegroundGrid(pack_foreground(is_foreground_DHW), SHAPE), blocks_by_hand(is_foreground_DHW)
    for _ in range(200):
        start, size = rng.integers(-30, 60, 3).tolist(), rng.integers(1, 50, 3).tolist()
        touched = [
            blocks[place]
            for place in np.ndindex(*blocks.shape)
            if all(
                max(a, BLOCK * p, 0) < min(a + s, BLOCK * (p + 1), n)
                for a, s, p, n in zip(start, size, place, SHAPE, strict=True)
            )
        ]
        if touched:  # a crop always has a part in the volume
            assert grid.share(start, size) == pytest.approx(np.mean(touched))


def test_without_a_wish_the_start_is_the_plain_one():
    grid = ForegroundGrid(pack_foreground(mask(0.1)), SHAPE)
    for name, crop in itertools.product(range(50), [(8, 8, 8), (48, 20, 80)]):
        assert anatomy_start(stream(0, "t", name), grid, crop, 0.0) == crop_start(stream(0, "t", name), SHAPE, crop)


def test_the_first_of_sixteen_draws_that_holds_enough_is_taken_or_the_best():
    crop, grid = (10, 10, 10), ForegroundGrid(pack_foreground(mask(0.2)), SHAPE)
    kinds = set()
    for name, wish in itertools.product(range(60), (0.25, 0.5, 1.0)):
        rng = stream(0, "t", name)
        draws = [crop_start(rng, SHAPE, crop) for _ in range(16)]
        shares = [grid.share(start, crop) for start in draws]
        enough = [start for start, share in zip(draws, shares, strict=True) if share >= wish]
        expected = enough[0] if enough else draws[int(np.argmax(shares))]
        assert anatomy_start(stream(0, "t", name), grid, crop, wish) == expected
        kinds.add((bool(enough), expected == draws[0]))
    assert kinds >= {(True, True), (True, False), (False, False)}  # at once, later, never: the sweep has seen each


def test_air_alone_still_gives_a_crop():
    grid = ForegroundGrid(pack_foreground(np.zeros(SHAPE, bool)), SHAPE)
    rng = stream(0, "t", 1)
    assert anatomy_start(stream(0, "t", 1), grid, (8, 8, 8), 1.0) == crop_start(rng, SHAPE, (8, 8, 8))


@pytest.mark.parametrize(
    "packed",
    [b"", b"x", pack_foreground(np.ones((16, 16, 16), bool))[:-1], zlib.compress(b"")],
    ids=["nothing", "no zlib", "cut", "no bits"],
)
def test_bytes_that_are_no_grid_are_refused(packed):
    with pytest.raises(ValueError, match="no foreground grid"):
        ForegroundGrid(packed, SHAPE)


def test_the_grid_of_a_larger_or_smaller_volume_is_refused():
    packed = pack_foreground(np.ones(SHAPE, bool))  # 36 blocks, 5 bytes
    for shape in ((64, 64, 64), (16, 16, 16)):
        with pytest.raises(ValueError, match="no foreground grid"):
            ForegroundGrid(packed, shape)
