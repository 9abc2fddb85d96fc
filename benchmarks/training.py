"""Pretraining as a whole, on CPUs: memory of a rank, cost of a checkpoint, start, weak scaling, restart.

    python -m benchmarks.training                                       # everything, half an hour on 2 idle cores
    python -m benchmarks.training --only memory scaling --write benchmarks/results/training-cpu.md
    python -m benchmarks.training --only memory --network synapse --rounds 1        # 120 M parameters: 12 GiB

Every figure is of runs in processes of their own, started as a user starts them, on synthetic scans. A machine that
does something else meanwhile shows in the spread, and in `1 rank, on one core` beside `2 runs apart`.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import training_memory, training_speed, training_starts
from benchmarks.machine import add_write_option, append_result, describe
from benchmarks.training_runs import make_shards
from maetrain.models.sizes import CONFIGS

SECTIONS = {
    "memory": "Memory of a rank",
    "stall": "What a checkpoint costs",
    "start": "From the command to the first step",
    "scaling": "Weak scaling",
    "restart": "After a killed rank",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--network", choices=sorted(CONFIGS), default="tumor", help="whose memory is measured")
    add_write_option(parser)
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds is a whole number from 1")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    torch.set_num_threads(1)  # as its children have
    rounds, lines = arguments.rounds, []
    with tempfile.TemporaryDirectory(prefix="bench-training-") as name:
        folder = Path(name)
        index = make_shards(folder)
        for section in (s for s in SECTIONS if s in arguments.only):
            made = {
                "memory": lambda: training_memory.section(folder / "memory", rounds, arguments.network),
                "stall": lambda: training_speed.stall_section(index, folder, rounds),
                "start": lambda: training_starts.start_section(index, folder, rounds),
                "scaling": lambda: training_speed.scaling_section(index, folder, rounds),
                "restart": lambda: training_starts.restart_section(index, folder, rounds),
            }[section]()
            lines += [f"### {SECTIONS[section]}", "", *made, ""]
    load = f"load average {os.getloadavg()[2]:.1f} over the last 15 minutes"
    machine = describe(torch.device("cpu"), ("deepspeed", "ray"))
    append_result(
        arguments.write,
        "\n".join([f"## Pretraining on CPUs, {time.strftime('%Y-%m-%d')}", "", f"{machine}; {load}.", "", *lines]),
    )


if __name__ == "__main__":
    main()
