"""What goes into a shard: one preprocessed scan, and the hash of its arrays."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class ShardSample:
    """`image_CDHW` float16 or int16, `label_DHW` uint8 or None, `air` the stored value of a voxel of nothing.

    `meta` are JSON-able facts stored beside the voxels.
    """

    case: str
    image_CDHW: np.ndarray
    label_DHW: np.ndarray | None
    air: float
    meta: dict[str, Any]

    def arrays(self) -> dict[str, tuple[np.ndarray, float]]:
        """The stored arrays and their fill values by name: "image" and, where there is one, "label"."""
        return {"image": (self.image_CDHW, self.air)} | (
            {} if self.label_DHW is None else {"label": (self.label_DHW, 0)}
        )


def widened(stored: np.ndarray, scale: float, offset: float) -> np.ndarray:
    """Stored voxels as they are read: float32, stored * scale + offset."""
    voxels = stored.astype(np.float32)
    if stored.dtype != np.float16:
        voxels *= np.float32(scale)
        voxels += np.float32(offset)
    return voxels


def array_sha256(array: np.ndarray) -> str:
    """Hash of an array's type, shape and voxels: the same in every format."""
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
