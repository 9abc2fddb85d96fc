"""What a recipe and its words order, without Ray: what `maetrain sweep` would compare, and others' scores on it."""

import argparse
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from cluster.grid import Comparison
from data_shards.archive.identity import read_identity
from data_shards.archive.layout import read_archive
from data_shards.formats.index import ShardIndex
from maetrain.evaluate.metrics import CaseScore
from maetrain.evaluate.scores import ScoreRow, read_scores, write_scores
from maetrain.finetune.config import FinetuneJob
from maetrain.finetune.plan import Encoders
from maetrain.recipes.config import RunConfig


def order_parser(description: str | None) -> argparse.ArgumentParser:
    """The words that every sweep needs; parse them intermixed, settings may stand anywhere."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--shards", required=True)
    parser.add_argument("--data", type=Path, required=True, help="the archive of these shards")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    return parser


def ordered(config: RunConfig, words: argparse.Namespace, arms: Mapping[str, Encoders]) -> Comparison:
    index = ShardIndex.load(words.shards)
    archive = read_archive(words.data, read_identity(config.shards.privacy, os.environ))
    model = config.model.model_copy(update={"in_channels": len(index.channel_names)})
    split = config.split.of(index)
    return Comparison(config.model_copy(update={"model": model}), index, archive, split, arms, {}, words.out)


def score_jobs(
    comparison: Comparison, budgets: Iterable[int], scored: Callable[[FinetuneJob], Iterable[CaseScore]]
) -> None:
    """Every job of `budgets`, one after the other, but those that are done; a table each, and all in OUT/scores.csv."""
    rows: list[ScoreRow] = []
    for job in comparison.jobs({}):
        if job.budget not in budgets:
            continue
        path = comparison.out / f"{job.name}.csv"
        if not path.is_file():
            write_scores(path, [ScoreRow.of(score, job.budget, job.arm, job.seed) for score in scored(job)])
        found = read_scores(path)
        print(f"{job.name}: Dice {sum(row.dice for row in found) / len(found):.4f}", flush=True)
        rows += found
    write_scores(comparison.out / "scores.csv", rows)
