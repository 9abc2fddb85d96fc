"""Metrics against numbers worked out by hand, a brute-force loop over all pairs of surface voxels, and two libraries.

MONAI's HausdorffDistanceMetric and SurfaceDiceMetric define surfaces as we do, so the numbers are equal, while no mask
is empty. google-deepmind's surface-distance puts its surface between the voxels, at the corners where eight of them
meet, and weighs each piece by its area. A mask's surface voxel and the nearest such corner lie at most half a voxel's
diagonal apart, so a distance from surface to surface differs by a whole diagonal at most. The weights can't be bounded
like that; they move a percentile or a share of the surface only as far as the distances within it are uneven. Where all
are alike (a body moved along an axis), the numbers are equal; elsewhere bounds are stated at each test.
"""

import numpy as np
import pytest
import surface_distance
import torch
from monai.metrics import DiceMetric, HausdorffDistanceMetric, SurfaceDiceMetric

from data_shards.labels import LabelMeaning, Labels, Region
from maetrain.evaluate.metrics import CaseScore, score_case

LABELS = Labels(("background", "front", "back"))


def score_one(pred: np.ndarray, label: np.ndarray, spacing: tuple[float, ...], tolerance: float = 1.0) -> CaseScore:
    scores = score_case(
        pred.astype(np.uint8), label.astype(np.uint8), spacing, Labels(("background", "organ")), tolerance, "c", "p"
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


def body(shape: tuple, spacing: tuple, centre_mm: tuple, radii_mm: tuple) -> np.ndarray:
    """An ellipsoid."""
    axes = np.ogrid[tuple(slice(n) for n in shape)]
    return sum(((x * s - c) / r) ** 2 for x, s, c, r in zip(axes, spacing, centre_mm, radii_mm, strict=True)) <= 1  # type: ignore[return-value]


def pair_of_bodies(seed: int) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """An organ and a prediction of it, some mm off, on an anisotropic grid."""
    rng = np.random.default_rng(seed)
    shape, spacing = (30, 34, 22), tuple(float(s) for s in rng.uniform(0.8, 2.5, 3))
    middle, radii = np.array(shape) * spacing / 2, np.array(shape) * spacing / 4
    label = body(shape, spacing, tuple(middle), tuple(radii))
    pred = body(shape, spacing, tuple(middle + rng.uniform(-4, 4, 3)), tuple(radii * rng.uniform(0.8, 1.2, 3)))
    return pred, label, spacing


@pytest.mark.parametrize("seed", range(8))
def test_monai_gives_the_same_numbers(seed: int) -> None:
    pred, label, spacing = pair_of_bodies(seed)
    if seed % 2:  # ragged ones, too
        rng = np.random.default_rng(seed)
        pred, label = pred & (rng.random(pred.shape) < 0.8), label & (rng.random(pred.shape) < 0.8)
    one_hot = [torch.from_numpy(np.stack([~m, m])[None].astype(np.float32)) for m in (pred, label)]
    score = score_one(pred, label, spacing, tolerance=1.7)
    hd95 = HausdorffDistanceMetric(percentile=95)(*one_hot, spacing=list(spacing))
    surface = SurfaceDiceMetric(class_thresholds=[1.7])(*one_hot, spacing=list(spacing))
    assert score.hd95_mm == pytest.approx(hd95.item(), rel=1e-5)
    assert score.surface_dice == pytest.approx(surface.item(), rel=1e-5)
    assert score.dice == pytest.approx(DiceMetric(include_background=False)(*one_hot).item(), rel=1e-5)


def test_monai_drops_what_our_rule_counts() -> None:
    nothing, something = np.zeros((4, 4, 4), bool), mask_of((4, 4, 4), np.s_[1:3, 1:3, 1:3])
    one_hot = [torch.from_numpy(np.stack([~m, m])[None].astype(np.float32)) for m in (nothing, something)]
    assert not np.isfinite(HausdorffDistanceMetric(percentile=95)(*one_hot, spacing=[1.0, 1.0, 1.0]).item())
    assert score_one(nothing, something, (1, 1, 1)).hd95_mm == pytest.approx(48**0.5)


@pytest.mark.parametrize(("axis", "voxels"), [(0, 1), (0, 3), (1, 2), (2, 1), (2, 4)])
def test_deepminds_surface_distance_is_equal_where_a_body_is_moved_along_an_axis(axis: int, voxels: int) -> None:
    spacing = (0.7, 1.6, 2.5)
    label = mask_of((30, 30, 30), np.s_[6:18, 6:18, 6:18])
    pred = np.roll(label, voxels, axis)
    distances = surface_distance.compute_surface_distances(label, pred, spacing)
    moved_mm = voxels * spacing[axis]
    score = score_one(pred, label, spacing, tolerance=moved_mm)
    assert score.hd95_mm == pytest.approx(surface_distance.compute_robust_hausdorff(distances, 95)) == moved_mm
    assert score.surface_dice == surface_distance.compute_surface_dice_at_tolerance(distances, moved_mm + 1e-6) == 1.0
    assert score.dice == pytest.approx(surface_distance.compute_dice_coefficient(label, pred))


@pytest.mark.parametrize("seed", range(8))
def test_deepminds_surface_distance_is_near_on_smooth_bodies(seed: int) -> None:
    """HD95 within a voxel's diagonal; surface Dice between ours at half a diagonal less and more, give or take 0.05."""
    pred, label, spacing = pair_of_bodies(seed)
    diagonal_mm, tolerance_mm = float(np.linalg.norm(spacing)), 3.0
    distances = surface_distance.compute_surface_distances(label, pred, spacing)
    theirs = surface_distance.compute_surface_dice_at_tolerance(distances, tolerance_mm)
    score = score_one(pred, label, spacing, tolerance_mm)
    stricter, looser = (score_one(pred, label, spacing, tolerance_mm + d / 2) for d in (-diagonal_mm, diagonal_mm))
    assert abs(score.hd95_mm - surface_distance.compute_robust_hausdorff(distances, 95)) <= diagonal_mm
    assert stricter.surface_dice - 0.05 <= theirs <= looser.surface_dice + 0.05


def test_deepmind_weighs_by_area_what_we_count() -> None:
    """A plate of 12 x 12 voxels of 8 x 8 mm with a rod of 10 voxels of 0.5 mm on it: 6.5 % of the surface voxels, less
    than 2 % of the area. Counting, HD95 feels the rod; by area it doesn't."""
    spacing = (0.5, 8.0, 8.0)
    label = mask_of((20, 16, 16), np.s_[2:3, 2:14, 2:14])
    pred = label | mask_of((20, 16, 16), np.s_[3:13, 8:9, 8:9])
    distances = surface_distance.compute_surface_distances(label, pred, spacing)
    assert surface_distance.compute_robust_hausdorff(distances, 95) < 0.6
    counted_mm = float(np.percentile([0.0] * 144 + [0.5 * i for i in range(1, 11)], 95))
    assert counted_mm > 1.0
    assert score_one(pred, label, spacing).hd95_mm == pytest.approx(counted_mm)


def test_a_stray_voxel_far_away_changes_one_distance_alone() -> None:
    label = mask_of((40, 40, 40), np.s_[18:22, 18:22, 18:22])
    pred = label | mask_of((40, 40, 40), np.s_[0:1, 0:1, 0:1])
    score = score_one(pred, label, (1, 1, 1), tolerance=0.0)
    assert (score.dice, score.hd95_mm) == (pytest.approx(128 / 129), 0.0)
    assert score.surface_dice == pytest.approx(112 / 113)  # 4^3 - 2^3 = 56 surface voxels each, and the stray one


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
    scores = score_case(pred, label, (1, 1, 1), LABELS, 1.0, "case_1", "anna")
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
        score_case(pred, label, spacing, LABELS, tolerance, "case_1", "anna")


def test_regions_are_scored_whole_and_voxels_nobody_annotated_not_at_all() -> None:
    """A prediction of value 2 where the label says 1 is right for the whole and wrong for the core."""
    meaning = LabelMeaning((Region("whole", (1, 2), 1), Region("core", (2,), 2)), ignore=3)
    labels = Labels(("background", "label 1", "core", "ignore"), meaning)
    label, pred = np.zeros((6, 6, 6), np.uint8), np.zeros((6, 6, 6), np.uint8)
    label[:4], label[3:4], label[4:] = 1, 2, 3
    pred[:4], pred[2:] = 1, 2
    whole, core = score_case(pred, label, (1, 1, 1), labels, 0.5, "c", "p")
    assert (whole.class_name, whole.dice, whole.hd95_mm, whole.surface_dice) == ("whole", 1.0, 0.0, 1.0)
    assert core.class_name == "core" and core.dice == pytest.approx(2 * 36 / (72 + 36)) and core.hd95_mm == 1.0
    unknown = np.full_like(label, 3)
    assert all(
        score.dice == 1 and score.hd95_mm == 0 for score in score_case(pred, unknown, (1, 1, 1), labels, 1, "c", "p")
    )
