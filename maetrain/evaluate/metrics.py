"""Dice, HD95 and surface Dice of one case, per class, in the image's own grid and spacing.

A surface is the set of mask voxels with a face neighbour outside the mask (outside the volume counts as
outside the mask); its distances come from one Euclidean distance transform per mask, computed inside the
box around both masks, which is exact and makes the cost depend on the organ, not on the scan. MONAI gives
the same numbers for masks that aren't empty; its empty ones become NaN and drop out of means, which would
reward a model for finding nothing, so the rule below is our own.

X Y Z voxels in the order of the file, N surface voxels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

EMPTY_MASK_RULE = (
    "Empty masks: if prediction and label are both empty, Dice and surface Dice are 1 and HD95 is 0 mm; "
    "if exactly one is empty, Dice and surface Dice are 0 and HD95 is the diagonal of the volume in mm."
)

# A distance that equals the tolerance counts as within it, also after rounding in the square root.
_TOLERANCE_SLACK_MM = 1e-6


@dataclass(frozen=True)
class CaseScore:
    """The scores of one foreground class in one scan. Dice and surface Dice 0..1, HD95 in mm."""

    case: str
    subject: str
    class_name: str
    dice: float
    hd95_mm: float
    surface_dice: float


def score_case(
    pred_XYZ: np.ndarray,
    label_XYZ: np.ndarray,
    spacing_mm_XYZ: Sequence[float],
    class_names: Sequence[str],
    tolerance_mm: float,
    case: str,
    subject: str,
) -> list[CaseScore]:
    """Score every foreground class of one case; class_names[i] names label value i, 0 is background.

    Both volumes hold class numbers on the same grid. Raises ValueError when shapes differ, a value names no
    class, or spacing or tolerance is not a usable number of mm.
    """
    _check(pred_XYZ, label_XYZ, spacing_mm_XYZ, class_names, tolerance_mm, case)
    scores = []
    for value, class_name in enumerate(class_names[1:], start=1):
        pred, label = pred_XYZ == value, label_XYZ == value
        dice = dice_score(pred, label)
        hd95_mm, surface_dice = surface_scores(pred, label, spacing_mm_XYZ, tolerance_mm)
        scores.append(CaseScore(case, subject, class_name, dice, hd95_mm, surface_dice))
    return scores


def dice_score(pred_XYZ: np.ndarray, label_XYZ: np.ndarray) -> float:
    """Twice the overlap over the summed sizes of two bool masks; 1 if both are empty."""
    total = int(pred_XYZ.sum()) + int(label_XYZ.sum())
    if total == 0:
        return 1.0
    return 2.0 * int((pred_XYZ & label_XYZ).sum()) / total


def surface_scores(
    pred_XYZ: np.ndarray, label_XYZ: np.ndarray, spacing_mm_XYZ: Sequence[float], tolerance_mm: float
) -> tuple[float, float]:
    """(HD95 in mm, surface Dice at tolerance_mm) of two bool masks, by EMPTY_MASK_RULE when one is empty.

    HD95 is the larger of the two directed 95th percentiles (linear between ranks). Surface Dice is the share
    of all surface voxels, of both masks together, that lie within the tolerance of the other's surface.
    """
    has_pred, has_label = bool(pred_XYZ.any()), bool(label_XYZ.any())
    if not has_pred and not has_label:
        return 0.0, 1.0
    if not (has_pred and has_label):
        return diagonal_mm(pred_XYZ.shape, spacing_mm_XYZ), 0.0
    box = ndimage.find_objects((pred_XYZ | label_XYZ).view(np.uint8))[0]
    pred_edge, label_edge = surface(pred_XYZ[box]), surface(label_XYZ[box])
    to_label_N = _distance_to(label_edge, spacing_mm_XYZ)[pred_edge]
    to_pred_N = _distance_to(pred_edge, spacing_mm_XYZ)[label_edge]
    hd95_mm = max(float(np.percentile(to_label_N, 95)), float(np.percentile(to_pred_N, 95)))
    limit_mm = tolerance_mm + _TOLERANCE_SLACK_MM
    within = int((to_label_N <= limit_mm).sum()) + int((to_pred_N <= limit_mm).sum())
    return hd95_mm, within / (to_label_N.size + to_pred_N.size)


def surface(mask_XYZ: np.ndarray) -> np.ndarray:
    """Bool mask of the voxels that touch the outside across a face."""
    return mask_XYZ & ~ndimage.binary_erosion(mask_XYZ, border_value=0)


def diagonal_mm(shape_XYZ: Sequence[int], spacing_mm_XYZ: Sequence[float]) -> float:
    """Length of the volume's diagonal: the HD95 of a class that was missed or invented."""
    return float(np.linalg.norm(np.asarray(shape_XYZ, float) * np.asarray(spacing_mm_XYZ, float)))


def _distance_to(edge_XYZ: np.ndarray, spacing_mm_XYZ: Sequence[float]) -> np.ndarray:
    return ndimage.distance_transform_edt(~edge_XYZ, sampling=tuple(spacing_mm_XYZ))


def _check(
    pred: np.ndarray, label: np.ndarray, spacing: Sequence[float], names: Sequence[str], tolerance: float, case: str
) -> None:
    if pred.shape != label.shape or pred.ndim != 3:
        raise ValueError(f"case {case}: prediction {pred.shape} and label {label.shape} must be the same 3-D grid")
    if len(spacing) != 3 or not all(np.isfinite(s) and s > 0 for s in spacing):
        raise ValueError(f"case {case}: spacing {tuple(spacing)} mm must be three positive numbers")
    if not (np.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"case {case}: tolerance {tolerance} mm must be a number of at least 0")
    for what, values in (("prediction", pred), ("label", label)):
        low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
        if low < 0 or high >= len(names):
            raise ValueError(
                f"case {case}: {what} holds values {low}..{high}, but the {len(names)} classes are 0..{len(names) - 1}"
            )
