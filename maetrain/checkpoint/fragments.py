"""Training state as named fragments of flat tensors, the same for any number of ranks.

Each rank owns a run of elements of some parameters (ZeRO cuts the flat parameter list anywhere, also in the
middle of a tensor). It writes those runs, under "kind|parameter|start", with kind one of weight, exp_avg,
exp_avg_sq. The manifest says which file holds which runs, so a reader takes any run out of the files that hold some of
it: training resumes on another number of ranks without a conversion, each rank reads what it will hold, and nothing is
ever unpickled (design decisions 8 and 9).
"""

from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from maetrain.checkpoint.commit import CheckpointFile, CheckpointManifest, local_file


class Fragment(NamedTuple):
    """Elements [start, start + len(values)) of one parameter's flattened `kind`."""

    kind: str
    parameter: str
    start: int
    values: Tensor


def to_named(fragments: Iterable[Fragment]) -> dict[str, Tensor]:
    """Copies on the CPU, under the names they have in a file."""
    return {f"{f.kind}|{f.parameter}|{f.start}": f.values.detach().to("cpu", copy=True) for f in fragments}


class RunReader:
    """Any run of elements of a committed checkpoint, out of those of its files alone that hold some of it.

    ValueError where the runs of all files don't make up every parameter.
    """

    def __init__(self, folder: Path, manifest: CheckpointManifest) -> None:
        self.folder, self.shapes = folder, manifest.tensor_shapes
        self._pieces: dict[str, list[tuple[int, int, CheckpointFile]]] = {name: [] for name in self.shapes}
        for file in manifest.files:
            for parameter, start, stop in file.runs:
                if parameter not in self._pieces:
                    raise ValueError(f"{folder / file.name}: holds {parameter}, which this checkpoint should not have")
                self._pieces[parameter].append((start, stop, file))
        for parameter, pieces in self._pieces.items():
            end = 0
            for start, stop, _ in sorted(pieces, key=lambda piece: piece[:2]):
                if start != end:
                    raise ValueError(f"{folder}: a run of {parameter} ends at {end}, the next starts at {start}")
                end = stop
            if end != (size := prod(self.shapes[parameter])):
                raise ValueError(f"{folder}: {parameter} has {end} of {size} elements")

    def run(self, kind: str, parameter: str, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of the flattened `kind` of `parameter`, float32."""
        values = torch.empty(stop - start)
        for first, last, file in self._pieces[parameter]:
            a, b = max(first, start), min(last, stop)
            if a >= b:
                continue
            key = f"{kind}|{parameter}|{first}"
            try:
                with safe_open(local_file(self.folder, file), framework="pt") as tensors:
                    values[a - start : b - start] = tensors.get_slice(key)[a - first : b - first]
            except SafetensorError as error:
                raise ValueError(f"{self.folder / file.name}: {key}: {error}") from None
        return values

    def full(self, kind: str, parameter: str) -> Tensor:
        shape = self.shapes[parameter]
        return self.run(kind, parameter, 0, prod(shape)).view(shape)


def assemble(folder: Path, manifest: CheckpointManifest, kinds: Iterable[str]) -> dict[str, dict[str, Tensor]]:
    """kind -> parameter -> full tensor, float32. ValueError where runs are missing."""
    reader = RunReader(folder, manifest)
    return {kind: {name: reader.full(kind, name) for name in manifest.tensor_shapes} for kind in kinds}
