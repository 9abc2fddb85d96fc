"""The archive changes while shards are built out of it: a scan is taken as it was planned, or not at all."""

import os
from pathlib import Path

import numpy as np
import pytest

import data_shards.build
from data_shards.build import build
from data_shards.formats.index import ShardIndex
from data_shards.formats.reader import open_reader
from data_shards.verify import verify
from tests.data_shards.fault.outcome import FORMATS, cases_on_disk, config, contents
from tests.data_shards.helpers import decode, place_code, stored_code, write_archive, write_nifti

SHAPE, NEW = (8, 9, 10), 70  # the code that a scan is rewritten with
NAMES = [f"case_{i}" for i in range(5)]


@pytest.fixture
def archive(tmp_path) -> Path:
    return write_archive(tmp_path / "archive", [SHAPE] * 5)


def rewrite(archive: Path, who: int = NEW) -> None:
    write_nifti(archive / "imagesTr/case_2.nii.gz", place_code(SHAPE, who))


def before_every_shard(change, archive: Path):
    """A map_fn of a `build` that lets `change(archive)` happen once the plan is made."""

    def changing_map(fn, plans):
        change(archive)
        return map(fn, plans)

    return changing_map


def assert_holds(index: ShardIndex, expected: dict[str, int]) -> None:
    """`index` holds just these cases, each with the voxels of the given code, as do the shards."""
    assert [v.case for v in index.volumes] == sorted(expected)
    assert cases_on_disk(index.root) == dict.fromkeys(expected, 1)
    for i, volume in enumerate(index.volumes):
        voxels = decode(index, i, open_reader(index).read(i))
        assert np.array_equal(voxels[0], stored_code(SHAPE, expected[volume.case])), volume.case
    assert verify(index.root, deep=True) == []


@pytest.mark.parametrize("format", FORMATS)
def test_a_scan_rewritten_after_the_plan_is_quarantined_by_name_and_taken_the_next_time(archive, tmp_path, format):
    settings = config(format, max_quarantined_share=0.5)
    index = build(archive, tmp_path / "out", settings, before_every_shard(rewrite, archive))
    (entry,) = index.quarantined
    assert (entry.case, entry.path) == ("case_2", "imagesTr/case_2.nii.gz")
    assert "imagesTr/case_2.nii.gz: changed while shards were built" in entry.reason
    assert_holds(index, {f"case_{i}": i for i in (0, 1, 3, 4)})
    again = build(archive, tmp_path / "out", settings)
    assert again.quarantined == ()
    assert_holds(again, {f"case_{i}": i if i != 2 else NEW for i in range(5)})
    build(archive, tmp_path / "fresh", settings)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("file", ["imagesTr", "labelsTr"])
def test_a_file_rewritten_while_it_is_read_never_ends_up_half_old_half_new(
    archive, tmp_path, monkeypatch, format, file
):
    read = data_shards.build.ingest

    def reading(case, *arguments):
        outcome = read(case, *arguments)
        if case.case == "case_2":  # it has been read: what follows comes too late
            path = archive / file / "case_2.nii.gz"
            write_nifti(path, place_code(SHAPE, NEW) if file == "imagesTr" else np.ones(SHAPE, np.uint8))
        return outcome

    settings = config(format, max_quarantined_share=0.5)
    monkeypatch.setattr(data_shards.build, "ingest", reading)
    index = build(archive, tmp_path / "out", settings)
    assert [entry.case for entry in index.quarantined] == ["case_2"]
    assert_holds(index, {f"case_{i}": i for i in (0, 1, 3, 4)})
    monkeypatch.undo()
    again = build(archive, tmp_path / "out", settings)
    assert_holds(again, {f"case_{i}": i if (i != 2 or file == "labelsTr") else NEW for i in range(5)})
    labels = open_reader(again).read(2, "label")
    assert (labels == 1).all() if file == "labelsTr" else np.array_equal(np.unique(labels), [0, 1, 2])


def test_a_scan_that_vanishes_after_the_plan_is_quarantined_and_gone_the_next_time(archive, tmp_path):
    def vanish(archive: Path) -> None:
        for folder in ("imagesTr", "labelsTr"):
            (archive / folder / "case_2.nii.gz").unlink()

    settings = config("zarr", max_quarantined_share=0.5)
    index = build(archive, tmp_path / "out", settings, before_every_shard(vanish, archive))
    assert [entry.case for entry in index.quarantined] == ["case_2"]
    assert_holds(index, {f"case_{i}": i for i in (0, 1, 3, 4)})


def test_scans_that_were_away_only_while_shards_were_built_are_taken_the_next_time(archive, tmp_path):
    """A network share that drops for a minute: the files come back with the sizes and times they had."""
    hidden = archive.with_name("hidden")
    settings = config("zarr", max_quarantined_share=1.0)

    def dropping_map(fn, plans):
        for k, plan in enumerate(plans):
            if k == 1:
                os.rename(archive, hidden)
            yield fn(plan)
            if k == 1:
                os.rename(hidden, archive)

    index = build(archive, tmp_path / "out", settings, dropping_map)
    assert [entry.case for entry in index.quarantined] == ["case_2", "case_3"]
    again = build(archive, tmp_path / "out", settings)
    assert again.quarantined == (), "the message said: run the build again"
    assert_holds(again, {f"case_{i}": i for i in range(5)})
