"""Scores segmentations that any program has written: a folder with one file a case, in the case's own grid.

NIfTI, NRRD or MHA, whatever the archive's own files are. A file is called as its case (case.nii.gz), as the image or
the label in the archive, or as nnU-Net calls the case (the image's name without _0000). Everything that makes a score
another model's or another grid's is an error before a table is written: a case without a file, another shape, axes
that lie elsewhere, values that are no class. Costs one image, one label and one prediction in memory, and two reads a
case.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np

from data_shards.archive.cases import VOLUME_ENDINGS, ArchiveCase, ScanName, stem
from data_shards.archive.volume import Volume, read_case_image, read_case_label, read_voxels
from data_shards.errors import InputError
from data_shards.labels import Labels
from maetrain.evaluate.metrics import CaseScore, score_case
from maetrain.evaluate.test_set import spacing_mm_XYZ

# a tenth of a voxel: far above the rounding of headers (float32, quaternions), far below what a score would feel
MAX_SHIFT_VOXELS = 0.1


def find_predictions(folder: Path, cases: Sequence[ArchiveCase]) -> dict[str, Path]:
    """Case -> its file. Raises InputError naming the first case that has none, or two, and a file of two cases."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no folder there; give the folder that holds one segmentation a case")
    case_of: dict[Path, str] = {}
    missing = []
    for case in cases:
        names = dict.fromkeys(name + ending for name in _names(case) for ending in VOLUME_ENDINGS)
        files = [folder / name for name in names if (folder / name).is_file()]
        if len(files) > 1:
            raise InputError(f"{folder}: case {case.case!r} has two predictions, {files[0].name} and {files[1].name}")
        if not files:
            missing.append(case.case)
        elif (other := case_of.setdefault(files[0], case.case)) != case.case:
            raise InputError(
                f"{files[0]}: may be the prediction of {other!r} or of {case.case!r}; name it as its case, "
                f"such as {case.case}.nii.gz"
            )
    if missing:
        raise InputError(
            f"{folder}: no prediction for {len(missing)} of {len(cases)} cases, the first is {missing[0]!r} "
            f"({missing[0]}.nii.gz); add it, or name the persons to score by --subjects"
        )
    return {case: path for path, case in case_of.items()}


def score_predictions(
    files: Mapping[str, Path], cases: Sequence[ArchiveCase], labels: Labels, tolerance_mm: float
) -> list[CaseScore]:
    """One row per case and foreground class, as `test_set.score_scans` gives for a network. `files`: case -> file."""
    scores: list[CaseScore] = []
    for case in cases:
        image = read_case_image(case)
        label = read_case_label(case, image, len(labels.class_names))
        predicted_XYZ = read_prediction(files[case.case], image, label, labels.class_names)
        spacing_mm = spacing_mm_XYZ(image.affine_4x4)
        scores += score_case(predicted_XYZ, label.data, spacing_mm, labels, tolerance_mm, case.case, case.subject)
    return scores


def read_prediction(path: Path, image: Volume, label: Volume, class_names: Sequence[str]) -> np.ndarray:
    """(X, Y, Z) uint8. Raises InputError where the file isn't a segmentation on the grid of this image and label."""
    data, affine_4x4 = read_voxels(path, ScanName(str(path)))
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.shape != label.shape_XYZ:
        raise InputError(
            f"{path}: shape {data.shape}, its label has {label.shape_XYZ}; write the segmentation in the grid of the "
            "original image"
        )
    # labels may be written with another origin than their image: either is the grid of the case
    shift = min(_shift_voxels(affine_4x4, of.affine_4x4, label.shape_XYZ) for of in (image, label))
    if not shift <= MAX_SHIFT_VOXELS:
        raise InputError(
            f"{path}: its affine puts voxels up to {shift:.3g} voxels away from its label's, {MAX_SHIFT_VOXELS} are "
            "allowed; write the segmentation with the affine of the original image"
        )
    highest = len(class_names) - 1
    is_bad = ~((data >= 0) & (data <= highest) & (data == np.floor(data)))  # NaN is bad, too
    if is_bad.any():
        raise InputError(
            f"{path}: value {data[is_bad][0]:g} in {int(is_bad.sum())} voxels is no class; the classes are "
            f"0..{highest}, {', '.join(class_names)}"
        )
    return data.astype(np.uint8)


def _names(case: ArchiveCase) -> list[str]:
    """What a file of this case may be called, without its ending."""
    image = stem(case.image_paths[0].name)
    label = [stem(case.label_path.name)] if case.label_path else []
    return [case.case, image, *label, *(re.sub(r"_\d{4}$", "", name) for name in (case.case, image))]


def _shift_voxels(affine_a: np.ndarray, affine_b: np.ndarray, shape_XYZ: Sequence[int]) -> float:
    """How far apart two affines put the same corner of a volume, at most, in the smallest voxel edges of b."""
    corners_8X = np.array([[*corner, 1] for corner in product(*((0, n - 1) for n in shape_XYZ))], dtype=float)
    apart_mm = np.linalg.norm((corners_8X @ (affine_a - affine_b).T)[:, :3], axis=1)
    return float(apart_mm.max() / min(spacing_mm_XYZ(affine_b)))
