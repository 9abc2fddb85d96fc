"""The finetune jobs of a sweep without Ray and MLflow: on a GPU machine that has torch alone, or many CPU cores.

    python -m benchmarks.sweep_alone RECIPE --shards SHARDS --data ARCHIVE --handover mae=FOLDER --out FOLDER \\
        --at-once 8 [--seconds 500] sweep.learning_rates=[] [key=value ...]

`--at-once` processes do the jobs that are missing in FOLDER, each in the stage folder it has in a `maetrain sweep` of
the same order: that command, afterwards, finds them done and writes the report. After `--seconds` no further job is
begun. Prints one line a job.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from multiprocessing import get_context

import torch

from benchmarks.ordered import order_parser, ordered
from cluster.grid import Comparison, job_stage
from cluster.order import named_folders
from data_shards.loading.labelled import LabelledScans
from maetrain.finetune.config import FinetuneJob
from maetrain.finetune.job import JobResult, read_result, run_job
from maetrain.recipes.config import SCRATCH
from maetrain.recipes.load import load_recipe
from maetrain.tracking.tracker import NullTracker
from maetrain.train.group import alone


@cache
def comparison_of(words: tuple[str, ...]) -> Comparison:
    """What these words order; once a process."""
    arguments = parsed(words)
    config = load_recipe(arguments.recipe, arguments.overrides)
    handovers = named_folders("--handover", arguments.handover, "mae")
    arms = {arm: [] if arm == SCRATCH else [str(folder) for folder in handovers[arm]] for arm in config.sweep.arms}
    return ordered(config, arguments, arms)


@cache
def scans_of(words: tuple[str, ...]) -> LabelledScans:
    return LabelledScans(comparison_of(words).index)


def do(words: tuple[str, ...], job: FinetuneJob) -> JobResult:
    """One job, in a process of the pool."""
    torch.set_num_threads(1)
    comparison, scans = comparison_of(words), scans_of(words)
    stage = job_stage(comparison, job)
    cases = [case for subject in job.subjects for case in scans.of(subject)]
    monitor = [case for subject in comparison.split.monitor for case in scans.of(subject)]
    result = run_job(job, comparison.protocol(), cases, monitor, stage.folder, NullTracker(), alone())
    stage.finish(result.seconds)
    return result


def parsed(words: Sequence[str]) -> argparse.Namespace:
    parser = order_parser(__doc__)
    parser.add_argument("--handover", action="append", default=[], metavar="ARM=FOLDER")
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    return parser.parse_intermixed_args(words)


def main(words: Sequence[str] | None = None) -> None:
    given = tuple(sys.argv[1:] if words is None else words)
    arguments, comparison = parsed(given), comparison_of(given)
    assert not comparison.config.sweep.learning_rates, "trials are for `maetrain sweep`: give sweep.learning_rates=[]"
    ends = time.monotonic() + arguments.seconds
    folders = {job: job_stage(comparison, job).folder for job in comparison.jobs({})}
    missing = [job for job, folder in folders.items() if read_result(folder) is None]
    print(f"{len(missing)} of {len(folders)} jobs to do", flush=True)
    with ProcessPoolExecutor(arguments.at_once, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(do, given, job) for job in missing}
        for ended in as_completed(running):
            if not ended.cancelled():
                result = ended.result()
                print(f"{result.job.name}: Dice {result.test_dice:.4f} in {result.seconds:.0f} s", flush=True)
            if time.monotonic() > ends:
                for other in running:
                    other.cancel()


if __name__ == "__main__":
    main()
