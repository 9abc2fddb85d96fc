"""From a committed checkpoint to the encoder handover, and the trained autoencoder back for pictures."""

from pathlib import Path

import torch
from torch import Tensor

from data_shards.errors import InputError
from data_shards.formats.index import ShardIndex
from maetrain.checkpoint.commit import MANIFEST, CheckpointManifest, newest_committed, read_committed
from maetrain.checkpoint.fragments import assemble
from maetrain.checkpoint.handover import EncoderHandover, PoolScan, write_handover
from maetrain.models.mae import MaskedAutoencoder
from maetrain.train.config import PretrainSetup
from maetrain.train.pretrain import pool_of


def newest_of(run_dir: Path) -> tuple[Path, CheckpointManifest]:
    """The newest committed checkpoint of a run, or `run_dir` itself if it is a checkpoint.

    InputError where there is none whose hashes hold.
    """
    if (run_dir / MANIFEST).is_file():
        try:
            return run_dir, read_committed(run_dir)
        except ValueError as error:
            raise InputError(f"damaged checkpoint: {error}; give another one, or the run's folder") from None
    found = newest_committed(run_dir / "checkpoints")
    if found.path is None or found.manifest is None:
        why = f" ({found.skipped[0]})" if found.skipped else ""
        raise InputError(f"{run_dir}: no committed checkpoint there{why}; give the folder of a pretraining run")
    return found.path, found.manifest


def load_autoencoder(run_dir: Path) -> tuple[MaskedAutoencoder, CheckpointManifest]:
    """The masked autoencoder of a run's newest checkpoint, in eval mode on the CPU."""
    path, manifest = newest_of(run_dir)
    setup = PretrainSetup.model_validate(manifest.config)
    network = MaskedAutoencoder(setup.model, setup.pretrain.mae)
    network.load_state_dict(_weights(path, manifest))
    return network.eval(), manifest


def export_encoder(run_dir: Path, folder: Path) -> EncoderHandover:
    """Writes the handover of a run's newest checkpoint into `folder`."""
    path, manifest = newest_of(run_dir)
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
    }
    scans = [PoolScan(case=v.case, subject=v.subject, voxel_sha256=v.voxel_sha256) for v in pool]
    return write_handover(folder, weights, contract, scans)


def _weights(path: Path, manifest: CheckpointManifest) -> dict[str, Tensor]:
    return {name: t.to(torch.float32) for name, t in assemble(path, manifest, ("weight",))["weight"].items()}
