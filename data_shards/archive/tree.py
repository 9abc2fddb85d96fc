"""Any folder tree: NIfTI, NRRD, MHA and DICOM, freely mixed, all unlabelled.

Folders are found here; reading what lies in one is a function of its own that can be fanned out, because a large
archive has millions of DICOM headers. Links to folders are followed, each folder is visited once.
"""

import functools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data_shards.archive.cases import ArchiveCase, FoundCase, is_volume_file
from data_shards.archive.dicom_header import is_dicom_file
from data_shards.archive.dicom_scan import FolderSeries, merge_series, scan_dicom
from data_shards.archive.identity import Identity
from data_shards.errors import InputError


@dataclass(frozen=True)
class FolderFound:
    """What one folder holds. `can_name` False = there is DICOM and no way to name it, so it wasn't read."""

    folder: str
    volume_files: tuple[str, ...]
    series: tuple[FolderSeries, ...]
    can_name: bool = True


ScanFn = Callable[[str], FolderFound]
MapFn = Callable[[ScanFn, list[str]], Iterable[FolderFound]]


def tree_cases(root: Path, identity: Identity, map_fn: MapFn = map) -> tuple[list[FoundCase], list[ArchiveCase]]:
    """Files (still without a name) and DICOM series (named by their keys), both sorted.

    `map_fn(fn, folders)` yields one result per folder, in any order; function and folders can be pickled.
    Raises InputError where DICOM is found that `identity` can't name.
    """
    scan_fn = functools.partial(scan_folder, root=str(root), identity=identity)
    found = sorted(map_fn(scan_fn, list(_folders(str(root)))), key=lambda found: found.folder)
    if not all(folder.can_name for folder in found):
        identity.check_dicom()
    places = sorted(Path(folder.folder) / name for folder in found for name in folder.volume_files)
    files = [FoundCase("__".join(place.parts), (root / place,)) for place in places]
    return files, merge_series(root, (series for folder in found for series in folder.series))


def scan_folder(folder: str, root: str, identity: Identity) -> FolderFound:
    """Volume files and DICOM series that lie directly in `folder` (relative to `root`)."""
    place = os.path.join(root, folder)
    names = [name for name in sorted(os.listdir(place)) if not name.startswith(".")]
    names = [name for name in names if not os.path.isdir(os.path.join(place, name))]
    volumes = tuple(name for name in names if is_volume_file(name))
    others = [name for name in names if not is_volume_file(name)]
    try:
        identity.check_dicom()
    except InputError:  # told by whoever asked for the scan: not every map_fn carries an exception home whole
        can_name = not any(is_dicom_file(os.path.join(place, name)) for name in others)
        return FolderFound(folder, volumes, (), can_name)
    return FolderFound(folder, volumes, scan_dicom(root, folder, others, identity))


def _folders(root: str) -> Iterator[str]:
    """Every folder once, relative to `root`; real ones first, so a link renames nothing that also lies in the tree."""
    seen: set[tuple[int, int]] = set()
    waiting = [root]
    while waiting:
        links: list[str] = []
        for start in waiting:
            for folder, subfolders, _ in os.walk(start, onerror=_refuse):
                status = os.stat(folder)
                if (status.st_dev, status.st_ino) in seen:
                    subfolders.clear()
                    continue
                seen.add((status.st_dev, status.st_ino))
                subfolders.sort()
                links += [path for name in subfolders if os.path.islink(path := os.path.join(folder, name))]
                yield os.path.relpath(folder, root)
        waiting = links


def _refuse(error: OSError) -> None:
    # the folder stays unnamed: where scans come as DICOM, folders are often named after persons
    raise InputError(
        f"a folder of the archive can't be listed ({error.strerror}): find it with `find ARCHIVE -type d ! -readable`"
    ) from None
