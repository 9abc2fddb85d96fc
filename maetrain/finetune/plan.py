"""The sweep as a list of jobs: pure, so that it can be looked at before anything runs."""

from collections import Counter
from collections.abc import Mapping, Sequence

from data_shards.errors import InputError
from data_shards.formats.index import ShardIndex
from data_shards.splits import Split, budget_order, budget_subjects, classes_by_subject, make_split
from maetrain.finetune.config import FinetuneJob

Encoders = Sequence[str]
"""Folders of an arm's handovers, which its seeds take in turn; none = random weights."""


def split_of(index: ShardIndex, test_share: float, num_monitor: int, seed: int) -> Split:
    """The split of an index's labelled persons; the same index and numbers give the same split.

    InputError where nobody is labelled, or where one of two names that share a scan is tested and the other is not.
    """
    labelled = classes_by_subject(index)
    if not labelled:
        raise InputError(f"{index.root}: no labelled scan in it; a sweep needs labels (labelsTr in the archive)")
    split = make_split(labelled, test_share, num_monitor, seed)
    for one, other in index.aliases:
        if (one in split.test) != (other in split.test):
            raise InputError(
                f"{one} and {other} share a scan, and only one of them is a test person: if both are one person, say "
                "so in subjects.json and build the shards again; if not, remove the copy (see catalogue.parquet)"
            )
    return split


def pretrain_pool(index: ShardIndex, split: Split | None) -> tuple[str, ...]:
    """Persons whose scans pretraining may see: all but those who test or monitor."""
    held_out = {*split.test, *split.monitor} if split else set()
    return tuple(sorted(set(index.volumes.column("subject").to_pylist()) - held_out))


def plan_jobs(
    index: ShardIndex,
    split: Split,
    budgets: Sequence[int],
    seeds: Sequence[int],
    arms: Mapping[str, Encoders],
    learning_rates: Mapping[str, float] | None = None,
    fewest: int = 0,
) -> list[FinetuneJob]:
    """One job per (budget, arm, seed). `learning_rates`: arm -> peak, where trials have found one.

    The seeds of an arm take its encoders in turn, each seed the same one at all budgets: with as many as seeds, the
    luck of a pretraining run counts like that of a finetuning run.

    For each seed the persons are put in one order whose first k are budget k, so budgets are nested and arms are
    paired. Its first `fewest` hold every class: as many as the smallest budget (0), or fewer where some validate.
    InputError where a budget is larger than the persons there are, or no order has every class so early.
    """
    for budget in budgets:
        budget_subjects(split.train, budget)
    labelled = classes_by_subject(index)
    jobs = []
    for turn, seed in enumerate(seeds):
        order = budget_order(split.train, labelled, fewest or min(budgets), seed)
        for budget in budgets:
            subjects = budget_subjects(order, budget)
            for arm, encoders in arms.items():
                handover = encoders[turn % len(encoders)] if encoders else None
                job = FinetuneJob(budget=budget, arm=arm, seed=seed, subjects=subjects, handover=handover)
                jobs.append(job.model_copy(update={"learning_rate": (learning_rates or {}).get(arm)}))
    return sorted(jobs, key=lambda job: (job.budget, job.seed, job.arm))


def plan_trials(
    index: ShardIndex,
    split: Split,
    budgets: Sequence[int],
    seeds: Sequence[int],
    arms: Mapping[str, Encoders],
    learning_rates: Sequence[float],
    trial_budgets: Sequence[int] = (),
    fewest: int = 0,
) -> list[FinetuneJob]:
    """One trial per (trial budget, arm, seed, learning rate), on the persons that the jobs of that budget get.

    InputError where a trial budget is none of `budgets`, or too small to hold anybody out.
    """
    chosen = budgets_of_trials(budgets, trial_budgets)
    if unknown := sorted({*chosen} - {*budgets}):
        raise InputError(f"sweep.trial_budgets: {unknown[0]} is not among sweep.budgets {list(budgets)}")
    jobs = [job for job in plan_jobs(index, split, budgets, seeds, arms, None, fewest) if job.budget in chosen]
    scans = Counter(volume.subject for volume in index.volumes if volume.has_label)
    for job in jobs:
        if sum(scans[subject] for subject in job.subjects) < 2:
            raise InputError(
                f"a budget of {job.budget} with one scan has nothing to validate learning rates on: "
                "set sweep.trial_budgets to a larger one, or sweep.learning_rates=[]"
            )
    return [job.model_copy(update={"learning_rate": rate, "is_trial": True}) for job in jobs for rate in learning_rates]


def budgets_of_trials(budgets: Sequence[int], trial_budgets: Sequence[int]) -> tuple[int, ...]:
    """`trial_budgets`, or else the smallest budget from 4 persons on, or the largest."""
    return tuple(trial_budgets) or (min((b for b in budgets if b >= 4), default=max(budgets)),)


def best_rates(trials: Sequence[tuple[FinetuneJob, float]]) -> dict[str, float]:
    """arm -> the learning rate whose trials (job, validation Dice) did best on average; the smaller one of equals."""
    found: dict[str, dict[float, list[float]]] = {}
    for job, dice in trials:
        assert job.learning_rate is not None, "a trial tries a rate"
        found.setdefault(job.arm, {}).setdefault(job.learning_rate, []).append(dice)
    return {
        arm: max(sorted(by_rate), key=lambda rate: sum(by_rate[rate]) / len(by_rate[rate]))
        for arm, by_rate in found.items()
    }
