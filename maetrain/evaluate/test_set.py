"""Scoring a network on the fixed test persons, in the images' own grid and spacing."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from data_shards.archive.layout import ArchiveCase
from data_shards.archive.volume import read_image, read_label
from data_shards.archive.volume import voxel_sha256 as hash_of
from data_shards.errors import InputError
from data_shards.labels import Labels
from data_shards.preprocess import PreprocessConfig
from maetrain.evaluate.metrics import CaseScore, score_case
from maetrain.evaluate.predict import segment
from maetrain.models.config import Triple
from maetrain.models.segmentation import NNFormer


def spacing_mm_XYZ(affine_4x4: np.ndarray) -> tuple[float, float, float]:
    """Length of a voxel along each of its own axes."""
    x, y, z = np.linalg.norm(affine_4x4[:3, :3], axis=0)
    return float(x), float(y), float(z)


def score_cases(
    network: NNFormer,
    cases: Sequence[ArchiveCase],
    labels: Labels,
    preprocess: PreprocessConfig,
    window_DHW: Triple,
    tolerance_mm: float,
    voxel_sha256: Mapping[str, str] | None = None,
    on_case: Callable[[ArchiveCase, np.ndarray, np.ndarray, np.ndarray], None] = lambda *_: None,
) -> list[CaseScore]:
    """One row per case and target. `on_case` sees (case, image CXYZ, label XYZ, prediction XYZ).

    `voxel_sha256`: case -> hash of the scan it must be; InputError where the archive holds another by now.
    """
    rows: list[CaseScore] = []
    network.eval()
    for case in cases:
        assert case.label_path is not None, "test cases have labels"
        image = read_image(case.image_paths)
        if voxel_sha256 is not None and hash_of(image) != voxel_sha256[case.case]:
            raise InputError(
                f"{image.path}: not the scan the shards were built from (case {case.case}); "
                "give the archive of these shards, or build them anew"
            )
        label = read_label(Path(case.label_path), image, len(labels.class_names))
        predicted_XYZ = segment(
            network, image, preprocess.for_modality(case.modality), window_DHW, meaning=labels.meaning
        )
        label_XYZ = label.data.astype(np.uint8)
        rows += score_case(
            predicted_XYZ,
            label_XYZ,
            spacing_mm_XYZ(image.affine_4x4),
            labels,
            tolerance_mm,
            case.case,
            case.subject,
        )
        on_case(case, image.data, label_XYZ, predicted_XYZ)
    return rows
