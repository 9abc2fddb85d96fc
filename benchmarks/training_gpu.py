"""Pretraining as a whole on one GPU: ZeRO stages, offload, what is foretold of memory, restarts, and the loader.

    python -m benchmarks.training_gpu --write benchmarks/results/training-gpu.md

Each case is the training loop in a process of its own (`python -m maetrain.train`), on synthetic scans, which take a
minute to make. Needs torch, DeepSpeed, zarr, nibabel and pydantic; no Ray and no MLflow.
"""

import argparse
import math
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from benchmarks.machine import add_write_option, append_result, check_device, describe
from benchmarks.training_runs import curve_of, run, setup_of, train_words
from data_shards.build import BuildConfig, build
from data_shards.formats.index import ShardIndex
from data_shards.synthetic import SyntheticConfig, write_archive
from maetrain.models.sizes import CONFIGS
from maetrain.train.config import PretrainSetup
from maetrain.train.curve import Curve
from maetrain.train.memory import estimate

WARM_UP = 5  # first steps left out
CROP = (64, 128, 128)
SHARED: dict[str, object] = {"global_batch": 16, "micro_batch": 8, "steps": 12, "checkpoint_every": 6}
STAGES: dict[str, dict[str, object]] = {
    "ZeRO 0, fp32": {"zero_stage": 0},
    "ZeRO 2, fp32": {"zero_stage": 2},
    "ZeRO 3, fp32": {"zero_stage": 3},
    "ZeRO 1, bf16": {"zero_stage": 1, "precision": "bf16"},
    "ZeRO 2, bf16": {"zero_stage": 2, "precision": "bf16"},
    "ZeRO 3, bf16": {"zero_stage": 3, "precision": "bf16"},
    "ZeRO 2, bf16, offload": {"zero_stage": 2, "precision": "bf16", "offload": True},
    "ZeRO 3, bf16, offload": {"zero_stage": 3, "precision": "bf16", "offload": True},
}
LOADING: dict[str, dict[str, object]] = {
    "no reader processes": {"loader_workers": 0},
    "12 reader processes": {"loader_workers": 12},
    "12 reader processes, compiled": {"loader_workers": 12, "compile": True},
}


def trained(setup: PretrainSetup) -> Curve:
    run(train_words(setup, 1), Path(setup.run_dir).with_suffix(".log"), {"OMP_NUM_THREADS": "2"})
    return curve_of(setup)


def restarted(setup: PretrainSetup) -> Curve:
    """The same run once more from the checkpoint in its middle, in a copy of its folder."""
    again = setup.model_copy(update={"run_dir": setup.run_dir + "-again"})
    shutil.copytree(setup.run_dir, again.run_dir)
    for folder in (Path(again.run_dir) / "checkpoints").glob(f"step-{setup.pretrain.steps:08d}-*"):
        shutil.rmtree(folder)
    return trained(again)


def farthest(some: Curve, others: Curve) -> float:
    return max(abs(a.loss - b.loss) for a, b in zip(some, others, strict=True))


def stages_section(index: ShardIndex, folder: Path, network: str) -> list[str]:
    lines = [
        f"{network}, crop {'x'.join(map(str, CROP))}, 2 micro-batches of 8 crops a step, {SHARED['steps']} steps. Far "
        "from the first: of the losses from those of the first case of the same precision. Far at a restart: of those "
        "after a restart from the middle.",
        "",
        "| case | step, s | most on the GPU, GiB | foretold, GiB | foretold / measured | far from the first | far at a "
        "restart |",
        "|---|---|---|---|---|---|---|",
    ]
    firsts: dict[str, Curve] = {}
    for number, (name, settings) in enumerate(STAGES.items()):
        setup = setup_of(index, folder / f"stage-{number}", CONFIGS[network](1), CROP, **SHARED, **settings)
        try:
            curve = trained(setup)
            again = restarted(setup)
        except RuntimeError as error:
            lines.append(f"| {name} | does not run: {str(error).strip().splitlines()[-1]} |")
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            continue
        first = firsts.setdefault(setup.pretrain.precision, curve)
        known = estimate(setup.model, setup.pretrain, 1, "cuda")
        foretold = known.weights + known.gradients + known.optimizer + known.activations + known.buffers
        measured = curve[-1].memory_bytes
        lines.append(
            f"| {name} | {median(p.step_s for p in curve[WARM_UP:]):.3f} | {measured / 2**30:.2f} | "
            f"{foretold / 2**30:.2f} | {foretold / measured:.2f} | {farthest(first, curve):.1e} | "
            f"{farthest(curve, again):.1e} |"
        )
        print(lines[-1], file=sys.stderr, flush=True)
        shutil.rmtree(setup.run_dir)
        shutil.rmtree(setup.run_dir + "-again")
    return lines


def loading_section(index: ShardIndex, folder: Path, network: str) -> list[str]:
    steps = 40
    lines = [
        f"{network}, crop 128^3, micro-batch 64, bf16, ZeRO 1, {steps} steps of 64 crops out of scans of 160^3 voxels.",
        "",
        "| case | step, s | volumes/s | waiting for data | most on the GPU, GiB |",
        "|---|---|---|---|---|",
    ]
    for number, (name, settings) in enumerate(LOADING.items()):
        setup = setup_of(
            index,
            folder / f"loading-{number}",
            CONFIGS[network](1),
            (128, 128, 128),
            global_batch=64,
            micro_batch=64,
            steps=steps,
            checkpoint_every=steps,
            precision="bf16",
            zero_stage=1,
            **settings,
        )
        try:
            curve = trained(setup)
        except RuntimeError as error:
            lines.append(f"| {name} | does not run: {str(error).strip().splitlines()[-1]} |")
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            continue
        steady = curve[WARM_UP:]
        step_s = median(point.step_s for point in steady)
        waiting = math.fsum(p.data_wait_s for p in steady) / math.fsum(p.step_s for p in steady)
        lines.append(
            f"| {name} | {step_s:.3f} | {64 / step_s:.0f} | {waiting:.0%} | {curve[-1].memory_bytes / 2**30:.1f} |"
        )
        print(lines[-1], file=sys.stderr, flush=True)
        shutil.rmtree(setup.run_dir)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=("stages", "loading"), default=("stages", "loading"))
    parser.add_argument("--network", choices=sorted(CONFIGS), default="synapse")
    add_write_option(parser)
    arguments = parser.parse_args()
    check_device(parser, "cuda")
    with tempfile.TemporaryDirectory(prefix="bench-training-") as name:
        folder = Path(name)
        write_archive(folder / "archive", SyntheticConfig(shape_XYZ=(160, 160, 160), rescanned_share=0, num_subjects=8))
        index = build(folder / "archive", folder / "shards", BuildConfig(format="zarr"))
        print("shards are built", file=sys.stderr, flush=True)
        lines: list[str] = []
        if "stages" in arguments.only:
            lines += ["### ZeRO stages", "", *stages_section(index, folder, arguments.network), ""]
        if "loading" in arguments.only:
            lines += ["### Loader", "", *loading_section(index, folder, arguments.network), ""]
    machine = describe(torch.device("cuda"), ("deepspeed",))
    append_result(
        arguments.write,
        "\n".join([f"## Pretraining on one GPU, {time.strftime('%Y-%m-%d')}", "", f"{machine}.", "", *lines]),
    )


if __name__ == "__main__":
    main()
