"""A scan whose organ is whatever is brighter than 150, and a network that sees exactly that."""

from pathlib import Path

import nibabel
import numpy as np
import torch
from torch import Tensor, nn

from maetrain.models.config import NNFormerConfig

SHAPE_XYZ = (20, 24, 17)


def scan(seed: int = 0) -> np.ndarray:
    """(X, Y, Z) float32: air 0, a body of 88..92, a box of 180..220 in a corner of it; no symmetry anywhere."""
    rng = np.random.default_rng(seed)
    image_XYZ = np.zeros(SHAPE_XYZ, dtype=np.float32)
    image_XYZ[2:18, 3:22, 1:15] = rng.uniform(88, 92, (16, 19, 14))
    image_XYZ[4:9, 6:17, 3:7] = rng.uniform(180, 220, (5, 11, 4))
    return image_XYZ


def organ(image_XYZ: np.ndarray) -> np.ndarray:
    return (image_XYZ > 150).astype(np.uint8)


def write(path: Path, data: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4) if affine is None else affine), path)
    return path


def oblique_affine(spacing_mm: tuple[float, float, float] = (1.0, 1.5, 2.0), degrees: float = 20.0) -> np.ndarray:
    turn = np.radians(degrees)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    affine[:3, :3] = affine[:3, :3] @ np.diag(spacing_mm)
    affine[:3, 3] = (-31.5, 12.25, 7.0)
    return affine


class Brightness(nn.Module):
    """Class 1 where the prepared voxel is above the scan's mean."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.config = NNFormerConfig(in_channels=channels)
        self.device_marker = nn.Parameter(torch.zeros(1))

    def forward(self, x_BCDHW: Tensor) -> list[Tensor]:
        return [torch.cat([-x_BCDHW[:, :1], x_BCDHW[:, :1]], dim=1)]
