"""What an archive is made of: its cases, and what messages may call one of them. No disk is touched here."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from data_shards.labels import PLAIN, LabelMeaning, Labels

NIFTI_ENDINGS = (".nii.gz", ".nii")
NRRD_ENDINGS = (".nrrd", ".nhdr")
META_ENDINGS = (".mha", ".mhd")
VOLUME_ENDINGS = NIFTI_ENDINGS + NRRD_ENDINGS + META_ENDINGS


@dataclass(frozen=True)
class ArchiveCase:
    """One scan: `image_paths` has one path per channel, or a single 4-D file. `label_path` None = unlabelled.

    A DICOM series has a `series_uid`, and `image_paths` are the folders that hold its slices: an archive may hold
    millions of slices. `modality` is "CT", "MR", "PT", ... or "" = unknown. `source` is what may be published about
    where the scan came from: its path under the archive's root, or its key where names are hashed. Printing a case
    tells nothing more than that.
    """

    case: str
    subject: str
    image_paths: tuple[Path, ...] = field(repr=False)
    label_path: Path | None = field(repr=False)
    session: str = ""
    modality: str = ""
    series_uid: str = field(default="", repr=False)
    source: str = ""

    @property
    def is_hashed(self) -> bool:
        """True = neither path nor header text of this scan may be told, only `case`. (A path has an ending, no key.)"""
        return bool(self.series_uid) or self.source == self.case

    @property
    def scan_name(self) -> "ScanName | None":
        """The only name messages may use; None = each file's path will do."""
        return ScanName(self.case, is_hashed=True) if self.is_hashed else None


@dataclass(frozen=True)
class Archive:
    """A data set on disk. A class name's place is its label value; `class_names[0]` is "background"."""

    root: Path
    name: str
    channel_names: tuple[str, ...]
    class_names: tuple[str, ...]
    cases: tuple[ArchiveCase, ...]
    meaning: LabelMeaning = PLAIN

    @property
    def labels(self) -> Labels:
        return Labels(self.class_names, self.meaning)


@dataclass(frozen=True)
class FoundCase:
    """A scan as its layout finds it, before it gets its name. `subject` "" = only subjects.json may know."""

    name: str
    image_paths: tuple[Path, ...]
    label_path: Path | None = None
    subject: str = ""
    session: str = ""
    modality: str = ""


@dataclass(frozen=True)
class ScanName:
    """What messages call a scan: its path or, hashed, its key. A hashed one keeps quiet about a library's reasons."""

    text: str
    is_hashed: bool = False

    def __str__(self) -> str:
        return self.text

    def why(self, error: Exception) -> str:
        """` (reason)` in one line; empty for a hashed scan, because libraries quote paths and header values."""
        reason = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        return "" if self.is_hashed else f" ({reason or type(error).__name__})"


def is_volume_file(name: str) -> bool:
    # Names with a leading dot are macOS leftovers ("._case.nii.gz"), never scans.
    return name.lower().endswith(VOLUME_ENDINGS) and not name.startswith(".")


def stem(name: str) -> str:
    """A file's name without the ending of a volume."""
    return re.sub(r"\.(nii(\.gz)?|nrrd|nhdr|mha|mhd)$", "", name, flags=re.IGNORECASE)


def relative(path: Path, root: Path) -> str:
    """`path` as seen from the archive's root; just the name of a file that lies elsewhere."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
