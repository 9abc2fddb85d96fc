"""How an array is cut into chunks, and which of them a box touches. Pure numbers.

Arrays have two to four axes; the last three are D H W, a leading one is the channel. Chunks are numbered in C order.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple


class Piece(NamedTuple):
    """The part of the array in one chunk: `in_array` and `in_chunk` are the same voxels seen from either."""

    number: int
    in_array: tuple[slice, ...]
    in_chunk: tuple[slice, ...]


@dataclass(frozen=True)
class ChunkGrid:
    """An array of `shape` in chunks of `chunk` voxels; the chunks at the far faces reach beyond the array."""

    shape: tuple[int, ...]
    chunk: tuple[int, ...]

    @classmethod
    def of(cls, shape: Sequence[int], max_chunk: int) -> "ChunkGrid":
        """Even parts of at most `max_chunk` voxels an axis, so little reaches beyond; one channel a chunk."""
        spatial = tuple(math.ceil(n / math.ceil(n / max_chunk)) for n in shape[-3:])
        return cls(tuple(shape), (1,) * (len(shape) - 3) + spatial)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Number of chunks along each axis."""
        return tuple(math.ceil(n / c) for n, c in zip(self.shape, self.chunk, strict=True))

    @property
    def num_chunks(self) -> int:
        return math.prod(self.counts)

    @property
    def padded_shape(self) -> tuple[int, ...]:
        """The shape that whole chunks fill."""
        return tuple(n * c for n, c in zip(self.counts, self.chunk, strict=True))

    def cuts(self, start: Sequence[int], stop: Sequence[int]) -> list[list["Cut"]]:
        """Axis by axis, how the chunks cut the box [start, stop), which lies in the array."""
        return [
            [_cut(a, b, chunk, place) for place in range(a // chunk, -(-b // chunk))]
            for a, b, chunk in zip(start, stop, self.chunk, strict=True)
        ]

    def numbers(self, cuts: Sequence[Sequence["Cut"]]) -> list[int]:
        """Numbers of the chunks of a box in the order of `itertools.product` over its cuts: rising."""
        numbers = [0]
        for axis, count in zip(cuts, self.counts, strict=True):
            numbers = [number * count + cut.place for number in numbers for cut in axis]
        return numbers

    def pieces(self) -> Iterator[Piece]:
        """All chunks of the array."""
        cuts = self.cuts((0,) * len(self.shape), self.shape)
        for number, axes in zip(self.numbers(cuts), itertools.product(*cuts), strict=True):
            yield Piece(number, tuple(cut.in_box for cut in axes), tuple(cut.in_chunk for cut in axes))


class Cut(NamedTuple):
    """One axis of a chunk and a box: the chunk's place, and the slice they share as seen from either."""

    place: int
    in_box: slice
    in_chunk: slice


def _cut(start: int, stop: int, chunk: int, place: int) -> Cut:
    first, last = max(start, place * chunk), min(stop, (place + 1) * chunk)
    return Cut(place, slice(first - start, last - start), slice(first - place * chunk, last - place * chunk))
