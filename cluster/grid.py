"""What is compared on what: the grid of a sweep's jobs, and all that each one's scores depend on. Nothing runs here."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from cluster.stages import Stage
from data_shards.archive.layout import Archive
from data_shards.formats.index import ShardIndex
from data_shards.splits import Split
from maetrain.checkpoint.fingerprint import fingerprint
from maetrain.checkpoint.handover import read_handover
from maetrain.evaluate.study import Study, test_study
from maetrain.finetune.config import FinetuneConfig, FinetuneJob
from maetrain.finetune.job import Protocol
from maetrain.finetune.plan import Encoders, budgets_of_trials, plan_jobs, plan_trials
from maetrain.finetune.validation import num_training
from maetrain.recipes.config import RunConfig

_RATES = {"learning_rate", "pretrained_learning_rate"}
_PRETRAINED = {name for name in FinetuneConfig.model_fields if name.startswith("pretrained_")}


@dataclass(frozen=True)
class Comparison:
    """What is compared on what: fixed before the first job.

    `arms`: as in `plan_jobs`. `pretrains`: the encoders were made as `config.pretrain` says, not handed over.
    """

    config: RunConfig
    index: ShardIndex
    archive: Archive
    split: Split
    arms: Mapping[str, Encoders]
    elsewhere: Mapping[str, Study]
    out: Path
    pretrains: bool = False

    @cached_property
    def weights(self) -> dict[str, str]:
        """Folder of a handover -> hash of its weights."""
        folders = {folder for encoders in self.arms.values() for folder in encoders}
        return {folder: read_handover(Path(folder)).weights_sha256 for folder in folders}

    @cached_property
    def test(self) -> Study:
        """The test persons' labelled scans. InputError where the archive is not the shards'."""
        return test_study(self.archive, self.index, self.split, self.config.sweep.max_test_cases)

    @cached_property
    def references(self) -> dict[str, dict[str, list[str]]]:
        """What scores are taken against, by content; "" are the test persons."""
        return {name: study.content for name, study in {"": self.test, **self.elsewhere}.items()}

    @property
    def work(self) -> str:
        """Names the whole. Other encoders, scans or studies in the same folder are another comparison."""
        weights = {arm: [self.weights[folder] for folder in folders] for arm, folders in self.arms.items()}
        what = {"config": self.config.model_dump(mode="json"), "index": self.index.sha256, "weights": weights}
        return fingerprint({"out": str(self.out.resolve()), "on": self.references, **what})

    @property
    def fewest(self) -> int:
        """Persons of the smallest part that anything trains on: every class must be among them."""
        sweep, share = self.config.sweep, self.config.finetune.validation_share
        of_jobs = num_training(min(sweep.budgets), share)
        if not sweep.learning_rates:
            return of_jobs
        tried = min(budgets_of_trials(sweep.budgets, sweep.trial_budgets))
        return min(of_jobs, num_training(tried, max(share, sweep.trial_share)))

    def protocol(self) -> Protocol:
        """What every job of it is told."""
        config = self.config
        fixed = (config.model, config.finetune, self.index, config.evaluate.tolerance_mm)
        return Protocol.of(*fixed, self.test, self.elsewhere)

    def check(self) -> None:
        """InputError for budgets and trials that the persons there are can't fill."""
        self.trials()
        self.jobs({})

    def jobs(self, rates: Mapping[str, float]) -> list[FinetuneJob]:
        sweep = self.config.sweep
        return plan_jobs(self.index, self.split, sweep.budgets, sweep.seeds, self.arms, rates, self.fewest)

    def trials(self) -> list[FinetuneJob]:
        """None where no learning rates are searched for."""
        sweep, seeds = self.config.sweep, self.config.sweep.seeds[: self.config.sweep.trial_seeds]
        if not sweep.learning_rates:
            return []
        where = (self.index, self.split, sweep.budgets, seeds, self.arms)
        return plan_trials(*where, sweep.learning_rates, sweep.trial_budgets, self.fewest)

    def for_trials(self) -> "Comparison":
        """The same for jobs that hold persons out."""
        finetune = self.config.finetune
        share = max(finetune.validation_share, self.config.sweep.trial_share)
        finetune = finetune.model_copy(update={"validation_share": share})
        return replace(self, config=self.config.model_copy(update={"finetune": finetune}))


def job_stage(comparison: Comparison, job: FinetuneJob) -> Stage:
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
        "handover_sha256": comparison.weights[job.handover] if job.handover else None,
        "learning_rate": job.peak(config.finetune),
        "model": config.model.model_dump(mode="json"),
        "finetune": config.finetune.model_dump(mode="json", exclude=no_concern),
        "ranks": config.sweep.ranks_per_job,
    }
    if not job.is_trial:
        inputs |= {
            "tolerance_mm": config.evaluate.tolerance_mm,
            "references": comparison.references,
        }
    return Stage(comparison.out / ("trials" if job.is_trial else "jobs"), job.name, inputs)
