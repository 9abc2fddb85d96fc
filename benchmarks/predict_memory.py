"""Memory and time of `maetrain predict` on a CT of 512 x 512 x 600, and its speed beside MONAI's sliding windows.

    python -m benchmarks.predict_memory [--recipe hippocampus] [--write benchmarks/results/predict-cpu.md]

The scan (int16, a body in air) is drawn and written here; `predict` runs in a process of its own, whose peak of
resident memory the kernel tells (ru_maxrss of the child). Without --recipe the network is as small as they come: what
is measured are reading, windows, aggregation, resampling and writing. With it, network, window and spacing are the
recipe's, weights random, and the comparison with MONAI is left out.
"""

import os
import sys
import tempfile
import time
from argparse import ArgumentParser
from datetime import date
from pathlib import Path
from statistics import median
from typing import NamedTuple, cast

import nibabel
import numpy as np
import torch
from monai.inferers import sliding_window_inference

from benchmarks.machine import add_write_option, append_result, describe
from data_shards.preprocess import PreprocessConfig, TripleMm
from maetrain.evaluate.model_folder import ModelContract, save_model
from maetrain.evaluate.predict import probabilities_KDHW
from maetrain.models.config import NNFormerConfig, Triple
from maetrain.models.segmentation import NNFormer
from maetrain.recipes.load import load_recipe

SHAPE_XYZ = (512, 512, 600)
SPACING_MM_XYZ = (0.8, 0.8, 1.0)
# two stages behind a stem of stride 4: 10 MB, and a window of 96^3 in a fraction of a second
QUICK = NNFormerConfig(
    embed_dim=8,
    depths=(1, 1),
    num_heads=(1, 1),
    windows=((4, 4, 4), (4, 4, 4)),
    stem_strides=((2, 2, 2), (2, 2, 2)),
    down_strides=((2, 2, 2),),
    decoder_depths=(1,),
    decoder_heads=(1,),
)
GIB = 2**30


def write_scan(path: Path) -> None:
    """An elliptic body of -200 .. 300 HU in air of about -1000, slice by slice."""
    rng = np.random.default_rng(0)
    X, Y, Z = SHAPE_XYZ
    x, y = np.meshgrid(np.linspace(-1, 1, X), np.linspace(-1, 1, Y), indexing="ij")
    is_body_XY = (x / 0.9) ** 2 + (y / 0.7) ** 2 < 1
    voxels_XYZ = np.empty(SHAPE_XYZ, np.int16, order="F")
    for z in range(Z):
        noise_XY = rng.integers(-30, 30, (X, Y))
        voxels_XYZ[..., z] = np.where(is_body_XY, 50 + 250 * np.sin(8 * x + z / 40) * np.cos(6 * y), -1000) + noise_XY
    nibabel.save(nibabel.Nifti1Image(voxels_XYZ, np.diag([*SPACING_MM_XYZ, 1.0])), path)


def write_network(
    folder: Path, architecture: NNFormerConfig, classes: int, window_DHW: Triple, spacing_mm: TripleMm | None
) -> None:
    torch.manual_seed(0)
    contract = ModelContract(
        architecture=architecture,
        class_names=("background", *(f"organ {k}" for k in range(1, classes))),
        channel_names=("CT",),
        window_DHW=window_DHW,
        preprocess=PreprocessConfig(intensity="ct", spacing_mm=spacing_mm),
    )
    save_model(folder, NNFormer(architecture, classes), contract)


class Taken(NamedTuple):
    """By a process: peak of resident memory, CPU seconds of all its threads, seconds on the clock."""

    peak_gib: float
    cpu_s: float
    wall_s: float


def run_predict(model: Path, scan: Path, out: Path) -> Taken:
    """A child that predicts one file."""
    words = ["maetrain", "predict", str(model), str(scan), str(out)]
    code = f"import sys; from cluster.cli import main; sys.argv = {words!r}; main()"
    start = time.perf_counter()
    pid = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, "-c", code])
    _, status, used = os.wait4(pid, 0)
    if status:
        sys.exit(f"predict ended with status {status}")
    return Taken(used.ru_maxrss * 1024 / GIB, used.ru_utime + used.ru_stime, time.perf_counter() - start)


def memory_section(
    folder: Path,
    architecture: NNFormerConfig,
    classes: list[int],
    spacings: list[TripleMm | None],
    window_DHW: Triple,
) -> list[str]:
    scan = folder / "scan.nii.gz"
    write_scan(scan)
    lines = ["| classes | model's spacing, D H W mm | peak GiB | CPU s | s |", "|---|---|---|---|---|"]
    for spacing_mm in spacings:
        for num_classes in classes:
            write_network(folder / "model", architecture, num_classes, window_DHW, spacing_mm)
            out = folder / "out.nii.gz"
            taken = run_predict(folder / "model", scan, out)
            labels, image = (cast(nibabel.Nifti1Image, nibabel.load(path)) for path in (out, scan))
            assert labels.shape == SHAPE_XYZ and np.array_equal(labels.affine, image.affine)
            grid = "the scan's" if spacing_mm is None else " x ".join(f"{mm:g}" for mm in spacing_mm)
            lines.append(f"| {num_classes} | {grid} | {taken.peak_gib:.2f} | {taken.cpu_s:.0f} | {taken.wall_s:.0f} |")
            print(lines[-1], file=sys.stderr, flush=True)
    return lines


@torch.no_grad()
def speed_section(num_classes: int, size_DHW: Triple, window_DHW: Triple, rounds: int) -> list[str]:
    """Ours and MONAI's in turn, in one process; seconds for class probabilities of a prepared volume."""
    network = NNFormer(QUICK, num_classes).eval()
    volume_CDHW = torch.randn(1, *size_DHW)

    def ours() -> torch.Tensor:
        return probabilities_KDHW(network, volume_CDHW, window_DHW)

    def monai() -> torch.Tensor:
        logits = sliding_window_inference(
            volume_CDHW[None], window_DHW, 4, lambda x: network(x)[0], overlap=0.5, mode="gaussian"
        )
        return torch.as_tensor(logits)[0].softmax(0)

    torch.testing.assert_close(ours(), monai(), atol=1e-5, rtol=0)
    taken: dict[str, list[float]] = {"ours": [], "MONAI": []}
    for _ in range(rounds):
        for name, way in (("ours", ours), ("MONAI", monai)):
            start = time.process_time()
            way()
            taken[name].append(time.process_time() - start)
    ratios = [m / o for o, m in zip(taken["ours"], taken["MONAI"], strict=True)]
    return [
        f"Class probabilities of {size_DHW} voxels, {num_classes} classes, windows {window_DHW}, overlap 0.5; {rounds} "
        "rounds in turn, CPU seconds of the process, median (lowest-highest).",
        "",
        "| way | CPU s | MONAI / ours |",
        "|---|---|---|",
        f"| **ours** | {_spread(taken['ours'])} | {_spread(ratios)} |",
        f"| MONAI's sliding_window_inference | {_spread(taken['MONAI'])} | |",
    ]


def _spread(values: list[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_write_option(parser)
    parser.add_argument("--classes", type=int, nargs="+", default=[3, 15])
    parser.add_argument("--recipe", help="a recipe whose network and window are taken")
    parser.add_argument("--window", type=int, default=96, help="side of the window without --recipe, voxels")
    parser.add_argument("--rounds", type=int, default=3, help="of the comparison with MONAI")
    arguments = parser.parse_args()
    architecture, window_DHW, spacing_mm = QUICK, (arguments.window,) * 3, None
    if arguments.recipe:
        recipe = load_recipe(arguments.recipe)
        architecture, window_DHW = recipe.model, recipe.finetune.window_DHW
        spacing_mm = recipe.shards.preprocess.spacing_mm
    spacings: list[TripleMm | None] = [spacing_mm, (1.5, 1.0, 1.0)]
    with tempfile.TemporaryDirectory() as folder:
        memory = memory_section(Path(folder), architecture, arguments.classes, spacings, window_DHW)
    parameters = sum(p.numel() for p in NNFormer(architecture, 3).parameters())
    network = f"recipe {arguments.recipe}'s network" if arguments.recipe else "a network"
    speed = [] if arguments.recipe else speed_section(15, (160, 160, 160), (64, 64, 64), arguments.rounds)
    shape = " x ".join(map(str, SHAPE_XYZ))
    lines = [
        f"## {date.today()}",
        "",
        f"{describe(torch.device('cpu'), ('monai', 'nibabel', 'numpy'))}.",
        "",
        f"`maetrain predict` of one int16 file of {shape} voxels (.nii.gz, {SPACING_MM_XYZ} mm), windows {window_DHW}, "
        f"overlap 0.5, 4 windows at once; {network} of {parameters:,} parameters. Peak of resident memory of the whole "
        "process, torch and its libraries included.",
        "",
        *memory,
        "",
        *speed,
    ]
    append_result(arguments.write, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
