"""Memory of each rank by ZeRO stage, beside what the stages promise and what `maetrain.train.memory` foretells.

    python -m torch.distributed.run ... -m benchmarks.training_memory tumor STAGE FOLDER     # a rank

torch keeps no books of CPU memory, so the kernel's are read: resident memory now (VmRSS) and at most (VmHWM, set back
by writing 5 to /proc/self/clear_refs), minus the resident memory before the engine is made. A step of a tiny engine and
a pass of the bare network come before that, so that late imports, kernels' code and their caches don't count. malloc is
told to give freed memory back (thresholds of 64 KiB), or a rank would seem to hold whatever it has ever held.
"""

import ctypes
import gc
import json
import sys
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from benchmarks.training_runs import SMALL, run, torchrun
from maetrain.models.config import NNFormerConfig
from maetrain.models.mae import MaskedAutoencoder
from maetrain.models.sizes import CONFIGS
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


def config_of(model: NNFormerConfig, stage: int, ranks: int) -> PretrainConfig:
    """Crops of two mask units: states dominate."""
    D, H, W = model.total_stride
    return PretrainConfig(crop_DHW=(2 * D, H, W), micro_batch=1, global_batch=ranks, zero_stage=stage)


def _resident(which: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(which))


def _settle() -> int:
    """Bytes resident once all is given back that is free."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return _resident("VmRSS")


def _step(engine: Engine, config: PretrainConfig) -> None:
    loss = engine(torch.randn(1, 1, *config.crop_DHW), torch.tensor([0])).loss
    engine.backward(loss)
    engine.step(1e-4)


def _one_rank(model: NNFormerConfig, stage: int, folder: Path) -> None:
    with joined_group() as who:
        first = config_of(SMALL, stage, who.world_size)
        tiny = Engine(MaskedAutoencoder(SMALL, first.mae), first, who)
        _step(tiny, first)
        tiny.close()
        config = config_of(model, stage, who.world_size)
        bare = MaskedAutoencoder(model, config.mae)
        bare(torch.randn(1, 1, *config.crop_DHW), torch.tensor([0])).loss.backward()
        del tiny, bare
        before = _settle()
        Path("/proc/self/clear_refs").write_text("5")
        engine = Engine(MaskedAutoencoder(model, config.mae), config, who)
        for _ in range(STEPS):
            _step(engine, config)
        peak = _resident("VmHWM") - before
        (folder / f"rank-{who.rank}.json").write_text(json.dumps(Taken(_settle() - before, peak)))


def measure(network: str, stage: int, ranks: int, folder: Path) -> Taken:
    """Means over the ranks."""
    folder.mkdir(parents=True)
    words = [*torchrun(ranks), "-m", "benchmarks.training_memory", network, str(stage), str(folder)]
    run(words, folder / "log", MALLOC)
    all_taken = [Taken(*json.loads((folder / f"rank-{rank}.json").read_text())) for rank in range(ranks)]
    return Taken(*(sum(values) // ranks for values in zip(*all_taken, strict=True)))


def section(folder: Path, rounds: int, network: str = "tumor") -> list[str]:
    model = CONFIGS[network](1)
    lines = [
        "| ranks | ZeRO | states by theory | measured at rest | saved at rest, measured / theory | measured peak | "
        "foretold | foretold / measured | saved at peak, measured / theory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for ranks in (2, 4):
        rests, peaks = [], []
        for stage in range(4):
            taken = [measure(network, stage, ranks, folder / f"{ranks}-{stage}-{i}") for i in range(rounds)]
            rests.append(median(t.at_rest for t in taken))
            peaks.append(median(t.peak for t in taken))
            known = estimate(model, config_of(model, stage, ranks), ranks, "cpu")
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
        f"MiB of a rank beyond the process before its engine; {network}, {known.parameters / 1e6:.1f} M parameters in "
        f"fp32, a crop of two mask units, median of {rounds} runs; resident memory (VmRSS, VmHWM).",
        "",
        *lines,
    ]


if __name__ == "__main__":
    _one_rank(CONFIGS[sys.argv[1]](1), int(sys.argv[2]), Path(sys.argv[3]))
