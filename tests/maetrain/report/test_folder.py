"""A new report takes the place of the old one, and nothing else's."""

import json
from pathlib import Path

import pytest

from maetrain.report import pngs
from maetrain.report.inputs import Picture, ReportInputs

from .builders import make_inputs, make_rows, report
from .test_page import PNG


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_files_of_an_earlier_report_go_and_those_of_others_stay(tmp_path: Path) -> None:
    out, pictures = tmp_path / "out", [Picture(kind="overlay", caption=n, path=n) for n in ("a.png", "b.png")]
    for picture in pictures:
        (tmp_path / picture.path).write_bytes(PNG)
    report(make_rows(), make_inputs(pictures=pictures), tmp_path, out)
    assert {"picture-02.png", "difference.png", "convergence.png", "pretraining.png"} <= contents(out).keys()
    strangers = {"notes.txt": b"mine", "picture-07.png": PNG, ".hidden": b"too"}
    for name, content in strangers.items():
        (out / name).write_bytes(content)
    (out / "folder").mkdir()

    rows, bare = make_rows(arms=("scratch",), num_subjects=3), ReportInputs(test_subjects=3)
    report(rows, bare, tmp_path, out)
    report(rows, bare, tmp_path, tmp_path / "fresh")
    (out / "folder").rmdir()
    assert contents(out) == contents(tmp_path / "fresh") | strangers


def test_the_summary_names_every_file_of_the_report(tmp_path: Path) -> None:
    report(make_rows(), make_inputs(), tmp_path, tmp_path / "out")
    named = json.loads((tmp_path / "out" / "summary.json").read_text())["files"]
    assert named == sorted(contents(tmp_path / "out"))


def test_another_programs_summary_lets_nothing_be_removed(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    (tmp_path / "summary.json").write_text('{"files": ["thesis.tex"]}')
    report(make_rows(num_subjects=2), make_inputs(), tmp_path, tmp_path)
    assert (tmp_path / "thesis.tex").is_file()


@pytest.mark.parametrize(
    "summary",
    [b"no json", b"[]", b"{}", b'{"files": [1]}', b'{"files": ["../precious.txt", "..", ".", "gone.png", "folder"]}'],
)
def test_a_strange_summary_lets_nothing_be_removed(tmp_path: Path, summary: bytes) -> None:
    out = tmp_path / "out"
    (out / "folder").mkdir(parents=True)
    (tmp_path / "precious.txt").write_text("precious")
    (out / "summary.json").write_bytes(summary)
    page = report(make_rows(num_subjects=2), make_inputs(), tmp_path, out)
    assert page.is_file() and (out / "folder").is_dir() and (tmp_path / "precious.txt").is_file()


def test_what_a_killed_writer_left_goes(tmp_path: Path) -> None:
    (tmp_path / ".tmp-index.html-0123abcd").write_text("half")
    report(make_rows(num_subjects=2), make_inputs(), tmp_path, tmp_path)
    assert list(tmp_path.glob(".tmp-*")) == []


def test_an_error_on_the_way_leaves_the_earlier_report_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report(make_rows(), make_inputs(), tmp_path, tmp_path / "out")
    before = contents(tmp_path / "out")

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(pngs, "pretrain_png", full)
    with pytest.raises(OSError, match="no space"):
        report(make_rows(num_subjects=3), make_inputs(), tmp_path, tmp_path / "out")
    assert contents(tmp_path / "out") == before
