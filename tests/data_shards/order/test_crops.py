import numpy as np
import pytest

from data_shards.order.crops import around, centre, crop_start, cut
from data_shards.order.streams import stream


def test_starts_reach_every_place_where_the_crop_fits_and_no_other():
    starts = {crop_start(stream(0, "t", i), (5, 4, 3), (3, 4, 5)) for i in range(300)}
    assert starts == {(d, 0, w) for d in (0, 1, 2) for w in (-2, -1, 0)}


@pytest.mark.parametrize(
    ("shape", "crop", "start"),
    [((10, 10, 10), (4, 4, 4), (3, 3, 3)), ((10, 3, 5), (4, 5, 5), (3, -1, 0))],
)
def test_the_centre_leaves_as_much_on_both_sides(shape, crop, start):
    assert centre(shape, crop) == start


@pytest.mark.parametrize("voxel", [(0, 0, 0), (5, 2, 3), (9, 4, 5)])
def test_a_crop_around_a_voxel_holds_it_and_stays_inside(voxel):
    shape, crop = (10, 5, 6), (4, 4, 8)
    start = around(voxel, shape, crop)
    assert all(a <= v < a + c for a, v, c in zip(start, voxel, crop, strict=True))
    assert all(min(0, n - c) <= a <= max(0, n - c) for a, n, c in zip(start, shape, crop, strict=True))
    assert around((5, 2, 3), (50, 50, 50), (4, 4, 4)) == (3, 0, 1)


def test_a_cut_equals_a_voxel_by_voxel_loop_even_far_outside():
    array = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    fill = np.array([-7, -9])
    for start in [(0, 0, 0), (-1, 2, -3), (2, -6, 1), (3, 3, 5), (-9, -9, -9)]:
        expected = np.empty((2, 3, 5, 4), dtype=int)
        for c, d, h, w in np.ndindex(expected.shape):
            place = (start[0] + d, start[1] + h, start[2] + w)
            inside = all(0 <= p < n for p, n in zip(place, array.shape[1:], strict=True))
            expected[c, d, h, w] = array[(c, *place)] if inside else fill[c]
        assert np.array_equal(cut(array, start, (3, 5, 4), fill), expected), start
