"""The encoder of a pretraining of zero steps: the control arm `random-mae`, which must change nothing.

Its weights are those that pretraining with the same seed begins with, and they take the same way into the segmentation
network as pretrained ones: a handover on disk, checked, loaded, with the pretrained arms' learning rate and decay.
"""

from pathlib import Path

import torch

from data_shards.formats.index import ShardIndex
from data_shards.order.streams import stream_seed
from maetrain.checkpoint.fingerprint import fingerprint
from maetrain.checkpoint.handover import EncoderHandover, write_handover
from maetrain.models.config import NNFormerConfig
from maetrain.models.mae import MaskedAutoencoder
from maetrain.train.config import PretrainConfig


def hand_over_untrained(
    model: NNFormerConfig, config: PretrainConfig, index: ShardIndex, seed: int, folder: Path
) -> EncoderHandover:
    """Writes it into `folder`, drawn with `seed` in place of `config`'s. It has seen no scan: its pool is empty."""
    torch.manual_seed(stream_seed(seed, "init"))
    encoder = MaskedAutoencoder(model, config.mae).encoder
    contract = {
        "architecture": model,
        "crop_DHW": config.crop_DHW,
        "preprocess": index.preprocess.model_dump(mode="json"),
        "channel_names": index.channel_names,
        "shard_index_sha256": index.sha256,
        "pretrain_fingerprint": fingerprint({"steps": 0, "seed": seed}),
        "step": 0,
    }
    return write_handover(folder, encoder.state_dict(), contract, [])
