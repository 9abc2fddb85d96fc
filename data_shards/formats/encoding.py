"""An array as the bytes of one zarr v3 shard, and boxes of it back. Both shard formats store these bytes.

The bytes are what zarr's `sharding_indexed` codec defines: chunks, each blosc-compressed with a crc32c of its own,
then the table of their (offset, size) with its crc32c. Chunks of nothing but the fill value (air) are left out. zarr
itself reads the same bytes, at a tenth of the speed: it decodes a chunk per event of its loop; ours asks for all
the ranges of a crop at once and decodes into one buffer. LZ4HC is slow to write and the fastest to read: measured on
96^3 crops of MR volumes 2.7 times zstd's speed at a tenth more bytes (docs/decisions/0013).
"""

import itertools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import blosc2
import google_crc32c
import numpy as np
from numcodecs import blosc
from pydantic import BaseModel, ConfigDict, Field

from data_shards.errors import ShardError
from data_shards.formats.chunks import ChunkGrid
from data_shards.formats.storage import CRC_BYTES, Bytes, Range, Storage, read_checked

# blosc's own threads are shared by the whole process and do not survive a fork; a loader has workers instead.
blosc.use_threads = False
blosc2.set_nthreads(1)

LEVEL = 5
_FEW_VALUES = 32  # a chunk has few values when each occurs this often on average
_EMPTY = 2**64 - 1  # zarr's mark of a chunk that isn't stored
_ROW_BYTES = 16


class Member(NamedTuple):
    """Where the bytes of one array lie: `offset` and `size` in its file, and the crc32c of its chunk table.

    The table's checksum stands in the index, so a shard of another build is noticed although its chunks are whole.
    """

    offset: int
    size: int
    table_crc32c: int


class Encoding(BaseModel):
    """How arrays become bytes. Equal arrays and settings give equal bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_chunk: int = Field(
        default=32, ge=8, le=128, description="longest side of a chunk, in voxels: what is read and decoded at once"
    )
    compressor: Literal["lz4hc", "zstd"] = Field(
        default="lz4hc", description="lz4hc: fastest to read; zstd: some percent smaller, reads at a third of the speed"
    )

    dtype: Literal["float16", "int16"] = Field(
        default="float16", description="voxel type of stored images; int16: with a scale and offset per volume"
    )

    def encode(self, array: np.ndarray, fill: float) -> bytes:
        """The shard bytes of `array`, (C,) D H W; chunks that hold only `fill` are left out."""
        grid = self.grid(array.shape)
        table = np.full((grid.num_chunks, 2), _EMPTY, dtype="<u8")
        stored, offset = [], 0
        blank = np.full(grid.chunk, fill, dtype=array.dtype)
        blank_bytes = blank.tobytes()
        for number, in_array, in_chunk in grid.pieces():
            chunk = blank.copy()
            chunk[in_chunk] = array[in_array]
            if chunk.tobytes() == blank_bytes:
                continue
            payload = with_crc(self._compress(chunk))
            table[number] = offset, len(payload)
            stored.append(payload)
            offset += len(payload)
        return b"".join([*stored, with_crc(table.tobytes())])

    def _compress(self, chunk: np.ndarray) -> bytes:
        """The blosc buffer of a chunk, with or without byte shuffle: its header says so, so every reader knows.

        LZ4 decodes twice as fast without, but for voxels of few values (CT's whole numbers): there it finds thousands
        of short matches, and shuffling leaves it one plane that compresses and one that doesn't.
        """
        name = self.compressor.encode()
        if self.compressor == "lz4hc" and (chunk.itemsize == 1 or _num_values(chunk) > chunk.size // _FEW_VALUES):
            return blosc.compress(chunk, name, LEVEL, blosc.NOSHUFFLE)
        return blosc.compress(chunk, name, LEVEL, blosc.SHUFFLE)

    def metadata(self, array: np.ndarray, fill: float) -> dict[str, Any]:
        """The zarr.json that goes with `encode`: one shard of the whole array."""
        grid = self.grid(array.shape)
        endian = {"name": "bytes", "configuration": {"endian": "little"}}
        compress = {
            "typesize": array.itemsize,
            "cname": self.compressor,
            "clevel": LEVEL,
            "shuffle": "shuffle",
            "blocksize": 0,
        }
        sharding = {
            "chunk_shape": list(grid.chunk),
            "codecs": [
                endian if array.itemsize > 1 else {"name": "bytes"},
                {"name": "blosc", "configuration": compress},
                {"name": "crc32c"},
            ],
            "index_codecs": [endian, {"name": "crc32c"}],
            "index_location": "end",
        }
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(array.shape),
            "data_type": array.dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(grid.padded_shape)}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": float(fill) if array.dtype.kind == "f" else int(fill),
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "attributes": {},
            "dimension_names": ["c", "d", "h", "w"][-array.ndim :],
        }

    def grid(self, shape: Sequence[int]) -> ChunkGrid:
        return ChunkGrid.of(shape, self.max_chunk)


def _num_values(chunk: np.ndarray) -> int:
    """How many different values a chunk of 2-byte voxels holds."""
    return int(np.count_nonzero(np.bincount(chunk.view(np.uint16).ravel(), minlength=2**16)))


def chunk_key(what: str) -> str:
    """zarr's name of the one shard of an array, "image" (C, D, H, W) or "label" (D, H, W)."""
    return "/".join(["c", *"0" * (4 if what == "image" else 3)])


def table_crc32c(encoded: bytes) -> int:
    return int.from_bytes(encoded[-CRC_BYTES:], "little")


def with_crc(payload: bytes) -> bytes:
    return payload + google_crc32c.value(payload).to_bytes(CRC_BYTES, "little")


class StoredArray:
    """One array of a shard, opened: its chunk table is read, its chunks are not.

    Raises ShardError when the table can't be read or is not the one the index knows.
    """

    def __init__(
        self, storage: Storage, file: str, member: Member, grid: ChunkGrid, dtype: np.dtype, fill: float
    ) -> None:
        self.file, self.member, self.grid, self.dtype, self.fill = file, member, grid, dtype, fill
        num_bytes = grid.num_chunks * _ROW_BYTES + CRC_BYTES
        table_range = Range(member.offset + member.size - num_bytes, num_bytes)
        if table_range.offset < member.offset:
            raise ShardError(f"{file}: {member.size} bytes can't hold {grid.num_chunks} chunks: build the shards again")
        (table,) = read_checked(storage, file, [table_range], expected_crc32c=member.table_crc32c)
        self._table_N2 = np.frombuffer(table[:-CRC_BYTES], dtype="<u8").reshape(-1, 2)

    def read_boxes(
        self,
        storage: Storage,
        boxes: Sequence[tuple[Sequence[int], Sequence[int]]],
        into: Sequence[np.ndarray],
    ) -> None:
        """Write for each (start, stop) the voxels [start, stop) of all axes into the array of that shape.

        Only the chunks that the boxes touch are read, checked and decoded, and each of them once. Raises ShardError.
        """
        decoded: dict[int, np.ndarray] | None = {} if len(boxes) > 1 else None
        for (start, stop), array in zip(boxes, into, strict=True):
            if array.size:
                self._read_box(storage, start, stop, array, decoded)

    def _read_box(
        self,
        storage: Storage,
        start: Sequence[int],
        stop: Sequence[int],
        array: np.ndarray,
        decoded: dict[int, np.ndarray] | None,
    ) -> None:
        """One box. `decoded` holds the chunks that boxes before it have decoded, None = nobody will need them again.

        This loop runs some ten thousand times a second; its parts are laid out for that.
        """
        cuts = self.grid.cuts(start, stop)
        numbers = self.grid.numbers(cuts)
        rows = self._table_N2[numbers].tolist()
        first = self.member.offset
        wanted = [
            Range(first + offset, size)
            for number, (offset, size) in zip(numbers, rows, strict=True)
            if offset != _EMPTY and not (decoded and number in decoded)
        ]
        payloads = iter(read_checked(storage, self.file, wanted))
        chunk = np.empty(self.grid.chunk, dtype=self.dtype)
        in_box = itertools.product(*([cut.in_box for cut in axis] for axis in cuts))
        in_chunk = itertools.product(*([cut.in_chunk for cut in axis] for axis in cuts))
        for number, (offset, _), box, part in zip(numbers, rows, in_box, in_chunk, strict=True):
            if offset == _EMPTY:
                array[box] = self.fill
            elif decoded is None:
                self._decode(next(payloads), chunk)
                array[box] = chunk[part]
            else:
                if number not in decoded:
                    decoded[number] = np.empty_like(chunk)
                    self._decode(next(payloads), decoded[number])
                array[box] = decoded[number][part]

    def _decode(self, payload: Bytes, chunk: np.ndarray) -> None:
        # blosc fills a larger array in part and says nothing; bytes 4 to 8 of its header are the decoded size
        if int.from_bytes(payload[4:8], "little") != chunk.nbytes:
            raise ShardError(f"{self.file}: its chunks are of another shape or type than the index says: build again")
        try:
            blosc2.decompress(payload, chunk)  # blosc 1 buffers too; its checksum behind it is not looked at
        except (RuntimeError, ValueError) as error:
            raise ShardError(
                f"{self.file}: a chunk can't be decoded ({error}): remove the shard and build again"
            ) from None
