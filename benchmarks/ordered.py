"""What a recipe and its words order, without Ray: the comparison that `maetrain sweep` would run."""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path

from cluster.grid import Comparison
from data_shards.archive.identity import read_identity
from data_shards.archive.layout import read_archive
from data_shards.formats.index import ShardIndex
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
