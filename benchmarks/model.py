"""Step time, memory and arithmetic of our networks beside MONAI's, in one run on the same crops.

    python -m benchmarks.model                                         # CPU, fp32, Tumor variant, 64^3, batch 1
    python -m benchmarks.model --crop 128 --only dense visible
    python -m benchmarks.model --device cuda --precision bf16 --crop 128 --batch 4 --write benchmarks/results/model.md

A step is forward, backward and AdamW. Rounds go over all networks in turn, so that what else the machine does falls on
all of them; ratios are taken inside a round. Needs torch and MONAI; no Ray, DeepSpeed or MLflow.

- dense, visible: masked autoencoder of the variant, 75 % hidden, mask unit = total stride, decoder as by default
- segmentation: the variant's segmentation network
- swinunetr: MONAI SwinUNETR, feature size 36 (35 M parameters; for other variants another size is nearer)
- maevit: MONAI MaskedAutoEncoderViT, hidden 384, patch 16, 12 + 4 layers, 75 % hidden
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.queues import Queue
from pathlib import Path
from queue import Empty

import torch

from benchmarks.contenders import NAMES, PRECISIONS, Case, Runner
from benchmarks.machine import add_write_option, append_result, check_device, describe, now_s
from maetrain.models.config import Triple
from maetrain.models.sizes import CONFIGS


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """Best floating-point operations a second of a square matrix product: what the machine can do at most."""
    side = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(12):
        started = now_s(device)
        a @ b
        best = max(best, 2 * side**3 / (now_s(device) - started))
    return best


def _resident(which: str) -> int:
    """Bytes of this process's resident memory on Linux: VmRSS now, or VmHWM, the peak so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(which))


def _peak_resident(case: Case, answer: Queue) -> None:
    """In a process of its own: bytes that forward and backward add to the resident memory of the ready network."""
    runner = Runner(case._replace(compiled=False))  # the compiler's own memory is none of the network's
    before = _resident("VmRSS")
    runner.passes()
    answer.put(_resident("VmHWM") - before)


def peak_bytes(case: Case, runner: Runner) -> float:
    """Memory of a step beyond weights, AdamW's moments and input: activations and gradients."""
    if case.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        runner.step()
        return float(torch.cuda.max_memory_allocated() - before)
    context = get_context("spawn")
    answer = context.Queue()
    child = context.Process(target=_peak_resident, args=(case, answer))
    child.start()
    while True:
        try:
            bytes_ = answer.get(timeout=1)
            break
        except Empty:
            if not child.is_alive():
                raise RuntimeError(f"its process ended with {child.exitcode}, out of memory?") from None
    child.join()
    return float(bytes_)


def batch_that_fills(case: Case, share: float) -> int:
    """The batch whose step takes `share` of the GPU's memory, extrapolated from batches 2 and 4."""
    held = []
    for batch in (2, 4):
        runner = Runner(case._replace(batch=batch, compiled=False))
        runner.step()  # AdamW's moments are made in the first step
        torch.cuda.reset_peak_memory_stats()
        runner.step()
        held.append(torch.cuda.max_memory_allocated())
        del runner
        torch.cuda.empty_cache()
    per_sample = (held[1] - held[0]) / 2
    fixed = held[0] - 2 * per_sample
    return max(1, int((share * torch.cuda.get_device_properties(0).total_memory - fixed) / per_sample))


@dataclass
class Row:
    """One network's figures."""

    case: Case
    parameters: int
    forward_flops: float
    flops: float
    peak: float
    passes_s: list[float] = field(default_factory=list)
    steps_s: list[float] = field(default_factory=list)


def measure(cases: list[Case], rounds: int, say: Callable[[str], None]) -> tuple[list[Row], list[str]]:
    """All networks, in rounds; and a line for each that does not run."""
    runners, rows, failed = [], [], []
    for case in cases:
        try:
            runner = Runner(case)
            first_s = runner.step()[1]
            forward, both = Runner(case._replace(compiled=False)).flops() if case.compiled else runner.flops()
            parameters = sum(p.numel() for p in runner.network.parameters())
            rows.append(Row(case, parameters, forward, both, peak_bytes(case, runner)))
        except (RuntimeError, ValueError) as error:  # out of memory, or a crop or precision that the network can't take
            failed.append(f"{case.name} does not run so: {str(error).splitlines()[0]}")
            say(failed[-1])
            continue
        say(f"{case.name}: first step {first_s:.2f} s")
        runners.append(runner)
    for number in range(rounds):
        for runner, row in zip(runners, rows, strict=True):
            repeats = max(1, min(20, int(2.0 / statistics.median(row.steps_s)))) if row.steps_s else 1
            taken = [runner.step() for _ in range(repeats)]
            row.passes_s.append(statistics.median(p for p, _ in taken))
            row.steps_s.append(statistics.median(s for _, s in taken))
        say(f"round {number + 1}/{rounds}: " + ", ".join(f"{r.case.name} {r.steps_s[-1]:.3f} s" for r in rows))
    return rows, failed


def spread(values: list[float], form: str) -> str:
    """median (lowest-highest)"""
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def ratios(slow: Row, fast: Row, passes: bool) -> str:
    """How many times as long `slow` takes, round by round."""
    pairs = zip(slow.passes_s, fast.passes_s, strict=True) if passes else zip(slow.steps_s, fast.steps_s, strict=True)
    return spread([a / b for a, b in pairs], ".2f")


def table(rows: list[Row], rate: float) -> list[str]:
    """Markdown: a row a network, then the ratios that matter."""
    lines = [
        "| network | parameters | multiply-adds, forward | forward + backward, s | step, s | volumes/s | memory of a "
        "step, GiB | share of the matrix rate |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        step_s = statistics.median(row.steps_s)
        lines.append(
            f"| {row.case.name} | {row.parameters / 1e6:.1f} M | {row.forward_flops / 2e9:.1f} G "
            f"| {spread(row.passes_s, '.3f')} | {spread(row.steps_s, '.3f')} | {row.case.batch / step_s:.2f} "
            f"| {row.peak / 2**30:.2f} | {row.flops / step_s / rate:.0%} |"
        )
    by_name = {row.case.name: row for row in rows}
    found = []
    for slow, fast, passes in (
        ("dense", "visible", False),
        ("segmentation", "maevit", True),
        ("swinunetr", "segmentation", True),
    ):
        if slow in by_name and fast in by_name:
            what = "forward + backward" if passes else "step"
            found.append(f"- {slow} / {fast}, {what}: {ratios(by_name[slow], by_name[fast], passes)}")
    if "dense" in by_name and "visible" in by_name:
        found.append(f"- memory of a step, visible / dense: {by_name['visible'].peak / by_name['dense'].peak:.0%}")
    return [*lines, *(["", "Ratios per round, median (lowest-highest):", "", *found] if found else [])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=sorted(CONFIGS), default="tumor")
    parser.add_argument("--crop", type=int, nargs="+", default=[64], help="one side, or D H W")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument(
        "--fill-memory", type=float, metavar="SHARE", help="instead of --batch, on a GPU: as large as fits"
    )
    parser.add_argument("--channels", type=int, default=4)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="bf16: autocast")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compile", action="store_true", help="all networks through torch.compile")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    add_write_option(parser)
    arguments = parser.parse_args()
    if len(arguments.crop) not in (1, 3):
        parser.error("--crop takes one side, or D H W")
    if min(arguments.rounds, arguments.batch, arguments.channels, *arguments.crop) < 1:
        parser.error("--rounds, --batch, --channels and --crop are whole numbers from 1")
    check_device(parser, arguments.device)
    if arguments.fill_memory is not None and (arguments.device != "cuda" or not 0 < arguments.fill_memory < 1):
        parser.error("--fill-memory is a share between 0 and 1 of a GPU's memory: give --device cuda")
    uses_tf32 = arguments.device == "cuda" and arguments.precision == "fp32"
    if uses_tf32:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    crop_DHW: Triple = tuple(arguments.crop * 3 if len(arguments.crop) == 1 else arguments.crop)
    names = [name for name in NAMES if name in arguments.only]
    shared = (arguments.channels, arguments.precision, arguments.device, arguments.compile)
    batch = arguments.batch
    if arguments.fill_memory:
        fills = [
            batch_that_fills(Case(n, arguments.variant, crop_DHW, 1, *shared), arguments.fill_memory) for n in names
        ]
        batch = min(fills)
    cases = [Case(name, arguments.variant, crop_DHW, batch, *shared) for name in names]
    dtype = torch.float32 if arguments.precision == "fp32" else torch.bfloat16
    rate = matrix_rate(arguments.device, dtype)
    rows, failed = measure(cases, arguments.rounds, lambda line: print(line, file=sys.stderr, flush=True))
    text = "\n".join(
        [
            f"## {arguments.variant}, {'x'.join(map(str, crop_DHW))} x {arguments.channels} channels, batch "
            f"{batch}, {arguments.precision}{' (TF32 products)' if uses_tf32 else ''}"
            f"{', compiled' if arguments.compile else ''}, "
            f"{time.strftime('%Y-%m-%d')}",
            "",
            f"{describe(torch.device(arguments.device), ('monai',))}. Measured matrix rate {rate / 1e12:.3g} TFLOP/s. "
            f"{arguments.rounds} rounds.",
            "",
            *table(rows, rate),
            *(f"- {line}" for line in failed),
            "",
        ]
    )
    append_result(arguments.write, text)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
