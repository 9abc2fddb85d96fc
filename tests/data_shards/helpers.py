"""Small archives and builds whose voxels say who and where they are."""

import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np

from data_shards.build import BuildConfig, build
from data_shards.formats.index import ShardIndex
from data_shards.preprocess import PreprocessConfig, PreprocessRecord, Restorer

# Percentiles 0..100 clip nothing, so a stored voxel can be decoded back to the number in the file.
KEEP_ALL = PreprocessConfig(clip_percentiles=(0, 100), crop_to_content=False)


def write_nifti(path: Path, data: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = nib.Nifti1Image(data, np.eye(4) if affine is None else affine).to_bytes()
    path.write_bytes(gzip.compress(raw, mtime=0) if path.name.endswith(".gz") else raw)
    return path


def one_labelled_scan(root: Path, value: int, class_names: list[str]) -> None:
    """An archive of one scan, labelled `value` everywhere, with `class_names` in that order."""
    write_nifti(root / "imagesTr" / "a.nii.gz", np.random.default_rng(0).uniform(1, 9, (12, 14, 10)))
    write_nifti(root / "labelsTr" / "a.nii.gz", np.full((12, 14, 10), value, dtype=np.uint8))
    labels = {str(value): name for value, name in enumerate(class_names)}
    (root / "dataset.json").write_text(json.dumps({"name": "x", "modality": {"0": "MRI"}, "labels": labels}))


def restored_XYZ(prob_KDHW: np.ndarray, record: PreprocessRecord) -> np.ndarray:
    """The segmentation of a whole scan's probabilities, in one go."""
    restorer = Restorer(record)
    restorer.add(prob_KDHW)
    return restorer.labels_XYZ()


def place_code(shape_XYZ: tuple[int, int, int], who: int = 0) -> np.ndarray:
    """int16 (X, Y, Z): every voxel has a number of its own, in an order that is different for every `who`.

    So no voxel can be taken for another, nor a scan for another one, even after normalising.
    """
    return np.random.default_rng(who).permutation(int(np.prod(shape_XYZ))).astype(np.int16).reshape(shape_XYZ)


def stored_code(shape_XYZ: tuple[int, int, int], who: int) -> np.ndarray:
    """What `decode` must give for that scan, (D, H, W): the lowest voxel (air) is clipped to the lowest of the rest."""
    return np.maximum(place_code(shape_XYZ, who), 1).transpose(2, 1, 0)


def write_archive(root: Path, shapes_XYZ: list[tuple[int, int, int]], num_classes: int = 3) -> Path:
    """MSD layout; case i is `case_i`, its voxels are place_code(shape, i), labels are blocks of each class."""
    training = []
    for i, shape in enumerate(shapes_XYZ):
        label = np.zeros(shape, dtype=np.uint8)
        for k in range(1, num_classes):
            label[1 + k, 2:4, i % 3 : 5] = k
        write_nifti(root / "imagesTr" / f"case_{i}.nii.gz", place_code(shape, i))
        write_nifti(root / "labelsTr" / f"case_{i}.nii.gz", label)
        training.append({"image": f"./imagesTr/case_{i}.nii.gz", "label": f"./labelsTr/case_{i}.nii.gz"})
    header = {"name": "Places", "modality": {"0": "MRI"}, "labels": labels(num_classes), "training": training}
    (root / "dataset.json").write_text(json.dumps(header))
    return root


def labels(num_classes: int) -> dict[str, str]:
    return {"0": "background"} | {str(k): f"part {k}" for k in range(1, num_classes)}


def build_places(folder: Path, shapes_XYZ: list[tuple[int, int, int]], format: str = "zarr", **settings) -> ShardIndex:
    write_archive(folder / "archive", shapes_XYZ)
    config = BuildConfig(**{"format": format, "preprocess": KEEP_ALL, "volumes_per_shard": 2, **settings})
    return build(folder / "archive", folder / "shards", config)


def decode(index: ShardIndex, i: int, stored: np.ndarray) -> np.ndarray:
    """Stored voxels of volume i -> the whole numbers that stood in the file (float16 keeps them apart)."""
    numbers = index.volumes[i].preprocess
    return np.rint(stored * numbers["scale_C"][0] + numbers["shift_C"][0]).astype(int)
