"""Stages that need no group of workers."""

from pathlib import Path

from cluster.pipeline import make_untrained
from data_shards.formats.index import ShardIndex
from maetrain.checkpoint.handover import read_handover
from maetrain.recipes.load import load_recipe

from ..integration.settings import TINY


def test_each_seed_has_an_untrained_encoder_of_its_own_and_keeps_it(tmp_path: Path, index: ShardIndex) -> None:
    config = load_recipe("demo", (*TINY, "sweep.seeds=[0,3]"))
    folders = make_untrained(config, index, tmp_path)
    assert len({read_handover(folder).weights_sha256 for folder in folders}) == 2
    more = load_recipe("demo", (*TINY, "sweep.seeds=[3,0,1]"))
    assert make_untrained(more, index, tmp_path)[:2] == folders[::-1]
