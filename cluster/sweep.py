"""The fan-out of finetune jobs over warm workers on Ray, and the trials that choose each arm's learning rate.

Labelled scans are decoded once, by the driver, and stand in shared memory: a node fetches each of them once.
A job's results are in its own stage folder, its last file written last: whatever is killed, what is finished stays, and
the same command does the rest. Two calls that want the same folder at once: the second one is refused.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import ray

from cluster.crew import JOURNAL, Crew, RunFacts, Task, start_crew
from cluster.live import SweepBoard
from cluster.pool import Failed, JobPool, Limits
from cluster.session import Resources
from cluster.stages import Stage
from cluster.tracked import Tracking
from data_shards.archive.layout import Archive, ArchiveCase
from data_shards.errors import InputError
from data_shards.formats.index import ShardIndex
from data_shards.loading.labelled import load_labelled
from data_shards.splits import Split
from maetrain.checkpoint.handover import read_handover
from maetrain.finetune.config import FinetuneConfig, FinetuneJob
from maetrain.finetune.job import JobResult, Protocol, read_result
from maetrain.finetune.plan import best_rates, plan_jobs, plan_trials, test_cases_of
from maetrain.recipes.config import RunConfig, SweepConfig
from maetrain.tracking.courier import Courier

_RATES = {"learning_rate", "pretrained_learning_rate"}
_PRETRAINED = {name for name in FinetuneConfig.model_fields if name.startswith("pretrained_")}


@dataclass(frozen=True)
class Comparison:
    """What is compared on what: fixed before the first job."""

    config: RunConfig
    index: ShardIndex
    archive: Archive
    split: Split
    arms: Mapping[str, str | None]
    elsewhere: Mapping[str, Archive]
    out: Path

    @property
    def weights(self) -> dict[str, str | None]:
        """arm -> hash of the weights it starts from."""
        return {arm: read_handover(Path(f)).weights_sha256 if f else None for arm, f in self.arms.items()}

    def jobs(self, rates: Mapping[str, float]) -> list[FinetuneJob]:
        sweep = self.config.sweep
        return plan_jobs(self.index, self.split, sweep.budgets, sweep.seeds, self.arms, rates)

    def trials(self) -> list[FinetuneJob]:
        """None where no learning rates are searched for."""
        sweep, seeds = self.config.sweep, self.config.sweep.seeds[: self.config.sweep.trial_seeds]
        if not sweep.learning_rates:
            return []
        where = (self.index, self.split, sweep.budgets, seeds, self.arms)
        return plan_trials(*where, sweep.learning_rates, sweep.trial_budgets)

    def for_trials(self) -> "Comparison":
        """The same for jobs that hold persons out."""
        finetune = self.config.finetune
        share = max(finetune.validation_share, self.config.sweep.trial_share)
        finetune = finetune.model_copy(update={"validation_share": share})
        return replace(self, config=self.config.model_copy(update={"finetune": finetune}))


def job_stage(comparison: Comparison, job: FinetuneJob, weights_sha256: str | None) -> Stage:
    """All that a job's scores depend on; the handover counts by its weights, not by its folder."""
    config, split = comparison.config, comparison.split
    no_concern = {"log_every"} | _RATES | (set() if job.handover else _PRETRAINED)
    inputs = {
        "shard_index_sha256": comparison.index.sha256,
        "budget": job.budget,
        "arm": job.arm,
        "seed": job.seed,
        "subjects": list(job.subjects),
        "monitor_subjects": list(split.monitor),
        "handover_sha256": weights_sha256,
        "learning_rate": job.peak(config.finetune),
        "model": config.model.model_dump(mode="json"),
        "finetune": config.finetune.model_dump(mode="json", exclude=no_concern),
    }
    if not job.is_trial:
        inputs |= {
            "test_subjects": list(split.test),
            "tolerance_mm": config.evaluate.tolerance_mm,
            "max_test_cases": config.sweep.max_test_cases,
            "elsewhere": {name: _names_of(archive) for name, archive in comparison.elsewhere.items()},
        }
    return Stage(comparison.out / ("trials" if job.is_trial else "jobs"), job.name, inputs)


def run_sweep(
    comparison: Comparison, resources: Resources, tracking: Tracking, say: Callable[[str], None]
) -> tuple[dict[FinetuneJob, Stage], dict[str, float]]:
    """Runs what is not finished: trials first, where learning rates are searched for; then every cell of the grid.

    Returns every job's stage, all of them finished, and each arm's learning rate where trials chose it. InputError for
    what the user can mend, and where a job failed in every try, once the others are done.
    """
    rates: dict[str, float] = {}
    patience_s = comparison.config.sweep.tracking_patience_s
    with _pool(comparison.config.sweep, resources) as pool, _couriered(tracking, patience_s, say) as watch:
        if trials := comparison.trials():
            stages = _run_jobs("trials", trials, comparison.for_trials(), pool, watch, say)
            rates = best_rates([(r.job, r.validation_dice[-1]) for r in results_of(stages)])
            say("  learning rates: " + ", ".join(f"{arm} {rate:g}" for arm, rate in rates.items()))
        return _run_jobs("jobs", comparison.jobs(rates), comparison, pool, watch, say), rates


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

    def room() -> int:
        total = ray.cluster_resources()
        slots = total.get("CPU", 0) // (cpus * sweep.ranks_per_job)
        return int(min(slots, total.get("GPU", 0) // (gpus * sweep.ranks_per_job)) if gpus else slots)

    limits = Limits(sweep.job_timeout_s, sweep.retries)
    return JobPool(lambda: start_crew(sweep.ranks_per_job, cpus, gpus), room, limits)


def check_plan(comparison: Comparison) -> None:
    """InputError for budgets and trials that the persons there are can't fill."""
    comparison.trials()
    comparison.jobs({})


def _run_jobs(
    title: str,
    jobs: Sequence[FinetuneJob],
    comparison: Comparison,
    pool: JobPool[FinetuneJob],
    watch: Callable[[Path], None],
    say: Callable[[str], None],
) -> dict[FinetuneJob, Stage]:
    weights = comparison.weights
    stages = {job: job_stage(comparison, job, weights[job.arm]) for job in jobs}
    kept = {job: result for job, stage in stages.items() if (result := read_result(stage.folder))}
    for job, result in kept.items():
        if not stages[job].is_finished:
            stages[job].finish(result.seconds)  # done when an earlier driver died before it could say so
        watch(stages[job].folder / JOURNAL)
    missing = [job for job in stages if job not in kept]
    if missing:
        say(f"  {len(missing)} of {len(jobs)} {title} to do; {missing[0].name}: {stages[missing[0]].state()}")
        _run_missing(missing, SweepBoard(title, jobs, kept), stages, comparison, pool, watch)
    else:
        say(f"  all {len(jobs)} {title} kept")
    return stages


def _run_missing(
    missing: Sequence[FinetuneJob],
    board: SweepBoard,
    stages: Mapping[FinetuneJob, Stage],
    comparison: Comparison,
    pool: JobPool[FinetuneJob],
    watch: Callable[[Path], None],
) -> None:
    scans = _Scans(comparison.index)
    monitor = [scans[subject] for subject in comparison.split.monitor]
    protocol = ray.put(_protocol(comparison))

    def call(crew: Crew, job: FinetuneJob) -> list[ray.ObjectRef]:
        stage = stages[job]
        stage.folder.mkdir(parents=True, exist_ok=True)
        watch(stage.folder / JOURNAL)
        cases = [scans[subject] for subject in job.subjects]
        task = Task(job, stage.folder, cases, monitor, _facts(comparison, job, stage))
        return [actor.run.remote(task, protocol) for actor in crew.actors]

    failures: dict[FinetuneJob, Failed] = {}
    with board.shown():
        for job, result in pool.run(missing, call, board):
            if isinstance(result, Failed):
                failures[job] = result
            else:
                stages[job].finish(result.seconds)
    if failures:
        (job, first), more = next(iter(failures.items())), len(failures) - 1
        others = f"; {more} more failed as well" if more else ""
        raise InputError(
            f"{job.name} failed {_times(first.tries)}: {first.why}{others}; no report is written without them, "
            "the same command tries again what is missing"
        )


def _facts(comparison: Comparison, job: FinetuneJob, stage: Stage) -> RunFacts:
    config, index = comparison.config, comparison.index
    pretrain_run = Path(job.handover).parent.name if job.handover else "none"
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


class _Scans:
    """person -> a reference to the labelled scans, decoded when they are first asked for.

    By the driver: tasks that decode would wait for the cores that the workers hold, and the workers for them.
    """

    def __init__(self, index: ShardIndex) -> None:
        self.index, self._there = index, dict[str, ray.ObjectRef]()

    def __getitem__(self, subject: str) -> ray.ObjectRef:
        if subject not in self._there:
            self._there[subject] = ray.put(load_labelled(self.index, [subject]))
        return self._there[subject]


def _protocol(comparison: Comparison) -> Protocol:
    config, index = comparison.config, comparison.index
    test_cases = test_cases_of(comparison.archive, index, comparison.split, config.sweep.max_test_cases)
    elsewhere = {name: labelled_of(archive) for name, archive in comparison.elsewhere.items()}
    return Protocol.of(config.model, config.finetune, index, config.evaluate.tolerance_mm, test_cases, elsewhere)


def labelled_of(archive: Archive) -> list[ArchiveCase]:
    return [case for case in archive.cases if case.label_path is not None]


def _names_of(archive: Archive) -> dict[str, str]:
    """case -> person."""
    return {case.case: case.subject for case in labelled_of(archive)}


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
