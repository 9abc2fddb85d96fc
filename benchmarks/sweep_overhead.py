"""`python -m benchmarks.sweep_overhead`: what a sweep costs beside its jobs' own work.

500 jobs of one step each, on one data set of small synthetic scans, through `maetrain sweep` in a process of its own:
Ray, workers, journals, MLflow on sqlite, report and all. The overhead of a job is the call's wall time on all slots,
less what the jobs say they spent on training and scoring, divided by their number. Two numbers: the sweep alone, from
its first result to the last, and the whole call with Ray's start, the report and the registered models.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.machine import add_write_option, append_result, describe
from data_shards.build import BuildConfig, build
from data_shards.synthetic import SyntheticConfig, write_archive
from maetrain.finetune.job import RESULT

SETTINGS = (
    "model.embed_dim=8", "model.num_heads=[1,1,2]", "model.decoder_heads=[1,1]",
    "model.windows=[[2,2,2],[2,2,2],[2,2,2]]", "finetune.crop_DHW=[16,16,16]", "finetune.window_DHW=[24,28,24]",
    "finetune.steps=1", "finetune.warmup_steps=0", "finetune.monitor_every=1", "split.monitor_subjects=1",
    "sweep.arms=[scratch,random-mae]", "sweep.budgets=[1,2]",
)  # fmt: skip


def run(jobs: int, folder: Path) -> list[str]:
    """Markdown lines."""
    write_archive(folder / "scans", SyntheticConfig(num_subjects=12, shape_XYZ=(24, 28, 20), num_classes=3))
    build(folder / "scans", folder / "shards", BuildConfig(format="zarr"))
    seeds = list(range(jobs // 4))
    command = [
        sys.executable,
        "-c",
        "from cluster.cli import main; main()",
        "sweep",
        "demo",
        *SETTINGS,
        f"sweep.seeds={seeds}",
    ]
    places = ["--shards", folder / "shards", "--data", folder / "scans", "--out", folder / "out"]
    started = time.time()
    with (folder / "log").open("w") as log:
        done = subprocess.run([*command, *map(str, places)], stdout=log, stderr=log, check=False)
    wall_s = time.time() - started
    if done.returncode:
        raise RuntimeError((folder / "log").read_text()[-2000:])
    paths = list((folder / "out" / "jobs").glob(f"*/{RESULT}"))
    results = [json.loads(path.read_text()) for path in paths]
    assert len(results) == len(seeds) * 4, f"{len(results)} of {len(seeds) * 4} jobs are there"
    slots = len(os.sched_getaffinity(0))
    ends = sorted(path.stat().st_mtime for path in paths)
    work_s = [result["training_s"] + result["scoring_s"] for result in results]
    # from the first result to the last: the jobs in between, on all slots
    between = (ends[-1] - ends[0]) * slots / (len(ends) - slots) - statistics.mean(work_s)
    whole = (wall_s * slots - sum(work_s)) / len(results)
    mean_s = statistics.mean(work_s)
    return [
        "| jobs | slots | whole call | a job's own work | overhead a job, sweep alone | overhead a job, whole call |",
        "|---|---|---|---|---|---|",
        f"| {len(results)} | {slots} | {wall_s:.0f} s | {mean_s:.2f} s | {between:.2f} s | {whole:.2f} s |",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=500)
    add_write_option(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        lines = run(options.jobs, Path(scratch))
    head = f"## Overhead of a sweep, {time.strftime('%Y-%m-%d')}"
    machine = describe(torch.device("cpu"), ("ray", "mlflow"))
    append_result(options.write, "\n".join([head, "", f"{machine}.", "", *lines, ""]))


if __name__ == "__main__":
    main()
