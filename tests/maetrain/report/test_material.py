"""A report needs scores.csv and nothing else; what lies beside it is used."""

from pathlib import Path

import pytest

from data_shards.errors import InputError
from maetrain.evaluate.scores import write_scores
from maetrain.report.curves import write_curves
from maetrain.report.inputs import Curve, ReportInputs
from maetrain.report.material import read_material

from .builders import make_inputs, make_rows, report

CURVES = [Curve(budget=1, arm="mae", seed=0, steps=[0, 9], dice=[0.1, 0.7])]


@pytest.mark.parametrize("at", [".", "report"])
def test_scores_alone_are_enough(tmp_path: Path, at: str) -> None:
    rows = make_rows(num_subjects=5)
    write_scores(tmp_path / at / "scores.csv", rows)
    material = read_material(tmp_path)
    assert set(material.rows) == set(rows)
    assert (material.inputs, material.elsewhere) == (ReportInputs(test_subjects=5), {})


def test_what_lies_beside_the_scores_is_read(tmp_path: Path) -> None:
    inputs, there = make_inputs(curves=[]), make_rows(num_subjects=2)
    write_scores(tmp_path / "scores.csv", make_rows(num_subjects=3))
    write_scores(tmp_path / "elsewhere" / "siemens 3T.CSV", there)
    (tmp_path / "elsewhere" / "._siemens 3T.csv").write_bytes(b"\0\5\x16\7")  # as macOS leaves them
    inputs.save(tmp_path / "inputs.json")
    write_curves(tmp_path / "curves.csv", CURVES)
    material = read_material(tmp_path)
    assert material.inputs == inputs.model_copy(update={"curves": CURVES})
    assert {name: set(rows) for name, rows in material.elsewhere.items()} == {"siemens 3T": set(there)}
    make_inputs().save(tmp_path / "inputs.json")
    assert read_material(tmp_path).inputs == make_inputs(), "curves of its own come first"


def test_scores_in_the_folder_come_before_those_of_an_older_report(tmp_path: Path) -> None:
    write_scores(tmp_path / "scores.csv", make_rows(num_subjects=3))
    write_scores(tmp_path / "report" / "scores.csv", make_rows(num_subjects=5))
    assert read_material(tmp_path).inputs.test_subjects == 3


def test_a_folder_without_scores_and_a_garbled_companion_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no scores.csv there or in its report/"):
        read_material(tmp_path)
    write_scores(tmp_path / "scores.csv", make_rows(num_subjects=2))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.csv").write_text("nothing")
    with pytest.raises(InputError, match="x.csv: header 'nothing'"):
        read_material(tmp_path)


def test_a_written_report_regenerates_itself_to_the_last_byte(tmp_path: Path) -> None:
    inputs = ReportInputs(test_subjects=6, curves=make_inputs().curves)
    rows = make_rows(num_subjects=6, arms=("scratch", "mae", "random-mae"))
    report(rows, inputs, tmp_path, tmp_path / "first")
    again = read_material(tmp_path / "first")
    report(again.rows, again.inputs, tmp_path / "first", tmp_path / "second")
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("first", "second"))
    assert first.keys() == second.keys() and [n for n in first if first[n] != second[n]] == []
    assert {"index.html", "report.md", "convergence.png", "difference.png"} <= first.keys()
