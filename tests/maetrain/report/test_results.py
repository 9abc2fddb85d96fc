"""The evidence in docs/results/: its tables follow from its scores."""

import csv
from pathlib import Path

import pytest

from maetrain.report.material import read_material
from maetrain.report.page import write_report
from maetrain.report.results import analyse

KEPT = sorted(path.parent for path in Path(__file__).parents[3].glob("docs/results/*/scores.csv"))


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_the_tables_follow_from_the_scores(folder: Path, tmp_path: Path) -> None:
    material = read_material(folder)
    write_report(material.rows, material.inputs, analyse(material.rows, material.inputs), folder, tmp_path)
    for name in ("comparisons.csv", "labels_saved.csv", "convergence.csv"):
        again, kept = (cells(path / name) for path in (tmp_path, folder))
        # another processor adds in another order: the last digits may differ
        assert again == [[near(cell) for cell in row] for row in kept]


def cells(table: Path) -> list[list[float | str]]:
    return [[as_number(cell) for cell in row] for row in csv.reader(table.read_text().splitlines())]


def near(cell: float | str) -> object:
    return pytest.approx(cell, rel=1e-9, abs=1e-12, nan_ok=True) if isinstance(cell, float) else cell


def as_number(cell: str) -> float | str:
    try:
        return float(cell)
    except ValueError:
        return cell


def test_there_is_evidence() -> None:
    assert len(KEPT) >= 3
