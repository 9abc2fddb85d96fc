"""Networks and settings so small that the tests of the parts take milliseconds."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from data_shards.formats.index import ShardIndex
from maetrain.checkpoint.handover import PoolScan, write_handover
from maetrain.models.config import NNFormerConfig
from maetrain.models.encoder import Encoder
from maetrain.models.mae import MaeConfig
from maetrain.train.config import PretrainConfig, PretrainSetup

if TYPE_CHECKING:  # it brings DeepSpeed along, in whose processes dynamo is slow
    from maetrain.train.engine import Engine

SMALL = NNFormerConfig(
    embed_dim=8,
    num_heads=(1, 2, 2),
    decoder_heads=(1, 2),
    windows=((2, 2, 2), (2, 2, 2), (2, 2, 2)),
)
SMALL_MAE = MaeConfig(ratio=0.5, decoder_dim=12, decoder_depth=1, decoder_heads=2)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small_setup(index: ShardIndex, run_dir: Path, **changes: object) -> PretrainSetup:
    """A pretraining run of seconds on all scans of `index`."""
    settings: dict = {
        "mae": SMALL_MAE,
        "crop_DHW": (16, 16, 16),
        "steps": 6,
        "warmup_steps": 1,
        "global_batch": 4,
        "micro_batch": 2,
        "checkpoint_every": 2,
        "keep_checkpoints": 2,
        "seed": 3,
    }
    return PretrainSetup(
        model=SMALL,
        pretrain=PretrainConfig(**(settings | changes)),
        shards=str(index.root),
        pool_subjects=tuple(sorted({volume.subject for volume in index.volumes})),
        run_dir=str(run_dir),
    )


def load_full(engine: "Engine", tensors: dict[str, dict[str, Tensor]], updates: int) -> None:
    """`tensors`: kind -> parameter -> full tensor, as `assemble` gives them."""
    engine.load(
        lambda name: tensors["weight"][name],
        lambda kind, name, start, stop: tensors[kind][name].flatten()[start:stop],
        updates,
    )


def hand_over(folder: Path, pool: list[PoolScan], **changes: object) -> Path:
    """The handover of a small encoder with torch's current random weights; `changes` of its contract."""
    contract: dict = {
        "architecture": SMALL,
        "crop_DHW": (16, 16, 16),
        "preprocess": {},
        "channel_names": ("MRI",),
        "shard_index_sha256": "0",
        "pretrain_fingerprint": "0",
        "step": 1,
        **changes,
    }
    write_handover(folder, Encoder(contract["architecture"]).state_dict(), contract, pool)
    return folder
