"""Plans 8, 64 and 1024 GPUs for the Synapse variant: the tables of docs/scale.md.

    python -m benchmarks.scale                          # print
    python -m benchmarks.scale --gpus 16 256
    python -m benchmarks.scale --write docs/scale.md    # replace the tables between its markers

Masked autoencoder of the Synapse variant, crop 64 x 128 x 128, visible units only at 75 % hidden, bf16 with fp32
master, ZeRO 2. No GPU is asked; constants are in `scale_constants.py`, formulas in `scale_model.py`,
`scale_storage.py` and `scale_failures.py`, what is compared with what there is in `scale_limits.py`.
"""

import argparse
import math
import re
from collections.abc import Iterable
from pathlib import Path

from benchmarks import scale_constants as c
from benchmarks import scale_failures as failures
from benchmarks import scale_model as model
from benchmarks import scale_storage as storage
from benchmarks.scale_limits import Plan, counted, memory, needs, plan_of, restart_s, slowest_of
from benchmarks.scale_manifest import manifest_bytes
from maetrain.train.memory import USABLE

GPUS, SEED = (8, 64, 1024), 0
FAILURES = 20_000
ROUND_INTERVAL_S = 60
BATCHES = (2, 8, 32, 128)
NETS = (("400 Gb/s a GPU", c.FAST_NET_BYTES_PER_S), ("100 Gb/s a node", c.SLOW_NET_BYTES_PER_S))
MARKER = re.compile(r"<!-- scale: (\w+) -->\n.*?<!-- end -->", re.DOTALL)


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Markdown; numbers with three digits that count."""
    lines = [list(header), *([_text(cell) for cell in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: object) -> str:
    if not isinstance(value, float | int):
        return str(value)
    if value == 0 or 0.01 <= abs(value) < 100:
        return f"{value:.3g}"
    return f"{value:,.0f}" if 100 <= abs(value) < 1e6 else f"{value:.2e}"


def constants_table(kind: c.Kind) -> str:
    rows = ([k.what, k.value, k.unit, k.source] for k in c.TABLE if k.kind == kind)
    return table(("what", "value", "unit", "source"), rows)


def counts_table() -> str:
    rows: list[tuple[object, ...]] = []
    for batch, recompute in ((1, False), (c.MICRO_BATCH, False), (c.MICRO_BATCH, True)):
        k = counted(batch, recompute)
        rows.append(
            (batch, "yes" if recompute else "no", k.parameters / 1e6, k.forward_flops / 1e9, k.flops / 1e9, k.kernels)
            + (k.saved_bytes / 1e9,)
        )
    header = ("crops", "recompute", "parameters, M", "forward, GFLOP", "forward + backward, GFLOP", "kernels")
    return table((*header, "kept for backward, GB"), rows)


def plan_table(gpus: Iterable[int], seed: int) -> str:
    """The most crops a GPU whose global batch is known to work, and what follows."""
    rows: list[tuple[object, ...]] = []
    for n in gpus:
        crops = max((b for b in BATCHES if n * b <= c.PROVEN_BATCH), default=BATCHES[0])
        plan = plan_of(n, seed, crops)
        every = round(ROUND_INTERVAL_S / plan.step.total_s)
        lost = (
            1440 * lost_share(plan, ROUND_INTERVAL_S, model.mtbf_s(n, preemptible)) for preemptible in (False, True)
        )
        readers = plan.crops_per_s / n / model.loader_crops_per_s()
        hours = plan.steps * plan.step.total_s / 3600
        rate = f"{c.BASE_LEARNING_RATE * n * crops / 256:.2g}"
        settings = (crops, n * crops, f"{plan.steps:,.0f}", rate, math.ceil(readers), every)
        times = (plan.step.total_s * 1e3, plan.crops_per_s, hours, *lost)
        rows.append((n, *settings, memory(n, 2, crops).device_bytes / 1e9, *times))
    header = ("GPUs", "`micro_batch`", "`global_batch`", "`steps`", "`learning_rate`", "`loader_workers`")
    results = ("GPU memory, GB", "step, ms", "crops/s", "hours of the run", "lost, min/day", "on preemptible nodes")
    return table((*header, "`checkpoint_every`", *results), rows)


def memory_table(gpus: Iterable[int]) -> str:
    rows: list[tuple[object, ...]] = []
    for n in gpus:
        for stage in range(1, 4):
            m = memory(n, stage)
            per_crop = m.activations - memory(n, stage, 1).activations
            parts = (m.weights, m.gradients, m.optimizer, m.buffers, m.activations, m.device_bytes)
            fits = c.MICRO_BATCH + int((USABLE * c.GPU_BYTES - m.device_bytes) / per_crop)
            host = min(n, c.GPUS_PER_NODE) * m.host_bytes
            rows.append((n, stage, *(part / 1e9 for part in parts), fits, host / 1e9))
    names = ("weights", "gradients", "master and moments", "buffers", "activations", "sum with the process")
    header = ("GPUs", "ZeRO", *(f"{name}, GB" for name in names))
    return table((*header, f"crops that fit in {USABLE:.0%} of 80 GB", "host memory of a node, GB"), rows)


def step_table(gpus: Iterable[int], seed: int) -> str:
    counts = counted(c.MICRO_BATCH, False)
    rows: list[tuple[object, ...]] = []
    for n in gpus:
        slowest = slowest_of(n, c.STEP_VARIATION, seed)
        for name, net in NETS[: model.nodes_of(n)]:  # inside one node there is no network
            eager, *hidden = (
                model.step(counts, n, mfu, net, slowest, kernel_s=kernel_s)
                for mfu, kernel_s in ((c.MFU, c.LAUNCH_S), *((mfu, 0.0) for mfu in c.MFUS))
            )
            times = (eager.compute_s, eager.launch_s, eager.wait_s, eager.comm_s, eager.tell_s, eager.total_s)
            where = name if model.nodes_of(n) > 1 else "NVLink alone"
            rates = (1 / eager.total_s, n * c.MICRO_BATCH / eager.total_s, *(1 / s.total_s for s in hidden))
            rows.append((n, where, *(1e3 * t for t in times), *rates))
    header = ("GPUs", "network", "arithmetic, ms", "launches, ms", "slowest rank, ms", "communication, ms")
    hidden_at = (f"launches hidden, MFU {mfu}" for mfu in c.MFUS)
    return table((*header, "metrics and messages, ms", "step, ms", "steps/s", "crops/s", *hidden_at), rows)


def bucket_table(gpus: Iterable[int]) -> str:
    counts = counted(c.MICRO_BATCH, False)
    rows: list[tuple[object, ...]] = []
    for n in gpus:
        for name, net in NETS[: model.nodes_of(n)]:
            exposed = [
                model.step(counts, n, net_bytes_per_s=net, bucket_elements=elements).comm_s * 1e3
                for elements in (c.DEEPSPEED_BUCKET_ELEMENTS, c.BUCKET_ELEMENTS)
            ]
            sent = [model.sent_bytes(counts.parameters, n, stage) / 1e9 for stage in (0, 2, 3)]
            rows.append((n, name if model.nodes_of(n) > 1 else "NVLink alone", *sent, *exposed))
    header = ("GPUs", "network", "ZeRO 0 sends, GB", "ZeRO 1, 2, GB", "ZeRO 3, GB")
    return table((*header, "not hidden, bucket of 5e8, ms", "bucket of 2^24, ms"), rows)


def straggler_table(gpus: Iterable[int], seed: int) -> str:
    variations = (0.01, 0.02, c.STEP_VARIATION)
    rows = ((n, *(slowest_of(n, v, seed) for v in variations)) for n in gpus)
    measured = f"{c.STEP_VARIATION:.1%} (measured on a CPU)"
    return table(("GPUs", "variation 1 % (assumed)", "2 % (assumed)", measured), rows)


def batch_table(gpus: Iterable[int], seed: int) -> str:
    rows: list[tuple[object, ...]] = []
    for n in gpus:
        slowest = slowest_of(n, c.STEP_VARIATION, seed)
        for batch in BATCHES:
            step_s = model.step(counted(batch, False), n, slowest=slowest).total_s
            global_batch = n * batch
            rate = c.BASE_LEARNING_RATE * global_batch / 256
            steps = c.RUN_CROPS / global_batch
            row = (n, batch, global_batch, global_batch / c.PROVEN_BATCH, f"{rate:.2g}", step_s * 1e3)
            rows.append((*row, global_batch / step_s, steps, steps * step_s / 3600))
    header = ("GPUs", "crops a GPU", "global batch", "of MAE's 4096", "rate by the linear rule", "step, ms", "crops/s")
    return table((*header, "steps of the run", "hours"), rows)


def data_table(gpus: Iterable[int], seed: int) -> str:
    rows: list[tuple[object, ...]] = []
    for n in gpus:
        plan, nodes = plan_of(n, seed), model.nodes_of(n)
        bytes_per_s = plan.crops_per_s * model.crop_bytes()
        epoch_s = c.SCANS / plan.crops_per_s
        rows.append(
            (
                n,
                plan.crops_per_s,
                plan.crops_per_s / n / model.loader_crops_per_s(),
                bytes_per_s / nodes / 1e9,
                bytes_per_s / 1e9,
                plan.crops_per_s * model.gets_per_crop(),
                epoch_s,
                c.SCANS * c.ORDER_S_PER_SCAN / epoch_s,
                1 / model.node_epoch_share(nodes),
                nodes * c.SCANS * c.VOLUME_BYTES / 1e12,
            )
        )
    reading = ("reader cores a GPU", "read a node, GB/s", "read in all, GB/s", "GET/s from a bucket")
    epoch = ("epoch, s", "order of an epoch / epoch", "epochs until a node has read as much as the archive")
    return table(("GPUs", "crops/s", *reading, *epoch, "archive on every node, TB in all"), rows)


def archive_table() -> str:
    rows: list[tuple[object, ...]] = []
    for scans in (10_000, 100_000, 1_000_000):
        bytes_ = scans * c.VOLUME_BYTES
        index = scans * c.INDEX_BYTES_PER_SCAN * c.GPUS_PER_NODE / c.NODE_MEMORY_BYTES
        hours = bytes_ / c.NODE_STORAGE_BYTES_PER_S / 3600
        rows.append((scans, bytes_ / 1e12, bytes_ / c.NODE_DRIVE_BYTES, index, hours))
    header = ("scans", "shards, TB", "share of a node's drives", "index of 8 ranks, share of a node's memory")
    return table((*header, "one node copies all, hours"), rows)


def checkpoint_table(gpus: Iterable[int], seed: int) -> str:
    rows: list[tuple[object, ...]] = []
    for n in gpus:
        plan = plan_of(n, seed)
        size, step_s = plan.size, plan.step.total_s
        stall, store = storage.stall_s(size), storage.store_s(size)
        stall_s, store_s = sum(stall.values()), sum(store.values())
        files = (manifest_bytes(n, int(c.SCANS)) / 1e6, size.state_bytes / n / 1e6, size.curve_bytes / 1e6)
        steps = max(c.CHECKPOINT_EVERY, math.ceil(store_s / step_s))
        share = stall_s / (steps * step_s + stall_s)
        rows.append((n, *files, *(1e3 * s for s in stall.values()), share, *store.values(), store_s, steps))
    example = storage.Size(1, 8, 1)
    header = ("GPUs", "manifest, MB", "a rank's file, MB", "curve, MB")
    waits = (*(f"wait: {part}, ms" for part in storage.stall_s(example)), f"share of {c.CHECKPOINT_EVERY} steps")
    stored = (*(f"thread: {part}, s" for part in storage.store_s(example)), "stored after, s", "steps between two")
    return table((*header, *waits, *stored), rows)


def resume_table(gpus: Iterable[int], seed: int) -> str:
    rows: list[tuple[object, ...]] = []
    for n in gpus:
        size = plan_of(n, seed).size
        parts = storage.resume_s(size)
        resume_s = sum(parts.values())
        rows.append((n, *parts.values(), resume_s, restart_s(n, resume_s), resume_s + storage.bucket_s(size)))
    names = (*storage.resume_s(storage.Size(1, 8, 1)), "resume", "restart in all", "resume out of a bucket")
    return table(("GPUs", *(f"{name}, s" for name in names)), rows)


def lost_share(plan: Plan, interval_s: float, mtbf_s: float) -> float:
    """Of the time. What a thread is still writing at a failure is lost, too."""
    stall_s, store_s = sum(storage.stall_s(plan.size).values()), sum(storage.store_s(plan.size).values())
    back_s = restart_s(plan.gpus, sum(storage.resume_s(plan.size).values())) + store_s
    return failures.lost_share(max(interval_s, store_s), stall_s, back_s, mtbf_s)


def failures_table(gpus: Iterable[int], seed: int) -> str:
    rows: list[tuple[object, ...]] = []
    for n in gpus:
        plan = plan_of(n, seed)
        size, step_s = plan.size, plan.step.total_s
        store_s, resume_s = sum(storage.store_s(size).values()), sum(storage.resume_s(size).values())
        now = ("as it is", sum(storage.stall_s(size).values()), restart_s(n, resume_s) + store_s, store_s)
        before = storage.before_0015(size)
        designs = [now]
        if n == max(gpus):
            designs.append(("before 0015", before.save_s, restart_s(n, before.resume_s), before.save_s))
        for preemptible in (False, True):
            mtbf_s = model.mtbf_s(n, preemptible)
            for name, save_s, back_s, shortest_s in designs[: 1 if preemptible else None]:
                # the next can't start before the last is stored
                interval_s = max(failures.daly_interval_s(save_s, mtbf_s), shortest_s)
                at = (interval_s, save_s, back_s, mtbf_s)
                default_s = max(c.CHECKPOINT_EVERY * step_s, shortest_s)
                lost = (
                    failures.lost_share(*at),
                    failures.simulated_lost_share(*at, FAILURES, seed),
                    *(failures.lost_share(interval, *at[1:]) for interval in (ROUND_INTERVAL_S, default_s)),
                )
                row = (n, "yes" if preemptible else "no", name, mtbf_s / 3600, 86400 / mtbf_s, save_s, back_s)
                intervals = (failures.young_interval_s(save_s, mtbf_s), interval_s, interval_s / step_s)
                rows.append((*row, *intervals, *(1440 * share for share in lost)))
    header = ("GPUs", "preemptible", "checkpoints", "MTBF, h", "failures a day", "wait a checkpoint, s", "restart, s")
    best = ("Young, s", "Daly, s", "steps", "lost, min/day, formula", "simulated")
    return table((*header, *best, "lost at 60 s, formula", f"lost at {c.CHECKPOINT_EVERY} steps, formula"), rows)


def breaks_table(gpus: Iterable[int], seed: int) -> str:
    """Need over have for every limit and size; above 1 it breaks."""
    columns = [needs(n, seed) for n in gpus]
    rows: list[tuple[object, ...]] = []
    for limit in zip(*columns, strict=True):
        cells = (f"**{_text(n.ratio)}**" if n.ratio > 1 else _text(n.ratio) for n in limit)
        haves = sorted({n.have for n in limit})
        have = _text(haves[0]) if len(haves) == 1 else f"{_text(haves[0])} - {_text(haves[-1])}"
        rows.append((limit[0].what, f"{have} {limit[0].unit}", *cells))
    return table(("limit", "there is", *(f"{n} GPUs" for n in gpus)), rows)


def first_list(gpus: Iterable[int], seed: int) -> str:
    """What is above its limit at each size, the farthest first; what a setting mends stands apart."""
    lines = []
    for n in gpus:
        broken = sorted((need for need in needs(n, seed) if need.ratio > 1), key=lambda need: -need.ratio)
        for kind, is_setting in (("hardware, services, code", False), ("default settings", True)):
            said = "; ".join(
                f"{need.what}: {_text(need.need)} of {_text(need.have)} {need.unit} ({_text(need.ratio)} times)"
                for need in broken
                if need.is_setting == is_setting
            )
            lines.append(f"- **{n} GPUs**, {kind}: {said or 'nothing'}.")
    return "\n".join(lines)


def blocks(gpus: tuple[int, ...] = GPUS, seed: int = SEED) -> dict[str, str]:
    """Name -> Markdown, in the order of the page."""
    return {
        "plan": plan_table(gpus, seed),
        "first": first_list(gpus, seed),
        "breaks": breaks_table(gpus, seed),
        "counts": counts_table(),
        "memory": memory_table(gpus),
        "step": step_table(gpus, seed),
        "buckets": bucket_table(gpus),
        "stragglers": straggler_table(gpus, seed),
        "batches": batch_table(gpus, seed),
        "data": data_table(gpus, seed),
        "archive": archive_table(),
        "checkpoint": checkpoint_table(gpus, seed),
        "resume": resume_table(gpus, seed),
        "failures": failures_table(gpus, seed),
        "measured": constants_table("measured"),
        "document": constants_table("document"),
        "assumed": constants_table("assumed"),
    }


def filled(page: str, content: dict[str, str]) -> str:
    """`page` with the text between its markers replaced. KeyError where it names a block that there is not."""
    return MARKER.sub(lambda match: f"<!-- scale: {match[1]} -->\n{content[match[1]]}\n<!-- end -->", page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, nargs="+", default=GPUS)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--write", type=Path, metavar="FILE", help="a page with markers; its tables are replaced")
    arguments = parser.parse_args()
    whole = all(n >= 1 and (n <= c.GPUS_PER_NODE or n % c.GPUS_PER_NODE == 0) for n in arguments.gpus)
    if not whole:
        parser.error(f"--gpus {arguments.gpus}: give 1 to {c.GPUS_PER_NODE}, or whole nodes of {c.GPUS_PER_NODE}")
    content = blocks(tuple(arguments.gpus), arguments.seed)
    if arguments.write is None:
        print("\n\n".join(f"## {name}\n\n{text}" for name, text in content.items()))
    else:
        arguments.write.write_text(filled(arguments.write.read_text(), content))


if __name__ == "__main__":
    main()
