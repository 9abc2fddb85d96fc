"""The catalogue of a build beside what stands in the files of its archive."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_shards.archive.identity import Identity
from data_shards.build import build
from data_shards.formats.index import ShardIndex
from tests.data_shards.fault.outcome import FORMATS, config
from tests.data_shards.helpers import place_code, write_archive, write_nifti

SHAPES = [(8, 9, 10), (7, 12, 6), (10, 6, 9), (9, 9, 9), (6, 11, 8)]
# a scan that lies on its side, in voxels of 0.5 x 2 x 1.25 mm
TURNED = np.array([[0.0, 0, -1.25, 7], [-0.5, 0, 0, -3], [0, 2, 0, 11], [0, 0, 0, 1]])


@pytest.fixture
def archive(tmp_path) -> Path:
    root = write_archive(tmp_path / "archive", SHAPES)
    write_nifti(root / "imagesTr/case_1.nii.gz", place_code(SHAPES[1], 1), TURNED)
    write_nifti(root / "labelsTr/case_1.nii.gz", np.zeros(SHAPES[1], np.uint8), TURNED)
    write_nifti(root / "imagesTr/case_3.nii.gz", np.full(SHAPES[3], np.nan, np.float32))
    write_nifti(root / "imagesTs/copy_of_2.nii", place_code(SHAPES[2], 2).astype(np.float32))
    return root


def rows(index: ShardIndex) -> dict[str, dict]:
    listed = pq.read_table(index.root / "catalogue.parquet").to_pylist()
    assert [row["case"] for row in listed] == sorted(row["case"] for row in listed)
    return {row.pop("case"): row for row in listed}


def sha256_of_source(data_XYZ: np.ndarray) -> str:
    """Type, shape and voxels of one channel in float32, X fastest, as the file has them."""
    channel = data_XYZ.astype("<f4")
    return hashlib.sha256(f"<f4{(1, *channel.shape[::-1])}".encode() + channel.tobytes(order="F")).hexdigest()


@pytest.mark.parametrize("format", FORMATS)
def test_every_scan_has_a_row_that_says_what_became_of_it(archive, tmp_path, format):
    index = build(archive, tmp_path / "out", config(format, max_quarantined_share=0.5))
    listed = rows(index)
    assert {case: row["state"] for case, row in listed.items()} == {
        "case_0": "built", "case_1": "built", "case_2": "built", "case_3": "quarantined", "case_4": "built",
        "copy_of_2": "duplicate",
    }  # fmt: skip
    assert listed["copy_of_2"]["reason"] == "case_2" and "NaN" in listed["case_3"]["reason"]
    shards = {volume.case: volume.shard for volume in index.volumes}
    for i, shape in enumerate(SHAPES):
        row = listed[f"case_{i}"]
        assert row["source"] == f"imagesTr/case_{i}.nii.gz" and row["shard"] == shards.get(f"case_{i}")
        if i != 3:
            assert row["reason"] is None and row["shape_XYZ"] == list(shape)
            assert row["voxel_sha256"] == sha256_of_source(place_code(shape, i))
            # by hand: which way the file's axes run, and how far a step is
            assert row["orientation"] == ("PSL" if i == 1 else "RAS")
            assert row["spacing_XYZ_mm"] == pytest.approx([0.5, 2, 1.25] if i == 1 else [1, 1, 1])
    unread = [listed["case_3"][name] for name in ("shape_XYZ", "spacing_XYZ_mm", "orientation", "voxel_sha256")]
    assert unread == [None] * 4
    copy = listed["copy_of_2"]
    assert copy["source"] == "imagesTs/copy_of_2.nii" and copy["shard"] is None
    assert copy["voxel_sha256"] == listed["case_2"]["voxel_sha256"] and copy["shape_XYZ"] == list(SHAPES[2])


def test_no_path_of_this_machine_is_in_it_and_the_index_knows_its_hash(archive, tmp_path):
    (archive / "imagesTr/case_4.nii.gz").write_bytes(b"no scan")
    index = build(archive, tmp_path / "out", config("zarr", max_quarantined_share=0.5))
    content = (tmp_path / "out/catalogue.parquet").read_bytes()
    texts = [value for row in rows(index).values() for value in row.values() if isinstance(value, str)]
    assert not [text for text in texts if str(tmp_path) in text or text.startswith("/")]
    assert str(tmp_path).encode() not in content
    assert index.catalogue_sha256 == hashlib.sha256(content).hexdigest()


def test_persons_sessions_and_kinds_are_those_of_the_archive(archive, tmp_path):
    (archive / "subjects.json").write_text('{"case_0": "anna", "case_3": "anna", "copy_of_2": "carl"}')
    listed = rows(build(archive, tmp_path / "out", config("zarr", max_quarantined_share=0.5)))
    persons = {case: row["subject"] for case, row in listed.items()}
    assert (persons["case_0"], persons["case_3"], persons["copy_of_2"]) == ("anna", "anna", "carl")
    assert persons["case_1"] == "case_1"
    assert {row["modality"] for row in listed.values()} == {"MR"}


def test_hashed_names_are_hashed_here_too(archive, tmp_path):
    identity = Identity("hash", b"0123456789abcdef")
    settings = config("zarr", max_quarantined_share=0.5)
    listed = rows(build(archive, tmp_path / "out", settings, identity=identity))
    keys = [identity.key("case", f"case_{i}") for i in range(5)] + [identity.key("case", "copy_of_2")]
    assert sorted(listed) == sorted(keys)
    texts = [text for row in listed.values() for text in row.values() if isinstance(text, str)]
    assert not [text for text in texts if "case_" in text or "copy" in text or "nii" in text]
    assert {row["source"] for row in listed.values()} == set(listed)
    assert listed[keys[3]]["state"] == "quarantined" and listed[keys[5]]["reason"] == keys[2]


def test_a_build_that_goes_on_lists_what_it_kept_as_a_fresh_one_does(archive, tmp_path):
    settings = config("webdataset", max_quarantined_share=0.5)
    fresh = build(archive, tmp_path / "fresh", settings)
    build(archive, tmp_path / "out", settings)
    (tmp_path / "out/catalogue.parquet").unlink()
    (tmp_path / "out/.build/shard-00001.tar.json").unlink()
    assert rows(build(archive, tmp_path / "out", settings)) == rows(fresh)
