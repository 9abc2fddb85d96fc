"""Window attention by three ways: written out, torch's fused kernel, flex attention. Forward + backward, bias learned.

    python -m benchmarks.attention [--device cuda] [--precision bf16] [--batch 4] [--write RESULT.md]

The shapes are those of the Tumor variant's encoder stages at 128^3: tokens of a window, windows of a map, heads.
flex attention needs `torch.compile` and, for its backward pass, a GPU; where it can't run its cell says so.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.machine import add_write_option, append_result, check_device, describe, now_s
from maetrain.models.attention import attend
from maetrain.models.sizes import CONFIGS
from maetrain.models.windows import bias_rows, plan_windows, relative_index_TT

CONFIG = CONFIGS["tumor"](4)

Way = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def with_bias(attend: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> Way:
    """Ways that take the bias of every pair of tokens, (1, 1, h, T, T)."""

    def run(q: Tensor, k: Tensor, v: Tensor, table: Tensor, index_TT: Tensor) -> Tensor:
        return attend(q, k, v, table[index_TT].movedim(-1, 0)[None, None])

    return run


def attend_fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """As `maetrain.models.attention.attend`, for a bias that all windows share: they are the batch."""
    B, N = q.shape[:2]
    mask = bias[0].to(q.dtype).expand(B * N, -1, -1, -1)
    out = F.scaled_dot_product_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), attn_mask=mask)
    return out.view(q.shape)


def flex_way() -> Way:
    """flex attention reads the table itself; its backward pass sums the table's gradient."""
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention, dynamic=False)

    def run(q: Tensor, k: Tensor, v: Tensor, table: Tensor, index_TT: Tensor) -> Tensor:
        def biased(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return score + table[index_TT[i, j], h]

        return compiled(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), score_mod=biased)

    return run


def seconds(way: Way, shape: tuple, window: tuple, device: str, dtype: torch.dtype, repeats: int) -> float:
    """Median of forward + backward."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for _ in range(3))
    table = torch.randn(bias_rows(window), shape[2], generator=generator).to(device, dtype).requires_grad_()
    index_TT = relative_index_TT(window, window, torch.device(device))
    taken = []
    for _ in range(repeats + 3):
        started = now_s(device)
        way(q, k, v, table, index_TT).float().square().mean().backward()
        taken.append(now_s(device) - started)
    return statistics.median(taken[3:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=10)
    add_write_option(parser)
    arguments = parser.parse_args()
    if arguments.batch < 1 or arguments.repeats < 1:
        parser.error("--batch and --repeats are whole numbers from 1")
    check_device(parser, arguments.device)
    dtype = torch.float32 if arguments.precision == "fp32" else torch.bfloat16
    ways = {"written out": with_bias(attend), "fused": with_bias(attend_fused), "flex": flex_way()}
    lines = [
        f"## window attention, batch {arguments.batch}, {arguments.precision}, {time.strftime('%Y-%m-%d')}",
        "",
        f"{describe(torch.device(arguments.device))}. Forward + backward, ms, median of {arguments.repeats}.",
        "",
        f"| stage | {' | '.join(ways)} |",
        f"|---|{'---|' * len(ways)}",
    ]
    failed = False
    for stage, (size, window) in enumerate(zip(CONFIG.map_sizes((128, 128, 128)), CONFIG.windows, strict=True)):
        plan = plan_windows(size, window, shifted=False)
        tokens, windows = prod(plan.window_DHW), prod(plan.padded_DHW) // prod(plan.window_DHW)
        heads = CONFIG.num_heads[stage]
        width = CONFIG.width(stage) // heads
        cells = []
        for name, way in ways.items():
            shape = (arguments.batch, windows, heads, tokens, width)
            try:
                cells.append(
                    f"{seconds(way, shape, plan.window_DHW, arguments.device, dtype, arguments.repeats) * 1e3:.2f}"
                )
            except Exception as error:  # whatever a compiler says: the other ways are measured all the same
                cells.append(f"does not run: {type(error).__name__}")
                failed |= name != "flex"  # it needs a compiler, and a GPU
        lines.append(f"| {stage}: {windows} windows of {tokens} tokens, {heads} heads | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    text = "\n".join([*lines, ""])
    append_result(arguments.write, text)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
