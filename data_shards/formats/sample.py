"""What goes into a shard: one preprocessed scan, and the hash of its arrays."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class ShardSample:
    """`image_CDHW` float16, `label_DHW` uint8 or None, `meta` JSON-able facts stored beside the voxels."""

    case: str
    image_CDHW: np.ndarray
    label_DHW: np.ndarray | None
    meta: dict[str, Any]

    def arrays(self) -> dict[str, np.ndarray]:
        """The stored arrays by name: "image" and, where there is one, "label"."""
        return {"image": self.image_CDHW} | ({} if self.label_DHW is None else {"label": self.label_DHW})


Members = dict[str, tuple[int, int]]  # array name -> (offset, size) in bytes inside the shard; empty for zarr


def array_sha256(array: np.ndarray) -> str:
    """Hash of an array's type, shape and voxels: the same in every format."""
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
