"""What a recipe and its words order, without Ray: what `maetrain sweep` would compare, and others' scores on it.

A job of another network has a folder named after all that its scores depend on, OUT/jobs/JOB-KEY, and is done once it
holds a stage.json. So a call with other settings does it anew, and one that comes back finds it done.
"""

import argparse
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from cluster.grid import Comparison, job_stage
from cluster.stages import Stage
from data_shards.archive.identity import read_identity
from data_shards.archive.layout import read_archive
from data_shards.errors import InputError
from data_shards.formats.index import ShardIndex
from maetrain.evaluate.metrics import CaseScore
from maetrain.evaluate.scores import ScoreRow, read_scores, write_scores
from maetrain.finetune.config import FinetuneJob
from maetrain.finetune.plan import Encoders
from maetrain.recipes.config import RunConfig
from maetrain.report.material import SCORES


def order_parser(description: str | None) -> argparse.ArgumentParser:
    """The words that every sweep needs; parse them intermixed, settings may stand anywhere."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--shards", required=True)
    parser.add_argument("--data", type=Path, required=True, help="the archive of these shards")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    return parser


def peer_parser(description: str | None) -> argparse.ArgumentParser:
    """`order_parser` with what every script for others' networks asks for."""
    parser = order_parser(description)
    parser.add_argument("--budget", type=int, action="append", required=True, help="one of the sweep's; again for more")
    return parser


def check_peers(config: RunConfig, budgets: Collection[int]) -> None:
    """InputError for budgets that the sweep has none of, and for persons held out, which no peer makes use of."""
    if unknown := sorted({*budgets} - {*config.sweep.budgets}):
        raise InputError(f"--budget {unknown[0]} is not among sweep.budgets {list(config.sweep.budgets)}")
    if config.finetune.validation_share:
        raise InputError(
            f"finetune.validation_share = {config.finetune.validation_share:g}: other networks train on all persons of "
            "a budget and are scored with their last weights; compare at finetune.validation_share=0 "
            "finetune.keep=last finetune.patience=0, also in the sweep"
        )


def ordered(config: RunConfig, words: argparse.Namespace, arms: Mapping[str, Encoders]) -> Comparison:
    index = ShardIndex.load(words.shards)
    archive = read_archive(words.data, read_identity(config.shards.privacy, os.environ))
    model = config.model.model_copy(update={"in_channels": len(index.channel_names)})
    split = config.split.of(index)
    return Comparison(config.model_copy(update={"model": model}), index, archive, split, arms, {}, words.out)


def peer_stages(
    comparison: Comparison, own: Mapping[str, Mapping], rates: Mapping[str, float] | None = None
) -> dict[FinetuneJob, Stage]:
    """Every job -> its folder, named by what a job of ours depends on and by `own`: network -> settings of its own.

    `rates`: network -> peak learning rate, where it isn't finetune.learning_rate.
    """
    ours = {job: job_stage(comparison, job) for job in comparison.jobs(rates or {})}
    return {job: replace(stage, inputs=stage.inputs | {"own": dict(own[job.arm])}) for job, stage in ours.items()}


def score_jobs(
    stages: Mapping[FinetuneJob, Stage],
    asked: Iterable[FinetuneJob],
    told: str,
    scored: Callable[[FinetuneJob, Path], Iterable[CaseScore]],
    table: Path,
) -> None:
    """Does the jobs of `asked` that aren't done, one after the other, and prints a line each.

    `scored` gets a job and its folder; `told` is what the lines say of the settings. `table` gets the rows of all
    `stages` that are done, those of earlier calls too.
    """
    for job in asked:
        stage = stages[job]
        if not stage.is_finished:
            began_s = time.monotonic()
            rows = [ScoreRow.of(score, job.budget, job.arm, job.seed) for score in scored(job, stage.folder)]
            write_scores(stage.folder / SCORES, rows)
            stage.finish(time.monotonic() - began_s)
        found = read_scores(stage.folder / SCORES)
        print(f"{job.name}, {told}: Dice {sum(row.dice for row in found) / len(found):.4f}", flush=True)
    done = [stage.folder / SCORES for stage in stages.values() if stage.is_finished]
    write_scores(table, [row for path in done for row in read_scores(path)])
