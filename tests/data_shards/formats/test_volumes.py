"""The rows of an index: the same records whether they come from memory or a file, in one piece or in parts."""

import pickle
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from data_shards.formats.encoding import Member
from data_shards.formats.volumes import VolumeTable
from tests.data_shards.formats.test_index import VOLUME

RECORDS = [
    replace(
        VOLUME,
        case=f"case_{i}",
        subject=f"person {i % 3}",
        shape_CDHW=(2, i + 1, 3, 4),
        members={"image": Member(i, 10, 2**32 - 1)} | ({"label": Member(i, 5, 1)} if i % 2 else {}),
        stored_sha256={"image": f"{i:064x}"} | ({"label": "ab" * 32} if i % 2 else {}),
        has_label=bool(i % 2),
        minimum_C=(-1.5, float(i)),
    )
    for i in range(7)
]


@pytest.fixture(params=["memory", "file", "parts"])
def volumes(request) -> VolumeTable:
    table = VolumeTable.of(RECORDS)
    if request.param == "file":
        return VolumeTable.from_parquet(table.serialized, table.sha256)
    return (
        VolumeTable.join([VolumeTable.of(RECORDS[:3]), VolumeTable.of([]), VolumeTable.of(RECORDS[3:])])
        if (request.param == "parts")
        else table
    )


def test_records_come_back_by_place_slice_and_in_turn(volumes):
    assert len(volumes) == 7 and list(volumes) == RECORDS
    assert volumes[4] == RECORDS[4] and volumes[-1] == RECORDS[-1] and volumes[1:6:2] == tuple(RECORDS[1:6:2])
    for place in (7, -8):
        with pytest.raises(IndexError):
            volumes[place]


def test_what_a_reader_needs_is_the_records_own(volumes):
    for i, record in enumerate(RECORDS):
        stored = volumes.stored(i)
        for name in ("shard", "case", "shape_CDHW", "has_label", "dtype", "scale", "offset", "air", "minimum_C"):
            assert getattr(stored, name) == getattr(record, name), name
        assert stored.image == record.members["image"]


def test_rows_are_found_by_text_and_taken_by_place(volumes):
    places = volumes.where("subject", ["person 1", "nobody"])
    assert places.tolist() == [1, 4] and list(volumes.take(places)) == [RECORDS[1], RECORDS[4]]
    assert volumes.where("subject", []).tolist() == []


def test_equal_rows_make_equal_files_and_survive_pickling(volumes):
    assert volumes == VolumeTable.of(RECORDS) and volumes.sha256 == VolumeTable.of(RECORDS).sha256
    again = pickle.loads(pickle.dumps(volumes))
    assert again == volumes and again.sha256 == volumes.sha256
    assert volumes != VolumeTable.of(RECORDS[:-1])


def test_another_table_is_no_index():
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(pa.table({"case": ["a"]}), sink)
    with pytest.raises(ValueError, match="columns"):
        VolumeTable.from_parquet(sink.getvalue(), "")
    with pytest.raises((ValueError, OSError)):
        VolumeTable.from_parquet(pa.py_buffer(b"no parquet"), "")


def test_matrices_have_a_row_per_volume(volumes):
    assert np.array_equal(volumes.matrix("shape_CDHW"), [record.shape_CDHW for record in RECORDS])
