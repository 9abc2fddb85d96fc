"""Scoring a network on the fixed test persons, in the images' own grid and spacing."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from torch import nn

from data_shards.archive.layout import ArchiveCase
from data_shards.archive.volume import read_image, read_label
from data_shards.preprocess import PreprocessConfig
from maetrain.evaluate.metrics import CaseScore, score_case
from maetrain.evaluate.predict import segment
from maetrain.models.config import Triple


def spacing_mm_XYZ(affine_4x4: np.ndarray) -> tuple[float, float, float]:
    """Length of a voxel along each of its own axes."""
    x, y, z = np.linalg.norm(affine_4x4[:3, :3], axis=0)
    return float(x), float(y), float(z)


def score_cases(
    network: nn.Module,
    cases: Sequence[ArchiveCase],
    class_names: Sequence[str],
    preprocess: PreprocessConfig,
    window_DHW: Triple,
    tolerance_mm: float,
    on_case: Callable[[ArchiveCase, np.ndarray, np.ndarray, np.ndarray], None] = lambda *_: None,
) -> list[CaseScore]:
    """One row per case and foreground class. `on_case` sees (case, image CXYZ, label XYZ, prediction XYZ)."""
    rows: list[CaseScore] = []
    network.eval()
    for case in cases:
        assert case.label_path is not None, "test cases have labels"
        image = read_image(case.image_paths)
        label = read_label(Path(case.label_path), image, len(class_names))
        predicted_XYZ = segment(network, image, preprocess, window_DHW)
        label_XYZ = label.data.astype(np.uint8)
        rows += score_case(
            predicted_XYZ,
            label_XYZ,
            spacing_mm_XYZ(image.affine_4x4),
            class_names,
            tolerance_mm,
            case.case,
            case.subject,
        )
        on_case(case, image.data, label_XYZ, predicted_XYZ)
    return rows
