"""Scoring a network on the fixed test persons, in the images' own grid and spacing."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from torch import nn

from data_shards.archive.layout import ArchiveCase
from data_shards.archive.volume import read_case_image, read_case_label
from data_shards.archive.volume import voxel_sha256 as hash_of
from data_shards.errors import InputError
from data_shards.labels import Labels
from data_shards.preprocess import Prepared, PreprocessConfig
from maetrain.evaluate.metrics import CaseScore, score_case
from maetrain.evaluate.predict import labels_of, prepared_for_prediction
from maetrain.models.config import Triple


@dataclass(frozen=True)
class LabelledScan:
    """A scan and its label as they were read, (C, X, Y, Z) and uint8 (X, Y, Z), and the scan as a network gets it."""

    case: ArchiveCase
    image_CXYZ: np.ndarray
    label_XYZ: np.ndarray
    spacing_mm: tuple[float, float, float]
    prepared: Prepared

    @property
    def nbytes(self) -> int:
        parts = (self.image_CXYZ, self.label_XYZ, self.prepared.volume_CDHW, self.prepared.is_foreground_DHW)
        return sum(part.nbytes for part in parts)


ScanSource = Callable[[], LabelledScan]


def spacing_mm_XYZ(affine_4x4: np.ndarray) -> tuple[float, float, float]:
    """Length of a voxel along each of its own axes."""
    x, y, z = np.linalg.norm(affine_4x4[:3, :3], axis=0)
    return float(x), float(y), float(z)


def read_labelled_scan(
    case: ArchiveCase, labels: Labels, preprocess: PreprocessConfig, voxel_sha256: str | None = None
) -> LabelledScan:
    """Reads and prepares a labelled case. `voxel_sha256`: of the scan it must be; InputError where it is another."""
    image = read_case_image(case)
    if voxel_sha256 is not None and hash_of(image) != voxel_sha256:
        raise InputError(
            f"{image.path}: not the scan it was (case {case.case}): give the archive the shards were built from, "
            "or build them anew"
        )
    label = read_case_label(case, image, len(labels.class_names))
    prepared = prepared_for_prediction(image, preprocess.for_modality(case.modality))
    return LabelledScan(case, image.data, label.data.astype(np.uint8), spacing_mm_XYZ(image.affine_4x4), prepared)


def score_scans(
    network: nn.Module,
    scans: Iterable[ScanSource],
    labels: Labels,
    window_DHW: Triple,
    tolerance_mm: float,
    on_scan: Callable[[LabelledScan, np.ndarray], None] = lambda *_: None,
) -> list[CaseScore]:
    """One row per scan and target; one scan at a time is in memory. `on_scan` sees each with its prediction XYZ."""
    rows: list[CaseScore] = []
    network.eval()
    for source in scans:
        scan = source()
        predicted_XYZ = labels_of(network, scan.prepared, window_DHW, meaning=labels.meaning)
        case = scan.case
        rows += score_case(
            predicted_XYZ, scan.label_XYZ, scan.spacing_mm, labels, tolerance_mm, case.case, case.subject
        )
        on_scan(scan, predicted_XYZ)
    return rows
