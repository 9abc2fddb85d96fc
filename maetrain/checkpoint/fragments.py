"""Training state as named fragments of flat tensors, the same for any number of ranks.

Each rank owns a run of elements of some parameters (ZeRO cuts the flat parameter list anywhere, also in the
middle of a tensor). It writes those runs, under "kind|parameter|start", with kind one of weight, exp_avg,
exp_avg_sq. Reading puts the runs of all files together again, so a run resumes on another number of ranks
without a conversion, and nothing is ever unpickled (design decisions 8 and 9).
"""

from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from maetrain.checkpoint.commit import CheckpointManifest


class Fragment(NamedTuple):
    """Elements [start, start + len(values)) of one parameter's flattened `kind`."""

    kind: str
    parameter: str
    start: int
    values: Tensor


def to_named(fragments: Iterable[Fragment]) -> dict[str, Tensor]:
    return {f"{f.kind}|{f.parameter}|{f.start}": f.values.detach().cpu().contiguous().clone() for f in fragments}


def assemble(folder: Path, manifest: CheckpointManifest, kinds: Iterable[str]) -> dict[str, dict[str, Tensor]]:
    """kind -> parameter -> full tensor, float32. ValueError where runs are missing or overlap."""
    wanted = set(kinds)
    full: dict[str, dict[str, Tensor]] = {kind: {} for kind in wanted}
    runs: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for file in manifest.files:
        try:
            with safe_open(folder / file.name, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 - not a dict
                    kind, parameter, start = key.split("|")
                    if kind not in wanted:
                        continue
                    values = tensors.get_tensor(key)
                    first, last = int(start), int(start) + values.numel()
                    size = prod(manifest.tensor_shapes.get(parameter, [0]))
                    if last > size:
                        raise ValueError(f"{folder / file.name}: {key} ends at {last}, the parameter at {size}")
                    full[kind].setdefault(parameter, torch.zeros(size))[first:last] = values
                    runs.setdefault((kind, parameter), []).append((first, last))
        except SafetensorError as error:
            raise ValueError(f"{folder / file.name}: {error}") from None
    for kind in wanted:
        for parameter, shape in manifest.tensor_shapes.items():
            end = 0
            for first, last in sorted(runs.get((kind, parameter), [])):
                if first != end:
                    raise ValueError(f"{folder}: a run of {kind} of {parameter} ends at {end}, the next is at {first}")
                end = last
            if end != prod(shape):
                raise ValueError(f"{folder}: {kind} of {parameter} has {end} of {prod(shape)} elements")
    return {k: {p: flat.view(manifest.tensor_shapes[p]) for p, flat in group.items()} for k, group in full.items()}
