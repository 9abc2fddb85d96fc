"""Segmenting every scan of a folder. A scan that can't be segmented is told at the end; the others don't suffer.

Scans are the volume files in the folder itself, or in its imagesTs (imagesTr where there is none or it is empty) where
it is an archive in MSD or nnU-Net layout. `case_0000.nii.gz`, `case_0001.nii.gz`, ... are the channels of one case
where they are as many as the model's; every other file is a case of its own. Case `a` goes to OUT/a.nii.gz, which is
there when it is whole.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from data_shards.archive.cases import is_volume_file, stem
from data_shards.errors import InputError
from maetrain.evaluate.model_folder import ModelContract
from maetrain.evaluate.predict import OURS, check_out, note_in, predict_file
from maetrain.evaluate.sliding import USUAL, Sliding
from maetrain.models.segmentation import NNFormer


class Wanted(NamedTuple):
    """One case: its image files, one per channel, and where its segmentation goes."""

    image_paths: tuple[Path, ...]
    out: Path


class Outcome(NamedTuple):
    """What became of a case; `error` is empty where its segmentation is there now."""

    wanted: Wanted
    error: str = ""
    was_there: bool = False


def predict_folder(
    network: NNFormer,
    contract: ModelContract,
    folder: Path,
    out: Path,
    how: Sliding = USUAL,
    skip_existing: bool = False,
    on_case: Callable[[Outcome], None] = lambda _: None,
) -> list[Outcome]:
    """Segments all cases of `folder`; `on_case` hears of each when it is done.

    `skip_existing` keeps segmentations that this model made with these settings, as their header says; others are made
    anew. InputError where the folder holds nothing, or two cases would get one file.
    """
    how.check()
    note = note_of(contract, how)
    outcomes = []
    for wanted in find_cases(folder, out, network.config.in_channels):
        if skip_existing and note_in(wanted.out) == note:
            outcome = Outcome(wanted, was_there=True)
        else:
            try:
                where = wanted.image_paths, wanted.out
                predict_file(network, *where, contract.preprocess, contract.window_DHW, how, note, contract.meaning)
                outcome = Outcome(wanted)
            except InputError as error:
                outcome = Outcome(wanted, str(error))
        outcomes.append(outcome)
        on_case(outcome)
    return outcomes


def note_of(contract: ModelContract, how: Sliding) -> str:
    """What made a segmentation, for its header's 79 characters: equal notes, equal labels but for rounding."""
    mirrored = "".join("DHW"[axis] for axis in sorted(how.mirror_axes)) or "no"
    return f"{OURS} {contract.weights_sha256[:16]} overlap={how.overlap:g} mirror={mirrored}"


def find_cases(folder: Path, out: Path, channels: int) -> list[Wanted]:
    """All cases by name. InputError where there are none, and where two would get one file."""
    images = next((f for f in (folder / "imagesTs", folder / "imagesTr") if _volumes(f)), folder)
    paths = _volumes(images)
    if not paths:
        raise InputError(f"{folder}: no scan in it (*.nii.gz, *.nii, NRRD, MHA); give a folder of scans, or one file")
    if out.resolve() == images.resolve():
        raise InputError(f"{out}: segmentations would lie among the images; give another folder")
    cases: dict[Path, Wanted] = {}
    for name, image_paths in _by_case(paths, channels):
        wanted = Wanted(image_paths, out / f"{name}.nii.gz")
        if wanted.out in cases:
            both = image_paths[0].name, cases[wanted.out].image_paths[0].name
            raise InputError(f"{images}: {both[0]} and {both[1]} would both become {wanted.out}; rename one")
        check_out(image_paths, wanted.out)
        cases[wanted.out] = wanted
    return [cases[path] for path in sorted(cases)]


def _volumes(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if is_volume_file(path.name)) if folder.is_dir() else []


def _by_case(paths: Sequence[Path], channels: int) -> list[tuple[str, tuple[Path, ...]]]:
    """(case, files): nnU-Net's channel files together where all are there, every other file alone."""
    series: dict[str, list[Path]] = {}
    numbers: dict[str, list[int]] = {}
    for path in paths:
        match = re.fullmatch(r"(.+)_(\d{4})", stem(path.name))
        name, number = (match[1], int(match[2])) if match else (path.name, -1)
        series.setdefault(name, []).append(path)
        numbers.setdefault(name, []).append(number)
    found: list[tuple[str, tuple[Path, ...]]] = []
    for name, files in series.items():
        if numbers[name] == list(range(channels)):
            found.append((name, tuple(files)))
        else:
            found += [(stem(path.name), (path,)) for path in files]
    return found
