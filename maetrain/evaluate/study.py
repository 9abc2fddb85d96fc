"""Labelled scans that a network is scored on: the test persons, or another study's. Nothing here is trained on."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from data_shards.archive.layout import Archive, ArchiveCase
from data_shards.archive.volume import read_case_image, read_case_label, voxel_sha256
from data_shards.errors import InputError
from data_shards.formats.files import digest
from data_shards.formats.index import ShardIndex
from data_shards.labels import Labels
from data_shards.preprocess import PreprocessConfig
from data_shards.splits import Split
from maetrain.evaluate.test_set import ScanSource, read_labelled_scan


@dataclass(frozen=True)
class Study:
    """`voxel_sha256`: case -> hash of the scan that is meant; one that has changed since is refused when it is read."""

    cases: Sequence[ArchiveCase]
    voxel_sha256: Mapping[str, str]

    @property
    def content(self) -> dict[str, list[str]]:
        """case -> its person, and the hashes of its voxels and of its label's file: what scores are taken against."""
        return {case.case: [case.subject, self.voxel_sha256[case.case], _label_sha256(case)] for case in self.cases}

    def sources(self, labels: Labels, preprocess: PreprocessConfig) -> list[ScanSource]:
        """What reads each scan when it is called."""
        known = self.voxel_sha256
        return [partial(read_labelled_scan, case, labels, preprocess, known[case.case]) for case in self.cases]


def read_study(cases: Iterable[ArchiveCase], num_classes: int) -> Study:
    """Reads every labelled case once, as it will be scored. InputError for one that can't be read."""
    labelled = [case for case in cases if case.label_path is not None]
    hashes = {}
    for case in labelled:
        image = read_case_image(case)
        read_case_label(case, image, num_classes)
        hashes[case.case] = voxel_sha256(image)
    return Study(labelled, hashes)


def test_study(archive: Archive, index: ShardIndex, split: Split, at_most: int = 0) -> Study:
    """The archive's cases of the test persons that are in the index. InputError where the two don't belong together."""
    test = set(split.test)
    indexed = {v.case: v.voxel_sha256 for v in index.volumes if v.subject in test and v.has_label}
    if archive.labels != index.labels:
        raise InputError(f"{archive.root}: its classes are not those of {index.root}; give the archive of these shards")
    cases = [case for case in archive.cases if case.case in indexed]
    if len(cases) != len(indexed):
        missing = sorted({*indexed} - {case.case for case in cases})
        raise InputError(
            f"{archive.root}: test case {missing[0]} of {index.root} is not there; give the shards' archive"
        )
    return Study(cases[:at_most] if at_most else cases, indexed)


def _label_sha256(case: ArchiveCase) -> str:
    assert case.label_path is not None
    return digest(case.label_path)[0]
