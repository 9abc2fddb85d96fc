"""Finds the cases of an archive: which files are images, which are labels, who is the person behind each.

Three layouts: MSD (`dataset.json` with a "training" list, or imagesTr/labelsTr), nnU-Net v2 (`case_0000.nii.gz`,
"channel_names", labels as name -> value), and any folder tree of NIfTI files (all unlabelled). An optional
`subjects.json` maps case -> person; without it every case is a person of its own. Reads no voxels.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_shards.errors import InputError

NIFTI_ENDINGS = (".nii.gz", ".nii")


@dataclass(frozen=True)
class ArchiveCase:
    """One scan: `image_paths` has one path per channel, or a single 4-D file. `label_path` None = unlabelled."""

    case: str
    subject: str
    image_paths: tuple[Path, ...]
    label_path: Path | None


@dataclass(frozen=True)
class Archive:
    """A data set on disk. A class name's place is its label value; `class_names[0]` is "background"."""

    root: Path
    name: str
    channel_names: tuple[str, ...]
    class_names: tuple[str, ...]
    cases: tuple[ArchiveCase, ...]


def read_archive(root: Path) -> Archive:
    """The archive under `root`, its cases sorted by name.

    Raises InputError for a missing or empty folder, a broken dataset.json or subjects.json, a listed file that is
    not there, missing channels, and two files that would get the same case name.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root} is not a folder: give the folder that holds dataset.json or NIfTI files")
    if (root / "dataset.json").is_file():
        header = _read_object(root / "dataset.json")
        name = str(header.get("name") or root.resolve().name)
        channel_names, class_names = _channel_names(root, header), _class_names(root, header)
        found = list(_decathlon_cases(root, header, channel_names))
    else:
        if (root / "imagesTr").is_dir():
            raise InputError(f"{root} has imagesTr but no dataset.json: add one with the channel and label names")
        name, channel_names, class_names = root.resolve().name, ("image",), ("background",)
        found = [("__".join(path.relative_to(root).parts), (path,), None) for path in _nifti_files(root.rglob("*"))]
    if not found:
        raise InputError(f"{root} holds no NIfTI scan (*.nii, *.nii.gz): give the folder of an archive that has some")
    return Archive(root, name, channel_names, class_names, _named_cases(root, found))


FoundCase = tuple[str, tuple[Path, ...], Path | None]  # file name, images, label


def _decathlon_cases(root: Path, header: dict[str, Any], channel_names: tuple[str, ...]) -> Iterator[FoundCase]:
    """Cases of MSD and nnU-Net folders: the labelled ones, then imagesTs as unlabelled ones."""
    is_nnunet = "channel_names" in header
    if "training" in header:
        yield from _listed_cases(root, header["training"])
    else:
        for name, paths in _scanned_images(root / "imagesTr", is_nnunet, len(channel_names)):
            labels = [root / "labelsTr" / f"{_stem(name)}{ending}" for ending in NIFTI_ENDINGS]
            yield name, paths, next((label for label in labels if label.is_file()), None)
    for name, paths in _scanned_images(root / "imagesTs", is_nnunet, len(channel_names)):
        yield name, paths, None


def _listed_cases(root: Path, training: Any) -> Iterator[FoundCase]:
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
        yield image.name, (image,), label


def _scanned_images(folder: Path, is_nnunet: bool, num_channels: int) -> Iterator[tuple[str, tuple[Path, ...]]]:
    files = _nifti_files(folder.iterdir()) if folder.is_dir() else []
    if not is_nnunet:
        yield from ((path.name, (path,)) for path in files)
        return
    channels_by_case: dict[str, dict[int, Path]] = {}
    for path in files:
        match = re.fullmatch(r"(.+)_(\d{4})", _stem(path.name))
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


def _named_cases(root: Path, found: Iterable[FoundCase]) -> tuple[ArchiveCase, ...]:
    subjects_path = root / "subjects.json"
    subjects = _read_object(subjects_path) if subjects_path.is_file() else {}
    cases: dict[str, ArchiveCase] = {}
    unused, without = set(subjects), []
    for name, image_paths, label_path in found:
        # Dots and blanks would break tar keys ("a.b.image.npy" belongs to sample "a"), and zarr keeps "__x" to itself.
        case = re.sub(r"[^\w-]", "_", _stem(name)).lstrip("_") or "case"
        if case in cases:
            raise InputError(f"{image_paths[0]} and {cases[case].image_paths[0]} both make case {case!r}: rename one")
        key = next((k for k in (_stem(name), case, name) if k in subjects), None)
        unused.discard(key)
        if key is None:
            without.append(case)
        subject = str(subjects[key]) if key is not None else case
        cases[case] = ArchiveCase(case, subject, image_paths, label_path)
    if unused and without:
        # a key that fits nothing would make its scan a person of its own, and persons could leak between the splits
        raise InputError(
            f"{subjects_path}: {min(unused)!r} is no case, and case {min(without)!r} has no person: "
            "write each case's name as its file's, without .nii.gz"
        )
    return tuple(cases[case] for case in sorted(cases))


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
    except (TypeError, ValueError, AttributeError):
        names = {}
    is_complete = names and len(names) == len(labels) and sorted(names) == list(range(len(names))) and len(names) <= 256
    if not is_complete or len(set(names.values())) != len(names):
        raise InputError(
            f'{root / "dataset.json"}: "labels" must name the values 0, 1, 2, ... (0 = background) once each, '
            f"got {labels!r}: renumber the labels"
        )
    return ("background", *(names[value] for value in range(1, len(names))))


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}): fix or replace it") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a JSON object, holds {type(value).__name__}: fix or replace it")
    return value


def _nifti_files(paths: Iterable[Path]) -> list[Path]:
    # Names with a leading dot are macOS leftovers ("._case.nii.gz"), never scans.
    return sorted(path for path in paths if path.name.endswith(NIFTI_ENDINGS) and not path.name.startswith("."))


def _stem(name: str) -> str:
    return re.sub(r"\.nii(\.gz)?$", "", name)
