"""Whole builds out of scans whose headers and folders are full of a patient: no file, table or line shows him."""

import gzip
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
import pytest
from pydicom.dataset import Dataset

from data_shards.archive.identity import Identity
from data_shards.archive.layout import read_archive
from data_shards.build import BuildConfig, build_archive
from data_shards.contact_sheet import describe
from data_shards.verify import verify
from tests.data_shards.archive.dicom_files import write_series
from tests.data_shards.archive.test_privacy import ALL_TAGS, PLANTED, assert_nothing_shows, planted
from tests.data_shards.helpers import place_code

IDENTITY = Identity(salt=b"0123456789abcdef")


def everything_in(folder: Path) -> list[str]:
    """All that stands in the files of a build and in their names: bytes as they are, and what tables and zips hold."""
    found = []
    for path in sorted(folder.rglob("*")):
        found.append(str(path.relative_to(folder)))
        if path.is_file():
            content = path.read_bytes()
            found.append(content.decode("latin-1"))
            if path.suffix == ".parquet":
                table = pq.read_table(path)
                found += [str(table.to_pylist()), str(table.schema.metadata)]
    return found


def fill(file: Dataset, k: int) -> None:
    uids = file.SeriesInstanceUID
    file.update(planted(ALL_TAGS))
    file.SeriesInstanceUID, file.FrameOfReferenceUID = uids, "1.2.4711.2"


def dicom_tree(root: Path) -> None:
    series = root / "Xaver ZYX4711 19610203" / "CT"
    write_series(series, "one", change=fill)
    write_series(series, "two", change=fill, who=1)
    write_series(root / "Xaver" / "broken", "three", change=fill, slices=(0, 1, 2, 4, 5, 6))  # one is missing


def nifti_tree(root: Path) -> None:
    for i in range(2):
        image = nib.Nifti1Image(place_code((8, 9, 10), i), np.eye(4))
        image.header["descrip"], image.header["db_name"] = b"Xaver ZYX4711 19610203", b"Xaver"
        image.header["aux_file"], image.header["intent_name"] = b"zyx4711", b"xaver"
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Xaver ZYX4711"))
        path = root / "Xaver ZYX4711" / f"19610203_{i}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(image.to_bytes()))
    (root / "Xaver ZYX4711" / "broken.nii.gz").write_bytes(b"xaver")


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
@pytest.mark.parametrize(("plant", "names"), [(dicom_tree, "auto"), (nifti_tree, "hash")], ids=["DICOM", "NIfTI"])
def test_nothing_of_the_patient_is_in_anything_a_build_leaves(tmp_path, plant, names, format, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    plant(tmp_path / "scans")
    config = BuildConfig(format=format, max_quarantined_share=0.5)
    archive = read_archive(tmp_path / "scans", Identity(names, IDENTITY.salt))
    index = build_archive(archive, tmp_path / "out", config)
    assert len(index.volumes) == 2 and len(index.quarantined) == 1
    assert verify(tmp_path / "out", deep=True) == []
    told = [*everything_in(tmp_path / "out"), describe(index), index.volumes[:], index.quarantined, archive.name]
    assert_nothing_shows(*told, *capfd.readouterr(), caplog.text)
    assert not any(IDENTITY.salt.decode() in str(text) for text in told)


def test_the_search_finds_what_is_planted_in_any_file_of_a_build(tmp_path):
    """The check itself: a name put into a table, a tar or a file's name is seen."""
    nifti_tree(tmp_path / "scans")
    archive = read_archive(tmp_path / "scans", Identity("keep"))
    for format in ("zarr", "webdataset"):
        build_archive(archive, tmp_path / format, BuildConfig(format=format, max_quarantined_share=0.5))
        seen = [text for text in everything_in(tmp_path / format) if any(word in text.lower() for word in PLANTED)]
        assert len(seen) > 4
