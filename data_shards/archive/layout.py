"""Finds the scans of an archive and names them: which files are images, which are labels, who is the person behind.

Layouts: MSD and nnU-Net (`dataset.json`), BIDS (`dataset_description.json`), or any folder tree of NIfTI, NRRD, MHA and
DICOM, unlabelled. An optional `subjects.json` maps case -> person; without it every case is a person of its own, but
BIDS and DICOM know theirs. Reads no voxels.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from data_shards.archive.bids import bids_cases, is_bids
from data_shards.archive.cases import Archive, ArchiveCase, FoundCase, relative, stem
from data_shards.archive.decathlon import decathlon_cases, read_dataset_json, read_object
from data_shards.archive.identity import Identity
from data_shards.archive.tree import MapFn, tree_cases
from data_shards.errors import InputError
from data_shards.labels import PLAIN

__all__ = ["Archive", "ArchiveCase", "MapFn", "read_archive"]


def read_archive(root: Path, identity: Identity | None = None, map_fn: MapFn = map) -> Archive:
    """The archive under `root`, its cases sorted by name.

    `identity` None = files keep their names and DICOM is refused. `map_fn(fn, folders)` may fan the reading of DICOM
    headers out: one result per folder, in any order; function and folders can be pickled.

    Raises InputError for a missing or empty folder, a broken dataset.json or subjects.json, a listed file that is
    not there, missing channels, two files that would get the same case name, and DICOM without a salt.
    """
    root, identity = Path(root), identity or Identity()
    if not root.is_dir():
        raise InputError(f"{root} is not a folder: give the folder that holds dataset.json or scans")
    try:
        archive = _read(root, identity, map_fn)
    except InputError:
        if identity.hashes_files and (root / "dataset.json").is_file():
            # the reason names files or quotes the header
            raise InputError(
                f"{root}: dataset.json or subjects.json does not fit: see why with shards.privacy.names=keep"
            ) from None
        raise
    if not archive.cases:
        raise InputError(
            f"{root} holds no NIfTI scan (*.nii, *.nii.gz), NRRD, MHA or DICOM: give the folder of an archive that does"
        )
    return archive


def _read(root: Path, identity: Identity, map_fn: MapFn) -> Archive:
    name = root.resolve().name
    channel_names: tuple[str, ...] = ("image",)
    class_names: tuple[str, ...] = ("background",)
    meaning = PLAIN
    series: list[ArchiveCase] = []
    if (root / "dataset.json").is_file():
        dataset = read_dataset_json(root)
        name, channel_names = dataset.name, dataset.channel_names
        class_names, meaning = dataset.class_names, dataset.meaning
        files = list(decathlon_cases(root, dataset))
    elif (root / "imagesTr").is_dir():
        raise InputError(f"{root} has imagesTr but no dataset.json: add one with the channel and label names")
    elif is_bids(root):
        files = list(bids_cases(root))
    else:
        files, series = tree_cases(root, identity, map_fn)
        if series and identity.names == "auto":
            # files beside DICOM were made of it, and are often named after the patient
            identity = replace(identity, names="hash")
    cases = [*_named_cases(root, files, identity), *series]
    if any(case.is_hashed for case in cases):
        name = "archive"  # a folder with one patient's scans is often named after the patient
    by_name = tuple(sorted(cases, key=lambda case: case.case))
    return Archive(root, name, channel_names, class_names, by_name, meaning)


def _named_cases(root: Path, found: Iterable[FoundCase], identity: Identity) -> Iterable[ArchiveCase]:
    subjects_path = root / "subjects.json"
    subjects = read_object(subjects_path) if subjects_path.is_file() else {}
    cases: dict[str, ArchiveCase] = {}
    unused, without = set(subjects), []
    for scan in found:
        # Dots and blanks would break tar keys ("a.b.image.npy" belongs to sample "a"), and zarr keeps "__x" to itself.
        case = re.sub(r"[^\w-]", "_", stem(scan.name)).lstrip("_") or "case"
        path = scan.image_paths[0]
        if case in cases:
            if identity.hashes_files:
                raise InputError(
                    f"two files make case {identity.key('case', case)}: see which with shards.privacy.names=keep"
                )
            raise InputError(f"{path} and {cases[case].image_paths[0]} both make case {case!r}: rename one")
        key = next((k for k in (stem(scan.name), case, scan.name) if k in subjects), None)
        unused.discard(key)
        if key is None and not scan.subject:
            without.append(case)
        subject = str(subjects[key]) if key is not None else scan.subject or case
        cases[case] = ArchiveCase(
            case, subject, scan.image_paths, scan.label_path, scan.session, scan.modality, source=relative(path, root)
        )
    if unused and without:
        # a key that fits nothing would make its scan a person of its own, and persons could leak between the splits
        if identity.hashes_files:
            raise InputError(
                f"subjects.json: {len(unused)} names are no case, and {len(without)} cases have no person: "
                "write each case's name as its file's, without .nii.gz"
            )
        raise InputError(
            f"{subjects_path}: {min(unused)!r} is no case, and case {min(without)!r} has no person: "
            "write each case's name as its file's, without .nii.gz"
        )
    return [_hashed(case, identity) if identity.hashes_files else case for case in cases.values()]


def _hashed(case: ArchiveCase, identity: Identity) -> ArchiveCase:
    key = identity.key("case", case.case)
    return ArchiveCase(
        case=key,
        subject=identity.key("subject", case.subject),
        image_paths=case.image_paths,
        label_path=case.label_path,
        session=case.session and identity.key("session", case.subject, case.session),
        modality=case.modality,
        source=key,
    )
