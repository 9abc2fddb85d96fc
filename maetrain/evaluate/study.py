"""Labelled scans that a network is scored on: the test persons, or another study's. Nothing here is trained on."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from data_shards.archive.layout import ArchiveCase
from data_shards.archive.volume import read_case_image, read_case_label, voxel_sha256
from data_shards.formats.files import digest
from data_shards.labels import Labels
from data_shards.preprocess import PreprocessConfig
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


def _label_sha256(case: ArchiveCase) -> str:
    assert case.label_path is not None
    return digest(case.label_path)[0]
