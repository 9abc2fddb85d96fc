"""The scans on which shards are measured, and the crops that everybody reads from them.

- mr: the nine images of open_ms (182 x 218 x 182, 1 mm, skull-stripped); drawn ones of that size where it is absent
- ct: drawn, 512 x 512 x 300: a body of ellipses with 15 HU of noise in it, as a real one has, in air at -1000

Both are NIfTI archives in a scratch folder, so our build and the peers' start from the same files. C channels, D H W
voxels (depth first), X Y Z a file's axes.
"""

import gzip
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import zoom

from data_shards.build import BuildConfig, build
from data_shards.formats.index import ShardIndex
from data_shards.formats.reader import open_reader
from data_shards.order.crops import crop_start
from data_shards.order.streams import stream
from data_shards.preprocess import PreprocessConfig

Triple = tuple[int, int, int]

NOISE_HU = 15
AIR_HU, LUNG_HU, FAT_HU, SOFT_HU, LIVER_HU, BONE_HU = -1000, -850, -90, 40, 60, 500
SETS = ("mr", "ct")
CONFIGS = {
    "mr": BuildConfig(preprocess=PreprocessConfig(intensity="zscore")),
    "ct": BuildConfig(preprocess=PreprocessConfig(intensity="ct")),
}


@dataclass(frozen=True)
class ScanSet:
    """Scans as files and as our shards. `remark`: what they are, in a few words."""

    name: str
    remark: str
    archive: Path
    index: ShardIndex
    scratch: Path

    @property
    def config(self) -> BuildConfig:
        return CONFIGS[self.name]

    @property
    def peers(self) -> Path:
        """Where the peers write; another build of ours is another folder."""
        return self.scratch / f"peers-{self.index.sha256[:8]}"

    @property
    def shapes_DHW(self) -> list[Triple]:
        return [volume.shape_DHW for volume in self.index.volumes]


def open_set(name: str, mr_folder: Path, scratch: Path, is_quick: bool) -> ScanSet:
    """Draws or links the scans and builds our shards of them; what is in `scratch` already stays."""
    folder = scratch / (f"{name}-quick" if is_quick else name)
    archive = folder / "archive"
    if name == "mr":
        remark = _mr_archive(archive, mr_folder, num_scans=3 if is_quick else 9)
    else:
        remark = _ct_archive(archive, (208, 208, 160) if is_quick else (512, 512, 300), num_scans=2 if is_quick else 3)
    index = build(archive, folder / "ours", CONFIGS[name])
    return ScanSet(name, remark, archive, index, folder)


def stored_npy(scans: ScanSet) -> list[Path]:
    """Every scan's stored voxels (C, D, H, W) as an .npy file: what all peers write in their own form."""
    reader = open_reader(scans.index)
    paths = [scans.peers / "npy" / f"{volume.case}.npy" for volume in scans.index.volumes]
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    for i, path in enumerate(paths):
        if not path.exists():
            np.save(path, reader.stored_crop(i, (0, 0, 0), scans.shapes_DHW[i]))
    return paths


def draw_crops(shapes_DHW: Sequence[Triple], size_DHW: Triple, count: int, round_: int) -> list[tuple[int, Triple]]:
    """(volume, start) of `count` random crops; volumes take turns. Crops lie inside the volumes, if those hold them."""
    rng = stream(0, "benchmark", round_, *size_DHW)
    volumes = [k % len(shapes_DHW) for k in range(count)]
    return [(i, crop_start(rng, shapes_DHW[i], size_DHW)) for i in volumes]


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A temporary folder to write into, renamed to `folder` on success: a killed run leaves no half set."""
    temporary = folder.with_name(f".tmp-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    temporary.rename(folder)


def megabytes(folder: Path, num_volumes: int) -> float:
    """MB a volume of all that lies in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / num_volumes / 1e6


def _mr_archive(archive: Path, mr_folder: Path, num_scans: int) -> str:
    files = sorted(path for path in mr_folder.glob("*/*.nii.gz") if "GOLD_STANDARD" not in path.name)[:num_scans]
    for path in files:
        link = archive / f"{path.parent.name}_{path.name.partition('_')[0]}.nii.gz"
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(path.resolve())
    if files:
        return f"{len(files)} MR scans of open_ms"
    for number in range(num_scans):
        path = archive / f"drawn_{number}.nii.gz"
        if not path.exists():
            _write_nifti(path, draw_mr((182, 218, 182), number), (1.0, 1.0, 1.0))
    return f"{num_scans} DRAWN MR-like scans, {mr_folder} holds no open_ms"


def _ct_archive(archive: Path, shape_XYZ: Triple, num_scans: int) -> str:
    for number in range(num_scans):
        path = archive / f"ct_{number}.nii.gz"
        if not path.exists():
            _write_nifti(path, draw_ct(shape_XYZ, number), (0.8, 0.8, 1.0))
    return f"{num_scans} drawn CT-like scans, {' x '.join(map(str, shape_XYZ))}"


def write_small_archive(archive: Path, shape_XYZ: Triple, num_scans: int) -> Path:
    """A tree of drawn MR-like scans of any size."""
    for number in range(num_scans):
        _write_nifti(archive / f"drawn_{number}.nii.gz", draw_mr(shape_XYZ, number), (1.0, 1.0, 1.0))
    return archive


def draw_mr(shape_XYZ: Triple, number: int) -> np.ndarray:
    """A textured, noisy ellipsoid, int16, with nothing around it: as rough in its voxels as a stripped brain."""
    rng = stream(0, "mr", number)
    is_brain_XYZ = _ellipsoid(shape_XYZ, (0.5, 0.5, 0.5), (0.39, 0.41, 0.39))
    image_XYZ = 600 + 150 * _texture(rng, shape_XYZ, 8) + 100 * _texture(rng, shape_XYZ, 40)
    image_XYZ += 20 * rng.standard_normal(shape_XYZ, dtype=np.float32)
    return np.where(is_brain_XYZ, image_XYZ.clip(1, 2000), 0).astype(np.int16)


def draw_ct(shape_XYZ: Triple, number: int) -> np.ndarray:
    """Fat, soft tissue, two lungs, liver and spine in HU, int16, the organs a little different in every scan."""
    rng = stream(0, "ct", number)
    x, y, z = rng.uniform(-0.015, 0.015, 3)  # where this one lies, in shares of the volume
    is_body_XYZ = _ellipsoid(shape_XYZ, (0.5 + x, 0.5 + y, 0.5), (0.40, 0.28, 9.0))
    parts = [
        (FAT_HU, (0.5 + x, 0.5 + y, 0.5), (0.40, 0.28, 9.0)),
        (SOFT_HU, (0.5 + x, 0.5 + y, 0.5), (0.37, 0.25, 9.0)),
        (LUNG_HU, (0.34 + x, 0.47 + y, 0.75 + z), (0.13, 0.17, 0.30)),
        (LUNG_HU, (0.66 + x, 0.47 + y, 0.75 + z), (0.13, 0.17, 0.30)),
        (LIVER_HU, (0.38 + x, 0.47 + y, 0.30 + z), (0.18, 0.15, 0.18)),
        (BONE_HU, (0.5 + x, 0.69 + y, 0.5), (0.04, 0.05, 9.0)),
    ]
    image_XYZ = np.full(shape_XYZ, AIR_HU, dtype=np.float32)
    for level, middle, half in parts:
        image_XYZ[_ellipsoid(shape_XYZ, middle, half)] = level
    image_XYZ += 10 * _texture(rng, shape_XYZ, 24)
    image_XYZ += NOISE_HU * rng.standard_normal(shape_XYZ, dtype=np.float32)
    return np.where(is_body_XYZ, image_XYZ.round(), AIR_HU).clip(AIR_HU, 3000).astype(np.int16)


def _ellipsoid(shape_XYZ: Triple, middle: Sequence[float], half: Sequence[float]) -> np.ndarray:
    """True inside; middle and half-axes in shares of the volume's sides."""
    squares = [
        ((np.arange(n, dtype=np.float32) / n - m) / h) ** 2 for n, m, h in zip(shape_XYZ, middle, half, strict=True)
    ]
    return squares[0][:, None, None] + squares[1][None, :, None] + squares[2][None, None, :] < 1


def _texture(rng: np.random.Generator, shape_XYZ: Triple, knots: int) -> np.ndarray:
    """Random at `knots` places an axis, linear between them."""
    coarse = rng.standard_normal((knots, knots, knots), dtype=np.float32)
    return zoom(coarse, [n / knots for n in shape_XYZ], order=1)


def _write_nifti(path: Path, data_XYZ: np.ndarray, spacing_mm: tuple[float, float, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(data_XYZ, np.diag([*spacing_mm, 1.0]))
    temporary = path.with_name(f".tmp-{path.name}")  # a killed run leaves no half scan
    temporary.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))
    temporary.rename(path)
