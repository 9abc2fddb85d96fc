"""Writes an archive of synthetic scans: bodies with labelled organs, as NIfTI files on disk, read back like any other.

Organs are ellipsoids under a smooth random deformation, each with its own place, brightness and texture; unlabelled
blobs of similar brightness make sure that brightness alone doesn't tell them apart. Bias field, noise and a wild
intensity scale per person come on top. Some persons are scanned twice. Deterministic; about 0.05 s a scan.
"""

import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from data_shards.order.streams import stream
from data_shards.resample import resample


class SyntheticConfig(BaseModel):
    """What to draw. Equal settings write equal bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_subjects: int = Field(default=24, ge=1, description="persons")
    rescanned_share: float = Field(default=0.25, ge=0, le=1, description="share of the persons who are scanned twice")
    shape_XYZ: tuple[int, int, int] = Field(
        default=(48, 56, 40), description="voxels of a scan along x, y, z; 1 mm each"
    )
    num_classes: int = Field(default=4, ge=2, le=13, description="classes, background included: num_classes - 1 organs")
    seed: int = Field(default=0, ge=0, description="seed of everything random")


def write_archive(root: Path, config: SyntheticConfig) -> None:
    """Write dataset.json, subjects.json, imagesTr/ and labelsTr/ (MSD layout) under `root`."""
    root = Path(root)
    training, subjects = [], {}
    for person in range(config.num_subjects):
        rescanned = (person + 1) * config.rescanned_share // 1 > person * config.rescanned_share // 1
        for scan in range(2 if rescanned else 1):
            case = f"synthetic_{person:03d}_{scan}"
            image_XYZ, label_XYZ = draw_scan(config, person, scan)
            _write_nifti(root / "imagesTr" / f"{case}.nii.gz", image_XYZ)
            _write_nifti(root / "labelsTr" / f"{case}.nii.gz", label_XYZ)
            training.append({"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"})
            subjects[case] = f"person_{person:03d}"
    header = {
        "name": "Synthetic",
        "description": "synthetic bodies with labelled organs",
        "tensorImageSize": "3D",
        "modality": {"0": "MRI"},
        "labels": {"0": "background"} | {str(k): f"organ_{k}" for k in range(1, config.num_classes)},
        "numTraining": len(training),
        "training": training,
    }
    (root / "dataset.json").write_text(json.dumps(header, indent=1) + "\n")
    (root / "subjects.json").write_text(json.dumps(subjects, indent=1) + "\n")


def draw_scan(config: SyntheticConfig, person: int, scan: int) -> tuple[np.ndarray, np.ndarray]:
    """(int16 image, uint8 label), both (X, Y, Z). Anatomy depends on the person, noise and bias on the scan, too."""
    anatomy, coil = stream(config.seed, "anatomy", person), stream(config.seed, "coil", person, scan)
    shape = config.shape_XYZ
    axes = [np.linspace(-1, 1, n, dtype=np.float32) for n in shape]
    place_3XYZ = np.stack(np.meshgrid(*axes, indexing="ij"))
    place_3XYZ += np.stack([_smooth_field(anatomy, shape, knots=4) for _ in range(3)]) * 0.07
    place_3XYZ += coil.normal(0, 0.02, (3, 1, 1, 1)).astype(np.float32)  # nobody lies twice at the same spot

    body_size = 0.86 * anatomy.uniform(0.95, 1.05, 3)
    image_XYZ = 0.30 * (_inside(place_3XYZ, np.zeros(3), body_size) > 0).astype(np.float32)
    is_body_XYZ = image_XYZ > 0
    image_XYZ += is_body_XYZ * 0.05 * _smooth_field(anatomy, shape, knots=8)

    plan = stream(config.seed, "plan")  # where organs lie and how they look: common to all persons
    label_XYZ = np.zeros(shape, dtype=np.uint8)
    num_organs = config.num_classes - 1
    turn = plan.uniform(0, 2 * np.pi)
    for blob in range(num_organs + 3):  # the last three are unlabelled look-alikes at random places
        is_organ = blob < num_organs
        angle = turn + 2 * np.pi * blob / num_organs
        ring = np.array([0.45 * np.cos(angle), 0.45 * np.sin(angle), 0.30 * np.sin(2.3 * angle)])
        typical_size, brightness = plan.uniform(0.28, 0.40, 3), plan.uniform(0.45, 0.85)
        size = typical_size * anatomy.uniform(0.85, 1.15, 3) * (1.0 if is_organ else 0.4)
        centre = ring + anatomy.normal(0, 0.04, 3) if is_organ else anatomy.uniform(-0.5, 0.5, 3)
        is_blob_XYZ = (_inside(place_3XYZ, centre, size) > 0) & is_body_XYZ & (label_XYZ == 0)
        texture_XYZ = 0.06 * _smooth_field(anatomy, shape, knots=6 + 4 * (blob % 3))
        brightness += anatomy.normal(0, 0.03)
        image_XYZ[is_blob_XYZ] = (brightness + texture_XYZ)[is_blob_XYZ]
        if is_organ:
            label_XYZ[is_blob_XYZ] = blob + 1

    image_XYZ *= np.exp(0.25 * _smooth_field(coil, shape, knots=3))  # bias field
    noise_2XYZ = 0.03 * coil.standard_normal((2, *shape), dtype=np.float32)
    image_XYZ = np.hypot(image_XYZ + noise_2XYZ[0], noise_2XYZ[1])  # Rician, as in magnitude MR
    scale = np.exp(coil.uniform(np.log(50), np.log(10_000)))
    return np.clip(image_XYZ * scale, 0, 32_767).astype(np.int16), label_XYZ


def _inside(place_3XYZ: np.ndarray, centre_3: np.ndarray, size_3: np.ndarray) -> np.ndarray:
    """Positive inside the ellipsoid with half-axes `size_3` (in units of half the volume)."""
    offset = (place_3XYZ - centre_3.reshape(3, 1, 1, 1)) / size_3.reshape(3, 1, 1, 1)
    return 1 - (offset**2).sum(axis=0)


def _smooth_field(rng: np.random.Generator, shape_XYZ: tuple[int, int, int], knots: int) -> np.ndarray:
    """A random field of about unit variance at its knots, linear between them."""
    return resample(rng.standard_normal((knots, knots, knots), dtype=np.float32), shape_XYZ)


def _write_nifti(path: Path, data_XYZ: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(nib.Nifti1Image(data_XYZ, np.eye(4)).to_bytes(), compresslevel=3, mtime=0))
