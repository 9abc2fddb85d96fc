"""Metrics against numbers worked out by hand and against a brute-force loop over all pairs of surface voxels."""

import numpy as np
import pytest

from maetrain.evaluate.metrics import CaseScore, score_case

NAMES = ("background", "front", "back")


def score_one(pred: np.ndarray, label: np.ndarray, spacing: tuple[float, ...], tolerance: float = 1.0) -> CaseScore:
    scores = score_case(
        pred.astype(np.uint8), label.astype(np.uint8), spacing, ("background", "organ"), tolerance, "c", "p"
    )
    assert len(scores) == 1
    return scores[0]


def mask_of(shape: tuple[int, int, int], *boxes: tuple[slice, slice, slice]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for box in boxes:
        mask[box] = True
    return mask


def brute_force(
    pred: np.ndarray, label: np.ndarray, spacing: tuple[float, ...], tolerance: float
) -> tuple[float, float]:
    """HD95 and surface Dice from all pairs of surface voxels, with loops only."""

    def edge_points(mask: np.ndarray) -> np.ndarray:
        points = []
        for at in np.argwhere(mask):
            for axis in range(3):
                for step in (-1, 1):
                    near = at.copy()
                    near[axis] += step
                    if not (0 <= near[axis] < mask.shape[axis]) or not mask[tuple(near)]:
                        points.append(tuple(at))
        return np.array(sorted(set(points))) * np.array(spacing)

    a, b = edge_points(pred), edge_points(label)
    pairs = np.linalg.norm(a[:, None] - b[None], axis=2)
    a_to_b, b_to_a = pairs.min(axis=1), pairs.min(axis=0)
    within = (a_to_b <= tolerance + 1e-6).sum() + (b_to_a <= tolerance + 1e-6).sum()
    return max(np.percentile(a_to_b, 95), np.percentile(b_to_a, 95)), within / (len(a) + len(b))


def test_equal_masks_score_perfectly() -> None:
    cube = mask_of((8, 8, 8), np.s_[2:6, 2:6, 2:6])
    score = score_one(cube, cube, (1, 2, 3))
    assert (score.dice, score.hd95_mm, score.surface_dice) == (1.0, 0.0, 1.0)


def test_cube_shifted_by_one_voxel_has_the_dice_and_distances_worked_out_by_hand() -> None:
    # 3x3x3 cubes at x = 1..3 and x = 2..4, 2 mm apart: 18 of 27 voxels shared. Each surface has 26 voxels: two
    # full planes and the rim of the plane between. Of the label's, seen from the predicted surface: plane x = 4
    # is 2 mm away (9 voxels), the rim of x = 3 and of x = 2 lie on it (16), the centre of x = 2 is 1 mm from the
    # rim around it (1). The other direction mirrors this.
    pred = mask_of((7, 5, 5), np.s_[1:4, 1:4, 1:4])
    label = mask_of((7, 5, 5), np.s_[2:5, 1:4, 1:4])
    score = score_one(pred, label, (2, 1, 1), tolerance=1.0)
    assert score.dice == pytest.approx(2 * 18 / 54)
    assert score.hd95_mm == pytest.approx(2.0)  # 9 of 26 distances are 2 mm: far more than 5 % of them
    assert score.surface_dice == pytest.approx((26 - 9) / 26)  # all but the far plane lie within 1 mm
    assert score_one(pred, label, (2, 1, 1), tolerance=0.5).surface_dice == pytest.approx((26 - 10) / 26)
    assert score_one(pred, label, (2, 1, 1), tolerance=2.0).surface_dice == 1.0


@pytest.mark.parametrize(
    ("at", "spacing", "expected_mm"),
    [
        ((3, 1, 1), (0.5, 1, 1), 1.0),  # 2 voxels of 0.5 mm along X
        ((1, 4, 1), (1, 2.5, 1), 7.5),  # along Y
        ((1, 1, 2), (1, 1, 3.3), 3.3),  # along Z
        ((4, 5, 1), (1, 1, 9), 5.0),  # 3-4-5 triangle in the plane
    ],
)
def test_single_voxels_are_their_distance_in_mm_apart(
    at: tuple[int, int, int], spacing: tuple[float, float, float], expected_mm: float
) -> None:
    a, b = np.zeros((6, 6, 6), bool), np.zeros((6, 6, 6), bool)
    a[1, 1, 1] = b[at] = True
    score = score_one(a, b, spacing, tolerance=expected_mm)
    assert score.hd95_mm == pytest.approx(expected_mm)
    assert score.dice == 0.0
    assert score.surface_dice == 1.0, "a distance equal to the tolerance is within it"
    assert score_one(a, b, spacing, tolerance=expected_mm * 0.99).surface_dice == 0.0


def test_hd95_leaves_out_one_far_voxel_in_forty() -> None:
    label = mask_of((60, 3, 3), np.s_[0:40, 1:2, 1:2])  # a rod: every voxel is surface
    pred = label.copy()
    pred[55, 1, 1] = True
    assert score_one(pred, label, (1, 1, 1)).hd95_mm == 0.0


def test_hd95_is_the_larger_of_the_two_directions() -> None:
    label = mask_of((30, 3, 3), np.s_[0:20, 1:2, 1:2])
    pred = mask_of((30, 3, 3), np.s_[0:1, 1:2, 1:2])
    expected = np.percentile(np.arange(20), 95)  # label -> pred; the other way is 0
    assert score_one(pred, label, (1, 1, 1)).hd95_mm == pytest.approx(expected)
    assert score_one(label, pred, (1, 1, 1)).hd95_mm == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(25))
def test_random_masks_agree_with_the_brute_force_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape, spacing = tuple(rng.integers(3, 9, 3)), tuple(rng.uniform(0.4, 3.0, 3))
    tolerance = rng.uniform(0.2, 3.0)
    pred, label = rng.random(shape) < rng.uniform(0.05, 0.9), rng.random(shape) < rng.uniform(0.05, 0.9)
    pred.flat[0] = label.flat[-1] = True  # neither is empty, and both touch the border
    score = score_one(pred, label, spacing, tolerance)
    hd95_mm, surface_dice = brute_force(pred, label, spacing, tolerance)
    assert score.hd95_mm == pytest.approx(hd95_mm)
    assert score.surface_dice == pytest.approx(surface_dice)


@pytest.mark.parametrize(
    ("has_pred", "has_label", "expected"),
    [
        (False, False, (1.0, 0.0, 1.0)),  # nothing there and nothing found
        (True, False, (0.0, 13.0, 0.0)),  # invented; diagonal of 3 x 4 x 12 mm
        (False, True, (0.0, 13.0, 0.0)),  # missed
    ],
)
def test_empty_masks_follow_the_printed_rule(
    has_pred: bool, has_label: bool, expected: tuple[float, float, float]
) -> None:
    pred, label = np.zeros((3, 2, 4), bool), np.zeros((3, 2, 4), bool)
    pred[0, 0, 0], label[1, 1, 1] = has_pred, has_label
    score = score_one(pred, label, (1, 2, 3))
    assert (score.dice, score.hd95_mm, score.surface_dice) == pytest.approx(expected)


def test_each_foreground_class_is_scored_by_its_own_mask() -> None:
    label = np.zeros((6, 6, 6), np.uint8)
    label[:2], label[4:] = 1, 2
    pred = label.copy()
    pred[4:] = 0  # the second class is missed
    scores = score_case(pred, label, (1, 1, 1), NAMES, 1.0, "case_1", "anna")
    assert [(s.case, s.subject, s.class_name, s.dice) for s in scores] == [
        ("case_1", "anna", "front", 1.0),
        ("case_1", "anna", "back", 0.0),
    ]
    assert scores[1].hd95_mm == pytest.approx(6 * 3**0.5)


@pytest.mark.parametrize(
    ("pred_shape", "value", "spacing", "tolerance", "word"),
    [
        ((4, 4, 5), 1, (1, 1, 1), 1.0, "same 3-D grid"),
        ((4, 4, 4), 3, (1, 1, 1), 1.0, "values 3..3"),
        ((4, 4, 4), 1, (1, 0, 1), 1.0, "spacing"),
        ((4, 4, 4), 1, (1, 1, 1), -1.0, "tolerance"),
    ],
)
def test_impossible_input_is_refused_by_name(
    pred_shape: tuple[int, ...], value: int, spacing: tuple[float, ...], tolerance: float, word: str
) -> None:
    pred, label = np.full(pred_shape, value, np.uint8), np.zeros((4, 4, 4), np.uint8)
    with pytest.raises(ValueError, match=word):
        score_case(pred, label, spacing, NAMES, tolerance, "case_1", "anna")
