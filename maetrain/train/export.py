"""From a committed checkpoint to the encoder handover, and the trained autoencoder back for pictures."""

from pathlib import Path

import torch
from torch import Tensor

from data_shards.errors import InputError
from data_shards.formats.index import ShardIndex
from maetrain.checkpoint.commit import CheckpointManifest
from maetrain.checkpoint.fragments import assemble
from maetrain.checkpoint.handover import EncoderHandover, PoolScan, write_handover
from maetrain.models.mae import MaskedAutoencoder
from maetrain.train.config import PretrainSetup
from maetrain.train.pretrain import pool_of
from maetrain.train.resume import checkpoint_of


def load_autoencoder(run_dir: Path) -> tuple[MaskedAutoencoder, CheckpointManifest]:
    """The masked autoencoder of a run's newest checkpoint, in eval mode on the CPU."""
    path, manifest = checkpoint_of(run_dir)
    setup = PretrainSetup.model_validate(manifest.config)
    network = MaskedAutoencoder(setup.model, setup.pretrain.mae)
    network.load_state_dict(_weights(path, manifest))
    return network.eval(), manifest


def export_encoder(run_dir: Path, folder: Path) -> EncoderHandover:
    """Writes the handover of a run's newest checkpoint into `folder`."""
    path, manifest = checkpoint_of(run_dir)
    setup = PretrainSetup.model_validate(manifest.config)
    index = ShardIndex.load(setup.shards)
    if index.sha256 != manifest.shard_index_sha256:
        raise InputError(
            f"{setup.shards}: rebuilt since this run was trained on it; export needs the index it has seen"
        )
    prefix = "encoder."
    weights = {n.removeprefix(prefix): t for n, t in _weights(path, manifest).items() if n.startswith(prefix)}
    pool = [index.volumes[i] for i in pool_of(index, setup.pool_subjects)]
    contract = {
        "architecture": setup.model,
        "crop_DHW": setup.pretrain.crop_DHW,
        "preprocess": index.preprocess.model_dump(mode="json"),
        "channel_names": index.channel_names,
        "shard_index_sha256": index.sha256,
        "pretrain_fingerprint": manifest.fingerprint,
        "step": manifest.step,
        "run": path.parents[1].name,
    }
    scans = [PoolScan(case=v.case, subject=v.subject, voxel_sha256=v.voxel_sha256) for v in pool]
    return write_handover(folder, weights, contract, scans)


def _weights(path: Path, manifest: CheckpointManifest) -> dict[str, Tensor]:
    return {name: t.to(torch.float32) for name, t in assemble(path, manifest, ("weight",))["weight"].items()}
