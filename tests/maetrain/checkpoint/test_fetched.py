"""A handover in a bucket; the bucket is fsspec's in memory."""

import uuid
from pathlib import Path

import pytest

from data_shards.errors import InputError
from data_shards.formats import files
from data_shards.formats.files import location
from maetrain.checkpoint.fetched import fetched_handover
from maetrain.checkpoint.handover import WEIGHTS, read_handover

from .test_handover import hand_over


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A handover in a bucket of the test's own."""
    hand_over(tmp_path / "local")
    bucket = location(f"memory://{uuid.uuid4().hex}/handover")
    bucket.mkdir(parents=True)
    for file in (tmp_path / "local").iterdir():
        (bucket / file.name).write_bytes(file.read_bytes())
    return bucket


def test_a_handover_of_a_bucket_becomes_a_folder_once(place: Path, tmp_path: Path) -> None:
    folder = fetched_handover(place, tmp_path / "handovers")
    assert folder.parent == tmp_path / "handovers"
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
        file.name: file.read_bytes() for file in (tmp_path / "local").iterdir()
    }
    assert read_handover(folder) == read_handover(tmp_path / "local")
    (place / WEIGHTS).unlink()
    assert fetched_handover(place, tmp_path / "handovers") == folder, "not fetched again"


def test_what_is_not_there_or_not_whole_is_refused_and_leaves_no_folder(place: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"memory://.*/elsewhere: no encoder handover \(contract.json is missing\)"):
        fetched_handover(place.parent / "elsewhere", tmp_path / "handovers")
    (place / WEIGHTS).write_bytes(b"other weights")
    with pytest.raises(InputError, match="not the file the contract speaks of"):
        fetched_handover(place, tmp_path / "handovers")
    assert not (tmp_path / "handovers").exists() or not any((tmp_path / "handovers").iterdir())


def test_a_bucket_that_does_not_answer_is_not_taken_for_an_empty_one(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_answer(*_: object, **__: object) -> None:
        raise OSError("no answer within 60 s")

    monkeypatch.setattr(files, "ask", no_answer)
    with pytest.raises(InputError, match="can't be fetched: no answer within 60 s; look at the bucket and its keys"):
        fetched_handover(place, tmp_path / "handovers")
