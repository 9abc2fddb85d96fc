"""Shares that come in slabs win where they win as a whole volume."""

import numpy as np
import pytest

from data_shards.resample import SlabVote, largest_share, resample

SHAPE = (23, 9, 11)


def shares(classes: int, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> np.ndarray:
    prob = np.random.default_rng(seed).random((classes, *shape)).astype(np.float32)
    return prob / prob.sum(0)


def in_slabs(prob_KDHW: np.ndarray, new_shape: tuple[int, int, int], heights: list[int]) -> np.ndarray:
    vote, row, rows = SlabVote(prob_KDHW.shape[1:], new_shape), 0, []
    for height in heights:
        rows.append(vote.add(prob_KDHW[:, row : row + height]))
        row += height
    assert row == prob_KDHW.shape[1]
    return np.concatenate(rows)


def heights_of(depth: int, seed: int) -> list[int]:
    cuts = np.random.default_rng(seed).choice(np.arange(1, depth), 5, replace=False)
    return np.diff([0, *sorted(cuts), depth]).tolist()


@pytest.mark.parametrize(
    "new_shape",
    [
        (23, 9, 11),  # nothing is resampled
        (41, 9, 11),
        (7, 9, 11),
        (22, 17, 5),
        (24, 4, 30),
        (1, 3, 3),
        (90, 9, 12),
        (23, 20, 11),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_slabs_of_any_height_give_the_labels_of_the_whole_volume(new_shape: tuple[int, int, int], seed: int) -> None:
    prob = shares(4, seed=seed)
    resampled = np.stack([resample(share, new_shape) for share in prob])
    first, second = np.sort(resampled, axis=0)[[-1, -2]]
    is_clear = first - second > 1e-6  # rounding could turn the others
    assert is_clear.mean() > 0.999
    want = resampled.argmax(0)
    assert np.array_equal(largest_share(prob, new_shape), want)
    for heights in ([1] * SHAPE[0], [SHAPE[0]], heights_of(SHAPE[0], seed)):
        got = in_slabs(prob, new_shape, heights)
        assert got.dtype == np.uint8 and np.array_equal(got[is_clear], want[is_clear])


def test_the_first_class_wins_a_tie() -> None:
    tied = np.full((3, *SHAPE), 1 / 3, dtype=np.float32)
    assert not largest_share(tied, SHAPE).any() and not in_slabs(tied, SHAPE, [20, 3]).any()


def test_no_more_rows_are_held_than_later_ones_need() -> None:
    for new_depth, most in ((23, 0), (60, 1), (8, 6)):  # finer: one neighbour; coarser by 3: the triangle's 6 voxels
        vote = SlabVote(SHAPE, (new_depth, 9, 11))
        held = []
        for row in range(SHAPE[0]):
            vote.add(shares(2)[:, row : row + 1])
            held.append(vote.held_KdHW.shape[1])
        assert max(held) <= most, (new_depth, held)


def test_rows_come_as_soon_as_they_are_complete() -> None:
    vote = SlabVote(SHAPE, (46, 9, 11))  # each old voxel becomes two; the second leans on the next voxel
    assert [len(vote.add(shares(2)[:, row : row + 1])) for row in range(SHAPE[0])] == [1] + [2] * 21 + [3]
