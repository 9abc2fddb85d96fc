"""The fan-out of finetune jobs over Ray tasks.

Labelled volumes are decoded once and put into Ray's shared memory; jobs read them there. Ray keeps the worker processes
warm between tasks, so imports are paid once a core and not once a job. A job's results are in its own stage folder, so
a sweep that was stopped goes on with what is missing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray
import torch

from cluster.console import Bar
from cluster.session import Resources, result_of
from cluster.stages import Stage
from cluster.tracked import Tracking, tracked
from data_shards.archive.layout import Archive, ArchiveCase
from data_shards.errors import InputError
from data_shards.formats.index import ShardIndex
from data_shards.loading.labelled import LabelledCase, load_labelled
from data_shards.splits import Split
from maetrain.checkpoint.handover import read_handover
from maetrain.finetune.config import FinetuneConfig, FinetuneJob
from maetrain.finetune.job import JobResult, read_result, run_job
from maetrain.finetune.plan import test_cases_of
from maetrain.recipes.config import RunConfig
from maetrain.tracking.tracker import NullTracker, Tracker

_PRETRAINED = {name for name in FinetuneConfig.model_fields if name.startswith("pretrained_")}


def job_stage(out: Path, job: FinetuneJob, config: RunConfig, index: ShardIndex, split: Split) -> Stage:
    """All that a job's scores depend on; the handover counts by its weights, not by its folder."""
    of_other_arms = {"learning_rate"} if job.handover else _PRETRAINED
    inputs = {
        "shard_index_sha256": index.sha256,
        "budget": job.budget,
        "arm": job.arm,
        "seed": job.seed,
        "subjects": list(job.subjects),
        "test_subjects": list(split.test),
        "monitor_subjects": list(split.monitor),
        "handover_sha256": read_handover(Path(job.handover)).weights_sha256 if job.handover else None,
        "model": config.model.model_dump(mode="json"),
        "finetune": config.finetune.model_dump(mode="json", exclude={"log_every"} | of_other_arms),
        "tolerance_mm": config.evaluate.tolerance_mm,
        "max_test_cases": config.sweep.max_test_cases,
    }
    return Stage(out / "jobs", job.name, inputs)


@dataclass(frozen=True)
class SharedData:
    """What all jobs of a sweep read: put into shared memory once."""

    config: RunConfig
    index: ShardIndex
    split: Split
    volumes: dict[str, list[LabelledCase]]
    test_cases: list[ArchiveCase]


@ray.remote(max_retries=1)
def _run(
    job: FinetuneJob, shared: SharedData, folder: Path, key: str, tracking: Tracking | None, threads: int
) -> JobResult:
    torch.set_num_threads(threads)
    if tracking is None:
        return _train(job, shared, folder, NullTracker())
    with tracked(tracking, job.name, key, resumes=False) as tracker:
        pretrain_run = Path(job.handover).parent.name if job.handover else "none"
        cell = {"budget": str(job.budget), "arm": job.arm, "seed": str(job.seed)}
        tracker.tags({"kind": "finetune", "pretrain_run": pretrain_run, **cell})
        settings = {"finetune": shared.config.finetune.model_dump(), "model": shared.config.model.model_dump()}
        tracker.params({"job": job.model_dump(), **settings})
        tracker.dataset(shared.index.name, shared.index.sha256, str(shared.index.root), "finetune")
        return _train(job, shared, folder, tracker)


def _train(job: FinetuneJob, shared: SharedData, folder: Path, tracker: Tracker) -> JobResult:
    return run_job(
        job,
        shared.config.model,
        shared.config.finetune,
        shared.index,
        [case for subject in job.subjects for case in shared.volumes[subject]],
        [case for subject in shared.split.monitor for case in shared.volumes[subject]],
        shared.test_cases,
        shared.config.evaluate.tolerance_mm,
        folder,
        tracker,
    )


def run_sweep(
    jobs: Sequence[FinetuneJob],
    config: RunConfig,
    index: ShardIndex,
    archive: Archive,
    split: Split,
    out: Path,
    resources: Resources,
    bar: Bar,
    tracking: Tracking | None,
    say: Callable[[str], None],
) -> dict[FinetuneJob, Stage]:
    """Runs what is not finished; returns every job's stage, all of them finished.

    InputError for what the user can mend; a job that failed twice raises Ray's error once the others are done.
    """
    stages = {job: job_stage(out, job, config, index, split) for job in jobs}
    for stage in stages.values():
        if not stage.is_finished and (left := read_result(stage.folder)):
            stage.finish(left.seconds)  # done when an earlier driver died before it could say so
    missing = [job for job, stage in stages.items() if not stage.is_finished]
    bar.start(len(jobs), done=len(jobs) - len(missing))
    if tracking is not None:
        for job in {*jobs} - {*missing}:
            tracking.adopt(stages[job].key)
    if not missing:
        return stages
    say(f"  {len(missing)} of {len(jobs)} to do; {missing[0].name}: {stages[missing[0]].state()}")
    test_cases = test_cases_of(archive, index, split, config.sweep.max_test_cases)
    subjects = sorted({s for job in missing for s in job.subjects} | set(split.monitor))
    volumes: dict[str, list[LabelledCase]] = {subject: [] for subject in subjects}
    for case in load_labelled(index, subjects):
        volumes[case.subject].append(case)
    shared = ray.put(SharedData(config, index, split, volumes, test_cases))
    cpus = min(config.sweep.cpus_per_job, resources.cpus)
    task = _run.options(num_cpus=cpus, num_gpus=config.sweep.gpus_per_job if resources.gpus else 0)
    threads = max(int(cpus), 1)
    running = {task.remote(job, shared, stages[job].folder, stages[job].key, tracking, threads): job for job in missing}
    failures: list[Exception] = []
    while running:
        (done,), _ = ray.wait(list(running))
        job = running.pop(done)
        try:
            result: JobResult = result_of(done)
        except (InputError, ray.exceptions.RayError) as error:
            failures.append(error)
            say(f"  {job.name}: FAILED: {str(error).strip().splitlines()[-1]}")
            continue
        stages[job].finish(result.seconds)
        bar.advance(f"last Dice {result.test_dice:.3f}")
    if failures:
        raise failures[0]
    return stages


def results_of(stages: dict[FinetuneJob, Stage]) -> list[JobResult]:
    """Results of finished stages, in the order of the plan."""
    results = []
    for stage in stages.values():
        result = read_result(stage.folder)
        assert result is not None, f"{stage.folder} is marked finished but holds no result"
        results.append(result)
    return results
