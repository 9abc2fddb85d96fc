"""A checkpoint counts when it is committed and whole; every planted damage is passed over and named."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from maetrain.checkpoint import commit
from maetrain.checkpoint.commit import (
    MANIFEST,
    newest_committed,
    read_committed,
    retain,
    step_dir,
    step_of,
    sweep_orphans,
)
from maetrain.checkpoint.writer import Lost

from .builders import ATTEMPT, write_checkpoint

FILES = ("rank-00000.safetensors", "rank-00001.safetensors", MANIFEST)


def flip_byte(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def steps_in(checkpoints: Path) -> list[int]:
    return sorted(step_of(folder) for folder in checkpoints.iterdir())


def test_a_committed_checkpoint_reads_back_as_it_was_written(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, 5)
    manifest = read_committed(folder)
    assert (manifest.step, manifest.samples_seen, manifest.world_size) == (5, 40, 2)
    assert [file.name for file in manifest.files] == list(FILES[:2])
    assert [file.bytes for file in manifest.files] == [(folder / name).stat().st_size for name in FILES[:2]]


def test_without_its_manifest_a_checkpoint_does_not_count(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 1)
    write_checkpoint(tmp_path, 2, committed=False)
    (step_dir(tmp_path, 2, ATTEMPT) / f".tmp-{MANIFEST}-1234").write_text("{")  # the crash came while it was written
    heard: list[str] = []
    found = newest_committed(tmp_path, heard.append)
    assert found.path == step_dir(tmp_path, 1, ATTEMPT) and found.manifest is not None and found.manifest.step == 1
    assert len(heard) == 1 and "step-00000002" in heard[0] and "never committed" in heard[0]


@pytest.mark.parametrize("name", FILES[:2])
@pytest.mark.parametrize("place", [0, 60, -1], ids=["length", "header", "values"])
def test_one_flipped_byte_in_a_ranks_file_is_noticed(tmp_path: Path, name: str, place: int) -> None:
    write_checkpoint(tmp_path, 1)
    flip_byte(write_checkpoint(tmp_path, 2) / name, place)
    found = newest_committed(tmp_path)
    assert found.path == step_dir(tmp_path, 1, ATTEMPT)
    assert len(found.skipped) == 1 and name in found.skipped[0] and "SHA-256" in found.skipped[0]


def manifest_without(key: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = json.loads(path.read_text())
        del content[key]
        path.write_text(json.dumps(content))

    return damage


def manifest_with(**changes: object) -> Callable[[Path], None]:
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | changes)) and None


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        (FILES[0], cut_short, "bytes, not"),
        (FILES[1], Path.unlink, "missing"),
        (FILES[1], lambda path: path.write_bytes(b""), "0 bytes, not"),
        (MANIFEST, cut_short, "not a manifest"),
        (MANIFEST, lambda path: path.write_bytes(b"\xff\xfe"), "not a manifest"),
        (MANIFEST, lambda path: path.write_text("[]"), "not a manifest"),
        (MANIFEST, manifest_without("samples_seen"), "samples_seen"),
        (MANIFEST, manifest_with(schema_version=1), "schema_version"),
        (MANIFEST, manifest_with(files=[{"name": "../x", "bytes": 1, "sha256": ""}]), "files.0.name"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_and_said_so(
    tmp_path: Path, name: str, damage: Callable[[Path], None], said: str
) -> None:
    write_checkpoint(tmp_path, 1)
    damage(write_checkpoint(tmp_path, 2) / name)
    heard: list[str] = []
    found = newest_committed(tmp_path, heard.append)
    assert found.path == step_dir(tmp_path, 1, ATTEMPT)
    assert len(heard) == 1 and said in heard[0] and name in heard[0] and "\n" not in heard[0]


def test_where_nothing_is_whole_nothing_is_found(tmp_path: Path) -> None:
    assert newest_committed(tmp_path / "nowhere") == (None, None, ())
    (write_checkpoint(tmp_path, 1) / FILES[0]).unlink()
    assert newest_committed(tmp_path).path is None


def test_the_newest_is_the_largest_step_not_the_latest_written(tmp_path: Path) -> None:
    for step in (100, 9, 20):
        write_checkpoint(tmp_path, step)
    assert newest_committed(tmp_path).path == step_dir(tmp_path, 100, ATTEMPT)


@pytest.mark.parametrize(("keep", "left"), [(0, [4]), (1, [4]), (2, [3, 4]), (9, [1, 2, 3, 4])])
def test_retain_leaves_the_newest_committed_ones_and_always_one(tmp_path: Path, keep: int, left: list[int]) -> None:
    for step in (1, 2, 3, 4):
        write_checkpoint(tmp_path, step)
    retain(tmp_path, keep, newest=step_dir(tmp_path, 4, ATTEMPT))
    assert steps_in(tmp_path) == left


def test_retain_sweeps_what_crashes_left_and_never_what_is_being_written(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 1, committed=False)
    write_checkpoint(tmp_path, 2)
    write_checkpoint(tmp_path, 3, committed=False)
    retain(tmp_path, 2, newest=step_dir(tmp_path, 2, ATTEMPT))
    assert steps_in(tmp_path) == [2, 3]


def test_a_damaged_later_checkpoint_does_not_push_out_the_one_just_written(tmp_path: Path) -> None:
    """Resumed at 3 because 6 was damaged, saved at 4: of those the run can go on from, 4 is the newest."""
    write_checkpoint(tmp_path, 3)
    cut_short(write_checkpoint(tmp_path, 6) / FILES[0])
    retain(tmp_path, 1, newest=write_checkpoint(tmp_path, 4))
    assert newest_committed(tmp_path).path == step_dir(tmp_path, 4, ATTEMPT)
    assert 3 not in steps_in(tmp_path)


def test_a_rank_that_outlives_its_group_removes_no_later_checkpoint_and_none_that_is_being_written(
    tmp_path: Path,
) -> None:
    """The cut-off rank commits step 3 while the new group has committed 3 and 4 and is writing 5."""
    for step in (2, 3, 4):
        write_checkpoint(tmp_path, step, attempt="newgroup")
    write_checkpoint(tmp_path, 5, committed=False, attempt="newgroup")
    write_checkpoint(tmp_path, 3, committed=False, attempt="writing")
    retain(tmp_path, 2, newest=write_checkpoint(tmp_path, 3, attempt="cutoff"))
    left = sorted(folder.name for folder in tmp_path.iterdir())
    assert left == [
        f"step-0000000{step}-{who}"
        for step, who in (
            (2, "newgroup"),
            (3, "cutoff"),
            (3, "writing"),
            (4, "newgroup"),
            (5, "newgroup"),
        )
    ]


def test_a_damaged_checkpoint_goes_when_its_step_is_written_again(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 1)
    cut_short(write_checkpoint(tmp_path, 2, attempt="ffffffff") / FILES[0])
    retain(tmp_path, 2, newest=write_checkpoint(tmp_path, 2))
    found = newest_committed(tmp_path)
    assert found.path == step_dir(tmp_path, 2, ATTEMPT) and found.skipped == ()


def test_a_manifest_that_comes_after_the_sweep_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer stood still between its look and its manifest; a start swept meanwhile."""
    write_checkpoint(tmp_path, 1)
    write = commit.write_text

    def write_late(path: Path, text: str) -> None:
        sweep_orphans(tmp_path)
        write(path, text)

    monkeypatch.setattr(commit, "write_text", write_late)
    with pytest.raises(Lost, match=r"rank-00000\.safetensors: is gone"):
        write_checkpoint(tmp_path, 2)
    assert steps_in(tmp_path) == [1] and newest_committed(tmp_path).skipped == ()


def test_a_start_sweeps_every_folder_that_was_never_committed(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 1)
    write_checkpoint(tmp_path, 2, committed=False)
    mine = write_checkpoint(tmp_path, 3, committed=False)
    sweep_orphans(tmp_path, but=[mine])
    assert steps_in(tmp_path) == [1, 3]
