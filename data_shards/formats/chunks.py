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
    """The common part of a box and one chunk: `in_box` and `in_chunk` are the same voxels seen from either."""

    number: int
    in_box: tuple[slice, ...]
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

    def pieces(self, start: Sequence[int], stop: Sequence[int]) -> Iterator[Piece]:
        """The pieces of the box [start, stop) of all axes, which lies in the array, by rising number."""
        stride, axes = 1, []
        for a, b, chunk, count in reversed(list(zip(start, stop, self.chunk, self.counts, strict=True))):
            axes.append([_along(a, b, chunk, place, stride) for place in range(a // chunk, -(-b // chunk))])
            stride *= count
        for parts in itertools.product(*reversed(axes)):
            numbers, in_box, in_chunk = zip(*parts, strict=True)
            yield Piece(sum(numbers), in_box, in_chunk)


def _along(start: int, stop: int, chunk: int, place: int, stride: int) -> tuple[int, slice, slice]:
    """One axis of a piece: its share of the number, where it lies in the box and where in the chunk."""
    first, last = max(start, place * chunk), min(stop, (place + 1) * chunk)
    return place * stride, slice(first - start, last - start), slice(first - place * chunk, last - place * chunk)
