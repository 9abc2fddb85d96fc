"""The labelled layouts: MSD (`dataset.json` with a "training" list, or imagesTr/labelsTr) and nnU-Net v2.

nnU-Net has one file per channel (`case_0000.nii.gz`), "channel_names", and labels as name -> value; or, for regions, as
name -> values with "regions_class_order" beside; a label named "ignore" marks voxels that nobody annotated.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_shards.archive.cases import VOLUME_ENDINGS, FoundCase, is_volume_file, stem
from data_shards.errors import InputError
from data_shards.formats.names import below
from data_shards.labels import LabelMeaning, Region

IGNORE = "ignore"

_MR_CHANNELS = re.compile(r"(MRI?|T[12].*|FLAIR.*|PDW?|ADC|DWI|DCE.*|SWI)([ _-].*)?", re.IGNORECASE)
_CT_CHANNELS = re.compile(r"CT([ _-].*)?", re.IGNORECASE)
_PT_CHANNELS = re.compile(r"(PET?|PT)([ _-].*)?", re.IGNORECASE)


@dataclass(frozen=True)
class DatasetJson:
    """What dataset.json says."""

    name: str
    channel_names: tuple[str, ...]
    class_names: tuple[str, ...]
    meaning: LabelMeaning
    header: dict[str, Any]


def read_dataset_json(root: Path) -> DatasetJson:
    """Raises InputError for a file that can't be used: no JSON, bad channel names, bad labels."""
    header = read_object(root / "dataset.json")
    name = str(header.get("name") or root.resolve().name)
    class_names, meaning = _labels(root, header)
    return DatasetJson(name, _channel_names(root, header), class_names, meaning, header)


def decathlon_cases(root: Path, dataset: DatasetJson) -> Iterator[FoundCase]:
    """Cases of MSD and nnU-Net folders: the labelled ones, then imagesTs as unlabelled ones.

    Raises InputError for a listed file that isn't there or lies outside of `root`, and for missing channels.
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
        try:
            image = below(root, entry["image"])
            label = below(root, str(entry["label"])) if entry.get("label") else None
        except ValueError as error:
            raise InputError(f"{root / 'dataset.json'}: {error}: put the file, or a link to it, inside") from None
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


def _labels(root: Path, header: dict[str, Any]) -> tuple[tuple[str, ...], LabelMeaning]:
    """Class names by value, from {"0": name} (MSD) or {name: 0} (nnU-Net). Unlabelled sets may leave "labels" out."""
    labels = header.get("labels", {"0": "background"})
    try:
        if any(isinstance(value, list) for value in labels.values()):
            return _regions(labels, header.get("regions_class_order"))
        if all(str(key).isdigit() for key in labels):
            names = {int(key): str(name) for key, name in labels.items()}
        else:
            names = {int(value): str(name) for name, value in labels.items()}
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise _bad_labels(root, labels, str(error)) from None
    is_complete = names and len(names) == len(labels) and sorted(names) == list(range(len(names))) and len(names) <= 256
    if not is_complete or len(set(names.values())) != len(names):
        raise _bad_labels(root, labels)
    ignore = next((value for value, name in names.items() if name == IGNORE and "0" not in labels), None)
    if ignore is not None and ignore != len(names) - 1:
        raise _bad_labels(root, labels, f"{IGNORE} must be the highest value")
    return ("background", *(names[value] for value in range(1, len(names)))), LabelMeaning(ignore=ignore)


def _regions(labels: dict[str, Any], order: Any) -> tuple[tuple[str, ...], LabelMeaning]:
    """Values have no names of their own here; one that is a region by itself goes by the region's."""
    named = {
        str(name): tuple(sorted({int(v) for v in (value if isinstance(value, list) else [value])}))
        for name, value in labels.items()
    }
    ignore = named.pop(IGNORE, None)
    regions = {name: values for name, values in named.items() if values != (0,)}
    every = sorted({0}.union(*regions.values(), ignore or ()))
    if every != list(range(len(every))) or len(every) > 256 or (ignore and ignore != (len(every) - 1,)):
        raise ValueError(f"their values are {every}, with {IGNORE} = {list(ignore or ())}")
    if not isinstance(order, list) or len(order) != len(regions) or not {*order} <= {*every}:
        raise ValueError(f"regions_class_order must give each of the {len(regions)} regions a value, got {order!r}")
    alone = {values[0]: name for name, values in (*regions.items(), (IGNORE, ignore or ())) if len(values) == 1}
    class_names = ("background", *(alone.get(value, f"label {value}") for value in every[1:]))
    made = tuple(Region(n, values, int(w)) for (n, values), w in zip(regions.items(), order, strict=True))
    return class_names, LabelMeaning(made, ignore[0] if ignore else None)


def _bad_labels(root: Path, labels: Any, why: str = "") -> InputError:
    return InputError(
        f'{root / "dataset.json"}: "labels" must name the values 0, 1, 2, ... (0 = background) once each, '
        f"got {labels!r}{f' ({why})' if why else ''}: renumber the labels"
    )
