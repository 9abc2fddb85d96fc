"""Puts the slices of a series in order and says where they lie; refuses whatever is not one evenly spaced stack.

Pure: positions in, order and affine out. Only positions are believed: SpacingBetweenSlices and SliceThickness are often
wrong, and instance numbers need not follow space. S slices; DICOM counts in LPS mm, the affine is in RAS mm.
"""

from dataclasses import dataclass

import numpy as np

from data_shards.errors import VolumeError

MIN_SLICES = 4
TOLERANCE_MM = 0.01
RELATIVE_TOLERANCE = 0.01
_MAX_MM = 1e5  # no scanner is larger; keeps sums of hostile numbers finite


@dataclass(frozen=True)
class SliceGeometry:
    """Where one slice lies: ImagePositionPatient, ImageOrientationPatient and PixelSpacing, in LPS and mm."""

    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing_mm: tuple[float, ...]


def stack_slices(name: str, slices: list[SliceGeometry]) -> tuple[list[int], np.ndarray]:
    """Order of the slices along their normal, and the RAS affine of their voxels as (column, row, slice).

    Raises VolumeError (calling the scan `name`) for fewer than 4 slices, several orientations or pixel sizes, two
    slices at one position, missing slices, uneven gaps, and a tilted gantry.
    """
    if len(slices) < MIN_SLICES:
        raise VolumeError(f"{name}: has {len(slices)} slices, a volume needs {MIN_SLICES} (a scout?): remove it")
    column_3, row_3, spacing_mm = _common_axes(name, slices)
    normal_3 = np.cross(column_3, row_3)
    positions_S3 = np.array([piece.position for piece in slices], dtype=np.float64)
    if not (np.abs(positions_S3) < _MAX_MM).all():
        raise VolumeError(f"{name}: a slice lies more than {_MAX_MM:g} mm from the origin: export the series again")
    order = np.argsort(positions_S3 @ normal_3, kind="stable")
    positions_S3 = positions_S3[order]
    _check_gaps(name, positions_S3 @ normal_3)
    step_3 = (positions_S3[-1] - positions_S3[0]) / (len(slices) - 1)
    _check_straight(name, positions_S3, step_3, normal_3)

    affine_4x4 = np.eye(4)
    affine_4x4[:3, 0] = column_3 * spacing_mm[1]  # PixelSpacing: between rows first, then between columns
    affine_4x4[:3, 1] = row_3 * spacing_mm[0]
    affine_4x4[:3, 2] = step_3
    affine_4x4[:3, 3] = positions_S3[0]
    return order.tolist(), np.diag([-1.0, -1, 1, 1]) @ affine_4x4


def _common_axes(name: str, slices: list[SliceGeometry]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit vectors along a row (to the next column) and along a column (to the next row), and the pixel size."""
    orientations_S6 = np.array([piece.orientation for piece in slices], dtype=np.float64)
    num_turned = int((np.abs(orientations_S6 - orientations_S6[0]).max(axis=1) > 1e-3).sum())
    if num_turned:
        raise VolumeError(
            f"{name}: {num_turned} of {len(slices)} slices are turned against the first one (a scout?): remove it"
        )
    column_3, row_3 = orientations_S6[0, :3], orientations_S6[0, 3:]
    lengths = np.linalg.norm(orientations_S6[0].reshape(2, 3), axis=1)
    if not (np.abs(lengths - 1) < 0.01).all() or not abs(column_3 @ row_3) < 0.01:
        raise VolumeError(f"{name}: its rows and columns are not at right angles: export the series again")
    spacings_S2 = np.array([piece.spacing_mm for piece in slices], dtype=np.float64)
    if not ((spacings_S2 > 0) & (spacings_S2 < _MAX_MM)).all() or not np.allclose(
        spacings_S2, spacings_S2[0], rtol=0.01
    ):
        raise VolumeError(
            f"{name}: pixel sizes run from {spacings_S2.min():.4g} to {spacings_S2.max():.4g} mm, one positive size is "
            "needed: export the series again"
        )
    return column_3 / lengths[0], row_3 / lengths[1], spacings_S2[0]


def _check_gaps(name: str, places_mm: np.ndarray) -> None:
    gaps_mm = np.diff(places_mm)
    num_double = int((gaps_mm < TOLERANCE_MM).sum())
    if num_double:
        raise VolumeError(
            f"{name}: {num_double} of {len(places_mm)} slices lie where another one does (several phases, echoes or "
            "copies in one series): split the series or remove the copies"
        )
    smallest = gaps_mm.min()
    step_mm = float(np.median(gaps_mm[gaps_mm <= smallest + _tolerance_mm(smallest)]))
    num_steps = np.rint(gaps_mm / step_mm)
    if (np.abs(gaps_mm - num_steps * step_mm) > _tolerance_mm(step_mm) * num_steps).any():
        raise VolumeError(
            f"{name}: its slices are {smallest:.4g} to {gaps_mm.max():.4g} mm apart, even gaps are needed: "
            "export an evenly spaced series"
        )
    if (num_steps > 1).any():
        first = int(np.argmax(num_steps > 1))
        raise VolumeError(
            f"{name}: {int(num_steps.sum()) - len(gaps_mm)} slices are missing, the first after slice {first + 1} of "
            f"{len(places_mm)} (a gap of {gaps_mm[first]:.4g} mm, usual are {step_mm:.4g}): restore them"
        )


def _check_straight(name: str, positions_S3: np.ndarray, step_3: np.ndarray, normal_3: np.ndarray) -> None:
    """Every slice must lie over the one below, or the voxels are a sheared box, and resampling would bend the body."""
    step_mm = float(step_3 @ normal_3)
    aside_mm = float(np.linalg.norm(step_3 - step_mm * normal_3))
    if aside_mm > max(TOLERANCE_MM, RELATIVE_TOLERANCE * step_mm):
        raise VolumeError(
            f"{name}: the gantry was tilted, slices shift by {np.degrees(np.arctan2(aside_mm, step_mm)):.2f} degrees: "
            "resample it to an upright box first"
        )
    line_S3 = positions_S3[0] + np.arange(len(positions_S3))[:, None] * step_3
    off_S3 = (positions_S3 - line_S3) - ((positions_S3 - line_S3) @ normal_3)[:, None] * normal_3
    worst_mm = float(np.linalg.norm(off_S3, axis=1).max())
    if worst_mm > max(TOLERANCE_MM, RELATIVE_TOLERANCE * step_mm):
        raise VolumeError(f"{name}: a slice lies {worst_mm:.4g} mm beside the line of the others: export it again")


def _tolerance_mm(step_mm: float) -> float:
    return max(TOLERANCE_MM, RELATIVE_TOLERANCE * float(step_mm))
