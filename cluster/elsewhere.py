"""Other studies that a sweep's models are scored on: `--elsewhere NAME=FOLDER`, checked before anything trains."""

from collections.abc import Iterable
from pathlib import Path

from data_shards.archive.identity import Identity
from data_shards.archive.layout import read_archive
from data_shards.errors import InputError
from data_shards.formats.index import ShardIndex
from data_shards.splits import Split
from maetrain.checkpoint.handover import PoolScan
from maetrain.evaluate.study import Study, read_study


def read_elsewhere(
    name: str, folder: Path, index: ShardIndex, split: Split, pools: Iterable[PoolScan], identity: Identity
) -> Study:
    """The labelled cases of an archive with the shards' channels and classes; each is read once.

    InputError where they don't fit, can't be read, or where anybody trained or pretrained on one of their persons or
    scans: by name, and by voxels under whatever name.
    """
    archive = read_archive(folder, identity)
    for what, there, here in (
        ("channels are", [*archive.channel_names], [*index.channel_names]),
        ("classes are", [*archive.class_names], [*index.class_names]),
        ("regions and ignored label are", archive.meaning, index.labels.meaning),
    ):
        if there != here:
            raise InputError(
                f"--elsewhere {name}: its {what} {there}, the shards' {here}: "
                "give an archive with the same ones, in their order, or rename them in its dataset.json"
            )
    study = read_study(archive.cases, len(archive.class_names))
    if not study.cases:
        raise InputError(f"--elsewhere {name}: {folder} has no labelled case")
    trained = {*split.train, *split.monitor}
    seen = [(scan.subject, scan.voxel_sha256) for scan in pools]
    seen += [(volume.subject, volume.voxel_sha256) for volume in index.volumes if volume.subject in trained]
    persons, voxels = {subject for subject, _ in seen}, {sha256 for _, sha256 in seen}
    for case in study.cases:
        if case.subject in persons or study.voxel_sha256[case.case] in voxels:
            raise InputError(
                f"--elsewhere {name}: person {case.subject} (case {case.case}) is among those that train or pretrain, "
                "by name or by voxels: leave that person out of it"
            )
    return study
