"""The labelled layouts: MSD (`dataset.json` with a "training" list, or imagesTr/labelsTr) and nnU-Net v2.

nnU-Net has one file per channel (`case_0000.nii.gz`), "channel_names", and labels as name -> value.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_shards.archive.cases import VOLUME_ENDINGS, FoundCase, is_volume_file, stem
from data_shards.errors import InputError

_MR_CHANNELS = re.compile(r"(MRI?|T[12].*|FLAIR.*|PDW?|ADC|DWI|DCE.*|SWI)([ _-].*)?", re.IGNORECASE)
_CT_CHANNELS = re.compile(r"CT([ _-].*)?", re.IGNORECASE)
_PT_CHANNELS = re.compile(r"(PET?|PT)([ _-].*)?", re.IGNORECASE)


@dataclass(frozen=True)
class DatasetJson:
    """What dataset.json says."""

    name: str
    channel_names: tuple[str, ...]
    class_names: tuple[str, ...]
    header: dict[str, Any]


def read_dataset_json(root: Path) -> DatasetJson:
    """Raises InputError for a file that can't be used: no JSON, bad channel names, bad labels."""
    header = read_object(root / "dataset.json")
    name = str(header.get("name") or root.resolve().name)
    return DatasetJson(name, _channel_names(root, header), _class_names(root, header), header)


def decathlon_cases(root: Path, dataset: DatasetJson) -> Iterator[FoundCase]:
    """Cases of MSD and nnU-Net folders: the labelled ones, then imagesTs as unlabelled ones.

    Raises InputError for a listed file that isn't there, and for missing channels.
    """
    header, num_channels = dataset.header, len(dataset.channel_names)
    is_nnunet, modality = "channel_names" in header, _modality(dataset.channel_names)
    if "training" in header:
        for image, label in _listed_pairs(root, header["training"]):
            yield FoundCase(image.name, (image,), label, modality=modality)
    else:
        for name, paths in _scanned_images(root / "imagesTr", is_nnunet, num_channels):
            labels = [root / "labelsTr" / f"{stem(name)}{ending}" for ending in VOLUME_ENDINGS]
            yield FoundCase(name, paths, next((path for path in labels if path.is_file()), None), modality=modality)
    for name, paths in _scanned_images(root / "imagesTs", is_nnunet, num_channels):
        yield FoundCase(name, paths, modality=modality)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises InputError for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}): fix or replace it") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a JSON object, holds {type(value).__name__}: fix or replace it")
    return value


def _listed_pairs(root: Path, training: Any) -> Iterator[tuple[Path, Path | None]]:
    if not isinstance(training, list):
        raise InputError(f'{root / "dataset.json"}: "training" must be a list of {{"image", "label"}}: correct it')
    for entry in training:
        if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
            raise InputError(f'{root / "dataset.json"}: training entry {entry!r} has no "image" path, add it')
        image = root / entry["image"]
        label = root / str(entry["label"]) if entry.get("label") else None
        for path in filter(None, (image, label)):
            if not path.is_file():
                raise InputError(f"{path} is listed in dataset.json but not there: restore it or drop the entry")
        yield image, label


def _scanned_images(folder: Path, is_nnunet: bool, num_channels: int) -> Iterator[tuple[str, tuple[Path, ...]]]:
    files = sorted(path for path in folder.iterdir() if is_volume_file(path.name)) if folder.is_dir() else []
    if not is_nnunet:
        yield from ((path.name, (path,)) for path in files)
        return
    channels_by_case: dict[str, dict[int, Path]] = {}
    for path in files:
        match = re.fullmatch(r"(.+)_(\d{4})", stem(path.name))
        if match is None:
            raise InputError(f"{path}: nnU-Net images end in _0000 (the channel), rename it or remove channel_names")
        channels_by_case.setdefault(match[1], {})[int(match[2])] = path
    for case, channels in channels_by_case.items():
        if sorted(channels) != list(range(num_channels)):
            raise InputError(
                f"{folder / case}: has channels {sorted(channels)}, dataset.json names {num_channels}: "
                "add the missing files or remove the case"
            )
        yield case, tuple(channels[c] for c in range(num_channels))


def _modality(channel_names: tuple[str, ...]) -> str:
    """What all channels are made with; "" where they differ or don't tell."""
    for modality, pattern in (("MR", _MR_CHANNELS), ("CT", _CT_CHANNELS), ("PT", _PT_CHANNELS)):
        if all(pattern.fullmatch(name.strip()) for name in channel_names):
            return modality
    return ""


def _channel_names(root: Path, header: dict[str, Any]) -> tuple[str, ...]:
    named = header.get("channel_names", header.get("modality"))
    if not isinstance(named, dict) or sorted(named) != sorted(str(c) for c in range(len(named))) or not named:
        raise InputError(
            f'{root / "dataset.json"}: "channel_names" (or "modality") must be like {{"0": "MRI"}}, got {named!r}'
        )
    return tuple(str(named[str(c)]) for c in range(len(named)))


def _class_names(root: Path, header: dict[str, Any]) -> tuple[str, ...]:
    """Class names by value, from {"0": name} (MSD) or {name: 0} (nnU-Net). Unlabelled sets may leave "labels" out."""
    labels = header.get("labels", {"0": "background"})
    try:
        if all(str(key).isdigit() for key in labels):
            names = {int(key): str(name) for key, name in labels.items()}
        else:
            names = {int(value): str(name) for name, value in labels.items()}
    except (TypeError, ValueError, AttributeError, OverflowError):
        names = {}
    is_complete = names and len(names) == len(labels) and sorted(names) == list(range(len(names))) and len(names) <= 256
    if not is_complete or len(set(names.values())) != len(names):
        raise InputError(
            f'{root / "dataset.json"}: "labels" must name the values 0, 1, 2, ... (0 = background) once each, '
            f"got {labels!r}: renumber the labels"
        )
    return ("background", *(names[value] for value in range(1, len(names))))
