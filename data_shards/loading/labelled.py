"""Labelled scans for finetuning: whole cases in memory, and endless batches of augmented crops.

Everything drawn for a sample comes from (seed, its place in the training order), so the same seed gives both arms of a
comparison the same crops. B batch, C channel, D H W voxels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data_shards.errors import InputError
from data_shards.formats.index import ShardIndex
from data_shards.formats.reader import open_reader
from data_shards.loading.augment import Augmenter
from data_shards.loading.augment_config import AugmentConfig
from data_shards.order.crops import Triple, around, crop_start
from data_shards.order.shuffle import EpochOrder
from data_shards.order.streams import stream


@dataclass(frozen=True)
class LabelledCase:
    """A whole preprocessed scan: float32 image (C, D, H, W), uint8 label (D, H, W), spacing in D, H, W order.

    `voxel_sha256`: hash of the scan it was made from.
    """

    case: str
    subject: str
    image_CDHW: np.ndarray
    label_DHW: np.ndarray
    spacing_mm: tuple[float, float, float]
    voxel_sha256: str = ""


@dataclass(frozen=True)
class LabelledBatch:
    """image_BCDHW float32, label_BDHW int64 (class values)."""

    image_BCDHW: Tensor
    label_BDHW: Tensor


class LabelledScans:
    """The labelled scans of an index, person by person; the index is gone through once."""

    def __init__(self, index: ShardIndex) -> None:
        self.index, self._reader = index, open_reader(index)
        self._places: dict[str, list[int]] = {}
        columns = (index.volumes.column(name).to_pylist() for name in ("subject", "has_label"))
        for place, (subject, has_label) in enumerate(zip(*columns, strict=True)):
            if has_label:
                self._places.setdefault(subject, []).append(place)

    def of(self, subject: str) -> list[LabelledCase]:
        """All labelled scans of a person, in the index's order. InputError for a person who has none."""
        if subject not in self._places:
            raise InputError(
                f"person {subject} has no labelled scan in {self.index.name}: choose others or build again"
            )
        return [self._read(place) for place in self._places[subject]]

    def _read(self, place: int) -> LabelledCase:
        volume, read = self.index.volumes[place], self._reader.read
        image_CDHW, label_DHW = read(place, "image"), read(place, "label")
        return LabelledCase(volume.case, volume.subject, image_CDHW, label_DHW, volume.spacing_mm, volume.voxel_sha256)


def load_labelled(index: ShardIndex, subjects: Sequence[str]) -> list[LabelledCase]:
    """All labelled scans of `subjects`, in that order. InputError for a person who has none."""
    scans = LabelledScans(index)
    return [case for subject in subjects for case in scans.of(subject)]


def labelled_batches(
    cases: Sequence[LabelledCase],
    crop_DHW: Triple,
    batch_size: int,
    seed: int,
    foreground_share: float,
    augment_config: AugmentConfig,
    start_step: int = 0,
    ignore_label: int | None = None,
    part: tuple[int, int] = (0, 1),
) -> Iterator[LabelledBatch]:
    """Batches for ever, from `start_step` on. Every case comes once an epoch.

    About `foreground_share` (0..1) of the crops are centred on a random voxel of a random foreground class the case
    has (as far as the crop then stays inside the scan); the others lie anywhere. Outside a scan is air and background.
    `ignore_label` is no class. `part` (i, n): only the i-th of n equal parts of every batch, for rank i of n.
    """
    if not cases:
        raise InputError("there are no labelled scans to train on: choose persons who have some")
    order, augmenter = EpochOrder(len(cases), seed), Augmenter(augment_config, crop_DHW)
    foreground = [_voxels_by_class(case.label_DHW, ignore_label) for case in cases]
    air_C = [case.image_CDHW.min(axis=(1, 2, 3)) for case in cases]
    rank, ranks = part
    assert batch_size % ranks == 0, f"batch {batch_size} for {ranks} ranks"
    own = batch_size // ranks
    step = start_step
    while True:
        samples = []
        first = step * batch_size + rank * own
        for position in range(first, first + own):
            rng = stream(seed, "labelled", position)
            _, i = order.at(position)
            start = _start(rng, cases[i].label_DHW.shape, crop_DHW, foreground[i], foreground_share)
            case = cases[i]
            samples.append(augmenter.crop(rng, case.image_CDHW, case.label_DHW, start, case.spacing_mm, air_C[i]))
        images, labels = zip(*samples, strict=True)
        yield LabelledBatch(torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels).astype(np.int64)))
        step += 1


def _voxels_by_class(label_DHW: np.ndarray, ignore_label: int | None) -> list[np.ndarray]:
    """For each foreground class in the label the flat places of its voxels."""
    flat = label_DHW.ravel()
    places = np.flatnonzero(flat if ignore_label is None else (flat != 0) & (flat != ignore_label))
    return [places[flat[places] == k] for k in np.unique(flat[places])]


def _start(
    rng: np.random.Generator,
    shape_DHW: Sequence[int],
    crop_DHW: Triple,
    foreground: list[np.ndarray],
    foreground_share: float,
) -> Triple:
    if foreground and rng.random() < foreground_share:
        places = foreground[rng.integers(len(foreground))]
        voxel_DHW = np.unravel_index(int(places[rng.integers(len(places))]), tuple(shape_DHW))
        return around([int(v) for v in voxel_DHW], shape_DHW, crop_DHW)
    return crop_start(rng, shape_DHW, crop_DHW)
