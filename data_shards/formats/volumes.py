"""The rows of an index: one stored scan each, as a Parquet table of which only the columns in use are in memory.

A million rows are some 300 MB on disk; opening reads the file once for its hash, order and crops then need a few
columns of numbers. `VolumeTable` is a sequence of `VolumeRecord`s, each made when it is asked for.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ConfigDict

from data_shards.errors import InputError
from data_shards.formats.encoding import Member
from data_shards.formats.names import all_plain

_SHAPE = pa.list_(pa.int32(), 4)
_SPACING = pa.list_(pa.float64(), 3)
_MEMBER = pa.list_(pa.int64(), 3)
SCHEMA = pa.schema(
    {
        "case": pa.string(),
        "subject": pa.string(),
        "session": pa.string(),
        "modality": pa.string(),
        "shard": pa.string(),
        "shape_CDHW": _SHAPE,
        "spacing_mm": _SPACING,
        "voxel_sha256": pa.binary(32),
        "source": pa.string(),
        "has_label": pa.bool_(),
        "label_classes": pa.list_(pa.int16()),
        "preprocess": pa.string(),
        "image_sha256": pa.binary(32),
        "label_sha256": pa.binary(32),
        "image_member": _MEMBER,
        "label_member": _MEMBER,
        "dtype": pa.string(),
        "scale": pa.float64(),
        "offset": pa.float64(),
        "air": pa.float64(),
        "mean": pa.float64(),
        "std": pa.float64(),
        "minimum_C": pa.list_(pa.float64()),
        "foreground": pa.binary(),
    }
)


@dataclass(frozen=True)
class VolumeRecord:
    """One stored scan.

    `voxel_sha256` is of the voxels as read, before preprocessing (equal scans have equal hashes). `stored_sha256` is of
    the stored arrays {"image", "label"}, whatever the format; `members` says where their bytes lie. `mean`, `std` and
    `minimum_C` are of the image as it is read. `source` is relative to the archive, or a key. `preprocess` is a
    `PreprocessRecord` as JSON. An image voxel reads as stored * `scale` + `offset`; `air` is stored where nothing is.
    `foreground` is a packed `ForegroundGrid`.
    """

    __pydantic_config__ = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

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
    members: dict[str, Member]
    mean: float
    std: float
    minimum_C: tuple[float, ...]
    session: str = ""
    modality: str = ""
    dtype: str = "float16"
    scale: float = 1.0
    offset: float = 0.0
    air: float = 0.0
    foreground: bytes = b""

    @property
    def shape_DHW(self) -> tuple[int, int, int]:
        return self.shape_CDHW[1:]


class Stored(NamedTuple):
    """What reading a crop needs of a record, taken from a few columns."""

    shard: str
    case: str
    shape_CDHW: tuple[int, int, int, int]
    image: Member
    label: Member
    has_label: bool
    dtype: str
    scale: float
    offset: float
    air: float
    minimum_C: tuple[float, ...]


class VolumeTable(Sequence[VolumeRecord]):
    """Records as columns. Equal when their rows are. `sha256` is the Parquet file's."""

    def __init__(self, rows: pa.Table) -> None:
        self._rows: pa.Table | None = rows
        self._content: pa.Buffer | None = None
        self._sha256 = ""
        self._columns: dict[str, pa.Array] = {}
        self._matrices: dict[str, np.ndarray] = {}

    @classmethod
    def of(cls, records: Iterable[VolumeRecord]) -> "VolumeTable":
        return cls(pa.Table.from_pylist([_to_row(record) for record in records], schema=SCHEMA))

    @classmethod
    def join(cls, tables: Iterable["VolumeTable"]) -> "VolumeTable":
        """The rows of all tables, one after the other."""
        return cls(pa.concat_tables([SCHEMA.empty_table(), *(table.table for table in tables)]))

    @classmethod
    def from_parquet(cls, content: pa.Buffer, sha256: str) -> "VolumeTable":
        """Rows of a file whose hash was checked, read column by column when they are asked for.

        Raises ValueError or OSError (pyarrow's) when it isn't Parquet or has other columns.
        """
        if not pq.read_schema(pa.BufferReader(content)).equals(SCHEMA):
            raise ValueError("its columns are not those this program writes")
        volumes = cls(SCHEMA.empty_table())
        volumes._rows, volumes._content, volumes._sha256 = None, content, sha256
        return volumes

    @cached_property
    def serialized(self) -> pa.Buffer:
        """The Parquet file. Equal rows give equal bytes under one version of pyarrow."""
        if self._content is not None:
            return self._content
        sink = pa.BufferOutputStream()
        pq.write_table(self.table, sink, compression="zstd", row_group_size=2**16, write_statistics=False)
        return sink.getvalue()

    @property
    def sha256(self) -> str:
        self._sha256 = self._sha256 or hashlib.sha256(self.serialized).hexdigest()
        return self._sha256

    @property
    def table(self) -> pa.Table:
        """All columns."""
        return self._rows if self._rows is not None else self._read(SCHEMA.names)

    def column(self, name: str) -> pa.Array:
        """One column; it stays in memory."""
        if name not in self._columns:
            # what a crop needs comes in one go, on all cores: a resumed run waits for it
            names = [*_PER_CROP, *_MATRICES] if name in (*_PER_CROP, *_MATRICES) else [name]
            table = self._rows if self._rows is not None else self._read(names)
            for each in names:
                column = table.column(each).combine_chunks()
                if _num_nulls(column) and not each.endswith("_sha256"):
                    raise InputError(f"the index has rows without {each}: build the shards again")
                self._columns[each] = column
        return self._columns[name]

    def matrix(self, name: str) -> np.ndarray:
        """A column of n numbers a row, as (N, n)."""
        if name not in self._matrices:
            values = self.column(name).flatten().to_numpy()
            self._matrices[name] = values.reshape(len(self), SCHEMA.field(name).type.list_size)
        return self._matrices[name]

    def where(self, name: str, values: Iterable[str]) -> np.ndarray:
        """Places, rising, of the rows whose text column `name` holds one of `values`."""
        wanted = pa.array(sorted(set(values)), pa.string())
        return np.flatnonzero(pc.is_in(self.column(name), value_set=wanted).to_numpy(zero_copy_only=False))

    @property
    def labelled(self) -> np.ndarray:
        """Places, rising, of the volumes that have a label."""
        return np.flatnonzero(self.column("has_label").to_numpy(zero_copy_only=False))

    def take(self, places: np.ndarray) -> "VolumeTable":
        """The rows at `places`, in that order."""
        return VolumeTable(self.table.take(pa.array(places, pa.int64())))

    def stored(self, i: int) -> Stored:
        """What reading a crop of record `i` needs; a fifth of the time a whole record takes."""
        shard, case, has_label, dtype, scale, offset, air, minimum_C = (
            self.column(name)[i].as_py() for name in _PER_CROP
        )
        c, d, h, w = self.matrix("shape_CDHW")[i].tolist()
        image, label = (Member(*self.matrix(name)[i].tolist()) for name in ("image_member", "label_member"))
        return Stored(shard, case, (c, d, h, w), image, label, has_label, dtype, scale, offset, air, tuple(minimum_C))

    def __len__(self) -> int:
        return self._num_rows

    @cached_property
    def _num_rows(self) -> int:
        return len(self._rows if self._rows is not None else self.column("has_label"))

    @overload
    def __getitem__(self, i: int) -> VolumeRecord: ...
    @overload
    def __getitem__(self, i: slice) -> tuple[VolumeRecord, ...]: ...
    def __getitem__(self, i: int | slice) -> VolumeRecord | tuple[VolumeRecord, ...]:
        if isinstance(i, slice):
            return tuple(self[k] for k in range(*i.indices(len(self))))
        if not -len(self) <= i < len(self):
            raise IndexError(f"volume {i} of {len(self)}")
        return _to_record({name: self.column(name)[int(i) % len(self)].as_py() for name in SCHEMA.names})

    def __iter__(self) -> Iterator[VolumeRecord]:
        for batch in self.table.to_batches(max_chunksize=1024):
            yield from map(_to_record, batch.to_pylist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VolumeTable) and self.table.equals(other.table)

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._content is not None:
            return _from_bytes, (self._content.to_pybytes(), self._sha256)
        return VolumeTable, (self._rows,)

    def _read(self, names: list[str]) -> pa.Table:
        assert self._content is not None
        try:
            table = pq.read_table(pa.BufferReader(self._content), columns=names)
        except pa.ArrowException as error:
            raise InputError(f"the index's rows can't be read ({' '.join(str(error).split())}): build again") from None
        for name in _PATH_PARTS & {*names}:
            if not all_plain(table.column(name)):
                raise InputError(
                    f"the index has a {name} that is no plain name but a path: distrust these shards, build them again"
                )
        return table


def _num_nulls(column: pa.Array) -> int:
    """Cells without a value, those inside lists too."""
    is_list = pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type)
    return column.null_count + (column.flatten().null_count if is_list else 0)


def _from_bytes(content: bytes, sha256: str) -> VolumeTable:
    return VolumeTable.from_parquet(pa.py_buffer(content), sha256)


_MATRICES = ("shape_CDHW", "image_member", "label_member")
_PER_CROP = ("shard", "case", "has_label", "dtype", "scale", "offset", "air", "minimum_C")
_PATH_PARTS = {"shard", "case"}
_NOWHERE = Member(0, 0, 0)
_PLAIN = ("case", "subject", "session", "modality", "shard", "source", "has_label", "dtype", "scale", "offset", "air",
          "mean", "std", "foreground")  # fmt: skip


def _to_row(record: VolumeRecord) -> dict[str, Any]:
    hashes = {f"{what}_sha256": bytes.fromhex(sha256) for what, sha256 in record.stored_sha256.items()}
    return {
        **{name: getattr(record, name) for name in _PLAIN},
        "shape_CDHW": record.shape_CDHW,
        "spacing_mm": record.spacing_mm,
        "voxel_sha256": bytes.fromhex(record.voxel_sha256),
        "label_classes": record.label_classes,
        "preprocess": json.dumps(record.preprocess, separators=(",", ":")),
        "image_sha256": hashes.get("image_sha256"),
        "label_sha256": hashes.get("label_sha256"),
        "image_member": record.members.get("image", _NOWHERE),
        "label_member": record.members.get("label", _NOWHERE),
        "minimum_C": record.minimum_C,
    }


def _to_record(row: dict[str, Any]) -> VolumeRecord:
    stored = {what: row[f"{what}_sha256"] for what in ("image", "label")}
    members = {what: Member(*row[f"{what}_member"]) for what in ("image", "label")}
    c, d, h, w = row["shape_CDHW"]
    return VolumeRecord(
        **{name: row[name] for name in _PLAIN},
        shape_CDHW=(c, d, h, w),
        spacing_mm=tuple(row["spacing_mm"]),
        voxel_sha256=row["voxel_sha256"].hex(),
        label_classes=tuple(row["label_classes"]),
        preprocess=json.loads(row["preprocess"]),
        stored_sha256={what: sha256.hex() for what, sha256 in stored.items() if sha256 is not None},
        members={what: member for what, member in members.items() if member != _NOWHERE},
        minimum_C=tuple(row["minimum_C"]),
    )
