"""Memory of each rank by ZeRO stage, beside what the stages promise and what `maetrain.train.memory` foretells.

    python -m torch.distributed.run ... -m benchmarks.training_memory STAGE FOLDER    # one rank; `section` starts them

torch keeps no books of CPU memory, so the kernel's are read: resident memory now (VmRSS) and at most (VmHWM, set back
by writing 5 to /proc/self/clear_refs), minus the resident memory before the engine is made. A forward and backward pass
of the bare network comes before that, so that kernels' code and caches don't count. malloc is told to give freed
memory back (thresholds of 64 KiB), or a rank would seem to hold whatever it has ever held.
"""

import ctypes
import gc
import json
import sys
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from benchmarks.training_runs import LARGE, run, torchrun
from maetrain.models.mae import MaskedAutoencoder
from maetrain.train.config import PretrainConfig
from maetrain.train.engine import Engine
from maetrain.train.group import joined_group
from maetrain.train.memory import estimate, states

MIB = 2**20
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
STEPS = 3


class Taken(NamedTuple):
    """Bytes of one rank beyond those before its engine: between two steps, and at most."""

    at_rest: int
    peak: int


def config_of(stage: int, ranks: int) -> PretrainConfig:
    """Crops of two mask units: states dominate."""
    return PretrainConfig(crop_DHW=(64, 32, 32), micro_batch=1, global_batch=ranks, zero_stage=stage)


def _resident(which: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(which))


def _settle() -> int:
    """Bytes resident once all is given back that is free."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return _resident("VmRSS")


def _one_rank(stage: int, folder: Path) -> None:
    with joined_group() as who:
        config = config_of(stage, who.world_size)
        network = MaskedAutoencoder(LARGE, config.mae)
        volume_BCDHW, seeds_B = torch.randn(1, 1, *config.crop_DHW), torch.tensor([who.rank])
        network(volume_BCDHW, seeds_B).loss.backward()
        del network
        before = _settle()
        Path("/proc/self/clear_refs").write_text("5")
        engine = Engine(MaskedAutoencoder(LARGE, config.mae), config, who)
        for _ in range(STEPS):
            loss = engine(volume_BCDHW, seeds_B).loss
            engine.backward(loss)
            engine.step(1e-4)
            del loss
        peak = _resident("VmHWM") - before
        taken = Taken(_settle() - before, peak)
        (folder / f"rank-{who.rank}.json").write_text(json.dumps(taken))


def measure(stage: int, ranks: int, folder: Path) -> Taken:
    """Means over the ranks."""
    folder.mkdir(parents=True)
    run([*torchrun(ranks), "-m", "benchmarks.training_memory", str(stage), str(folder)], folder / "log", MALLOC)
    all_taken = [Taken(*json.loads((folder / f"rank-{rank}.json").read_text())) for rank in range(ranks)]
    return Taken(*(sum(values) // ranks for values in zip(*all_taken, strict=True)))


def section(folder: Path, rounds: int) -> list[str]:
    lines = [
        "| ranks | ZeRO | states by theory | measured at rest | saved at rest, measured / theory | measured peak | "
        "foretold | foretold / measured | saved at peak, measured / theory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for ranks in (2, 4):
        rests, peaks = [], []
        for stage in range(4):
            taken = [measure(stage, ranks, folder / f"{ranks}-{stage}-{i}") for i in range(rounds)]
            rests.append(median(t.at_rest for t in taken))
            peaks.append(median(t.peak for t in taken))
            known = estimate(LARGE, config_of(stage, ranks), ranks, "cpu")
            theory = [states(known.parameters, ranks, s) for s in (0, stage)]
            # gradients are there between steps in stage 3 alone, where DeepSpeed keeps their room
            rest = [theory[0].weights + theory[0].optimizer, theory[1].total - theory[1].gradients * (stage < 3)]
            foretold = known.weights + known.gradients + known.optimizer + known.activations + known.buffers
            saved = ("–", "–")
            if stage:
                saved = (
                    f"{(rests[0] - rests[-1]) / (rest[0] - rest[1]):.2f}",
                    f"{(peaks[0] - peaks[-1]) / (theory[0].total - theory[1].total):.2f}",
                )
            lines.append(
                f"| {ranks} | {stage} | {theory[1].total / MIB:.0f} | {rests[-1] / MIB:.0f} | {saved[0]} | "
                f"{peaks[-1] / MIB:.0f} | {foretold / MIB:.0f} | {foretold / peaks[-1]:.2f} | {saved[1]} |"
            )
            print(lines[-1], file=sys.stderr, flush=True)
    return [
        f"MiB of a rank beyond the process before its engine, {known.parameters / 1e6:.1f} M parameters in fp32, crop "
        f"64x32x32, median of {rounds} runs; resident memory (VmRSS, VmHWM).",
        "",
        *lines,
    ]


if __name__ == "__main__":
    _one_rank(int(sys.argv[1]), Path(sys.argv[2]))
