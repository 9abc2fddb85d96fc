"""The index of a build: what is in which shard, where it came from, what was left out and why. OUT/index.json.

Plain JSON, no clock and no machine path in it, so equal archives and settings give equal indexes; its hash is the data
set's digest. C channels, D H W voxels (depth first); spacing in mm in D, H, W order.
"""

import hashlib
import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from data_shards.errors import InputError
from data_shards.formats.files import write_text
from data_shards.preprocess import PreprocessConfig

SCHEMA_VERSION = 1
INDEX_NAME = "index.json"


@dataclass(frozen=True)
class VolumeRecord:
    """One stored scan.

    `voxel_sha256` is of the voxels as read, before preprocessing (equal scans have equal hashes). `stored_sha256` is of
    the decoded arrays {"image", "label"}, whatever the format. `members` gives tar byte ranges {"image": (offset,
    size), ...}, empty for zarr. `mean`, `std` and `minimum_C` are of the stored image. `source` is relative to the
    archive. `preprocess` is a `PreprocessRecord` as JSON.
    """

    case: str
    subject: str
    shard: str
    shape_CDHW: tuple[int, int, int, int]
    spacing_mm: tuple[float, float, float]
    voxel_sha256: str
    source: str
    has_label: bool
    label_classes: tuple[int, ...]
    preprocess: dict[str, Any]
    stored_sha256: dict[str, str]
    members: dict[str, tuple[int, int]]
    mean: float
    std: float
    minimum_C: tuple[float, ...]

    @property
    def shape_DHW(self) -> tuple[int, int, int]:
        return self.shape_CDHW[1:]


@dataclass(frozen=True)
class Quarantined:
    """A case that can't be used: `path` relative to the archive, `reason` one line."""

    case: str
    path: str
    reason: str


@dataclass(frozen=True)
class ShardInfo:
    """A shard file or folder under the build folder; hash and size as `formats.files.digest` defines them."""

    name: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class ShardIndex:
    """A finished build. `duplicates` are (case, same_as): left out of `volumes`. `root` is where it was loaded from."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    format: Literal["zarr", "webdataset"]
    name: str
    channel_names: tuple[str, ...]
    class_names: tuple[str, ...]
    preprocess: PreprocessConfig
    volumes: tuple[VolumeRecord, ...]
    shards: tuple[ShardInfo, ...]
    quarantined: tuple[Quarantined, ...] = ()
    duplicates: tuple[tuple[str, str], ...] = ()
    root: Path = field(default=Path("."), compare=False)

    def to_json(self) -> dict[str, Any]:
        """Everything but `root`, as plain values."""
        return _INDEX.dump_python(self, mode="json", exclude={"root"})

    @cached_property
    def sha256(self) -> str:
        """Hash of the canonical JSON: the digest of the data set."""
        canonical = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write `folder`/index.json, whole or not at all."""
        content = {"schema_version": SCHEMA_VERSION, "sha256": self.sha256, **self.to_json()}
        write_text(Path(folder) / INDEX_NAME, json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "ShardIndex":
        """Raises InputError when there is no index, it is garbled or edited, or its schema version is another."""
        path = Path(folder) / INDEX_NAME
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version, stated_sha256 = content.pop("schema_version", None), content.pop("sha256", None)
        except OSError:
            raise InputError(f"{path} is not there: build the shards first, or give their folder") from None
        except (ValueError, AttributeError, TypeError) as error:
            raise InputError(f"{path} is not an index ({error}): build the shards again") from None
        if version != SCHEMA_VERSION:
            raise InputError(f"{path} has schema version {version}, this program reads {SCHEMA_VERSION}: build again")
        try:
            index = replace(_INDEX.validate_python(content), root=Path(folder))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise InputError(f"{path} is garbled at {where} ({first['msg']}): build the shards again") from None
        if index.sha256 != stated_sha256:
            raise InputError(f"{path} does not match its own hash, it was edited or damaged: build the shards again")
        return index


_INDEX = TypeAdapter(ShardIndex)
