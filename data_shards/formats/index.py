"""The index of a build: what is in which shard, where it came from, what was left out and why.

OUT/index.json is a small header; the rows stand in the Parquet file it names by hash. No clock and no machine path is
in either, so equal archives and settings give equal indexes; the header's hash is the data set's digest. C channels,
D H W voxels (depth first); spacing in mm in D, H, W order.
"""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from data_shards.errors import InputError
from data_shards.formats.encoding import Encoding
from data_shards.formats.files import content_of, is_remote, location, remove, write_bytes, write_text
from data_shards.formats.names import PlainName
from data_shards.formats.volumes import VolumeTable
from data_shards.labels import PLAIN, LabelMeaning, Labels
from data_shards.preprocess import PreprocessConfig

SCHEMA_VERSION = 2
INDEX_NAME = "index.json"


@dataclass(frozen=True)
class Quarantined:
    """A case that can't be used: `path` relative to the archive, or its key; `reason` one line."""

    case: str
    path: str
    reason: str


@dataclass(frozen=True)
class ShardInfo:
    """A shard file or folder under the build folder; hash and size as `formats.files.digest` defines them."""

    name: PlainName
    sha256: str
    bytes: int


@dataclass(frozen=True)
class ShardIndex:
    """A finished build.

    `duplicates` are (case, same_as), left out of `volumes`. `aliases` are pairs of persons still in `volumes` of whom
    a scan with the same voxels was found: most likely one person under two names. `root` is where it was loaded from.
    """

    format: Literal["zarr", "webdataset"]
    name: str
    channel_names: tuple[str, ...]
    class_names: tuple[str, ...]
    preprocess: PreprocessConfig
    volumes: VolumeTable
    shards: tuple[ShardInfo, ...]
    quarantined: tuple[Quarantined, ...] = ()
    duplicates: tuple[tuple[str, str], ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    encoding: Encoding = Encoding()
    catalogue_sha256: str = ""
    meaning: LabelMeaning = PLAIN
    root: Path = field(default=Path("."), compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.volumes, VolumeTable):
            object.__setattr__(self, "volumes", VolumeTable.of(self.volumes))

    @property
    def labels(self) -> Labels:
        return Labels(self.class_names, self.meaning)

    @cached_property
    def sha256(self) -> str:
        """Hash of the canonical header, which holds the hash of the rows: the digest of the data set."""
        canonical = json.dumps(self._header(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write rows, then header, each whole or not at all; until the header is there, the old index stands."""
        rows_path = folder / _rows_name(self.volumes.sha256)
        write_bytes(rows_path, self.volumes.serialized)
        content = {"schema_version": SCHEMA_VERSION, "sha256": self.sha256, **self._header()}
        write_text(folder / INDEX_NAME, json.dumps(content, indent=1) + "\n")
        for other in folder.glob("volumes-*.parquet"):
            if other.name != rows_path.name:
                remove(other)

    @classmethod
    def load(cls, folder: Path | str) -> "ShardIndex":
        """The index of `folder`, which may be a bucket (see `files.location`).

        Raises InputError when there is no index, it is garbled or edited, or its schema version is another.
        """
        folder = location(folder)
        path = folder / INDEX_NAME
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version, stated_sha256 = content.pop("schema_version", None), content.pop("sha256", None)
        except FileNotFoundError:
            raise InputError(f"{path} is not there: build the shards first, or give their folder") from None
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            raise InputError(f"{path} is not an index ({error}): build the shards again") from None
        except Exception as error:  # no right to it, no credentials for its bucket, no network: of many classes
            if not isinstance(error, OSError) and not is_remote(path):
                raise
            raise InputError(f"{path} can't be read ({error}): check its name and your rights") from None
        if version != SCHEMA_VERSION:
            raise InputError(f"{path} has schema version {version}, this program reads {SCHEMA_VERSION}: build again")
        try:
            header = _HEADER.validate_python(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise InputError(f"{path} is garbled at {where} ({first['msg']}): build the shards again") from None
        fields = {name: getattr(header, name) for name in _SHARED}
        index = cls(**fields, volumes=_load_rows(folder, header.volumes_sha256), root=folder)
        if index.sha256 != stated_sha256:
            raise InputError(f"{path} does not match its own hash, it was edited or damaged: build the shards again")
        return index

    def _header(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in _SHARED}
        header = _HEADER.dump_python(_Header(**fields, volumes_sha256=self.volumes.sha256), mode="json")
        if self.meaning == PLAIN:
            del header["meaning"]  # as in indexes from before there were others
        if not self.aliases:
            del header["aliases"]  # likewise
        return header


@dataclass(frozen=True)
class _Header:
    """What index.json holds beside its version and hash."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    format: Literal["zarr", "webdataset"]
    name: str
    channel_names: tuple[str, ...]
    class_names: tuple[str, ...]
    preprocess: PreprocessConfig
    encoding: Encoding
    volumes_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    catalogue_sha256: str
    shards: tuple[ShardInfo, ...]
    quarantined: tuple[Quarantined, ...]
    duplicates: tuple[tuple[str, str], ...]
    aliases: tuple[tuple[str, str], ...] = ()
    meaning: LabelMeaning = PLAIN


_HEADER = TypeAdapter(_Header)
_SHARED = tuple(name for name in _Header.__dataclass_fields__ if name != "volumes_sha256")


def _rows_name(sha256: str) -> str:
    return f"volumes-{sha256[:12]}.parquet"


def _load_rows(folder: Path, sha256: str) -> VolumeTable:
    path = folder / _rows_name(sha256)
    try:
        content = content_of(path)
    except (OSError, ValueError):
        raise InputError(f"{path} is not there, though the index names it: restore it or build again") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise InputError(f"{path} does not match the hash in the index, it was edited or damaged: build again")
    try:
        return VolumeTable.from_parquet(content, sha256)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not the table of an index ({error}): build the shards again") from None
