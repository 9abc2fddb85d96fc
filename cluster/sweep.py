"""The fan-out of finetune jobs over warm workers on Ray, and the trials that choose each arm's learning rate.

Labelled scans are decoded once and stand in shared memory (`scans`): a node fetches each of them once.
A job's results are in its own stage folder, its last file written last: whatever is killed, what is finished stays, and
the same command does the rest. Two calls that want the same folder at once: the second one is refused.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray

from cluster.crew import JOURNAL, Crew, RunFacts, Task, start_crew
from cluster.grid import Comparison, job_stage
from cluster.live import SweepBoard
from cluster.pool import Failed, JobPool, Limits
from cluster.scans import ScoredScans, TrainingScans, room_for_scored
from cluster.session import Resources
from cluster.stages import Stage
from data_shards.errors import InputError
from maetrain.checkpoint.handover import run_of
from maetrain.finetune.config import FinetuneJob
from maetrain.finetune.job import JobResult, Protocol, read_result
from maetrain.finetune.plan import best_rates
from maetrain.recipes.config import SweepConfig
from maetrain.report.wording import count
from maetrain.tracking.courier import Courier
from maetrain.tracking.work import Tracking


def run_sweep(
    comparison: Comparison, resources: Resources, tracking: Tracking, say: Callable[[str], None]
) -> tuple[dict[FinetuneJob, Stage], dict[str, float]]:
    """Runs what is not finished: trials first, where learning rates are searched for; then every cell of the grid.

    Returns every job's stage, all of them finished, and each arm's learning rate where trials chose it. InputError for
    what the user can mend, and where a job failed in every try, once the others are done.
    """
    rates: dict[str, float] = {}
    patience_s = comparison.config.sweep.tracking_patience_s
    with _couriered(tracking, patience_s, say) as watch, _pool(comparison.config.sweep, resources) as pool:
        run = partial(_run_jobs, pool=pool, scans=TrainingScans(comparison.index), watch=watch, say=say)
        if trials := comparison.trials():
            stages = run("trials", trials, comparison.for_trials())
            rates = rates_of(results_of(stages))
            say("  learning rates: " + ", ".join(f"{arm} {rate:g}" for arm, rate in rates.items()))
        return run("jobs", comparison.jobs(rates), comparison), rates


def rates_of(trials: Iterable[JobResult]) -> dict[str, float]:
    """arm -> the learning rate that did best, by the Dice of those weights that a job would be scored with."""
    return best_rates([(result.job, result.kept_dice) for result in trials])


@contextmanager
def _couriered(tracking: Tracking, patience_s: float, say: Callable[[str], None]) -> Iterator[Callable[[Path], None]]:
    """Gives what is told of each job's journal; what stands in them is in the tracker at the end, or said not to be."""
    courier = Courier(tracking, say=lambda line: say(f"  {line}"))
    try:
        yield courier.watch
    finally:
        if left := courier.close(patience_s):
            say(f"  {len(left)} runs are not wholly in MLflow yet: the same command logs them once it answers")


def _pool(sweep: SweepConfig, resources: Resources) -> JobPool[FinetuneJob]:
    cpus, gpus = min(sweep.cpus_per_job, resources.cpus), sweep.gpus_per_job if resources.gpus else 0.0
    if sweep.ranks_per_job > 1 and 0 < gpus < 1:
        raise InputError(
            f"sweep.gpus_per_job={gpus:g} with sweep.ranks_per_job={sweep.ranks_per_job}: ranks can't share a GPU "
            "(NCCL refuses); set sweep.gpus_per_job=1"
        )

    def room() -> int:
        return ranks_that_fit(ray.nodes(), cpus, gpus) // sweep.ranks_per_job

    if not room():
        ranks = count(sweep.ranks_per_job, "rank")
        raise InputError(
            f"there is no room for a job: {ranks} of {cpus:g} CPU cores and {gpus:g} GPUs each, "
            f"the cluster has {resources.cpus:g} cores and {resources.gpus:g} GPUs in all: "
            "lower sweep.cpus_per_job, gpus_per_job or ranks_per_job"
        )
    limits = Limits(sweep.job_timeout_s, sweep.retries)
    return JobPool(lambda: start_crew(sweep.ranks_per_job, cpus, gpus), room, limits)


def ranks_that_fit(nodes: Sequence[Mapping[str, Any]], cpus: float, gpus: float) -> int:
    """How many ranks, each whole on one node, the living nodes hold when they do nothing else."""
    wanted = {name: amount for name, amount in (("CPU", cpus), ("GPU", gpus)) if amount}
    there = [node["Resources"] for node in nodes if node["Alive"]]
    # 2 / 0.2 cores are 10 ranks, whatever floats make of it
    return sum(min(int(node.get(name, 0) / amount + 1e-6) for name, amount in wanted.items()) for node in there)


def _run_jobs(
    title: str,
    jobs: Sequence[FinetuneJob],
    comparison: Comparison,
    pool: JobPool[FinetuneJob],
    scans: TrainingScans,
    watch: Callable[[Path], None],
    say: Callable[[str], None],
) -> dict[FinetuneJob, Stage]:
    stages = {job: job_stage(comparison, job) for job in jobs}
    kept = {job: result for job, stage in stages.items() if (result := read_result(stage.folder))}
    for job, result in kept.items():
        if not stages[job].is_finished:
            # done when an earlier driver died before it could say so
            stages[job].finish(result.seconds, result.made_by)
        watch(stages[job].folder / JOURNAL)
    missing = [job for job in stages if job not in kept]
    if missing:
        say(f"  {len(missing)} of {len(jobs)} {title} to do; {missing[0].name}: {stages[missing[0]].state()}")
        _run_missing(missing, SweepBoard(title, jobs, kept), stages, comparison, pool, scans, watch)
    else:
        say(f"  all {len(jobs)} {title} kept")
    return stages


def _run_missing(
    missing: Sequence[FinetuneJob],
    board: SweepBoard,
    stages: Mapping[FinetuneJob, Stage],
    comparison: Comparison,
    pool: JobPool[FinetuneJob],
    scans: TrainingScans,
    watch: Callable[[Path], None],
) -> None:
    monitor = [scans.of(subject) for subject in comparison.split.monitor]
    protocol = comparison.protocol()
    if any(not job.is_trial for job in missing):
        protocol = _shared(protocol, comparison.config.sweep.shared_test_mib)
    shared_protocol = ray.put(protocol)

    def call(crew: Crew, job: FinetuneJob) -> list[ray.ObjectRef]:
        stage = stages[job]
        stage.folder.mkdir(parents=True, exist_ok=True)
        watch(stage.folder / JOURNAL)
        cases = [scans.of(subject) for subject in job.subjects]
        task = Task(job, stage.folder, cases, monitor, _facts(comparison, job, stage))
        return [actor.run.remote(task, shared_protocol) for actor in crew.actors]

    failures: dict[FinetuneJob, Failed] = {}
    with board.shown():
        for job, result in pool.run(missing, call, board):
            if isinstance(result, Failed):
                failures[job] = result
            elif read_result(stages[job].folder) is None:
                raise InputError(
                    f"{job.name} is done, but its result is not in {comparison.out}: the job ran on a node that does "
                    "not see this folder; give a folder that all nodes share"
                )
            else:
                stages[job].finish(result.seconds, result.made_by)
    if failures:
        (job, first), more = next(iter(failures.items())), len(failures) - 1
        others = f"; {more} more failed as well" if more else ""
        raise InputError(
            f"{job.name} failed {_times(first.tries)}: {first.why}{others}; no report is written without them, "
            "the same command tries again what is missing"
        )


def _facts(comparison: Comparison, job: FinetuneJob, stage: Stage) -> RunFacts:
    config, index = comparison.config, comparison.index
    pretrain_run = run_of(Path(job.handover)) if job.handover else "none"
    cell = {"budget": str(job.budget), "arm": job.arm, "seed": str(job.seed)}
    return RunFacts(
        work=stage.key,
        tags={"kind": "trial" if job.is_trial else "finetune", "pretrain_run": pretrain_run, **cell},
        params={
            "job": job.model_dump(),
            "finetune": config.finetune.model_dump(mode="json"),
            "model": config.model.model_dump(mode="json"),
        },
        dataset=(index.name, index.sha256, str(index.root)),
    )


def _shared(protocol: Protocol, most_mib: int) -> Protocol:
    scored = ScoredScans(room_for_scored(most_mib))
    return replace(
        protocol,
        test_scans=[scored.shared(source) for source in protocol.test_scans],
        elsewhere={name: [scored.shared(source) for source in there] for name, there in protocol.elsewhere.items()},
    )


def results_of(stages: Mapping[FinetuneJob, Stage]) -> list[JobResult]:
    """Results of finished stages, in the order of the plan."""
    results = []
    for stage in stages.values():
        result = read_result(stage.folder)
        assert result is not None, f"{stage.folder} is marked finished but holds no result"
        results.append(result)
    return results


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
